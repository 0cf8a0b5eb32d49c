"""Sections of a report: the verdict and what it rests on."""

from collections.abc import Mapping, Sequence
from typing import Any

from robustjax.evaluation import _sections
from robustjax.evaluation._access_section import access_cells
from robustjax.evaluation._blocks import (
    Block,
    Folded,
    Image,
    Item,
    Items,
    Section,
    Table,
    Text,
)
from robustjax.evaluation._protocol_sections import (
    BINARIZATION_FLAG,
    TEST_TIME_FLAG,
    binarization_section,
    test_time_section,
)
from robustjax.evaluation._verdict import (
    NO_ADAPTIVE,
    percent,
    threat_in_words,
    unmeasured,
)

Cells = list[tuple[str, ...]]
_LIMIT = "limit of any classifier"
_HEAD = ("workdir", "checkpoint", "data", "suite", "device", "commit", "seed")


def sections_of(content: Mapping[str, Any]) -> list[Section]:
    """A whole report, verdict first."""
    found = [_verdict(content), _accuracy(content)]
    if content.get("indicators"):
        found.append(_indicators(content["indicators"]))
    if content.get("binarization"):
        found.append(binarization_section(content["binarization"]))
    if content.get("test_time"):
        found.append(test_time_section(content["test_time"]))
    found += [_attacks(content)]
    found += _pictured(content)
    for name, section in (
        ("defended", _sections.defended_section),
        ("neurons", _sections.neurons_section),
        ("gradients", _sections.surfaces_section),
        ("attention", _sections.attention_section),
        ("maps", _sections.maps_section),
        ("information", _sections.information_section),
    ):
        if content.get(name):
            found.append(section(content[name]))
    if content.get("weights"):
        found.append(_weights(content["weights"]))
    if content.get("training"):
        found.append(Section("Training", [Image("training")]))
    return [*found, _making(content)]


def _verdict(content: Mapping[str, Any]) -> Section:
    verdict = content["verdict"]
    adaptive = "; ".join(verdict["adaptive"]) if verdict["adaptive"] else NO_ADAPTIVE
    items = [
        Item("Threat model", threat_in_words(content.get("threat"))),
        Item("Adaptive attacks", adaptive),
    ]
    raised = [one for one in content.get("indicators") or () if one["flagged"]]
    items += [
        Item(f"Flag {f['name']}", f["detail"], more=[f["meaning"]]) for f in raised
    ]
    tests = (("binarization", BINARIZATION_FLAG), ("test_time", TEST_TIME_FLAG))
    for name, meaning in tests:
        if name in verdict["flags"]:
            items.append(Item(f"Flag {name}", meaning))
    if not verdict["measured"]:
        items.append(Item("Indicators", unmeasured(content)))
    elif not raised:
        items.append(
            Item("Indicators", f"{verdict['measured']} measured, none raised.")
        )
    blocks: list[Block] = [Text(verdict["sentence"], strong=True), Items(items)]
    if content["warnings"]:
        lines = [Item("", line) for line in content["warnings"]]
        blocks += [Text("Warnings", strong=True), Items(lines)]
    return Section("Verdict", blocks)


def rows_cells(summary: Mapping[str, Any]) -> Cells:
    """The rows of a summary as cells of a table."""
    limited = any("limit" in row for row in summary["rows"])
    last = (_LIMIT,) if limited else ()
    cells: Cells = [("attack", "accuracy", "95% interval", "n", "seconds", *last)]
    for row in summary["rows"]:
        low, high = row["interval"]
        if limited:
            last = (percent(row["limit"]) if "limit" in row else "",)
        cells.append(
            (
                row["name"],
                percent(row["accuracy"]),
                f"{100 * low:.2f}..{100 * high:.2f}%",
                str(summary["num_examples"]),
                f"{row['seconds']:.1f}",
                *last,
            )
        )
    return cells


