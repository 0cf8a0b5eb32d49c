"""Pictures of what attacks did: accuracies, who broke what, losses on the way."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from robustjax.evaluation import _style
from robustjax.evaluation._style import Target
from robustjax.evaluation.results import Robustness, wilson_interval

MOST = 8  # panels of a picture


def draw_curve(
    target: Target,
    curve: Mapping[str, Sequence[float]],
    total: int,
    *,
    chance: float | None = None,
    eps: float | None = None,
) -> None:
    """Accuracy against the radius, with 95% intervals, down to chance.

    Args:
      target: A path, or a buffer.
      curve: `eps`, `accuracy`, and perhaps `limit`.
      total: Images.
      chance: What one answer for all images gets right.
      eps: The radius of the threat model.
    """
    made, panels = _style.panels(6.4, 3.6)
    axes = panels[0, 0]
    radii, accuracy = list(curve["eps"]), list(curve["accuracy"])
    low, high = np.transpose([wilson_interval(a * total, total) for a in accuracy])
    axes.fill_between(radii, low, high, color=_style.BLUE, alpha=0.18, linewidth=0)
    axes.plot(radii, accuracy, **_style.series(0))
    _style.shares(axes)
    axes.set(xlabel="eps (pixels in [0, 1])", ylabel=f"accuracy, n = {total}")
    if chance is not None:
        axes.axhline(chance, color=_style.GREY, linestyle="--", linewidth=1)
        words = f"one answer for all: {100 * chance:.1f}%"
        _style.note(axes, radii[0], chance, words)
    if eps is not None and radii[0] < eps <= radii[-1]:
        axes.axvline(eps, color=_style.RED, linestyle=":", linewidth=1.2)
        at = float(np.interp(eps, radii, accuracy))
        words = f"threat model: eps {eps:.4g}, {100 * at:.1f}%"
        _style.note(axes, eps, max(at, 0.9), words, color=_style.RED)
    limits = curve.get("limit") or [None] * len(radii)
    known = [(r, v) for r, v in zip(radii, limits, strict=True) if v is not None]
    if known:
        axes.plot(*zip(*known, strict=True), "x", color=_style.RED, markersize=6)
        _style.note(axes, *known[-1], "limit of any classifier", ha="right")
    axes.margins(x=0.02)
    _style.save(made, target)


def draw_steps(target: Target, curves: Mapping[str, Any]) -> None:
    """Accuracy and mean loss against the steps of an attack, a line per step size."""
    made, panels = _style.panels(6.8, 5.6, 2, 1)
    left, right = panels[:, 0]
    ends: tuple[list, list] = ([], [])
    for number, step_size in enumerate(curves["step_sizes"]):
        style = _style.series(number)
        for axes, name, end in ((left, "accuracy", 0), (right, "loss", 1)):
            axes.plot(curves["steps"], curves[name][number], **style)
            label = f"step {step_size:.3g}"
            ends[end].append((curves[name][number][-1], label, style["color"]))
    lowest = np.nanmin(np.asarray(curves["accuracy"], float))
    _style.shares(left, low=max(0.0, np.floor(10 * lowest - 0.5) / 10))
    left.set(ylabel=f"accuracy at the iterate, n = {curves['num_examples']}")
    right.set(ylabel="mean cross-entropy")
    ticks = [s for s in curves["steps"] if s]
    for axes, end in zip((left, right), ends, strict=True):
        axes.set(xlabel="steps", xscale="symlog" if 0 in curves["steps"] else "log")
        axes.set_xticks(ticks, [str(t) for t in ticks])
        axes.minorticks_off()
        _style.beside(axes, end)
    _style.save(made, target)


def draw_restarts(target: Target, restarts: Mapping[str, Any]) -> None:
    """Accuracy after so many restarts, which only falls; flat is what one hopes for."""
    made, panels = _style.panels(6.4, 3.2)
    axes, total = panels[0, 0], restarts["num_examples"]
    counts, accuracy = restarts["restarts"], np.asarray(restarts["accuracy"])
    low, high = np.transpose([wilson_interval(a * total, total) for a in accuracy])
    axes.fill_between(counts, low, high, color=_style.BLUE, alpha=0.18, linewidth=0)
    axes.plot(counts, accuracy, **_style.series(0))
    _style.shares(axes, low=max(0.0, np.floor(10 * low.min()) / 10))
    for at, value in ((0, accuracy[0]), (-1, accuracy[-1])):
        side = "left" if at == 0 else "right"
        _style.note(axes, counts[at], value, f"{100 * value:.2f}%", ha=side)
    axes.set(xlabel="restarts", ylabel=f"accuracy, n = {total}", xticks=list(counts))
    _style.save(made, target)


def draw_waterfall(
    target: Target,
    steps: Sequence[Mapping[str, Any]],
    total: int,
    result: Robustness | None = None,
) -> None:
    """What each attack broke first; below, which attack broke which images.

    Args:
      target: A path, or a buffer.
      steps: From `waterfall`.
      total: Images.
      result: For the images, if it is at hand.
    """
    count = len(steps)
    height = 1.0 + 0.34 * (count + 1)
    both = result is not None
    made, panels = _style.panels(8.2, height * (1 + both), 1 + both, 1)
    axes = panels[0, 0]
    before = float(total)
    for place, step in enumerate(steps):
        after = before - step["broken"]
        axes.barh(place, after, color=_style.LIGHT)
        axes.barh(place, before - after, left=after, color=_style.RED)
        words = f"−{step['broken']:g}" if step["broken"] else "0"
        axes.annotate(
            f"{words}   {100 * step['accuracy']:.2f}% left",
            (total, place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            annotation_clip=False,
        )
        before = after
    names = ["wrong without attack", *(s["attack"] for s in steps[1:])]
    axes.set_yticks(range(count), [_style.short(n, 34) for n in names])
    axes.set(xlim=(0, total), xlabel="images")
    _style.title(axes, "broken by the attack and by none before it (red)")
    axes.grid(False, axis="y")
    axes.set_ylim(count - 0.5, -0.5)  # the first attack is on top
    if both:
        _strip(panels[1, 0], result)
    _style.save(made, target)


def _strip(axes: Any, result: Robustness) -> None:
    """A row per attack, a column per image, dark where the attack broke it."""
    from matplotlib.colors import ListedColormap

    counted = [a for a in result.attacks if a.counts]
    right = np.stack([result.clean_correct, *(a.correct for a in counted)])
    broken = right < 0.5
    first = np.where(broken.any(axis=0), broken.argmax(axis=0), len(broken))
    order = np.lexsort((-broken.sum(axis=0), first))
    order = order[first[order] < len(broken)]
    names = ["wrong without attack", *(a.name for a in counted)]
    axes.set_yticks(range(len(names)), [_style.short(n, 34) for n in names])
    axes.set_xlabel(f"the {len(order)} images that something broke, one column each")
    _style.title(axes, "which attack broke which of them")
    axes.grid(False)
    if not len(order):
        axes.set(xticks=[], ylim=(len(names) - 0.5, -0.5))
        return
    colors = ListedColormap(["#f2f2f2", _style.BLUE])
    shown = broken[:, order]
    whole = (0, len(order), len(names) - 0.5, -0.5)
    axes.imshow(
        shown,
        extent=whole,
        aspect="auto",
        cmap=colors,
        interpolation="nearest",
        vmin=0,
        vmax=1,
    )
    for row in range(1, len(names)):
        axes.axhline(row - 0.5, color="white", linewidth=2)


def draw_paths(target: Target, paths: Sequence[Mapping[str, Any]]) -> None:
    """The loss along attacks' own paths, and the share broken by each step."""
    shown = paths[:MOST]
    made, panels = _style.panels(8.6, 2.4 * len(shown) + 0.3, len(shown), 2)
    for (left, right), path in zip(panels, shown, strict=True):
        steps = path["steps"]
        low, middle, high, mean = (
            np.array(path[name], float) for name in ("low", "median", "high", "mean")
        )
        left.fill_between(steps, low, high, color=_style.BLUE, alpha=0.2, linewidth=0)
        left.plot(steps, middle, color=_style.BLUE)
        left.plot(steps, mean, color=_style.GREY, linestyle="--", linewidth=1)
        _style.title(left, _style.short(path["attack"], 60))
        left.set(xlabel="step", ylabel="objective")
        ends = [(v[-1], n, c) for v, n, c in _ends(low, middle, high, mean)]
        _style.beside(left, ends)
        for halving in path.get("halvings", ()):
            left.axvline(halving["step"], color=_style.ORANGE, linewidth=0.8)
            left.annotate(
                f"½ {100 * halving['share']:.0f}%",
                (halving["step"], 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(-2, -2),
                textcoords="offset points",
                rotation=90,
                ha="right",
                va="top",
                fontsize=6,
                color="#8a5a00",
            )
        if "broken" in path:
            right.plot(steps, path["broken"], color=_style.RED)
            words = f"{100 * path['broken'][-1]:.1f}%"
            _style.beside(right, [(path["broken"][-1], words, _style.RED)])
        _style.shares(right, high=max(0.1, *path.get("broken", (1.0,))))
        right.set(xlabel="step", ylabel="broken by then")
    _style.save(made, target)


def _ends(*lines: np.ndarray) -> list[tuple[np.ndarray, str, str]]:
    names = ("10%", "median", "90%", "mean")
    colors = (_style.BLUE, _style.BLUE, _style.BLUE, _style.GREY)
    return list(zip(lines, names, colors, strict=True))


def draw_minimum_norms(target: Target, rows: Sequence[Mapping[str, Any]]) -> None:
    """Histograms of the smallest perturbations found, a panel per attack."""
    shown = rows[:MOST]
    made, panels = _style.panels(7.2, 2.4 * len(shown), len(shown), 1)
    for (axes,), row in zip(panels, shown, strict=True):
        found = row["minimum_norm"]
        edges = np.array(found["histogram"]["edges"])
        counts = found["histogram"]["counts"]
        width = np.diff(edges)
        axes.bar(edges[:-1], counts, width, align="edge", color=_style.BLUE, alpha=0.8)
        unbroken, wrong = found["histogram"]["unbroken"], found["histogram"]["wrong"]
        words = f"{_style.short(row['name'], 50)}: {unbroken} unbroken, {wrong} wrong"
        _style.title(axes, f"{words} before")
        axes.set(xlabel=f"smallest {found['norm']} norm found", ylabel="images")
        median = found["median_of_correct"]
        marks = [] if median is None else [(median, f"median {median:.3g}", _style.RED)]
        marks += [(eps, f"eps {eps:.3g}", _style.GREY) for eps in found["eps"]]
        axes.set_xlim(0, max([edges[-1], *(m[0] for m in marks)]) * 1.05)
        top = max(1, *counts) * 1.25
        axes.set_ylim(0, top)
        for number, (place, label, color) in enumerate(marks):
            axes.axvline(place, color=color, linestyle="--", linewidth=1)
            height = top * (0.9 - 0.12 * (number % 3))
            _style.note(axes, place, height, label, color=color, va="center")
    _style.save(made, target)


def draw_confusion(
    target: Target, counts: Sequence[Sequence[int]], names: Sequence[str]
) -> None:
    """True labels against predictions under the worst case, shares of each row."""
    table = np.array(counts)
    size = len(table)
    made, panels = _style.panels(min(1.8 + 0.36 * size, 8.4), min(1.4 + 0.33 * size, 8))
    axes = panels[0, 0]
    share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.grid(False)
    if size <= 20:
        labels = [_style.short(name, 12) for name in names]
        tilted = max(map(len, labels)) > 3
        axes.set_xticks(range(size), labels, rotation=45 if tilted else 0)
        axes.set_yticks(range(size), labels)
        for row, column in zip(*np.nonzero(table), strict=True):
            color = "white" if share[row, column] > 0.5 else "black"
            words = str(table[row, column])
            place = dict(ha="center", va="center", fontsize=7)
            axes.text(column, row, words, color=color, **place)
    axes.set(xlabel="predicted in the worst case", ylabel="label")
    _style.save(made, target)
