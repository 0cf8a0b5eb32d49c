"""Pictures that show images: before and after, where a network looks, templates."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from robustjax.evaluation import _style
from robustjax.evaluation._style import Target

_MOST = 8  # images


def draw_examples(target: Target, examples: Mapping[str, Any]) -> None:
    """Clean, adversarial and their difference, amplified, with labels and confidences.

    Args:
      target: A path, or a buffer.
      examples: From `examples_of`.
    """
    clean, adversarial = examples["clean"][:_MOST], examples["adversarial"][:_MOST]
    count = len(clean)
    made, panels = _style.panels(1.3 * count + 0.5, 5.2, 3, count)
    largest = max(float(np.abs(adversarial - clean).max()), 1e-12)
    factor = _factor(0.5 / largest)
    for number in range(count):
        told = examples["words"][number]
        for row, title in enumerate((told["clean"], told["adversarial"], told["size"])):
            axes = panels[row, number]
            if row == 2:
                difference = adversarial[number] - clean[number]
                _style.show(axes, 0.5 + factor * difference)
            else:
                _style.show(axes, (clean, adversarial)[row][number])
            color = _style.RED if row == 1 and told["broken"] else "black"
            axes.set_title(title, fontsize=7.5, color=color)
    for row, name in enumerate(("clean", "adversarial", f"difference × {factor:g}")):
        panels[row, 0].set_ylabel(name, fontsize=9)
    _style.save(made, target, colors=None)


def _factor(largest: float) -> float:
    """The largest of 1, 2, 5, 10, 20, ... that keeps a difference in the picture."""
    steps = [a * 10.0**b for b in range(5) for a in (1, 2, 5)]
    return max([s for s in steps if s <= largest], default=1.0)


def draw_heatmaps(target: Target, heatmaps: Mapping[str, Any]) -> None:
    """Maps over images, clean beside adversarial: a row per image, a column per both.

    Maps of one kind share their colours within a row, so that clean and adversarial
    compare.

    Args:
      target: A path, or a buffer.
      heatmaps: `layer`, `names` of columns (clean, attacks), `images` [R, M, H, W, C]
        and `maps`, by kind ("attention", "grad_cam") [R, M, h, w].
    """
    images, names = np.asarray(heatmaps["images"])[:_MOST], heatmaps["names"]
    kinds = list(heatmaps["maps"])
    columns = [(k, n) for k in kinds for n in range(len(names))]
    size = (1.7 * len(columns) + 0.4, 1.75 * len(images) + 0.4)
    made, panels = _style.panels(*size, len(images), len(columns))
    for row, shown in enumerate(images):
        for place, (kind, number) in enumerate(columns):
            axes, maps = panels[row, place], heatmaps["maps"][kind][row]
            _overlay(axes, shown[number], maps[number], float(np.max(maps)))
            if row == 0:
                words = f"{kind.replace('_', '-')}\n{_style.short(names[number], 22)}"
                axes.set_title(words, fontsize=8)
    _style.save(made, target, colors=256)


def _overlay(axes: Any, image: np.ndarray, where: np.ndarray, top: float) -> None:
    extent = (0, image.shape[1], image.shape[0], 0)
    _style.show(axes, image, extent=extent)
    axes.imshow(
        where,
        cmap="inferno",
        alpha=0.55,
        vmin=0,
        vmax=top or 1,
        extent=extent,
        interpolation="bilinear",
    )


def draw_attention(target: Target, attention: Mapping[str, Any]) -> None:
    """Maps over images: models in columns, clean and adversarial images in rows."""
    pictures = attention["pictures"]
    models = list(dict.fromkeys(model for model, _, _ in pictures))
    maps = list(dict.fromkeys(kind for _, _, kind in pictures))
    conditions = list(dict.fromkeys(name for _, name, _ in pictures))
    columns = [(model, kind) for model in models for kind in maps]
    count = len(next(iter(pictures.values()))[0])
    lines = [(i, name) for i in range(count) for name in conditions]
    size = (1.7 * len(columns) + 1, 1.65 * len(lines))
    made, panels = _style.panels(*size, len(lines), len(columns))
    for row, (i, name) in enumerate(lines):
        found = {c: pictures.get((c[0], name, c[1])) for c in columns}
        # One colour scale per row and kind: maps of different kinds do not compare.
        top = {
            kind: max((f[1][i].max() for c, f in found.items() if f and c[1] == kind))
            for kind in maps
        }
        for column, (model, kind) in enumerate(columns):
            axes = panels[row, column]
            _style.bare(axes)
            if row == 0:
                words = f"{_style.short(model, 20)}\n{kind.replace('_', '-')}"
                axes.set_title(words, fontsize=8)
            if column == 0:
                axes.set_ylabel(_style.short(name, 20), fontsize=8)
            if found[(model, kind)] is not None:
                images, where = found[(model, kind)]
                _overlay(axes, images[i], where[i], top[kind])
    _style.save(made, target, colors=256)


def draw_influence_maps(target: Target, maps: Mapping[str, Any]) -> None:
    """Images beside maps of where influence sits, a row for each image."""
    images, found, names = maps["images"], maps["maps"], maps["names"]
    size = (3.4 * len(names), 1.8 * len(images))
    made, panels = _style.panels(*size, len(images), 2 * len(names))
    for row, (shown, where) in enumerate(zip(images, found, strict=True)):
        for column, name in enumerate(names):
            left, right = panels[row, 2 * column : 2 * column + 2]
            _style.show(left, shown[column])
            right.imshow(where[column], cmap="viridis")
            _style.bare(right)
            for axes, title in ((left, _style.short(name, 22)), (right, "influence")):
                axes.set_title(title if row == 0 else "", fontsize=8)
    _style.save(made, target, colors=None)


def draw_surfaces(target: Target, surfaces: Mapping[str, Any]) -> None:
    """The loss over a plane through each image; a line where the answer changes."""
    offsets, losses = surfaces["offsets"], surfaces["loss"]
    columns = min(4, len(losses))
    rows = -(-len(losses) // columns)
    made, panels = _style.panels(2.5 * columns + 0.3, 2.3 * rows, rows, columns)
    extent = (offsets[0], offsets[-1], offsets[0], offsets[-1])
    flat = panels.ravel()
    for axes in flat[len(losses) :]:
        axes.axis("off")
    for axes, loss, broken in zip(flat, losses, surfaces["broken"], strict=False):
        axes.grid(False)
        shown = axes.imshow(loss.T, origin="lower", extent=extent, cmap="viridis")
        if broken.any() and not broken.all():
            axes.contour(offsets, offsets, broken.T, levels=[0.5], colors="w")
        axes.plot(0, 0, "+", color="white", markersize=7)
        axes.tick_params(labelsize=6)
        made.colorbar(shown, ax=axes, shrink=0.8).ax.tick_params(labelsize=6)
    made.supxlabel("along the sign of the gradient", fontsize=9)
    made.supylabel("along random signs", fontsize=9)
    _style.save(made, target, colors=None)


def draw_weights(
    target: Target, weights: Mapping[str, Any], names: Sequence[str]
) -> None:
    """Template weight by class for a few queries, clean beside adversarial.

    Args:
      target: A path, or a buffer.
      weights: From `weights_by_class`.
      names: Of the classes.
    """
    table, labels = np.asarray(weights["by_class"]), weights["labels"]
    queries, conditions, size = table.shape
    columns = min(4, queries)
    rows = -(-queries // columns)
    made, panels = _style.panels(3.1 * columns, 2.3 * rows + 0.4, rows, columns)
    flat = panels.ravel()
    for axes in flat[queries:]:
        axes.axis("off")
    wide = 0.8 / conditions
    for query, axes in enumerate(flat[:queries]):
        for number, name in enumerate(weights["names"]):
            style = _style.CYCLE[number % len(_style.CYCLE)]
            places = np.arange(size) + (number - (conditions - 1) / 2) * wide
            values = table[query, number]
            axes.bar(places, values, wide, color=style, label=_style.short(name))
        label = labels[query]
        axes.axvspan(label - 0.5, label + 0.5, color="#eeeeee", zorder=0)
        _style.title(axes, f"label {_style.short(names[int(label)], 16)}")
        if size <= 20:
            shown = [_style.short(name, 8) for name in names[:size]]
            axes.set_xticks(range(size), shown, fontsize=7)
        _style.shares(axes)
        axes.set_ylabel("template weight" if query % columns == 0 else "")
    handles, words = flat[0].get_legend_handles_labels()
    made.legend(handles, words, loc="outside lower center", ncols=3, fontsize=8)
    _style.save(made, target)
