"""What counts as broken, and which of two candidates an attacker keeps."""

from typing import NamedTuple

import jax.numpy as jnp

from robustjax.types import Array


class Candidate(NamedTuple):
    """A point per image, with how well it serves the attacker.

    Attributes:
      x_adv: [B, ...].
      value: The objective there, [B].
      broken: Whether the classifier is wrong there, [B].
    """

    x_adv: Array
    value: Array
    broken: Array


def broken(logits: Array, y: Array) -> Array:
    """Whether the prediction differs from the label (the mode of a distribution), [B].

    NaN logits count as broken: they are no answer.
    """
    label = y if y.ndim == 1 else y.argmax(axis=1)
    return (logits.argmax(axis=1) != label) | jnp.isnan(logits).any(axis=1)


def keep_worse(old: Candidate, new: Candidate) -> Candidate:
    """Per image the more adversarial candidate: broken first, then the larger value.

    Without the first criterion an iterate that fools the classifier can be dropped for
    one with a larger loss that does not (cross-entropy is not monotone in the margin).
    """
    wins = (new.broken & ~old.broken) | (
        (new.broken == old.broken) & (new.value > old.value)
    )
    return Candidate(
        where(wins, new.x_adv, old.x_adv),
        jnp.where(wins, new.value, old.value),
        new.broken | old.broken,
    )


def where(rows: Array, this: Array, other: Array) -> Array:
    """`jnp.where` over the batch axis: rows [B], images [B, ...]."""
    return jnp.where(rows.reshape(rows.shape + (1,) * (this.ndim - 1)), this, other)
