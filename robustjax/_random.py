"""Keys per image, so that results depend on neither batch size nor order."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from robustjax import _checks
from robustjax.types import Array, Key


def per_image_keys(key: Key, batch_size: int) -> Key:
    """One key per image, [B]: a scalar key is folded with the position.

    A `[B]` array of keys is returned as it is, so that callers who know the
    images (evaluation folds in the data-set index) decide what each one draws.

    Raises:
      InputError: `key` is not a typed key, or holds another number of keys.

    Example:
      >>> per_image_keys(jax.random.key(0), 4).shape
      (4,)
    """
    _checks.keys(key)
    if key.ndim == 0:
        return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch_size))
    if key.shape != (batch_size,):
        raise _checks.InputError(
            f"`key` must be one key or one per image, [{batch_size}], got shape "
            f"{key.shape}."
        )
    return key


def draw(key: Key, x: Array, sampler: Callable[..., Array]) -> Array:
    """`sampler(key, shape, dtype)` for each image with its own key, of shape of `x`.

    `key` is one key or one per image. E.g. `draw(key, x, jax.random.normal)`.
    """
    keys = per_image_keys(key, x.shape[0])
    return jax.vmap(lambda k: sampler(k, x.shape[1:], x.dtype))(keys)


def fold_in(key: Key, data: int | Array) -> Key:
    """`jax.random.fold_in` for one key or each of a [B] array of keys."""
    if key.ndim == 0:
        return jax.random.fold_in(key, data)
    return jax.vmap(jax.random.fold_in, (0, None))(key, data)
