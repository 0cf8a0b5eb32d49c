"""Rows of scores, a block at a time, so that the scores of all pairs never exist."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from robustjax import _checks
from robustjax.types import Array, PyTree

_ENTRIES = 2**22  # scores of one block


def by_blocks(
    row: Callable[..., PyTree],
    parts: PyTree,
    *,
    row_size: int,
    block_size: int | None,
) -> PyTree:
    """`row` of each row of `parts`, stacked; blocks are recomputed for the gradient.

    Args:
      row: Of one row's parts.
      parts: Arrays [N, ...].
      row_size: Scores in a row.
      block_size: Rows at a time; None is as many as make 4 million scores.
    """
    if block_size is None:
        block_size = max(1, _ENTRIES // row_size)
    _checks.positive_int(block_size=block_size)
    if block_size >= len(jax.tree.leaves(parts)[0]):
        return jax.vmap(row)(parts)
    return jax.lax.map(jax.checkpoint(row), parts, batch_size=block_size)


def score_row(local_features: Array, global_features: Array) -> Array:
    """u[j, l, m] of local features [N, U, L] and one sample's global ones, [U, M]."""
    return jnp.einsum(
        "jul,um->jlm", local_features, global_features, precision="highest"
    )


def wide(values: Array) -> Array:
    """Float32 at least."""
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))
