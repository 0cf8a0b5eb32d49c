"""Sparse symmetric systems of a graph Laplacian: reachability and solve."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from robustjax.types import Array

# Queries from which the factorisation costs more than the iterations. An idle machine
# would allow twice as many; on a busy one the threads of LAPACK wait for one another.
_DENSE = 128


class System(NamedTuple):
    """A u = R, where A = diag(diagonal) - B - B^T and B[i, column[i, :]] = between.

    Attributes:
      diagonal: [Q].
      column: [Q, k], positions of queries; None if B = between, [Q, Q].
      between: [Q, k], weights; 0 where there is no edge.
      right: R, [Q, K].
    """

    diagonal: Array
    column: Array | None
    between: Array
    right: Array


def matvec(system: System, u: Array) -> Array:
    """A u, [Q, K]."""
    if system.column is None:
        both = system.between + system.between.T
        product = jnp.matmul(both, u, precision=jax.lax.Precision.HIGHEST)
        return system.diagonal[:, None] * u - product
    forward = jnp.einsum("qk,qkc->qc", system.between, u[system.column])
    back = (
        jnp.zeros_like(u)
        .at[system.column]
        .add(system.between[:, :, None] * u[:, None, :])
    )
    return system.diagonal[:, None] * u - forward - back


def isolated(system: System, shares: Array) -> tuple[System, Array]:
    """The system in which queries that reach no template hold `shares`, [K].

    Returns:
      It, and which queries do reach a template, [Q].
    """
    edge = system.between > 0

    def spread(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        reached, _ = carry
        if system.column is None:
            grown = reached | ((edge | edge.T) & reached[None]).any(axis=1)
        else:
            grown = reached | (edge & reached[system.column]).any(axis=1)
            grown = grown.at[system.column].max(edge & reached[:, None])
        return grown, (grown != reached).any()

    start = ((system.right > 0).any(axis=1), jnp.array(True))
    reached, _ = jax.lax.while_loop(lambda carry: carry[1], spread, start)
    alone = System(
        jnp.where(reached, system.diagonal, 1.0),
        system.column,
        jnp.where(reached[:, None], system.between, 0.0),
        jnp.where(reached[:, None], system.right, shares),
    )
    return alone, reached


def solved(
    system: System, *, method: str, tolerance: float | None, max_iterations: int
) -> tuple[Array, Array, Array, Array]:
    """U [Q, K], the residual, the iterations, and whether the residual will do.

    The rows are divided by their diagonal from both sides, so that queries far from
    everything count as much as others.
    """
    dtype = system.right.dtype
    if tolerance is None:
        tolerance = 20 * float(jnp.finfo(dtype).eps)
    if method == "auto":
        method = "cholesky" if system.right.shape[0] <= _DENSE else "cg"
    root = jnp.sqrt(system.diagonal)
    of_column = root[None] if system.column is None else root[system.column]
    scaled = System(
        jnp.ones_like(root),
        system.column,
        system.between / (root[:, None] * of_column),
        system.right / root[:, None],
    )
    fixed = jax.lax.stop_gradient(scaled)

    def iterate(_, right: Array) -> tuple[Array, Array]:
        return _conjugate_gradients(fixed, right, tolerance, max_iterations)

    def factorise(_, right: Array) -> tuple[Array, Array]:
        factor = jax.scipy.linalg.cho_factor(_dense(fixed))
        return jax.scipy.linalg.cho_solve(factor, right), jnp.int32(0)

    solve = factorise if method == "cholesky" else iterate
    u, iterations = jax.lax.custom_linear_solve(
        lambda u: matvec(scaled, u),
        scaled.right,
        solve,
        transpose_solve=solve,
        symmetric=True,
        has_aux=True,
    )
    residual = jnp.abs(matvec(fixed, jax.lax.stop_gradient(u)) - fixed.right).max()
    # In the scale of u itself.
    converged = residual <= 10 * tolerance * jnp.maximum(jnp.abs(u).max(), 1.0)
    return u / root[:, None], residual, iterations, converged


def _dense(system: System) -> Array:
    half = system.between
    if system.column is not None:
        rows = jnp.arange(half.shape[0])[:, None]
        half = jnp.zeros((half.shape[0],) * 2, half.dtype)
        half = half.at[rows, system.column].add(system.between)
    return jnp.diag(system.diagonal) - half - half.T


def _conjugate_gradients(
    system: System, right: Array, tolerance: float, max_iterations: int
) -> tuple[Array, Array]:
    """Column by column, all at once; A has ones on its diagonal."""

    def body(carry):
        u, rest, direction, size, count = carry
        image = matvec(system, direction)
        curvature = jnp.sum(direction * image, axis=0, keepdims=True)
        step = _ratio(size, curvature)
        u, rest = u + step * direction, rest - step * image
        new = jnp.sum(rest**2, axis=0, keepdims=True)
        return u, rest, rest + _ratio(new, size) * direction, new, count + 1

    def unfinished(carry):
        return (jnp.abs(carry[1]).max() > tolerance * scale) & (
            carry[4] < max_iterations
        )

    scale = jnp.maximum(jnp.abs(right).max(), jnp.finfo(right.dtype).tiny)
    start = (
        *(jnp.zeros_like(right), right, right),
        jnp.sum(right**2, axis=0, keepdims=True),
        jnp.int32(0),
    )
    u, _, _, _, count = jax.lax.while_loop(unfinished, body, start)
    return u, count


def _ratio(above: Array, below: Array) -> Array:
    return jnp.where(below > 0, above / jnp.where(below > 0, below, 1.0), 0.0)
