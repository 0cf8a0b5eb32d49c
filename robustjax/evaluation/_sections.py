"""Sections of a report: what diagnostics say, as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from robustjax.evaluation._pictures import has_radar

Cells = list[tuple[str, ...]]

_SCORES = ("shift", "random_sets", "margin")


def aligned(cells: Sequence[Sequence[str]]) -> str:
    """A table of Markdown whose columns are as wide as their widest cell."""
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return "\n".join(lines)


def information_lines(information: Mapping[str, Any]) -> list[str]:
    """Estimates of information: lines of Markdown."""
    quantities = information["quantities"]
    names = [quantity.replace("_", " ") for quantity in quantities]
    cells = [("attack", "images", "n", *names)]
    for attack in information["attacks"]:
        for group, row in attack["groups"].items():
            figures = [_mean_or_none(row[quantity]) for quantity in quantities]
            cells.append((attack["name"], group, str(row["count"]), *figures))
    lines = [
        *("", "## Information", ""),
        "Critics' estimates of what logits say: natural of x, adversarial of "
        "x_adv - x, standard of the image that they are the logits of; clean in those "
        "of x, adv in those of x_adv. Mean and deviation over images; right are those "
        "right on x, of them fooled are wrong on x_adv, survived right. Figures of "
        "different critics do not compare.",
        *("", aligned(cells), ""),
        "![information](information.png)",
    ]
    if has_radar(information):
        lines += ["", "![information by attack](information_radar.png)"]
    return lines


def defended_lines(defended: Mapping[str, Any]) -> list[str]:
    """What a defense adds: lines of Markdown."""
    cells = [("attack", "model alone", "defended", "DSR", "of")]
    for row in defended["rows"]:
        dsr, fallen = row.get("dsr"), row.get("fallen")
        cells.append(
            (
                row["name"],
                f"{100 * row['bare']:.2f}%",
                f"{100 * row['defended']:.2f}%",
                "-" if dsr is None else f"{100 * dsr:.2f}%",
                "-" if fallen is None else str(fallen),
            )
        )
    return [
        *("", "## With and without the defense", ""),
        "Accuracies on the same images. The defense success rate (DSR) is the share "
        "that the defended model gets right, of those that the model alone gets right "
        "before the attack and wrong after it. What the defense is worth is the "
        "difference of the worst cases, under attacks that know it.",
        *("", aligned(cells)),
    ]


def neurons_lines(neurons: Mapping[str, Any]) -> list[str]:
    """Shifts of neurons: lines of Markdown."""
    columns = ("front", "middle", "tail")
    shares = ("front that fall", "tail that rise")
    cells: Cells = [("attack", "images", "n", *columns, *shares, "Spearman")]
    about: Cells = [("attack", "shift of neurons", "random sets", "clean margin")]
    for attack in neurons["attacks"]:
        for group, row in attack["groups"].items():
            shifts = [_number(row[name]) for name in columns]
            moved = [_share(row[name]) for name in ("front_falls", "tail_rises")]
            figures = (*shifts, *moved, _number(row["spearman"]))
            cells.append((attack["name"], group, str(row["count"]), *figures))
        scores = [
            _number(attack["auroc"][n]) for n in ("shift", "random_sets", "margin")
        ]
        about.append((attack["name"], *scores))
    front, tail = (_share(neurons["at_zero"][name]) for name in ("front", "tail"))
    return [
        *("", "## Neurons", ""),
        f"Outputs of the layer {neurons['layer']} of the model alone, on images that "
        "it gets right: mean shifts in deviations over benign images, Spearman's "
        "correlation of a class's influence with them. Of the front "
        f"neurons {front} are 0 on clean images, of the tail {tail}.",
        *("", aligned(cells), ""),
        "Area under the ROC curve for which of these images fall: of the shift of the "
        "tail minus that of the front, of the same of random sets, and of how small "
        "the clean margin was, which needs no neurons.",
        *("", aligned(about), "", "![neurons](neurons.png)"),
    ]


def maps_lines(maps: Mapping[str, Any]) -> list[str]:
    """Where influence sits: lines of Markdown."""
    return [
        *("", "## Influence over the image", ""),
        f"Products of activation and gradient of log p of the label at the layer "
        f"{maps['layer']} of the model alone, absolute, summed over channels.",
        *("", "![influence over the image](influence_maps.png)"),
    ]


def steps_lines(curves: Mapping[str, Any]) -> list[str]:
    """Accuracy against steps: lines of Markdown."""
    cells: Cells = [("step size", *(f"{step} steps" for step in curves["steps"]))]
    for number, step_size in enumerate(curves["step_sizes"]):
        row = zip(curves["accuracy"][number], curves["loss"][number], strict=True)
        shown = (f"{100 * accuracy:.2f}% ({loss:.3f})" for accuracy, loss in row)
        cells.append((f"{step_size:.5g}", *shown))
    return [
        *("", "## Steps", ""),
        f"Accuracy (and mean cross-entropy) at the iterates of PGD, n = "
        f"{curves['num_examples']}. Where more steps still change it, the attacks "
        "above had too few.",
        *("", aligned(cells), "", "![steps](steps.png)"),
    ]


def surfaces_lines(surfaces: Mapping[str, Any]) -> list[str]:
    """The loss around images: lines of Markdown."""
    health = surfaces["health"]
    return [
        *("", "## Loss around images", ""),
        f"Of {health['count']} images {_share(health['vanished'])} have no derivative "
        f"of the cross-entropy above 1e-8, {_share(health['not_finite'])} one that is "
        f"not finite; {_share(health['zero_share'])} of all derivatives are exactly 0, "
        "and sign attacks leave these pixels where they are. Where the loss is not a "
        "slope but a pit or a plain, attacks by gradients need more steps, other "
        "objectives or none at all.",
        *("", "![loss surfaces](surfaces.png)"),
    ]


def attention_lines(attention: Mapping[str, Any]) -> list[str]:
    """Key areas: lines of Markdown."""
    names = ("key_mean", "key_share", "ratio")
    cells: Cells = [("model", "images", "map", "n", *names)]
    for row in attention["rows"]:
        figures = [_with_half_width(row, name) for name in names]
        about = (row["model"], row["images"], row["map"].replace("_", "-"))
        cells.append((*about, str(row["count"]), *figures))
    return [
        *("", "## Key areas", ""),
        f"Masks: {attention['masks']}. key_mean is the mean of the map, scaled to "
        "[0, 1] image by image, in the mask; key_share the part of the map that lies "
        "in it; ratio that over the mask's part of the image, 1 without localisation. "
        "Means with half-widths of 95% intervals over all images with a mask, right "
        "or wrong.",
        *("", aligned(cells), "", "![maps](attention.png)", ""),
        "![key_share](key_share.png)",
    ]


def _with_half_width(row: Mapping[str, Any], name: str) -> str:
    if row[name] is None:
        return "-"
    return f"{row[name]:.3f} +- {row[f'{name}_half_width']:.3f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}%"


def _mean_or_none(figures: Mapping[str, float | None]) -> str:
    if figures["mean"] is None:
        return "-"
    return f"{figures['mean']:.3f} ({figures['deviation']:.3f})"
