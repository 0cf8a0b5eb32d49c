"""The box without constraints, and Adam without a library: what CW attacks share."""

import math
from typing import NamedTuple

import jax.numpy as jnp

from robustjax.types import Array

_DECAYS = 0.9, 0.999
_FLOOR = 1e-8
_INSIDE = 1 - 1e-6


class Moments(NamedTuple):
    """Adam's running means of the gradient and of its square."""

    mean: Array
    square: Array


def no_moments(w: Array) -> Moments:
    """Where Adam starts."""
    return Moments(jnp.zeros_like(w), jnp.zeros_like(w))


def adam(
    moments: Moments, grad: Array, index: Array, step_size: float | Array
) -> tuple[Array, Moments]:
    """The step to subtract and the new moments; `index` counts from 0.

    optax.adam is not used: it keeps one count in its state, promotes dtypes, and the
    attacks restart it per round. Images do not meet, so a frozen one keeps to itself.
    """
    first, second = _DECAYS
    mean = first * moments.mean + (1 - first) * grad
    square = second * moments.square + (1 - second) * grad**2
    count = (index + 1).astype(grad.dtype)
    mean_weight = -jnp.expm1(count * math.log(first))
    square_weight = -jnp.expm1(count * math.log(second))
    scale = jnp.sqrt(square / square_weight) + _FLOOR
    length = jnp.asarray(step_size, grad.dtype)
    return length * (mean / mean_weight) / scale, Moments(mean, square)


def to_pixels(w: Array, bounds: tuple[float, float]) -> Array:
    """Low + (high - low) (tanh(w) + 1) / 2."""
    low, high = bounds
    return jnp.clip(low + (high - low) * (jnp.tanh(w) + 1) / 2, low, high)


def from_pixels(x: Array, bounds: tuple[float, float]) -> Array:
    """The inverse of `to_pixels`, of pixels a millionth away from the bounds."""
    low, high = bounds
    unit = 2 * (x - low) / (high - low) - 1
    return jnp.arctanh(jnp.clip(unit, -1, 1) * _INSIDE)
