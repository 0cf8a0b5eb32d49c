"""Binary search, per image, for the constant of a penalty c * hinge(margin).

Carlini and Wagner's attack and the elastic-net attack minimise distance plus penalty
and look for the smallest constant with which the result is adversarial.
"""

from typing import NamedTuple

import jax.numpy as jnp

from robustjax.attacks import _outcome
from robustjax.attacks._outcome import Closest
from robustjax.objectives import margin
from robustjax.types import Array, LogitsFn

LARGEST_CONSTANT = 1e10


class ConstantSearch(NamedTuple):
    """A bracket per image, all [B].

    Attributes:
      constant: The one of the current round.
      low: The largest that failed, or 0.
      high: The smallest that succeeded, or inf.
    """

    constant: Array
    low: Array
    high: Array


def wide(x: Array) -> jnp.dtype:
    """The dtype of values: that of `x`, at least float32."""
    return jnp.promote_types(x.dtype, "float32")


def begin(initial_constant: float, x: Array) -> ConstantSearch:
    """The bracket (0, inf) of every image."""
    zeros = jnp.zeros(x.shape[:1], wide(x))
    return ConstantSearch(zeros + initial_constant, zeros, zeros + jnp.inf)


def for_round(search: ConstantSearch, index: Array, search_steps: int) -> Array:
    """The constants of a round: of ten and more, the last repeats the best, [B]."""
    if search_steps < 10:
        return search.constant
    best = jnp.minimum(search.high, LARGEST_CONSTANT)
    return jnp.where(index == search_steps - 1, best, search.constant)


def narrow(search: ConstantSearch, constant: Array, succeeded: Array) -> ConstantSearch:
    """The bracket after a round with `constant`: its middle next, or ten times it."""
    high = jnp.where(succeeded, jnp.minimum(search.high, constant), search.high)
    low = jnp.where(succeeded, search.low, jnp.maximum(search.low, constant))
    following = jnp.where(jnp.isinf(high), 10 * constant, (low + high) / 2)
    return ConstantSearch(following, low, high)


def hinge(value: Array, confidence: float | Array) -> Array:
    """max(confidence - margin, 0), with the left derivative at the kink, [B].

    Subgradients that average both sides would leave a tie between two classes where
    it is, and a tie that the label wins is not adversarial.
    """
    return jnp.where(value <= confidence, confidence - value, 0.0)


def succeeded(value: Array, is_broken: Array, confidence: float | Array) -> Array:
    """Misclassified, and by a margin of at least `confidence`, [B].

    Without confidence, misclassification decides alone: the mean margin of a randomised
    classifier may be negative where its mean probabilities are wrong.
    """
    return is_broken & ((confidence <= 0) | ~(value < confidence))


def clean_images(
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    target: Array | None,
    confidence: float | Array = 0.0,
) -> Closest:
    """What is found before any step: x, at distance 0, where it is adversarial."""
    value, is_broken = _outcome.climbed(margin, logits_fn, y, target)(x)
    start = _outcome.nothing_found(x)
    there = succeeded(value, is_broken, confidence)
    return _outcome.keep_closer(start, x, jnp.zeros_like(start.distance), there)
