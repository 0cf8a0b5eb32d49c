"""The three total variations: differences, their adjoint, value and dual ball.

Inside the solver images lie as [H, W, C, B]: the batch is the fastest axis, so that
loops over shifted rows and columns vectorise whatever the number of channels, and the
per-image sums do too. Differences are kept at full size; the last row (column) is 0.
"""

from typing import Literal, NamedTuple

import jax.numpy as jnp

from robustjax.types import Array

Penalty = Literal["rows_columns", "isotropic", "anisotropic"]
PENALTIES = ("rows_columns", "isotropic", "anisotropic")


class Differences(NamedTuple):
    """One entry per pixel and direction, or what is dual to it.

    Attributes:
      down: z[i + 1, j] - z[i, j], [H, W, C, B].
      right: z[i, j + 1] - z[i, j], [H, W, C, B].
    """

    down: Array
    right: Array


def differences(z: Array) -> Differences:
    """D z."""
    below = jnp.concatenate([z[1:], z[-1:]], axis=0)
    beside = jnp.concatenate([z[:, 1:], z[:, -1:]], axis=1)
    return Differences(below - z, beside - z)


def adjoint(p: Differences) -> Array:
    """D^T p; the last row of `p.down` and column of `p.right` must be 0."""
    above = jnp.concatenate([jnp.zeros_like(p.down[:1]), p.down[:-1]], axis=0)
    before = jnp.concatenate([jnp.zeros_like(p.right[:, :1]), p.right[:, :-1]], axis=1)
    return above - p.down + (before - p.right)


def _square_norms(d: Differences, penalty: Penalty) -> Differences:
    """Squared Euclidean norms of the groups, in shapes that broadcast with `d`."""
    if penalty == "rows_columns":
        return Differences(
            jnp.sum(d.down**2, axis=1, keepdims=True),
            jnp.sum(d.right**2, axis=0, keepdims=True),
        )
    if penalty == "isotropic":
        both = d.down**2 + d.right**2
        return Differences(both, both)
    return Differences(d.down**2, d.right**2)


def project(t: Differences, radius: Array, penalty: Penalty) -> Differences:
    """The nearest point whose groups have norm at most `radius`, [1, 1, 1, B]."""
    if penalty == "anisotropic":
        return Differences(*(jnp.clip(part, -radius, radius) for part in t))
    # XLA's loops on CPU vectorise this form, and not those that compare squares. The
    # root has a finite derivative at 0, and nothing is divided by a radius of 0.
    norms = (jnp.sqrt(square + 1e-30) for square in _square_norms(t, penalty))
    return Differences(
        *(
            part * (radius / jnp.maximum(norm, radius))
            for part, norm in zip(t, norms, strict=True)
        )
    )


def excess(
    d: Differences, p: Differences, weight: Array, penalty: Penalty
) -> tuple[Array, Array]:
    """Weight * TV, and by how much it exceeds <p, d>, of each channel: [C, B].

    The excess is summed group by group, each term at least 0 for a feasible `p`: no
    digits cancel that a difference of the two sums would lose.
    """
    if penalty == "isotropic":
        norm = jnp.sqrt(d.down**2 + d.right**2)
        inner = p.down * d.down + p.right * d.right
        return weight * _total(norm), _total(jnp.maximum(weight * norm - inner, 0.0))
    value, above = 0.0, 0.0
    for axis, (some, dual) in zip((1, 0), zip(d, p, strict=True), strict=True):
        if penalty == "rows_columns":
            norm = jnp.sqrt(jnp.sum(some**2, axis=axis, keepdims=True))
            inner = jnp.sum(some * dual, axis=axis, keepdims=True)
        else:
            norm, inner = jnp.abs(some), some * dual
        value = value + weight * _total(norm)
        above = above + _total(jnp.maximum(weight * norm - inner, 0.0))
    return jnp.asarray(value), jnp.asarray(above)


def number_of_groups(z: Array, penalty: Penalty) -> int:
    """How many norms a total variation sums up, about, per image."""
    height, width, channels, _ = z.shape
    if penalty == "rows_columns":
        return channels * (height + width)
    return channels * height * width * (1 if penalty == "isotropic" else 2)


def _total(values: Array) -> Array:
    return jnp.sum(values, axis=(0, 1))
