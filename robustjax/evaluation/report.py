"""Reports: the only code that formats numbers.

`report.json` holds every number and every parameter, `report.md` the table that people
read, `curve.png` a robustness curve if one was run, `information.png` estimates of
mutual information.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from robustjax._checks import InputError
from robustjax.evaluation._pictures import (
    draw_attention,
    draw_curve,
    draw_influence_maps,
    draw_information,
    draw_neurons,
    draw_radar,
    draw_shares,
    draw_steps,
    draw_surfaces,
    has_radar,
)
from robustjax.evaluation._sections import (
    aligned,
    attention_lines,
    defended_lines,
    information_lines,
    maps_lines,
    neurons_lines,
    steps_lines,
    surfaces_lines,
)
from robustjax.evaluation.limits import (
    by_access,
    class_prior,
    disagreements,
    has_constant_solution,
)
from robustjax.evaluation.minimum_norm import accuracy_at, minimum_norms
from robustjax.evaluation.results import AttackResult, Robustness, wilson_interval
from robustjax.evaluation.statistics import mean_and_deviation as mean_and_deviation
from robustjax.training import write_json

_LIMIT = "limit of any classifier"


def summarise(result: Robustness) -> dict[str, Any]:
    """Every number of an evaluation, JSON-able.

    Returns:
      `num_examples`, `draws` of a random classifier (else 1), and `rows`: clean, each
      attack, the worst case, each with name, accuracy, number correct, 95% Wilson
      interval and seconds; attacks also with all parameters, the largest distances, the
      pixel range they reached and the largest share of an image's mass above 1, if any;
      staged ones with each stage, those of minimum norm with the median norm and the
      accuracy at radii; rows where one image is within reach of all with `limit`, the
      largest class's share; `access`, the worst case by what attackers know, and what
      is `inconsistent` in it; and `warnings`, one line each.
    """
    total = len(result.labels)
    rows = [_row("clean", result.clean_correct, result.clean_seconds)]
    for attack in result.attacks:
        row = _row(attack.name, attack.correct, attack.seconds)
        row["parameters"] = dict(attack.parameters)
        if has_constant_solution(attack.parameters):
            row["limit"] = class_prior(result.labels)
        row["largest_distance"] = {
            norm: float(values.max()) for norm, values in attack.distance.items()
        }
        row["pixel_range"] = [attack.lowest, attack.highest]
        if attack.mass_above_one > 0:
            row["mass_above_one"] = attack.mass_above_one
        if attack.stages:
            row["stages"] = [dataclasses.asdict(stage) for stage in attack.stages]
        if not attack.counts:
            row["name"] += " (not counted)"
        if attack.norm is not None:
            row["minimum_norm"] = _minimum_norm(attack, result.clean_correct)
        rows.append(row)
    seconds = sum(attack.seconds for attack in result.attacks)
    rows.append(_row("worst case", result.worst_case_correct, seconds))
    counted = [a for a in result.attacks if a.counts]
    if any(has_constant_solution(a.parameters) for a in counted):
        rows[-1]["limit"] = class_prior(result.labels)
    beyond = [row for row in rows if row["accuracy"] > row.get("limit", 1.0)]
    warnings = [f"{a.name}: {line}" for a in result.attacks for line in a.warnings]
    warnings += [
        f"{a.name}: pixels reach {a.highest:.3g}, and up to {a.mass_above_one:.1%} of "
        "an image's mass lies above 1."
        for a in result.attacks
        if a.mass_above_one > 0
    ]
    warnings += [
        f"{row['name']}: {100 * row['accuracy']:.2f}% is above the limit of every "
        f"classifier at this radius, {100 * row['limit']:.2f}%, since one grey image "
        "is legal for all: the attack failed."
        for row in beyond
    ]
    access = by_access(result)
    inconsistent = disagreements(result)
    warnings += inconsistent
    return dict(
        num_examples=total,
        draws=result.draws,
        rows=rows,
        access=access,
        inconsistent=inconsistent,
        warnings=warnings,
    )


def table(summary: Mapping[str, Any]) -> str:
    """The rows of a summary as an aligned Markdown table.

    Example:
      >>> row = {"name": "clean", "correct": 9, "accuracy": 0.9,
      ...        "interval": [0.6, 0.98], "seconds": 0.1}
      >>> print(table({"num_examples": 10, "rows": [row]}))
      | attack | accuracy | 95% interval  | n  | seconds |
      | ------ | -------- | ------------- | -- | ------- |
      | clean  | 90.00%   | 60.00..98.00% | 10 | 0.1     |
    """
    limited = any("limit" in row for row in summary["rows"])
    last = (_LIMIT,) if limited else ()
    cells = [("attack", "accuracy", "95% interval", "n", "seconds", *last)]
    for row in summary["rows"]:
        low, high = row["interval"]
        if limited:
            last = (f"{100 * row['limit']:.2f}%" if "limit" in row else "",)
        cells.append(
            (
                row["name"],
                f"{100 * row['accuracy']:.2f}%",
                f"{100 * low:.2f}..{100 * high:.2f}%",
                str(summary["num_examples"]),
                f"{row['seconds']:.1f}",
                *last,
            )
        )
    return aligned(cells)


def write_report(
    directory: Path,
    summary: Mapping[str, Any],
    *,
    context: Mapping[str, Any],
    curve: Mapping[str, Sequence[float]] | None = None,
    information: Mapping[str, Any] | None = None,
    defended: Mapping[str, Any] | None = None,
    neurons: Mapping[str, Any] | None = None,
    maps: Mapping[str, Any] | None = None,
    steps: Mapping[str, Any] | None = None,
    surfaces: Mapping[str, Any] | None = None,
    attention: Mapping[str, Any] | None = None,
) -> None:
    """Writes `report.json`, `report.md` and pictures of what else is given.

    These are `curve.png`, `neurons.png`, `information.png`, and `information_radar.png`
    for at least three attacks on a classifier with a critic of images.

    Args:
      directory: Created if needed.
      summary: From `summarise`.
      context: What else a reader needs: config, checkpoint, versions, device, commit.
      curve: `eps` and `accuracy` of a robustness curve, and perhaps `limit`, for each
        radius None or what no classifier exceeds there.
      information: From `information_of`.
      defended: From `beside_bare`.
      neurons: From `neuron_shifts`.
      maps: `layer`, `names` of columns, `images` [R, M, H, W, C] and their `maps`
        [R, M, h, w] from `influence_maps`, for `influence_maps.png`.
      steps: From `step_curves`, for `steps.png`.
      surfaces: `offsets`, `loss` and `broken` of a `loss_surface` as arrays, and
        `health` of gradients (`count`, and shares of images `vanished`, `not_finite`
        and of derivatives `zero_share`), for `surfaces.png`.
      attention: From `attention_of_models`, and `masks`, which they are in words; for
        `attention.png` and `key_share.png`.

    Raises:
      InputError: the directory cannot be written.
    """
    content = {**context, **summary}
    if curve is not None:
        content["curve"] = {name: list(values) for name, values in curve.items()}
    given = dict(information=information, defended=defended, neurons=neurons)
    given |= dict(steps=steps)
    if surfaces is not None:
        given["gradients"] = surfaces["health"]
    if attention is not None:
        given["attention"] = {k: v for k, v in attention.items() if k != "pictures"}
    content |= {name: dict(part) for name, part in given.items() if part is not None}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if curve is not None:
            draw_curve(directory / "curve.png", curve, summary["num_examples"])
        if information is not None:
            draw_information(directory / "information.png", information)
            if has_radar(information):
                draw_radar(directory / "information_radar.png", information)
        if neurons is not None:
            draw_neurons(directory / "neurons.png", neurons)
        if maps is not None:
            draw_influence_maps(directory / "influence_maps.png", maps)
        if steps is not None:
            draw_steps(directory / "steps.png", steps)
        if surfaces is not None:
            draw_surfaces(directory / "surfaces.png", surfaces)
        if attention is not None:
            draw_attention(directory / "attention.png", attention)
            draw_shares(directory / "key_share.png", attention)
        write_json(directory / "report.json", content)
        partial = directory / "report.md.partial"
        lines = [] if defended is None else defended_lines(defended)
        lines += [] if neurons is None else neurons_lines(neurons)
        lines += [] if steps is None else steps_lines(steps)
        lines += [] if surfaces is None else surfaces_lines(surfaces)
        lines += [] if attention is None else attention_lines(attention)
        lines += [] if maps is None else maps_lines(maps)
        lines += [] if information is None else information_lines(information)
        partial.write_text(_markdown(summary, context, curve, lines))
        partial.replace(directory / "report.md")
    except OSError as error:
        raise InputError(f"Cannot write to {directory}: {error.strerror}.") from error


def save_adversarial(directory: Path, result: Robustness) -> None:
    """One `NAME.npz` per attack: `x_adv`, `index`, `labels`, `broken`.

    `index` is the position in the split, `broken` whether the classifier is wrong on
    x_adv, or the share of a random one's draws that are.

    Raises:
      InputError: the directory cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for attack in result.attacks:
            if attack.x_adv is None:
                continue
            path = directory / f"{attack.name.replace(' ', '_').replace('/', '_')}.npz"
            partial = path.with_name(path.name + ".partial")
            with partial.open("wb") as file:
                np.savez_compressed(
                    file,
                    x_adv=attack.x_adv,
                    index=result.index,
                    labels=result.labels,
                    broken=~attack.correct if result.draws == 1 else 1 - attack.correct,
                )
            partial.replace(path)
    except OSError as error:
        raise InputError(f"Cannot write to {directory}: {error.strerror}.") from error


