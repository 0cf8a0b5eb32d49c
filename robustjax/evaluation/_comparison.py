"""A comparison as people read it: sections of blocks, and a picture."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from robustjax.evaluation import _style
from robustjax.evaluation._blocks import (
    Image,
    Item,
    Items,
    Picture,
    Section,
    Table,
    Text,
)
from robustjax.evaluation._verdict import percent, threat_in_words

_LEVEL = 0.05
_PICTURE = "compare"

Cells = list[tuple[str, ...]]


def comparison_sections(comparison: Mapping[str, Any]) -> list[Section]:
    """A comparison in words and tables."""
    differs = Items([Item("", sentence) for sentence in sentences(comparison)])
    accuracies = Table("Accuracies by model", accuracy_cells(comparison))
    found = [
        Section("What differs", [Text(_about(comparison)), differs]),
        Section("Accuracy", [accuracies, Text(_reading(comparison)), Image(_PICTURE)]),
    ]
    if _tested(comparison):
        table = Table("Tests of pairs", _pairs(comparison))
        found.append(Section("Pairs", [table, Text(_pairs_reading(comparison))]))
    found.append(Section("Models", [Table("What is compared", _models(comparison))]))
    if comparison["warnings"]:
        warned = Items([Item("", line) for line in comparison["warnings"]])
        found.append(Section("Warnings", [warned]))
    return [*found, Section("Numbers", [Text("Every number: compare.json.")])]


def sentences(comparison: Mapping[str, Any]) -> list[str]:
    """What pairs of models show, a sentence each, the worst case first."""
    tested = _tested(comparison)
    found = [_sentence(pair) for pair in tested if pair["row"] != "clean"]
    found += [_sentence(pair) for pair in tested if pair["row"] == "clean"]
    reasons: dict[str, dict[str, None]] = {}
    for pair in comparison["pairs"]:
        if pair["p"] is None:
            about = f"{pair['first']} and {pair['second']}"
            reasons.setdefault(pair["untested"], {})[about] = None
    found += [f"Not tested ({why}): {'; '.join(of)}." for why, of in reasons.items()]
    return found


def described(comparison: Mapping[str, Any]) -> str:
    """The picture in words and numbers."""
    rows = [row for row in ("clean", "worst case") if row in comparison["rows"]]
    models = [
        f"{model['name']} "
        + ", ".join(f"{percent(model['rows'][row]['accuracy'])} {row}" for row in rows)
        for model in comparison["models"]
    ]
    return "Accuracies with intervals: " + "; ".join(models) + "."


def comparison_picture(comparison: Mapping[str, Any]) -> Picture:
    """Points with intervals: rows from top to bottom, a colour and shape per model."""
    names, models = comparison["rows"], comparison["models"]
    height = 1.2 + 0.2 * len(models) + len(names) * max(0.4, 0.18 * len(models))
    figure, panels = _style.panels(7.5, height)
    axes = panels[0, 0]
    places = np.arange(len(names))
    spread = np.linspace(-0.28, 0.28, len(models)) if len(models) > 1 else [0.0]
    for number, (model, offset) in enumerate(zip(models, spread, strict=True)):
        rows = [model["rows"][name] for name in names]
        values = np.array([row["accuracy"] for row in rows])
        limits = np.array([_limits(row) for row in rows]).T
        axes.errorbar(
            values,
            places + offset,
            xerr=np.abs(limits - values),
            capsize=2,
            label=f" {_style.short(_label(model), 60)}",  # no leading _, which hides it
            **(_style.series(number) | dict(linestyle="none")),
        )
    for place in places[:-1] + 0.5:
        axes.axhline(place, color=_style.LIGHT, linewidth=0.8)
    axes.grid(False, axis="y")
    axes.set_yticks(places, [_style.short(name, 40) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)  # the first row is on top
    _style.shares(axes, which="x")
    axes.set_xlabel(f"accuracy, n = {comparison['num_examples']}")
    figure.legend(loc="outside upper left", frameon=False, fontsize=8)
    buffer = io.BytesIO()
    _style.save(figure, buffer)
    caption = "Where intervals overlap, the paired tests may still tell models apart."
    return Picture(_PICTURE, buffer.getvalue(), described(comparison), caption)


def _about(comparison: Mapping[str, Any]) -> str:
    threat = threat_in_words(comparison["threat"])
    return (
        f"{len(comparison['models'])} models on {comparison['data']}, the same "
        f"{comparison['num_examples']} images. Threat model: {threat}."
    )


def _sentence(pair: Mapping[str, Any]) -> str:
    low, high = pair["interval"]
    better = pair["difference"] > 0
    names = (pair["first"], pair["second"])
    if pair["p_holm"] < _LEVEL and not better:
        names, low, high = names[::-1], -high, -low
    gap = abs(pair["difference"]) if pair["p_holm"] < _LEVEL else pair["difference"]
    sure = (
        f"{100 * gap:+.2f} points (95% interval {100 * low:+.2f}..{100 * high:+.2f}, "
        f"p {_p(pair['p'])}, Holm's {_p(pair['p_holm'])})"
    )
    if pair["p_holm"] >= _LEVEL:
        return (
            f"{pair['row']}: no difference shown between {names[0]} and {names[1]}: "
            f"{sure}."
        )
    return f"{pair['row']}: {names[0]} is more accurate than {names[1]}: {sure}."


def accuracy_cells(comparison: Mapping[str, Any]) -> Cells:
    """A row for each attack, a column for each model."""
    models = comparison["models"]
    limits = comparison.get("limits") or {}
    last = ("limit of any classifier",) if limits else ()
    cells: Cells = [("row", *(model["name"] for model in models), *last)]
    for name in comparison["rows"]:
        if limits:
            last = (percent(limits[name]) if name in limits else "",)
        found = (_accuracy(model["rows"][name]) for model in models)
        cells.append((name, *found, *last))
    own = (_accuracy(model["own_worst_case"]) for model in models)
    return [*cells, ("worst case of its own suite", *own, *("" for _ in last))]


def _accuracy(row: Mapping[str, Any]) -> str:
    if row["interval"] is None and row["deviation"] is None:
        return f"{percent(row['accuracy'])} (1 run)"
    if row["interval"] is None:
        spread = f"{100 * row['deviation']:.2f}"
        return f"{percent(row['accuracy'])} +- {spread} ({len(row['by_run'])} runs)"
    low, high = row["interval"]
    return f"{percent(row['accuracy'])} ({100 * low:.2f}..{100 * high:.2f})"


def _pairs(comparison: Mapping[str, Any]) -> Cells:
    about = ("row", "first", "second")
    counted = ("both right", "only first", "only second", "both wrong")
    tested = ("difference", "95% interval", "p", "p (Holm)")
    cells: Cells = [(*about, *counted, *tested)]
    for pair in _tested(comparison):
        counts = ("both", "only_first", "only_second", "neither")
        shown = ("-" if pair[n] is None else str(pair[n]) for n in counts)
        low, high = pair["interval"]
        about = (pair["row"], pair["first"], pair["second"])
        figures = (f"{100 * pair['difference']:+.2f}",)
        figures += (f"{100 * low:+.2f}..{100 * high:+.2f}",)
        cells.append((*about, *shown, *figures, _p(pair["p"]), _p(pair["p_holm"])))
    return cells


def _models(comparison: Mapping[str, Any]) -> Cells:
    cells: Cells = [("model", "directory", "suite", "runs", "checkpoint", "flags")]
    for model in comparison["models"]:
        flags = model["flags"]
        told = "not measured" if flags is None else ", ".join(flags) or "none"
        steps = sorted({str(step) for step in model["checkpoints"]})
        runs = str(model["runs"] or 1)
        about = (model["name"], model["directory"], model["suite"], runs)
        cells.append((*about, ", ".join(steps), told))
    return cells


def _reading(comparison: Mapping[str, Any]) -> str:
    text = (
        "Only attacks that all models were judged by, with the same parameters, are "
        "rows; the worst case is over those that count, and below it that of each "
        "model's own suite. In brackets 95% intervals, Wilson's."
    )
    if any(model["runs"] for model in comparison["models"]):
        text += " +- is the standard deviation over training runs, not an interval."
    return text


def _pairs_reading(comparison: Mapping[str, Any]) -> str:
    methods = sorted({pair["method"] for pair in _tested(comparison)})
    return (
        f"Differences are first minus second, in points; {'; '.join(methods)}. p "
        "is the chance of a difference at least as large between equally accurate "
        "models, and Holm's p what to read where several pairs are tested. Intervals "
        "hold one at a time."
    )


def _tested(comparison: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [pair for pair in comparison["pairs"] if pair["p"] is not None]


def _limits(row: Mapping[str, Any]) -> tuple[float, float]:
    if row["interval"] is not None:
        return row["interval"]
    spread = row["deviation"] or 0.0
    return row["accuracy"] - spread, row["accuracy"] + spread


def _label(model: Mapping[str, Any]) -> str:
    if not model["runs"]:
        return f"{model['name']} (95% interval)"
    several = f"{model['runs']} runs, +- deviation"
    return f"{model['name']} ({'1 run' if model['runs'] == 1 else several})"


def _p(p: float) -> str:
    return f"{p:.2g}"
