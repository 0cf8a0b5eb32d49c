"""How pictures of reports look: one figure, one palette, one way to save."""

from pathlib import Path
from typing import IO, Any

import numpy as np

Target = Path | IO[bytes]

# Okabe and Ito's colours, which stay apart without red-green vision and in grey.
BLUE, RED, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
PURPLE, SKY, GREY, LIGHT = "#CC79A7", "#56B4E9", "#555555", "#d0d0d0"
CYCLE = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY, "#000000")
LINES = ("-", "--", ":", "-.")
CLEAN, ADVERSARIAL = BLUE, RED
_DPI = 110


def figure(width: float, height: float) -> Any:
    """A figure outside pyplot, which keeps none open and needs no display."""
    from matplotlib.figure import Figure  # slow to import

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def panels(
    width: float, height: float, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Any, np.ndarray]:
    """A figure and its axes [rows, columns], plain: two spines and a faint grid."""
    made = figure(width, height)
    axes = made.subplots(rows, columns, squeeze=False, **options)
    for one in axes.ravel():
        plain(one)
    return made, axes


def plain(axes: Any) -> None:
    """Takes away what shows no data."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GREY)
    axes.tick_params(labelsize=8, color=GREY)
    axes.grid(True, color="#e8e8e8", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.xaxis.label.set_size(9)
    axes.yaxis.label.set_size(9)
    axes.title.set_size(9)


def shares(axes: Any, *, low: float = 0.0, high: float = 1.0, which: str = "y") -> None:
    """An axis of shares, in percent."""
    from matplotlib.ticker import PercentFormatter

    axis = axes.yaxis if which == "y" else axes.xaxis
    axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    limits = (low - 0.02, high + 0.02)
    axes.set_ylim(*limits) if which == "y" else axes.set_xlim(*limits)


def series(number: int) -> dict[str, Any]:
    """Colour and line of the n-th of several curves; never the colour alone."""
    style = LINES[number // len(CYCLE) % len(LINES)]
    markers = "os^Dv<>"
    return dict(
        color=CYCLE[number % len(CYCLE)],
        linestyle=style,
        marker=markers[number % len(markers)],
        markersize=4,
        linewidth=1.5,
    )


def note(axes: Any, x: float, y: float, text: str, **options: Any) -> None:
    """Words at a place of the data."""
    given = dict(fontsize=8, color=GREY, ha="left", va="bottom") | options
    axes.annotate(text, (x, y), xytext=(3, 3), textcoords="offset points", **given)


def beside(axes: Any, ends: list[tuple[float, str, str]], **options: Any) -> None:
    """Names of curves at their right ends, apart from one another.

    Args:
      axes: With its final limits.
      ends: Height, name and colour of each.
      **options: Of the text.
    """
    low, high = axes.get_ylim()
    wide = 0.06 * (high - low) * 3.0 / max(axes.figure.get_figheight(), 1.0) * 1.2
    places: list[float] = []
    for height, _, _ in sorted(ends):
        least = places[-1] + wide if places else low
        places.append(max(min(max(height, low), high), least))
    over = max(places[-1] - high, 0.0) if places else 0.0
    for place, (_, name, color) in zip(places, sorted(ends), strict=True):
        axes.annotate(
            name,
            (1.0, place - over),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=color,
            annotation_clip=False,
            **options,
        )


def show(axes: Any, image: np.ndarray, **options: Any) -> None:
    """An image [H, W, C] without axes."""
    picture = image[..., 0] if image.shape[-1] == 1 else np.clip(image[..., :3], 0, 1)
    axes.imshow(picture, **(dict(cmap="gray", vmin=0, vmax=1) | options))
    bare(axes)


def bare(axes: Any) -> None:
    """No ticks, no grid, no frame."""
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def short(text: str, length: int = 28) -> str:
    """A name that fits beside a picture.

    Example:
      >>> short("straight-through, margin, PGD-100 x 5", 20)
      'straight-through, m…'
    """
    # A dollar sign would start a formula.
    kept = text if len(text) <= length else text[: length - 1] + "…"
    return kept.replace("$", r"\$")


def save(made: Any, target: Target) -> None:
    """A PNG: in a file that a reader sees old or whole, or in a buffer."""
    options: dict[str, Any] = dict(dpi=_DPI, format="png", metadata={"Software": None})
    if not isinstance(target, Path):
        made.savefig(target, **options)
        return
    partial = target.with_suffix(".partial.png")
    made.savefig(partial, **options)
    partial.replace(target)
