"""What is made of influences: means of classes, channels, front and tail neurons."""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import _checks
from robustjax._checks import InputError
from robustjax.types import Array, Key

TailOrder = Literal["most_negative", "smallest_magnitude"]


class ClassMeans(NamedTuple):
    """Means over the images of each class.

    Attributes:
      mean: [K, *layer]; 0 for a class without images.
      weight: How many images that is, or their weights' sum, [K].
    """

    mean: Array
    weight: Array


def class_means(
    values: Array, y: Array, num_classes: int, weights: Array | None = None
) -> ClassMeans:
    """The mean of `values` over the images of each class.

    Args:
      values: [B, ...], an influence or anything else.
      y: Labels [B].
      num_classes: K.
      weights: [B], e.g. 1 (or True) where the image is classified correctly, else 0.
        What has weight 0 may be NaN.

    Raises:
      InputError: shapes do not fit, or concrete labels are out of range; traced ones
        that are count for no class.

    Example:
      >>> values = jnp.array([[1.0], [3.0], [5.0]])
      >>> means = class_means(values, jnp.array([0, 0, 2]), 3)
      >>> means.mean[:, 0].tolist(), means.weight.tolist()
      ([2.0, 0.0, 5.0], [2.0, 0.0, 1.0])
    """
    _checks.positive_int(num_classes=num_classes)
    _checks.same_batch(values=values, y=y)
    _checks.label_range(y, num_classes)
    weights = jnp.ones(y.shape, jnp.float32) if weights is None else weights
    _checks.same_batch(weights=weights, y=y)
    if not jnp.issubdtype(weights.dtype, jnp.floating):
        weights = weights.astype(jnp.float32)
    total = jax.ops.segment_sum(weights, y, num_classes)
    rows = weights.reshape(-1, *(1,) * (values.ndim - 1))
    summed = jax.ops.segment_sum(jnp.where(rows > 0, rows * values, 0), y, num_classes)
    safe = jnp.where(total > 0, total, 1).reshape(-1, *(1,) * (values.ndim - 1))
    return ClassMeans(summed / safe, total)


def per_channel(influence: Array) -> Array:
    """The influence of channels, [B, C]: the sum over all places, [B, ..., C].

    Of gradients it is the influence of a shift of the whole channel.

    Example:
      >>> per_channel(jnp.ones((2, 4, 4, 3))).tolist()[0]
      [16.0, 16.0, 16.0]
    """
    return influence.sum(axis=tuple(range(1, influence.ndim - 1)))


def front_and_tail(
    influence: Array,
    front: int | float,
    tail: int | float,
    *,
    tail_order: TailOrder = "most_negative",
) -> Array:
    """+1 on the front neurons, -1 on the tail, 0 in the middle, [B, *layer], float32.

    The front are those of the largest influence; of equal ones the first in order of
    index. `vmap` over a leading axis of classes is not needed: rows are independent.

    Args:
      influence: [B, *layer], or of classes, [K, *layer].
      front: How many neurons, or below 1 which share of them, rounded down.
      tail: The same for the tail.
      tail_order: What is the tail: "most_negative", or "smallest_magnitude" among
        those that are not in front. (One of the scripts of NIP takes the ranks after
        the front, against its abstract; that is not offered.)

    Raises:
      InputError: a size is out of range, or both are more than there are.

    Example:
      >>> front_and_tail(jnp.array([[3.0, -2.0, 0.5, 1.0]]), 1, 1).tolist()
      [[1.0, -1.0, 0.0, 0.0]]
    """
    _checks.one_of(("most_negative", "smallest_magnitude"), tail_order=tail_order)
    rows = influence.reshape(influence.shape[0], -1)
    num_front, num_tail = set_sizes(rows.shape[1], front, tail)
    is_front = _rank(-rows) < num_front
    worth = rows if tail_order == "most_negative" else jnp.abs(rows)
    is_tail = _rank(jnp.where(is_front, jnp.inf, worth)) < num_tail
    masks = is_front.astype(jnp.float32) - is_tail.astype(jnp.float32)
    return masks.reshape(influence.shape)


def random_sets(
    key: Key, shape: tuple[int, ...], front: int | float, tail: int | float
) -> Array:
    """Masks as of `front_and_tail` of neurons drawn at random: the control.

    Args:
      key: One key.
      shape: [K, *layer].
      front: As in `front_and_tail`.
      tail: As in `front_and_tail`.

    Raises:
      InputError: as for `front_and_tail`.

    Example:
      >>> random_sets(jax.random.key(0), (2, 8), 2, 3).sum(axis=1).tolist()
      [-1.0, -1.0]
    """
    return front_and_tail(jax.random.uniform(key, shape), front, tail)


def set_sizes(
    num_neurons: int, front: int | float, tail: int | float
) -> tuple[int, int]:
    """How many neurons are in front and in the tail.

    Raises:
      InputError: a size is out of range, or both are more than there are.
    """
    found = []
    for name, size in (("front", front), ("tail", tail)):
        share = isinstance(size, (float, np.floating)) and 0 <= size < 1
        count = isinstance(size, (int, np.integer)) and not isinstance(size, bool)
        count = count and size >= 0
        if not share and not count:
            raise InputError(
                f"`{name}` must be a number of neurons, or a share of them below 1 as "
                f"in 0.5, got {size!r}."
            )
        found.append(_share_of(num_neurons, size) if share else int(size))
    if sum(found) > num_neurons:
        raise InputError(
            f"`front` and `tail` must be at most the {num_neurons} neurons of the "
            f"layer together, got {front!r} and {tail!r}."
        )
    return found[0], found[1]


def _share_of(num_neurons: int, share: float) -> int:
    """The share as it was written: 0.29 of 100 are 29, though below that in binary."""
    return math.floor(float(str(share)) * num_neurons + 1e-9)


def _rank(rows: Array) -> Array:
    return jnp.argsort(jnp.argsort(rows, axis=1, stable=True), axis=1)
