"""The nearest of the images that an attack may be drawn towards."""

import jax
import jax.numpy as jnp

from robustjax.types import Array


def nearest(features: Array, pool: Array, allowed: Array, count: int) -> Array:
    """Rows of `pool` [N, D] that are allowed [B, N], nearest first, [B, count].

    Where fewer are allowed, the nearest one takes their place.
    """
    squares = jnp.sum(features**2, axis=1)[:, None] + jnp.sum(pool**2, axis=1)[None]
    products = jnp.matmul(features, pool.T, precision=jax.lax.Precision.HIGHEST)
    closeness = jnp.where(allowed, 2 * products - squares, -jnp.inf)
    # The barrier keeps XLA on CPU from sorting everything.
    value, index = jax.lax.optimization_barrier(jax.lax.top_k(closeness, count))
    return jnp.where(value > -jnp.inf, index, index[:, :1])
