"""Windows of the Square attack: their sides, their places, and the bumps in them.

A bump falls with the distance from its middle: at (Chebyshev) distance d it is the sum
of 1/k^a over k > d, with a = 2 for L2 and 4 for L1. A pattern of side s is a positive
bump on the upper half and a negative one on the lower half, of norm 1.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax.types import Array, Key

FLOOR = 1e-12
_NUM_STAGES = 10


class Norm(NamedTuple):
    """What L2 and L1 differ in.

    Attributes:
      power: The bump's `a`.
      length: `(values, axis) -> norm`, axes kept.
      fill: `(length of delta, of its windows, eps, channels) -> length`, what a window
        gets.
    """

    power: int
    length: Callable[..., Array]
    fill: Callable[[Array, Array, Array, int], Array]


def _l2_length(values: Array, axis: tuple[int, ...]) -> Array:
    return jnp.sqrt(jnp.sum(values**2, axis=axis, keepdims=True))


def _l2_fill(whole: Array, windows: Array, eps: Array, channels: int) -> Array:
    unused = jnp.maximum(eps**2 - whole**2, 0.0)
    return jnp.sqrt(unused / channels + windows**2)


def _l1_length(values: Array, axis: tuple[int, ...]) -> Array:
    return jnp.sum(jnp.abs(values), axis=axis, keepdims=True)


def _l1_fill(whole: Array, windows: Array, eps: Array, channels: int) -> Array:
    # As if each channel could have it all; the projection takes the excess away.
    return jnp.maximum(eps - whole, 0.0) + channels * windows


NORMS = {
    "l2": Norm(2, _l2_length, _l2_fill),
    "l1": Norm(4, _l1_length, _l1_fill),
}


def per_image(eps: float | Array, x: Array) -> Array:
    """`eps`, scalar or [B], broadcastable against images x."""
    return jnp.asarray(eps, x.dtype).reshape(-1, *(1,) * (x.ndim - 1))


def sides(height: int, width: int, initial_share: float) -> np.ndarray:
    """The window's side after 0, 1, ... 9 halvings of its share, [10]."""
    share = initial_share / 2.0 ** np.arange(_NUM_STAGES)
    side = np.rint(np.sqrt(share * height * width)).astype(np.int32)
    return np.clip(side, 1, min(height, width))


def odd_sides(height: int, width: int, initial_share: float) -> np.ndarray:
    """`sides` made odd, upwards where there is room, and at least 3 if that fits."""
    largest = min(height, width) - (min(height, width) + 1) % 2
    side = np.maximum(sides(height, width, initial_share), 3)
    return np.clip(side + (side + 1) % 2, 1, max(largest, 1)).astype(np.int32)


def corner(uniform: Array, shape: tuple[int, int], side: Array) -> Array:
    """Uniform numbers [2] to an upper left corner in [0, H - s) x [0, W - s).

    The last place is never drawn unless it is the only one, as in the reference.
    """
    free = jnp.asarray(shape, jnp.int32) - side
    place = jnp.floor(uniform * free.astype(uniform.dtype)).astype(jnp.int32)
    return jnp.clip(place, 0, jnp.maximum(free - 1, 0))


def window(corner: Array, shape: tuple[int, int], side: Array) -> Array:
    """Where the window is, bools [H, W, 1].

    Comparisons with the coordinates fuse into what uses them; slices at places that
    differ between images would be gathers and scatters.
    """
    row = jnp.arange(shape[0], dtype=jnp.int32)[:, None, None] - corner[0]
    column = jnp.arange(shape[1], dtype=jnp.int32)[None, :, None] - corner[1]
    return (row >= 0) & (row < side) & (column >= 0) & (column < side)


@functools.cache
def pattern(side: int, power: int) -> np.ndarray:
    """One bump up and one down, of norm 1, [side, side]."""
    upper = side // 2
    halves = _bump(upper, side, power), -_bump(side - upper, side, power)
    both = np.concatenate(halves)
    return both / _size(both, power)


def patterns(sides: np.ndarray, norm: Norm) -> np.ndarray:
    """The pattern of each side, padded to the largest, [stages, S, S]."""
    padded = np.zeros((len(sides), sides.max(), sides.max()))
    for stage, side in enumerate(sides):
        padded[stage, :side, :side] = pattern(int(side), norm.power)
    return padded


