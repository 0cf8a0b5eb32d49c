"""Which wrong classes targeted attacks try, by their rank on the clean image."""

import jax
import jax.numpy as jnp
import numpy as np

from robustjax._checks import InputError, is_concrete
from robustjax.types import Array


def ranked_class(logits: Array, y: Array, rank: int | Array) -> Array:
    """The `rank`-th most likely class, never the label itself, [B].

    The label counts as rank 1 wherever it stands: where the image is classified
    correctly this is the plain ranking, and elsewhere the other classes keep their
    order. Equal logits rank by index; a rank beyond the classes gives the last one.

    Args:
      logits: Of the clean images, [B, K] with at least 2 classes, or the samples
        [S, B, K] of a randomised classifier, whose mean probabilities are ranked.
      y: Labels [B].
      rank: 2 is the most likely wrong class; scalar or [B], may be traced.

    Raises:
      InputError: fewer than 2 classes, labels that are not [B], or a rank below 2.

    Example:
      >>> logits, y = jnp.array([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0]]), jnp.array([0, 2])
      >>> ranked_class(logits, y, 2).tolist(), ranked_class(logits, y, 3).tolist()
      ([2, 0], [1, 1])
    """
    check_rank(rank)
    if y.ndim != 1:
        raise InputError(f"`y` must be labels [B] to rank others, got shape {y.shape}.")
    if logits.shape[-1] < 2:
        raise InputError(
            f"`logits` must have at least 2 classes, got {logits.shape[-1]}."
        )
    if logits.ndim == 3:
        wide = jnp.promote_types(logits.dtype, jnp.float32)
        logits = jax.nn.softmax(logits.astype(wide)).mean(axis=0)
    is_label = jax.nn.one_hot(y, logits.shape[1], dtype=bool)
    # The last key decides first: the label goes to the front, infinite logits or not.
    order = jnp.lexsort((-logits, ~is_label), axis=1).astype(y.dtype)
    position = jnp.clip(jnp.asarray(rank) - 1, 1, logits.shape[1] - 1)
    position = jnp.broadcast_to(position, y.shape)[:, None]
    return jnp.take_along_axis(order, position, axis=1)[:, 0]


def check_rank(rank: int | Array) -> None:
    """Raises unless concrete ranks are at least 2."""
    if is_concrete(rank) and np.min(np.asarray(rank)) < 2:
        raise InputError(f"`rank` must be at least 2, as 1 is the label, got {rank}.")


def count_targets(num_targets: int, num_classes: int) -> int:
    """How many wrong classes there are to try, at most `num_targets`."""
    return min(num_targets, num_classes - 1)
