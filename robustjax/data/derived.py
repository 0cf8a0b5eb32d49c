"""Data sets made of other ones: images computed once, and unions."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import _checks
from robustjax.data.augment import as_float
from robustjax.data.batches import evaluation_batches
from robustjax.data.dataset import Dataset
from robustjax.types import Array, Key


def mapped(
    dataset: Dataset,
    fun: Callable[[Key, Array, Array], Array],
    *,
    key: Key,
    batch_size: int = 500,
) -> Dataset:
    """The data set with every image replaced, computed on the device, kept in memory.

    Image `i` of its source draws from `fold_in(key, i)`: another cut of the same source
    gives it the same result. Stored as they were, uint8 to the nearest of 256 levels.

    Args:
      dataset: What is mapped.
      fun: `(keys [B], x [B, H, W, C] in [0, 1], y [B]) -> x'`, of the shape of `x`.
      key: A typed key.
      batch_size: Images at a time.

    Raises:
      InputError: `fun` returns another shape.

    Example:
      >>> images = np.full((3, 8, 8, 1), 100, np.uint8)
      >>> three = Dataset(images, np.int32([0, 1, 0]), np.arange(3), ("cat", "dog"))
      >>> half = mapped(three, lambda keys, x, y: x / 2, key=jax.random.key(0))
      >>> int(half.images.max())
      50
    """

    @jax.jit
    def run(index: Array, images: Array, labels: Array) -> Array:
        x = as_float(images)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
        result = fun(keys, x, labels)
        _checks.same_shape(result=result, x=x)
        result = jnp.clip(result, 0.0, 1.0)
        if images.dtype == jnp.uint8:
            return jnp.round(255 * result).astype(jnp.uint8)
        return result.astype(jnp.float32)

    parts = [
        np.asarray(run(batch.index.astype(np.uint32), batch.x, batch.y))
        for batch in evaluation_batches(dataset, min(batch_size, len(dataset)))
    ]
    images = np.concatenate(parts)[: len(dataset)]
    return dataclasses.replace(dataset, images=images)


def joined(*datasets: Dataset) -> Dataset:
    """All examples of several data sets of the same classes, one after another.

    Raises:
      InputError: there is none, or images or classes differ.

    Example:
      >>> images = np.zeros((3, 8, 8, 1), np.uint8)
      >>> three = Dataset(images, np.int32([0, 1, 0]), np.arange(3), ("cat", "dog"))
      >>> len(joined(three, three))
      6
    """
    if not datasets:
        raise _checks.InputError("`datasets` must hold at least one, got none.")
    first = datasets[0]
    for other in datasets:
        same = (other.images.shape[1:], other.images.dtype, other.class_names) == (
            first.images.shape[1:],
            first.images.dtype,
            first.class_names,
        )
        if not same:
            raise _checks.InputError(
                f"`datasets` must have the same images and classes, got {first!r} and "
                f"{other!r}."
            )
    return dataclasses.replace(
        first,
        images=np.concatenate([each.images for each in datasets]),
        labels=np.concatenate([each.labels for each in datasets]),
        index=np.concatenate([each.index for each in datasets]),
    )