def tiling(key: Key, shape: tuple[int, ...], dtype: jnp.dtype, norm: Norm) -> Array:
    """The start: a grid of patterns, H // 5 wide, of random signs, [H, W, C].

    Each tile is transposed or not, and each of its channels has a sign. Only whole
    tiles are laid (the reference fails on heights where the last would not fit).
    """
    height, width, channels = shape
    side = max(min(height // 5, width), 1)
    first = min(max((height - 5 * side) // 2, 0), min(height, width) - side)
    rows, columns = (height - first) // side, (width - first) // side

    def laid(tile: np.ndarray) -> Array:
        grid = np.tile(tile, (rows, columns))
        margins = [
            (first, n - first - m) for n, m in zip(shape[:2], grid.shape, strict=True)
        ]
        return jnp.asarray(np.pad(grid, margins), dtype)[:, :, None]

    def spread(values: Array) -> Array:  # [rows, columns, ...] to pixels
        values = values.repeat(side, axis=0).repeat(side, axis=1)
        rest = [
            (first, n - first - m)
            for n, m in zip(shape[:2], values.shape[:2], strict=True)
        ]
        return jnp.pad(values, (*rest, (0, 0)))

    sign_key, turn_key = jax.random.split(key)
    positive = jax.random.bernoulli(sign_key, shape=(rows, columns, channels))
    turned = jax.random.bernoulli(turn_key, shape=(rows, columns, 1))
    tile = pattern(side, norm.power)
    bumps = jnp.where(spread(turned), laid(tile.T), laid(tile))
    return jnp.where(spread(positive), bumps, -bumps)


def move_mass(
    key: Key, delta: Array, eps: Array, side: Array, pattern: Array, norm: Norm
) -> Array:
    """`delta` [H, W, C] with one window emptied and another refilled.

    The first window's perturbation, scaled to norm 1 per channel, plus a signed
    pattern gives the direction; its length per channel is what the two windows held
    and what was unused of eps. As in AutoAttack's code, each channel gets what *all*
    channels of the windows held; the caller brings the whole back to the ball.

    Args:
      key: For this image.
      delta: The perturbation.
      eps: The radius, scalar.
      side: Of both windows.
      pattern: [S, S], of which [side, side] is used.
      norm: L2 or L1.
    """
    height, width, channels = delta.shape
    uniform = jax.random.uniform(key, (5 + channels,), jnp.float32)
    first_corner = corner(uniform[:2], (height, width), side)
    second_corner = corner(uniform[2:4], (height, width), side)
    first = window(first_corner, (height, width), side)
    second = window(second_corner, (height, width), side)
    bump = jnp.where(first, _placed(pattern, first_corner, uniform[4], delta), 0.0)
    signed = jnp.where((uniform[5:] < 0.5).reshape(1, 1, channels), bump, -bump)
    old = jnp.where(first, delta, 0.0)
    direction = signed + old / (norm.length(old, axis=(0, 1)) + FLOOR)
    whole = norm.length(delta, axis=(0, 1, 2))
    windows = norm.length(jnp.where(first | second, delta, 0.0), axis=(0, 1, 2))
    length = norm.fill(whole, windows, eps, channels)
    filled = direction / (norm.length(direction, axis=(0, 1)) + FLOOR) * length
    return jnp.where(first, filled, jnp.where(second, 0.0, delta))


def _placed(pattern: Array, corner: Array, turn: Array, delta: Array) -> Array:
    """The pattern, transposed or not, with its corner at `corner`, [H, W, 1]."""
    height, width, _ = delta.shape
    row = jnp.arange(height, dtype=jnp.int32)[:, None] - corner[0]
    column = jnp.arange(width, dtype=jnp.int32)[None, :] - corner[1]
    size = jnp.int32(pattern.shape[0])
    place = jnp.where(turn < 0.5, row * size + column, column * size + row)
    return jnp.take(pattern.reshape(-1), place, mode="clip")[:, :, None]


def _bump(height: int, width: int, power: int) -> np.ndarray:
    row = np.abs(np.arange(height) - height // 2)
    column = np.abs(np.arange(width) - width // 2)
    distance = np.maximum(row[:, None], column[None, :])
    reach = max(height // 2, width // 2) + 1
    terms = 1.0 / np.arange(1, reach + 1) ** power
    bump = terms[::-1].cumsum()[::-1][distance]
    return bump / _size(bump, power)


def _size(values: np.ndarray, power: int) -> float:
    """The norm that goes with a power: L2 with 2, L1 with 4; 1 for nothing."""
    order = {2: 2, 4: 1}[power]
    return float((np.abs(values) ** order).sum() ** (1 / order)) or 1.0
