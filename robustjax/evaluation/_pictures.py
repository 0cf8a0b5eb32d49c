"""Pictures of reports: what numbers look like, without a display."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robustjax.evaluation.results import wilson_interval

_CRITICS = {
    "natural": "natural: of x",
    "adversarial": "adversarial: of x_adv - x",
    "standard": "standard: of the image itself",
}
_RADAR = {
    "natural": ("x in h(x)", "x in h(x_adv)"),
    "standard": ("x in h(x)", "x_adv in h(x_adv)"),
}
_SIDES = {"clean": "tab:blue", "adv": "tab:red"}
_SHIFT = "mean - smallest of any image"


def draw_curve(path: Path, curve: Mapping[str, Sequence[float]], total: int) -> None:
    """A robustness curve with its 95% intervals."""
    figure = _figure(5, 3.5)
    axes = figure.subplots()
    low, high = np.transpose(
        [wilson_interval(round(a * total), total) for a in curve["accuracy"]]
    )
    axes.fill_between(curve["eps"], low, high, alpha=0.2, label="95% interval")
    axes.plot(curve["eps"], curve["accuracy"], marker="o", label=f"n = {total}")
    axes.set(xlabel="eps (pixels in [0, 1])", ylabel="accuracy", ylim=(0, 1))
    axes.legend()
    _save(figure, path)


def draw_information(path: Path, information: Mapping[str, Any]) -> None:
    """Means and deviations over all images, clean against adversarial, by critic.

    After fig. 4 of NAMID's paper. Each critic has a zero of its own, the smallest
    estimate of any image, since a zero that critics shared would mean nothing.
    """
    names = [attack["name"] for attack in information["attacks"]]
    critics = _given(_CRITICS, information)
    figure = _figure(1.5 + 3 * len(critics), 1.8 + 0.55 * len(names))
    panels = figure.subplots(1, len(critics), sharey=True, squeeze=False)[0]
    places = np.arange(len(names))
    for axes, critic in zip(panels, critics, strict=True):
        zero = _smallest(information, critic)
        for side, label, offset in (("clean", "h(x)", -0.2), ("adv", "h(x_adv)", 0.2)):
            quantity = f"{critic}_{side}"
            axes.barh(
                places + offset,
                _values(information, quantity, "mean") - zero,
                xerr=_values(information, quantity, "deviation"),
                height=0.36,
                capsize=3,
                color=_SIDES[side],
                label=label,
            )
        axes.set(title=_CRITICS[critic], xlabel=_SHIFT, yticks=places)
        axes.set_xlim(left=0)
    panels[0].set_yticks(places, names)
    panels[0].invert_yaxis()  # shared: the first attack is on top
    handles, labels = panels[0].get_legend_handles_labels()
    title = "information in, mean and deviation over images"
    figure.legend(handles, labels, loc="outside lower center", ncols=2, title=title)
    _save(figure, path)


def draw_neurons(path: Path, neurons: Mapping[str, Any]) -> None:
    """Mean shifts of neurons by the rank of their influence, a line for each attack."""
    figure = _figure(9, 5)
    axes = figure.subplots()
    axes.axhline(0, color="0.8", linewidth=1)
    styles = ("-", "--", ":")
    drawn = [a for a in neurons["attacks"] if a["by_rank"] is not None]
    for number, attack in enumerate(drawn):
        places = (np.arange(len(attack["by_rank"])) + 0.5) / len(attack["by_rank"])
        style = styles[number // 10 % len(styles)]
        axes.plot(places, attack["by_rank"], style, label=attack["name"])
    axes.set(
        xlabel="neurons by influence on the label, largest (0) to smallest (1)",
        ylabel="mean shift / deviation over benign images",
        title=f"layer {neurons['layer']}: shift of outputs from clean to adversarial",
    )
    if drawn:
        figure.legend(loc="outside right upper")
    _save(figure, path)


def draw_influence_maps(path: Path, maps: Mapping[str, Any]) -> None:
    """Images beside maps of where influence sits, a row for each image."""
    images, found, names = maps["images"], maps["maps"], maps["names"]
    figure = _figure(4 * len(names), 2 * len(images))
    panels = figure.subplots(len(images), 2 * len(names), squeeze=False)
    for row, (shown, where) in enumerate(zip(images, found, strict=True)):
        for column, name in enumerate(names):
            left, right = panels[row, 2 * column : 2 * column + 2]
            grey = shown[column].shape[-1] == 1
            image = shown[column][..., 0] if grey else shown[column]
            left.imshow(image, cmap="gray", vmin=0, vmax=1)
            right.imshow(where[column], cmap="viridis")
            for axes, title in ((left, name), (right, "influence")):
                axes.set_title(title if row == 0 else "")
                axes.axis("off")
    _save(figure, path)


def draw_steps(path: Path, curves: Mapping[str, Any]) -> None:
    """Accuracy and mean loss against the steps of an attack, a line per step size."""
    figure = _figure(9, 3.8)
    left, right = figure.subplots(1, 2)
    for number, step_size in enumerate(curves["step_sizes"]):
        label = f"step {step_size:.3g}"
        left.plot(curves["steps"], curves["accuracy"][number], marker="o", label=label)
        right.plot(curves["steps"], curves["loss"][number], marker="o", label=label)
    n = curves["num_examples"]
    left.set(ylabel=f"accuracy at the iterate, n = {n}", ylim=(0, 1))
    right.set(ylabel="mean cross-entropy")
    for axes in (left, right):
        axes.set(xlabel="steps", xscale="symlog")
        axes.legend()
    _save(figure, path)


def draw_surfaces(path: Path, surfaces: Mapping[str, Any]) -> None:
    """The loss over a plane through each image; a line where the answer changes."""
    offsets, losses = surfaces["offsets"], surfaces["loss"]
    columns = min(5, len(losses))
    rows = -(-len(losses) // columns)
    figure = _figure(2.6 * columns, 2.4 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    extent = (offsets[0], offsets[-1], offsets[0], offsets[-1])
    for axes in panels[len(losses) :]:
        axes.axis("off")
    for axes, loss, broken in zip(panels, losses, surfaces["broken"], strict=False):
        shown = axes.imshow(loss.T, origin="lower", extent=extent, cmap="viridis")
        if broken.any() and not broken.all():
            axes.contour(offsets, offsets, broken.T, levels=[0.5], colors="w")
        axes.tick_params(labelsize=6)
        figure.colorbar(shown, ax=axes, shrink=0.8).ax.tick_params(labelsize=6)
    figure.supxlabel("along the sign of the gradient")
    figure.supylabel("along random signs")
    _save(figure, path)


def draw_attention(path: Path, attention: Mapping[str, Any]) -> None:
    """Maps over images: models in columns, clean and adversarial images in rows."""
    pictures = attention["pictures"]
    models = list(dict.fromkeys(model for model, _, _ in pictures))
    maps = list(dict.fromkeys(kind for _, _, kind in pictures))
    conditions = list(dict.fromkeys(name for _, name, _ in pictures))
    columns = [(model, kind) for model in models for kind in maps]
    count = len(next(iter(pictures.values()))[0])
    lines = [(i, name) for i in range(count) for name in conditions]
    figure = _figure(2.2 * len(columns) + 1, 2.1 * len(lines))
    panels = figure.subplots(len(lines), len(columns), squeeze=False)
    for row, (i, name) in enumerate(lines):
        found = {c: pictures.get((c[0], name, c[1])) for c in columns}
        # One colour scale per row and kind: maps of different kinds do not compare.
        top = {
            kind: max((f[1][i].max() for c, f in found.items() if f and c[1] == kind))
            for kind in maps
        }
        for column, (model, kind) in enumerate(columns):
            axes = panels[row, column]
            axes.set(xticks=[], yticks=[])
            if row == 0:
                axes.set_title(f"{model}\n{kind.replace('_', '-')}", fontsize=8)
            if column == 0:
                axes.set_ylabel(name, fontsize=8)
            if found[(model, kind)] is None:
                continue
            images, where = found[(model, kind)]
            image = images[i][..., 0] if images.shape[-1] == 1 else images[i]
            extent = (0, image.shape[1], image.shape[0], 0)
            axes.imshow(image, cmap="gray", vmin=0, vmax=1, extent=extent)
            axes.imshow(
                where[i],
                cmap="inferno",
                alpha=0.55,
                vmin=0,
                vmax=top[kind] or 1,
                extent=extent,
                interpolation="bilinear",
            )
    _save(figure, path)


def draw_shares(path: Path, attention: Mapping[str, Any]) -> None:
    """Histograms of key_share over images, a panel per kind of map."""
    shares = attention["shares"]
    kinds = list(dict.fromkeys(row["map"] for row in shares))
    figure = _figure(5 * len(kinds), 3.6)
    panels = figure.subplots(1, len(kinds), squeeze=False)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        for row in shares:
            values = [v for v in row["values"] if v is not None]
            if row["map"] == kind and values:
                label = f"{row['model']}, {row['images']}"
                bins = np.linspace(0, 1, 21)
                axes.hist(values, bins=bins, histtype="step", label=label)
        axes.set(title=kind.replace("_", "-"), xlabel="key_share", ylabel="images")
        axes.legend(fontsize=7)
    _save(figure, path)


def has_radar(information: Mapping[str, Any]) -> bool:
    """Whether there are enough attacks for axes, and a critic of images."""
    return len(information["attacks"]) >= 3 and bool(_given(_RADAR, information))


def draw_radar(path: Path, information: Mapping[str, Any]) -> None:
    """Means over all images with an axis for each attack, after fig. 2 of the paper.

    A circle for each critic of images, its smallest estimate of any image at the
    centre.
    """
    from matplotlib.ticker import MaxNLocator

    names = [attack["name"] for attack in information["attacks"]]
    turns = np.linspace(0, 2 * np.pi, len(names), endpoint=False)
    critics = _given(_RADAR, information)
    figure = _figure(6 * len(critics), 6)
    figure.suptitle(f"information: {_SHIFT}")
    panels = figure.subplots(
        1, len(critics), squeeze=False, subplot_kw={"projection": "polar"}
    )[0]
    for axes, critic in zip(panels, critics, strict=True):
        zero = _smallest(information, critic)
        for side, label in zip(_SIDES, _RADAR[critic], strict=True):
            values = _values(information, f"{critic}_{side}", "mean") - zero
            axes.plot(
                np.append(turns, 0),
                np.append(values, values[0]),
                color=_SIDES[side],
                marker="o",
                label=label,
            )
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(4, prune="lower"))
        axes.set_xticks(turns, names)
        for text, turn in zip(axes.get_xticklabels(), turns, strict=True):
            side = np.sign(np.round(np.cos(turn), 3))  # names stay out of the circle
            text.set_horizontalalignment(("center", "left", "right")[int(side)])
        axes.legend(title=critic, loc="upper center", bbox_to_anchor=(0.5, -0.1))
    _save(figure, path)


def _given(critics: Mapping[str, Any], information: Mapping[str, Any]) -> list[str]:
    return [name for name in critics if f"{name}_clean" in information["quantities"]]


def _smallest(information: Mapping[str, Any], critic: str) -> float:
    """Of all images, under all attacks; NaN if no estimate is finite."""
    found = [
        _values(information, f"{critic}_{side}", "smallest")
        for side in ("clean", "adv")
    ]
    finite = [value for value in np.concatenate(found) if np.isfinite(value)]
    return min(finite, default=np.nan)


def _values(information: Mapping[str, Any], quantity: str, figure: str) -> np.ndarray:
    """One for each attack, [A]; NaN where there is none, which is not drawn."""
    rows = [attack["groups"]["all"][quantity] for attack in information["attacks"]]
    return np.array([row[figure] for row in rows], float)


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # slow to import, and needs no display

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, path: Path) -> None:
    """A reader sees the old picture or the whole new one."""
    partial = path.with_suffix(".partial.png")
    figure.savefig(partial, dpi=150)
    partial.replace(path)