def seeds_table(figures: Mapping[str, Sequence[float]]) -> str:
    """Mean and deviation over seeds of accuracies by name, as a Markdown table.

    Example:
      >>> print(seeds_table({"clean": [0.98, 0.99]}))
      | figure | mean   | deviation | seeds |
      | ------ | ------ | --------- | ----- |
      | clean  | 98.50% | 0.71      | 2     |
    """
    cells = [("figure", "mean", "deviation", "seeds")]
    for name, values in figures.items():
        mean, deviation = mean_and_deviation(values)
        cells.append(
            (name, f"{100 * mean:.2f}%", f"{100 * deviation:.2f}", str(len(values)))
        )
    return aligned(cells)


def _row(name: str, correct: np.ndarray, seconds: float) -> dict[str, Any]:
    count, total = correct.sum().item(), len(correct)
    return {
        "name": name,
        "correct": count,
        "accuracy": count / total,
        "interval": list(wilson_interval(count, total)),
        "seconds": seconds,
    }


def _minimum_norm(attack: AttackResult, clean_correct: np.ndarray) -> dict[str, Any]:
    norms = minimum_norms(attack, clean_correct)
    right = clean_correct >= 0.5
    median = float(np.median(norms[right])) if right.any() else 0.0
    return {
        "norm": attack.norm,
        # JSON has no infinity; None is "more than half of the images survive".
        "median_of_correct": median if np.isfinite(median) else None,
        "eps": list(attack.radii),
        "accuracy": accuracy_at(norms, attack.radii).tolist(),
    }


