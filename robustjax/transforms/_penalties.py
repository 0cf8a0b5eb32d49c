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


def differences(z: Array, beside: int = 1) -> Differences:
    """D z; the pixel to the right lies `beside` entries further along axis 1."""
    down, right = z[1:] - z[:-1], z[:, beside:] - z[:, :-beside]
    return Differences(_padded(down, 0, (0, 1)), _padded(right, 1, (0, beside)))


def adjoint(p: Differences, beside: int = 1) -> Array:
    """D^T p; the last row of `p.down` and column of `p.right` must be 0."""
    above = _padded(p.down[:-1], 0, (1, 0))
    before = _padded(p.right[:, :-beside], 1, (beside, 0))
    return above - p.down + (before - p.right)


def _padded(z: Array, axis: int, widths: tuple[int, int]) -> Array:
    # Loops over padded arrays vectorise on CPU, those over joined ones do not.
    return jnp.pad(z, [widths if i == axis else (0, 0) for i in range(z.ndim)])


def _square_norms(d: Differences, penalty: Penalty) -> tuple[Array, ...]:
    """Squared Euclidean norms of the groups, in shapes that broadcast with `d`."""
    if penalty == "rows_columns":
        return (
            jnp.sum(d.down**2, axis=1, keepdims=True),
            jnp.sum(d.right**2, axis=0, keepdims=True),
        )
    if penalty == "isotropic":
        return (d.down**2 + d.right**2,)
    return d.down**2, d.right**2


def project(t: Differences, radius: Array, penalty: Penalty) -> Differences:
    """The nearest point whose groups have norm at most `radius`, [1, 1, 1, B]."""
    if penalty == "anisotropic":
        return Differences(*(jnp.clip(part, -radius, radius) for part in t))
    return scaled(t, shares(t, radius, penalty))


def shares(t: Differences, radius: Array, penalty: Penalty) -> tuple[Array, ...]:
    """What `t` must be `scaled` by to be projected: of both parts, or of each."""
    norms = _square_norms(t, penalty)
    # XLA's loops on CPU vectorise this form, and not those that compare squares. The
    # root has a finite derivative at 0, and nothing is divided by a radius of 0.
    norms = (jnp.sqrt(square + 1e-30) for square in norms)
    return tuple(radius / jnp.maximum(norm, radius) for norm in norms)


def scaled(t: Differences, shares: tuple[Array, ...]) -> Differences:
    """Down by the first share, right by the last."""
    return Differences(t.down * shares[0], t.right * shares[-1])


def excess(
    d: Differences, p: Differences, weight: Array, penalty: Penalty
) -> tuple[tuple[Array, Array], ...]:
    """Of each kind of groups: weight * norms, and by how much they exceed <p, d>.

    The excess is that of each group, at least 0 for a feasible `p`: no digits cancel
    that a difference of two sums would lose.
    """
    if penalty == "isotropic":
        norms = (jnp.sqrt(d.down**2 + d.right**2),)
        inner = (p.down * d.down + p.right * d.right,)
    elif penalty == "anisotropic":
        norms = [jnp.abs(some) for some in d]
        inner = [some * dual for some, dual in zip(d, p, strict=True)]
    else:
        parts = list(zip((1, 0), d, p, strict=True))
        norms = [jnp.sqrt(jnp.sum(d**2, i, keepdims=True)) for i, d, _ in parts]
        inner = [jnp.sum(d * p, i, keepdims=True) for i, d, p in parts]
    return tuple(
        (weight * norm, jnp.maximum(weight * norm - part, 0.0))
        for norm, part in zip(norms, inner, strict=True)
    )


def number_of_groups(z: Array, penalty: Penalty) -> int:
    """How many norms a total variation sums up, about, per image."""
    height, width, channels, _ = z.shape
    if penalty == "rows_columns":
        return channels * (height + width)
    return channels * height * width * (1 if penalty == "isotropic" else 2)
