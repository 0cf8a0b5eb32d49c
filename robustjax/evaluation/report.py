"""Reports: the only code that formats numbers.

`report.json` holds every number and every parameter (its schema: `schema`), `report.md`
and `report.html` say what they mean, pictures lie beside them.
"""

import contextlib
import dataclasses
import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robustjax import _files
from robustjax._checks import PROBABILITIES, InputError
from robustjax.evaluation import _breakdown
from robustjax.evaluation._access_section import surrogate_accuracies
from robustjax.evaluation._blocks import aligned
from robustjax.evaluation._outcome_sections import rows_cells
from robustjax.evaluation._parameters import json_able
from robustjax.evaluation.document import compose, report_markdown
from robustjax.evaluation.html import report_html
from robustjax.evaluation.limits import (
    access_by_radius,
    class_prior,
    disagreements,
    has_constant_solution,
)
from robustjax.evaluation.minimum_norm import accuracy_at, minimum_norms
from robustjax.evaluation.outcomes import OUTCOMES, distinct, outcomes_file
from robustjax.evaluation.results import AttackResult, Robustness
from robustjax.evaluation.schema import read_report
from robustjax.evaluation.statistics import mean_and_deviation, wilson_interval

_PICTURE = re.compile(r"[a-z_]+")


MOST_CLASSES = 100  # of a matrix of confusions


def summarise(result: Robustness) -> dict[str, Any]:
    """Every number of an evaluation, JSON-able.

    Returns:
      `num_examples`, `draws` of a random classifier (else 1), and `rows`: clean, each
      attack, the worst case, each with name, accuracy, number correct, 95% Wilson
      interval and seconds; attacks also with all parameters, the largest distances, the
      pixel range they reached and the largest share of an image's mass above 1, if any,
      those of one name numbered;
      staged ones with each stage, those of minimum norm with the median norm and the
      accuracy at radii; rows where one image is within reach of all with `limit`, the
      largest class's share; `access`, the worst case by what attackers know,
      `access_elsewhere`, the same at radii that do not count, and what is
      `inconsistent` in them; and `warnings`, one line each.
    """
    total, result = len(result.labels), _told_apart(result)
    counts = _breakdown.confusion(result) or []
    many = len(counts) > MOST_CLASSES
    rows = [_row("clean", result.clean_correct, result.clean_seconds)]
    for attack in result.attacks:
        row = _row(attack.name, attack.correct, attack.seconds)
        row["parameters"] = json_able(attack.parameters)
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
        row["counts"] = attack.counts
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
    warnings = [PROBABILITIES] if result.probabilities and total > 1 else []
    nan = [("clean", result.num_nan), *((a.name, a.num_nan) for a in result.attacks)]
    warnings += [
        f"{name}: logits hold NaN on {count} of {total} images, which count as broken."
        for name, count in nan
        if count
    ]
    warnings += [f"{a.name}: {line}" for a in result.attacks for line in a.warnings]
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
    elsewhere = access_by_radius(result)
    access = elsewhere.pop("")
    elsewhere = {k: v for k, v in elsewhere.items() if len(v) > 1}
    inconsistent = disagreements(result)
    warnings += inconsistent
    return dict(
        num_examples=total,
        draws=result.draws,
        rows=rows,
        access=access,
        access_elsewhere=elsewhere,
        surrogates=surrogate_accuracies(result),
        inconsistent=inconsistent,
        warnings=warnings,
        class_prior=class_prior(result.labels),
        waterfall=_breakdown.waterfall(result),
        confusion=None if many else counts or None,
        confusions=_breakdown.mistakes(counts) if many else [],
        paths=_breakdown.paths(result),
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
    return aligned(rows_cells(summary))


def write_report(directory: Path, summary: Mapping[str, Any], **given: Any) -> None:
    """Writes `report.json`, `report.md`, `report.html` and pictures.

    With `result`, also `outcomes.npz`, what became of each image. A reader sees the old
    report or the whole new one: everything is written under other names first, and
    `report.json` comes last, right behind `outcomes.npz`. Pictures of the old report
    that the new one does not have are removed.

    Args:
      directory: Created if needed.
      summary: From `summarise`.
      **given: `context`, and what else there is: the keywords of `compose`.

    Raises:
      InputError: the directory cannot be written, or what is given makes no report.
    """
    content, pictures = compose(summary, **given)
    texts = {
        "report.md": report_markdown(content, pictures),
        "report.html": report_html(content, pictures),
    }
    files = {f"{name}.png": picture.png for name, picture in pictures.items()}
    files |= {name: text.encode() for name, text in texts.items()}
    if given.get("result") is not None:
        files[OUTCOMES] = outcomes_file(given["result"])
    # Last: who finds a new report.json finds all that belongs to it.
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    files["report.json"] = text.encode()
    before = _pictures_there(directory)
    partial = {name: _files.partial_of(directory / name) for name in files}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, written in files.items():
            partial[name].write_bytes(written)
        for name, path in partial.items():
            path.replace(directory / name)
        for name in before - set(files):
            (directory / name).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"Cannot write to {directory}: {error.strerror}.") from error
    finally:
        for path in partial.values():
            _remove(path)


def _pictures_there(directory: Path) -> set[str]:
    """Pictures of the report that is there, if there is one that can be read."""
    try:
        found = read_report(directory)["pictures"]
    except InputError:
        return set()
    names = [one["name"] for one in found]
    return {f"{name}.png" for name in names if _PICTURE.fullmatch(name)}


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def save_adversarial(directory: Path, result: Robustness) -> None:
    """One `NAME.npz` per attack: `x_adv`, `index`, `labels`, `broken`.

    `index` is the position in the split, `broken` whether the classifier is wrong on
    x_adv, or the share of a random one's draws that are. Names that would be one file
    are numbered.

    Raises:
      InputError: the directory cannot be written.
    """
    plain = [re.sub(r"[ /]", "_", attack.name) for attack in result.attacks]
    names = distinct(plain)
    for name, attack in zip(names, result.attacks, strict=True):
        if attack.x_adv is None:
            continue
        fill = functools.partial(
            np.savez_compressed,
            x_adv=attack.x_adv,
            index=result.index,
            labels=result.labels,
            broken=~attack.correct if result.draws == 1 else 1 - attack.correct,
        )
        _files.write(directory / f"{name}.npz", fill)


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


def _told_apart(result: Robustness) -> Robustness:
    """Attacks of one name numbered as in `outcomes.npz`; rows are found by names."""
    names = distinct([attack.name for attack in result.attacks])
    attacks = [
        dataclasses.replace(attack, name=name)
        for name, attack in zip(names, result.attacks, strict=True)
    ]
    return dataclasses.replace(result, attacks=tuple(attacks))


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
        "histogram": _breakdown.histogram(norms),
    }