def _accuracy(content: Mapping[str, Any]) -> Section:
    blocks: list[Block] = [
        Table("Accuracy under each attack", rows_cells(content)),
        Text(
            "The worst case counts an example as correct only if it is classified "
            "correctly clean and under every attack above but those marked as not "
            "counted, which are held to no radius of the threat model. Intervals are "
            "Wilson's."
        ),
    ]
    if content.get("draws", 1) > 1:
        blocks.append(
            Text(
                "The classifier is random: accuracies are shares of its draws. Of "
                f"{content['draws']} per image, attacks pick among their runs by a "
                "third, the adversary among attacks by another (or takes one attack "
                "for all images); the rest judge. Accuracies at radii are majority "
                "votes."
            )
        )
    access, elsewhere = (content.get(n) or {} for n in ("access", "access_elsewhere"))
    if len(access) > 1 or elsewhere:
        cells: Cells = access_cells(access, content.get("surrogates") or (), elsewhere)
        blocks += [
            Text(
                "White-box attackers have the weights, gray-box ones all but these, "
                "black-box ones neither weights nor network. Who knows more must do "
                "at least as much."
            ),
            Table("Worst case by access", cells),
        ]
    if len(content.get("waterfall") or ()) > 1:
        cells = [("attack", "broken first", "left")]
        cells += [
            (s["attack"], f"{s['broken']:g}", percent(s["accuracy"]))
            for s in content["waterfall"]
        ]
        table = Table("Images that an attack broke and none before it", cells)
        blocks += [Image("waterfall"), Folded("The same as a table", [table])]
    return Section("Accuracy", blocks)


def _indicators(indicators: Sequence[Mapping[str, Any]]) -> Section:
    cells: Cells = [("indicator", "flag", "value", "threshold", "what was seen")]
    for one in indicators:
        flag = "raised" if one["flagged"] else "no"
        flag = "not measured" if one["value"] is None and not one["flagged"] else flag
        measured = (_number(one["value"]), _number(one["threshold"]))
        cells.append((one["name"], flag, *measured, one["detail"]))
    meanings = [
        Item(one["name"], one["meaning"], more=[f"Source: {one['source']}"])
        for one in indicators
    ]
    words = (
        "Each is a measurement with a threshold. A flag says that the attacks may have "
        "failed, so that the accuracy above is too high; no flag is no proof."
    )
    folded = Folded("What a flag means, and where each comes from", [Items(meanings)])
    table = Table("Failure indicators", cells)
    return Section("Failure indicators", [Text(words), table, folded])


def _attacks(content: Mapping[str, Any]) -> Section:
    blocks: list[Block] = []
    attacks = [row for row in content["rows"] if "parameters" in row]
    items = []
    for row in attacks:
        reached = ", ".join(
            f"{norm} {value:.6g}" for norm, value in row["largest_distance"].items()
        )
        low, high = row["pixel_range"]
        about = f"reached: {reached}; pixels in [{low:g}, {high:g}]"
        text = str(row["parameters"])
        items.append(Item(row["name"], text, code=True, more=[about, *_details(row)]))
    if items:
        blocks.append(Folded("All parameters, and what was reached", [Items(items)]))
    else:
        blocks.append(Text("No attack was run."))
    staged = [row for row in attacks if row.get("stages")]
    if staged:
        cells: Cells = [("attack", "stage", "attacked", "broken", "left", "seconds")]
        for row in staged:
            for stage in row["stages"]:
                counts = (str(stage["attacked"]), str(stage["broken"]))
                left = (percent(stage["accuracy"]), f"{stage['seconds']:.1f}")
                cells.append((row["name"], stage["name"], *counts, *left))
        blocks.append(Table("Stages", cells))
    return Section("Attacks", blocks)


def _details(row: Mapping[str, Any]) -> list[str]:
    """What only staged or minimum-norm attacks have to say, a line each."""
    lines = [
        f"after {stage['name']}: {percent(stage['accuracy'])} "
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
            f"accuracy at {found['norm']} {eps:.5g}: {percent(accuracy)}"
            for eps, accuracy in zip(found["eps"], found["accuracy"], strict=True)
        ]
    return lines


