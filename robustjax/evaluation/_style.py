"""How pictures of reports look: one figure, one palette, one way to save."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

Target = Path | IO[bytes]

# Okabe and Ito's colours, which stay apart without red-green vision and in grey.
BLUE, RED, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
PURPLE, SKY, GREY, LIGHT = "#CC79A7", "#56B4E9", "#555555", "#d0d0d0"
CYCLE = (BLUE, RED, GREEN, PURPLE, "#000000", ORANGE, SKY)
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


def shares(axes: Any, *, low: float = 0.0, high: float = 1.0, which: str = "y") -> None:
    """An axis of shares, in percent."""
    from matplotlib.ticker import PercentFormatter

    axis = axes.yaxis if which == "y" else axes.xaxis
    axis.set_major_formatter(PercentFormatter(1.0))
    room = 0.03 * (high - low)
    limits = (low - room, high + room)
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
    given: dict[str, Any] = (
        dict(fontsize=8, color=GREY, ha="left", va="bottom") | options
    )
    given["color"] = ink(given["color"])
    places = dict(left=3, right=-3, center=0)
    offset = (places[given["ha"]], 0 if given["va"] == "center" else 3)
    axes.annotate(text, (x, y), xytext=offset, textcoords="offset points", **given)


def beside(
    axes: Any, ends: Sequence[tuple[float | None, str, str]], **options: Any
) -> None:
    """Names of curves at their right ends, apart from one another.

    Args:
      axes: With its final limits.
      ends: Height, name and colour of each; without a finite height it has no end.
      **options: Of the text.
    """
    seen = sorted((h, *rest) for h, *rest in ends if h is not None and math.isfinite(h))
    low, high = axes.get_ylim()
    inches = axes.get_position().height * axes.figure.get_figheight()
    wide = 0.15 / max(inches, 0.1) * (high - low)  # of a line of words
    places: list[float] = []
    for height, _, _ in seen:
        least = places[-1] + wide if places else low
        places.append(max(min(max(height, low), high), least))
    over = max(places[-1] - high, 0.0) if places else 0.0
    for place, (_, name, color) in zip(places, seen, strict=True):
        axes.annotate(
            name,
            (1.0, place - over),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            color=ink(color),
            annotation_clip=False,
            **options,
        )


def ink(color: str) -> Any:
    """A colour dark enough for words on white."""
    from matplotlib.colors import to_rgb

    red, green, blue = to_rgb(color)
    light = 0.3 * red + 0.6 * green + 0.1 * blue
    scale = min(1.0, 0.42 / max(light, 1e-6))
    return (red * scale, green * scale, blue * scale)


def title(axes: Any, text: str) -> None:
    """A title of a panel, on its left."""
    axes.set_title(text, loc="left", fontsize=9)


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
    text = "".join(c if c.isprintable() else " " for c in text)
    kept = text if len(text) <= length else text[: length - 1] + "…"
    return kept.replace("$", r"\$")  # which would start a formula


def save(made: Any, target: Target, *, colors: int | None = 128) -> None:
    """A PNG: in a file that a reader sees old or whole, or in a buffer.

    Args:
      made: The figure.
      target: A path, or a buffer.
      colors: Of a palette, which makes lines and bars a third as large; None keeps the
        colours of images.
    """
    from PIL import Image

    drawn = io.BytesIO()
    made.savefig(drawn, dpi=_DPI, format="png", metadata={"Software": None})
    if colors is not None:
        picture = Image.open(drawn).convert("RGB")
        small = picture.quantize(colors, dither=Image.Dither.NONE)
        drawn = io.BytesIO()
        small.save(drawn, format="png", optimize=True)
    if not isinstance(target, Path):
        target.write(drawn.getvalue())
        return
    partial = target.with_suffix(".partial.png")
    partial.write_bytes(drawn.getvalue())
    partial.replace(target)
