"""Sections of a report: what diagnostics say."""

from collections.abc import Mapping
from typing import Any

from robustjax.evaluation._blocks import Image, Section, Table, Text
from robustjax.evaluation._blocks import aligned as aligned
from robustjax.evaluation._verdict import percent

Cells = list[tuple[str, ...]]


def information_section(information: Mapping[str, Any]) -> Section:
    """Estimates of information."""
    quantities = information["quantities"]
    names = [quantity.replace("_", " ") for quantity in quantities]
    cells: Cells = [("attack", "images", "n", *names)]
    for attack in information["attacks"]:
        for group, row in attack["groups"].items():
            figures = [_mean_or_none(row[quantity]) for quantity in quantities]
            cells.append((attack["name"], group, str(row["count"]), *figures))
    words = (
        "Critics' estimates of what logits say: natural of x, adversarial of "
        "x_adv - x, standard of the image that they are the logits of; clean in those "
        "of x, adv in those of x_adv. Mean and deviation over images; right are those "
        "right on x, of them fooled are wrong on x_adv, survived right. Figures of "
        "different critics do not compare."
    )
    table = Table("Estimates of information by attack", cells)
    pictures = (Image("information"), Image("information_radar"))
    return Section("Information", [Text(words), table, *pictures])


def defended_section(defended: Mapping[str, Any]) -> Section:
    """What a defense adds."""
    cells: Cells = [("attack", "model alone", "defended", "DSR", "of")]
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
    words = (
        "Accuracies on the same images. The defense success rate (DSR) is the share "
        "that the defended model gets right, of those that the model alone gets right "
        "before the attack and wrong after it. What the defense is worth is the "
        "difference of the worst cases, under attacks that know it."
    )
    table = Table("The model alone, and defended", cells)
    return Section("With and without the defense", [Text(words), table])


def neurons_section(neurons: Mapping[str, Any]) -> Section:
    """Shifts of neurons."""
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
    words = (
        f"Outputs of the layer {neurons['layer']} of the model alone, on images that "
        "it gets right: mean shifts in deviations over benign images, Spearman's "
        "correlation of a class's influence with them. Of the front "
        f"neurons {front} are 0 on clean images, of the tail {tail}."
    )
    predicts = (
        "Area under the ROC curve for which of these images fall: of the shift of the "
        "tail minus that of the front, of the same of random sets, and of how small "
        "the clean margin was, which needs no neurons."
    )
    shifts = Table("Shifts of neurons by attack", cells)
    scores = Table("What predicts which images fall", about)
    blocks = [Text(words), shifts, Text(predicts), scores, Image("neurons")]
    return Section("Neurons", blocks)


def maps_section(maps: Mapping[str, Any]) -> Section:
    """Where influence sits."""
    words = (
        "Products of activation and gradient of log p of the label at the layer "
        f"{maps['layer']} of the model alone, absolute, summed over channels."
    )
    return Section("Influence over the image", [Text(words), Image("influence_maps")])


def steps_section(curves: Mapping[str, Any]) -> Section:
    """Accuracy against steps."""
    cells: Cells = [("step size", *(f"{step} steps" for step in curves["steps"]))]
    for number, step_size in enumerate(curves["step_sizes"]):
        row = zip(curves["accuracy"][number], curves["loss"][number], strict=True)
        shown = (
            f"{100 * accuracy:.2f}% ({'none' if loss is None else f'{loss:.3f}'})"
            for accuracy, loss in row
        )
        cells.append((f"{step_size:.5g}", *shown))
    words = (
        f"Accuracy (and mean cross-entropy) at the iterates of PGD, n = "
        f"{curves['num_examples']}. Where more steps still change it, the attacks "
        "above had too few."
    )
    table = Table("Accuracy (and mean cross-entropy) by steps", cells)
    about = [Text(words), *limit_blocks(curves)]
    return Section("Steps", [*about, table, Image("steps")])


def limit_blocks(found: Mapping[str, Any]) -> list[Text]:
    """What no classifier exceeds at the radius of a table, if there is such a limit."""
    if found.get("limit") is None:
        return []
    words = (
        f"At this radius one grey image is within reach of all: no classifier exceeds "
        f"{percent(found['limit'])}, whoever attacks it."
    )
    return [Text(words)]


def surfaces_section(health: Mapping[str, Any]) -> Section:
    """The loss around images."""
    words = (
        f"Of {health['count']} images {_share(health['vanished'])} have no derivative "
        f"of the cross-entropy above 1e-8, {_share(health['not_finite'])} one that is "
        f"not finite; {_share(health['zero_share'])} of all derivatives are exactly 0, "
        "and sign attacks leave these pixels where they are. Where the loss is not a "
        "slope but a pit or a plain, attacks by gradients need more steps, other "
        "objectives or none at all."
    )
    return Section("Loss around images", [Text(words), Image("surfaces")])


def attention_section(attention: Mapping[str, Any]) -> Section:
    """Key areas."""
    names = ("key_mean", "key_share", "ratio")
    cells: Cells = [("model", "images", "map", "n", names[0], "m", *names[1:])]
    for row in attention["rows"]:
        mean, *shares = (_with_half_width(row, name) for name in names)
        about = (row["model"], row["images"], row["map"].replace("_", "-"))
        compared = row.get("compared", row["count"])
        cells.append((*about, str(row["count"]), mean, str(compared), *shares))
    words = (
        f"Masks: {attention['masks']}. key_mean is the mean of the map, scaled to "
        "[0, 1] image by image, in the mask; key_share the part of the map that lies "
        "in it; ratio that over the mask's part of the image, 1 without localisation. "
        "Means with half-widths of 95% intervals: key_mean over all n images with a "
        "mask, right or wrong, 0 where the map is; the others over the m of them on "
        "which every model has such a map, clean and attacked."
    )
    table = Table("How much of each map lies in the key area", cells)
    pictures = (Image("attention"), Image("key_share"))
    return Section("Key areas", [Text(words), table, *pictures])


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