def _markdown(
    summary: Mapping,
    context: Mapping,
    curve: Mapping | None,
    more: Sequence[str],
) -> str:
    lines = ["# Robustness report", ""]
    for name in ("workdir", "checkpoint", "data", "suite", "device", "commit", "seed"):
        if name in context:
            lines.append(f"- {name}: {context[name]}")
    lines += ["", table(summary), ""]
    if summary.get("warnings"):
        lines += ["## Warnings", ""]
        lines += [f"- {line}" for line in summary["warnings"]] + [""]
    lines.append(
        "The worst case counts an example as correct only if it is classified "
        "correctly clean and under every attack above but those marked as not counted, "
        "which are held to no radius of the threat model. "
        "Intervals are Wilson's."
    )
    if summary.get("draws", 1) > 1:
        lines += [
            "",
            "The classifier is random: accuracies are shares of its draws. Of "
            f"{summary['draws']} per image, attacks pick among their runs by a third, "
            "the adversary among attacks by another (or takes one attack for all "
            "images); the rest judge. Accuracies at radii are majority votes.",
        ]
    lines += ["", "## Attacks", ""]
    for row in summary["rows"]:
        if "parameters" in row:
            lines.append(f"- **{row['name']}**: `{row['parameters']}`")
            reached = ", ".join(
                f"{norm} {value:.6g}" for norm, value in row["largest_distance"].items()
            )
            low, high = row["pixel_range"]
            lines.append(f"  - reached: {reached}; pixels in [{low:g}, {high:g}]")
            lines += [f"  - {detail}" for detail in _details(row)]
    if curve is not None:
        lines += ["", "## Robustness curve", "", "![curve](curve.png)", ""]
        limit = curve.get("limit")
        cells = [("eps", "accuracy", *(() if limit is None else (_LIMIT,)))]
        for i, (eps, accuracy) in enumerate(
            zip(curve["eps"], curve["accuracy"], strict=True)
        ):
            shown = () if limit is None else ("",)
            if limit is not None and limit[i] is not None:
                shown = (f"{100 * limit[i]:.2f}%",)
            cells.append((f"{eps:.5g}", f"{100 * accuracy:.2f}%", *shown))
        lines.append(aligned(cells))
    lines += [
        *more,
        "",
        f"JAX {jax.__version__}; every number and the config: report.json.",
        "",
    ]
    return "\n".join(lines)


def _details(row: Mapping[str, Any]) -> list[str]:
    """What only staged or minimum-norm attacks have to say, a line each."""
    lines = [
        f"after {stage['name']}: {100 * stage['accuracy']:.2f}% "
        f"({stage['broken']} of {stage['attacked']} broken, {stage['seconds']:.1f} s)"
        for stage in row.get("stages", ())
    ]
    if "minimum_norm" in row:
        found = row["minimum_norm"]
        median = found["median_of_correct"]
        lines.append(
            f"median {found['norm']} norm over images classified correctly: "
            + ("none found for half of them" if median is None else f"{median:.4g}")
        )
        lines += [
            f"accuracy at {found['norm']} {eps:.5g}: {100 * accuracy:.2f}%"
            for eps, accuracy in zip(found["eps"], found["accuracy"], strict=True)
        ]
    return lines
