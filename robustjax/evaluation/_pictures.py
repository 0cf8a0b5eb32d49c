"""Pictures of diagnostics: information, neurons, key areas, training."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from robustjax.evaluation import _style
from robustjax.evaluation._image_pictures import draw_attention as draw_attention
from robustjax.evaluation._style import Target

_CRITICS = {
    "natural": "natural: of x",
    "adversarial": "adversarial: of x_adv - x",
    "standard": "standard: of the image itself",
}
_RADAR = {
    "natural": ("x in h(x)", "x in h(x_adv)"),
    "standard": ("x in h(x)", "x_adv in h(x_adv)"),
}
_SIDES = dict(clean=_style.CLEAN, adv=_style.ADVERSARIAL)
_SHIFT = "mean - smallest of any image"


def draw_information(target: Target, information: Mapping[str, Any]) -> None:
    """Means and deviations over all images, clean against adversarial, by critic.

    After fig. 4 of NAMID's paper. Each critic has a zero of its own, the smallest
    estimate of any image, since a zero that critics shared would mean nothing.
    """
    names = [attack["name"] for attack in information["attacks"]]
    critics = _given(_CRITICS, information)
    size = (1.5 + 3 * len(critics), 1.8 + 0.55 * len(names))
    figure, grid = _style.panels(*size, 1, len(critics), sharey=True)
    panels = grid[0]
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
    panels[0].set_yticks(places, [_style.short(name, 34) for name in names])
    panels[0].invert_yaxis()  # shared: the first attack is on top
    handles, labels = panels[0].get_legend_handles_labels()
    title = "information in, mean and deviation over images"
    figure.legend(handles, labels, loc="outside lower center", ncols=2, title=title)
    _style.save(figure, target)


def draw_neurons(target: Target, neurons: Mapping[str, Any]) -> None:
    """Mean shifts of neurons by the rank of their influence, a line for each attack."""
    figure, grid = _style.panels(9, 4.6)
    axes = grid[0, 0]
    axes.axhline(0, color=_style.GREY, linewidth=1)
    drawn = [a for a in neurons["attacks"] if a["by_rank"] is not None]
    for number, attack in enumerate(drawn):
        places = (np.arange(len(attack["by_rank"])) + 0.5) / len(attack["by_rank"])
        style = _style.series(number) | dict(marker=None)
        name = _style.short(attack["name"], 34)
        axes.plot(places, attack["by_rank"], label=name, **style)
    axes.set(
        xlabel="neurons by influence on the label, largest (0) to smallest (1)",
        ylabel="mean shift / deviation over benign images",
        title=f"layer {neurons['layer']}: shift of outputs from clean to adversarial",
    )
    if drawn:
        figure.legend(loc="outside right upper", fontsize=8)
    _style.save(figure, target)


def draw_shares(target: Target, attention: Mapping[str, Any]) -> None:
    """Histograms of key_share over images, a panel per kind of map."""
    shares = attention["shares"]
    kinds = list(dict.fromkeys(row["map"] for row in shares))
    figure, grid = _style.panels(5 * len(kinds), 3.6, 1, len(kinds))
    panels = grid[0]
    for axes, kind in zip(panels, kinds, strict=True):
        for number, row in enumerate(r for r in shares if r["map"] == kind):
            values = [v for v in row["values"] if v is not None]
            if values:
                style = _style.series(number)
                axes.hist(
                    values,
                    bins=np.linspace(0, 1, 21).tolist(),
                    histtype="step",
                    linewidth=1.4,
                    color=style["color"],
                    linestyle=style["linestyle"],
                    label=_style.short(f"{row['model']}, {row['images']}", 40),
                )
        axes.set(title=kind.replace("_", "-"), xlabel="key_share", ylabel="images")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7)
    _style.save(figure, target)


def has_radar(information: Mapping[str, Any]) -> bool:
    """Whether there are enough attacks for axes, and a critic of images."""
    return len(information["attacks"]) >= 3 and bool(_given(_RADAR, information))


def draw_radar(target: Target, information: Mapping[str, Any]) -> None:
    """Means over all images with an axis for each attack, after fig. 2 of the paper.

    A circle for each critic of images, its smallest estimate of any image at the
    centre.
    """
    from matplotlib.ticker import MaxNLocator

    names = [attack["name"] for attack in information["attacks"]]
    turns = np.linspace(0, 2 * np.pi, len(names), endpoint=False)
    critics = _given(_RADAR, information)
    figure = _style.figure(6 * len(critics), 6)
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
    _style.save(figure, target)


def draw_training(target: Target, training: Mapping[str, Any]) -> None:
    """Accuracies and losses over training, with the step of the chosen checkpoint.

    Args:
      target: A path, or a buffer.
      training: From `training_history`.
    """
    found = training["series"]
    kinds = [k for k in ("accuracy", "loss") if any(k in s["name"] for s in found)]
    figure, grid = _style.panels(6.8, 2.8 * len(kinds), len(kinds), 1)
    for axes, kind in zip(grid[:, 0], kinds, strict=True):
        ends = []
        for number, one in enumerate(s for s in found if kind in s["name"]):
            style = _style.series(number)
            if len(one["step"]) > 25:
                style |= dict(marker=None)
            axes.plot(one["step"], one["value"], **style)
            name = one["name"].removeprefix(f"{one['split']}/")
            label = f"{one['split']} {name}".replace("_", " ")
            ends.append((one["value"][-1], _style.short(label, 34), style["color"]))
        axes.set(xlabel="step", ylabel=kind)
        if kind == "accuracy":
            _style.shares(axes)
        if training.get("chosen") is not None:
            axes.axvline(training["chosen"], color=_style.GREY, linestyle=":")
            place = (training["chosen"], axes.get_ylim()[0])
            words = f"judged: step {training['chosen']}"
            _style.note(axes, *place, words, ha="right")
        _style.beside(axes, ends)
    _style.save(figure, target)


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
