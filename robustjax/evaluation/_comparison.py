"""A comparison as people read it: Markdown, a page and a picture."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from robustjax.evaluation._compared import threat_words
from robustjax.evaluation._sections import aligned

# Okabe and Ito's colours, which colour-blind people tell apart, and shapes for print.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = "osD^vPX"
_LEVEL = 0.05

Cells = list[tuple[str, ...]]


def comparison_lines(comparison: Mapping[str, Any]) -> list[str]:
    """A comparison in Markdown."""
    lines = ["# Comparison", "", _about(comparison), "", "## What differs", ""]
    lines += [f"- {sentence}" for sentence in sentences(comparison)]
    lines += ["", "## Accuracy", "", aligned(_accuracies(comparison)), ""]
    lines += [_reading(comparison), "", "![accuracies](compare.png)", ""]
    if _tested(comparison):
        lines += ["## Pairs", "", aligned(_pairs(comparison)), ""]
        lines += [_pairs_reading(comparison), ""]
    lines += ["## Models", "", aligned(_models(comparison)), ""]
    if comparison["warnings"]:
        lines += ["## Warnings", ""]
        lines += [f"- {line}" for line in comparison["warnings"]] + [""]
    return [*lines, "Every number: compare.json."]


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


def comparison_body(comparison: Mapping[str, Any], picture: bytes) -> str:
    """The inside of the page: sections of HTML, the picture embedded."""
    shown = base64.b64encode(picture).decode()
    parts = [
        f"<h1>Comparison</h1><p>{escape(_about(comparison))}</p>",
        '<section id="differences"><h2>What differs</h2>',
        _listed(sentences(comparison)),
        '</section><section id="accuracy"><h2>Accuracy</h2>',
        _html_table(_accuracies(comparison), "Accuracies by model"),
        f"<p>{escape(_reading(comparison))}</p>",
        f'<figure><img src="data:image/png;base64,{shown}" '
        f'alt="{escape(described(comparison))}">'
        "<figcaption>Accuracy of each model, row by row.</figcaption></figure>",
        "</section>",
    ]
    if _tested(comparison):
        parts += [
            '<section id="pairs"><h2>Pairs</h2>',
            _html_table(_pairs(comparison), "Paired tests"),
            f"<p>{escape(_pairs_reading(comparison))}</p></section>",
        ]
    parts += [
        '<section id="models"><h2>Models</h2>',
        _html_table(_models(comparison), "What was compared"),
        "</section>",
    ]
    if comparison["warnings"]:
        parts += [
            '<section id="warnings"><h2>Warnings</h2>',
            _listed(comparison["warnings"]),
            "</section>",
        ]
    return "\n".join(parts)


def described(comparison: Mapping[str, Any]) -> str:
    """The picture in words and numbers."""
    rows = [row for row in ("clean", "worst case") if row in comparison["rows"]]
    models = [
        f"{model['name']} "
        + ", ".join(f"{_percent(model['rows'][row]['accuracy'])} {row}" for row in rows)
        for model in comparison["models"]
    ]
    return "Accuracies with intervals: " + "; ".join(models) + "."


def draw_comparison(path: Path, comparison: Mapping[str, Any]) -> None:
    """Points with intervals: rows from top to bottom, a colour and shape per model."""
    from matplotlib.figure import Figure  # slow to import, and needs no display

    names, models = comparison["rows"], comparison["models"]
    height = 1.4 + len(names) * max(0.4, 0.18 * len(models))
    figure = Figure(figsize=(7.5, height), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(names))
    spread = np.linspace(-0.28, 0.28, len(models)) if len(models) > 1 else [0.0]
    for number, (model, offset) in enumerate(zip(models, spread, strict=True)):
        rows = [model["rows"][name] for name in names]
        values = np.array([100 * row["accuracy"] for row in rows])
        limits = 100 * np.array([_limits(row) for row in rows]).T
        axes.errorbar(
            values,
            places + offset,
            xerr=np.abs(limits - values),
            fmt=_MARKERS[number % len(_MARKERS)],
            color=_COLOURS[number % len(_COLOURS)],
            markersize=5,
            capsize=2,
            linewidth=1.2,
            label=_plain(_label(model)),
        )
    for place in places[:-1] + 0.5:
        axes.axhline(place, color="0.9", linewidth=0.8)
    axes.set_yticks(places, [_plain(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)  # the first row is on top
    axes.set_xlim(-2, 102)
    axes.set_xlabel(f"accuracy in %, n = {comparison['num_examples']}")
    axes.grid(axis="x", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=9)
    partial = path.with_suffix(".partial.png")
    figure.savefig(partial, dpi=130)
    partial.replace(path)


def _about(comparison: Mapping[str, Any]) -> str:
    threat = threat_words(comparison["threat"])
    return (
        f"{len(comparison['models'])} models on {comparison['data']}, the same "
        f"{comparison['num_examples']} images, {threat}."
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
        f"Holm's p {_p(pair['p_holm'])})"
    )
    if pair["p_holm"] >= _LEVEL:
        return (
            f"{pair['row']}: no difference shown between {names[0]} and {names[1]}: "
            f"{sure}."
        )
    return f"{pair['row']}: {names[0]} is more accurate than {names[1]}: {sure}."


def _accuracies(comparison: Mapping[str, Any]) -> Cells:
    models = comparison["models"]
    cells: Cells = [("row", *(model["name"] for model in models))]
    for name in comparison["rows"]:
        cells.append((name, *(_accuracy(model["rows"][name]) for model in models)))
    own = (_percent(model["own_worst_case"]) for model in models)
    return [*cells, ("worst case of its own suite", *own)]


def _accuracy(row: Mapping[str, Any]) -> str:
    if row["interval"] is None:
        spread = f"{100 * row['deviation']:.2f}"
        return f"{_percent(row['accuracy'])} +- {spread} ({len(row['by_run'])} runs)"
    low, high = row["interval"]
    return f"{_percent(row['accuracy'])} ({100 * low:.2f}..{100 * high:.2f})"


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
    return row["accuracy"] - row["deviation"], row["accuracy"] + row["deviation"]


def _label(model: Mapping[str, Any]) -> str:
    if not model["runs"]:
        return f"{model['name']} (95% interval)"
    return f"{model['name']} ({model['runs']} runs, +- deviation)"


def _plain(text: str) -> str:
    """A label that Matplotlib takes for neither mathematics nor one to hide."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _p(p: float) -> str:
    return f"{p:.2g}" if p >= 1e-4 else "< 0.0001"


def _listed(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _html_table(cells: Cells, caption: str) -> str:
    head, *rows = cells
    heads = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    lines = [
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    ]
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f"<table><caption>{escape(caption)}</caption><thead><tr>{heads}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


_STYLE = """
:root { color-scheme: light dark; }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: auto;
  padding: 0 1rem 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-style: italic; }
th, td { padding: 0.25rem 0.6rem; border-bottom: 1px solid #8888; text-align: left;
  white-space: nowrap; }
img { max-width: 100%; height: auto; background: white; }
figure { margin: 1rem 0; }
:focus-visible { outline: 3px solid #0072B2; }
.skip { position: absolute; left: -99rem; }
.skip:focus { left: 1rem; }
@media print { body { max-width: none; } .wide { overflow: visible; }
  th, td { white-space: normal; font-size: 0.75rem; } }
"""


def comparison_html(comparison: Mapping[str, Any], picture: bytes) -> str:
    """A page that needs no other file and no network."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Comparison</title><style>{_STYLE}</style></head><body>"
        '<a class="skip" href="#main">Skip to the content</a>'
        f'<main id="main">{comparison_body(comparison, picture)}</main></body></html>\n'
    )