def _pictured(content: Mapping[str, Any]) -> list[Section]:
    """Curves, and what attacks did to images."""
    found = []
    if content.get("curve"):
        found.append(_curve(content["curve"]))
    if content.get("steps"):
        found.append(_sections.steps_section(content["steps"]))
    if content.get("restarts"):
        one = content["restarts"]
        cells: Cells = [("restarts", "accuracy")]
        pairs = zip(one["restarts"], one["accuracy"], strict=True)
        cells += [(str(count), percent(value)) for count, value in pairs]
        table = Table("Accuracy after so many restarts", cells)
        about = _sections.limit_blocks(one)
        found.append(Section("Restarts", [*about, Image("restarts"), table]))
    if content.get("paths"):
        words = (
            "The objective at the iterates of the attacks' own runs: median and the "
            "range from 10% to 90% of images."
        )
        found.append(Section("Loss along the attacks", [Text(words), Image("paths")]))
    if any("histogram" in row.get("minimum_norm", ()) for row in content["rows"]):
        found.append(Section("Smallest perturbations", [Image("minimum_norms")]))
    if content.get("confusion"):
        words = "True classes against predictions on the worst point of each image."
        blocks = [Text(words), Image("confusion"), _confusion(content)]
        found.append(Section("Confusion under attack", blocks))
    elif content.get("confusions"):
        words = "The most frequent mistakes on the worst point of each image."
        found.append(
            Section("Confusion under attack", [Text(words), _mistakes(content)])
        )
    names = [one["name"] for one in content.get("pictures", ())]
    if "examples" in names:
        found.append(Section("Images before and after", [Image("examples")]))
    if "heatmaps" in names:
        found.append(Section("Where the network looks", [Image("heatmaps")]))
    return found


def _mistakes(content: Mapping[str, Any]) -> Table:
    given = content.get("class_names") or []

    def name(label: int) -> str:
        return given[label] if label < len(given) else str(label)

    cells: Cells = [("label", "prediction", "images")]
    cells += [(name(i), name(j), str(n)) for i, j, n in content["confusions"]]
    return Table("Mistakes", cells)


def _confusion(content: Mapping[str, Any]) -> Folded:
    counts = content["confusion"]
    given = content.get("class_names") or []
    names = given if len(given) >= len(counts) else list(map(str, range(len(counts))))
    cells: Cells = [("label", *names[: len(counts)])]
    cells += [(names[i], *map(str, row)) for i, row in enumerate(counts)]
    return Folded("The same as a table", [Table("Labels against predictions", cells)])


def _curve(curve: Mapping[str, Any]) -> Section:
    limit = curve.get("limit")
    cells: Cells = [("eps", "accuracy", *(() if limit is None else (_LIMIT,)))]
    pairs = zip(curve["eps"], curve["accuracy"], strict=True)
    for i, (eps, accuracy) in enumerate(pairs):
        shown = ()
        if limit is not None:
            shown = ("" if limit[i] is None else percent(limit[i]),)
        cells.append((f"{eps:.5g}", percent(accuracy), *shown))
    number = curve.get("num_examples")
    about = "" if number is None else f" of the first {number} images"
    blocks = [Image("curve"), Table(f"Accuracy by radius{about}", cells)]
    return Section("Robustness curve", blocks)


def _weights(weights: Mapping[str, Any]) -> Section:
    cells: Cells = [("query", "label", *(f"nearest, {n}" for n in weights["names"]))]
    for query, label in enumerate(weights["labels"]):
        cells.append((str(query), str(label), *map(str, weights["nearest"][query])))
    words = (
        "How the weight that the interpolation gives to templates falls on their "
        "classes, for a few queries."
    )
    table = Table("Class of the nearest template", cells)
    return Section("Template weights", [Text(words), Image("weights"), table])


def _making(content: Mapping[str, Any]) -> Section:
    """What the numbers come from: all that is needed to get them again."""
    items = [
        Item(name, str(content[name]))
        for name in (*_HEAD, "key", "precision")
        if name in content
    ]
    versions = content.get("versions") or {}
    if versions:
        told = ", ".join(f"{name} {value}" for name, value in versions.items())
        items.append(Item("versions", told))
    schema = f"{content['schema']['name']} {content['schema']['version']}"
    items.append(Item("schema", schema))
    last = Text("Every number, parameter and the config: report.json.")
    return Section("How this was made", [Items(items), last])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
