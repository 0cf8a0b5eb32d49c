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

# An attack that converges ends so near to the boundary that the rounding errors of
# another compilation of the same model take back a part of what it found. So it counts
# a margin from this share of |margin| at x, and aims at twice as much.
CLEAR = 1e-4


class ConstantSearch(NamedTuple):
    """A bracket per image, all [B].

    Attributes:
      slack: Margin beyond the confidence that makes a success clear.
      constant: The one of the current round.
      low: The largest that failed, or 0.
      high: The smallest that succeeded, or inf.
    """

    slack: Array
    constant: Array
    low: Array
    high: Array


def wide(x: Array) -> jnp.dtype:
    """The dtype of values: that of `x`, at least float32."""
    return jnp.promote_types(x.dtype, "float32")


def begin(initial_constant: float, slack: Array) -> ConstantSearch:
    """The bracket (0, inf) of every image."""
    zeros = jnp.zeros_like(slack)
    return ConstantSearch(slack, zeros + initial_constant, zeros, zeros + jnp.inf)


def for_round(
    search: ConstantSearch, index: Array, search_steps: int
) -> ConstantSearch:
    """Before a round: of ten and more, the last repeats the best constant."""
    if search_steps < 10:
        return search
    best = jnp.minimum(search.high, LARGEST_CONSTANT)
    last = index == search_steps - 1
    return search._replace(constant=jnp.where(last, best, search.constant))


def narrow(search: ConstantSearch, succeeded: Array) -> ConstantSearch:
    """After a round: the middle of the bracket next, or ten times more."""
    constant = search.constant
    high = jnp.where(succeeded, jnp.minimum(search.high, constant), search.high)
    low = jnp.where(succeeded, search.low, jnp.maximum(search.low, constant))
    following = jnp.where(jnp.isinf(high), 10 * constant, (low + high) / 2)
    return ConstantSearch(search.slack, following, low, high)


def hinge(value: Array, goal: float | Array) -> Array:
    """max(goal - margin, 0), with the left derivative at the kink, [B].

    Subgradients that average both sides would leave a tie between two classes where
    it is, and a tie that the label wins is not adversarial.
    """
    return jnp.where(value <= goal, goal - value, 0.0)


def succeeded(value: Array, is_broken: Array, least: float | Array) -> Array:
    """Misclassified, and by a margin of at least `least`, [B]; NaN counts as such."""
    return is_broken & ~(value < least)


def clean_images(
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    target: Array | None,
    confidence: float | Array = 0.0,
) -> tuple[Closest, Array]:
    """What is known before any step.

    Returns:
      What is found: x, at distance 0, where it is adversarial; and the slack, `CLEAR`
      times |margin| at x, [B].
    """
    value, is_broken = _outcome.climbed(margin, logits_fn, y, target)(x)
    start = _outcome.nothing_found(x)
    # The mean margin of a randomised classifier may be negative where its mean
    # probabilities are wrong: without confidence they decide alone.
    there = is_broken & ((confidence <= 0) | ~(value < confidence))
    found = _outcome.keep_closer(start, x, jnp.zeros_like(start.distance), there)
    return found, CLEAR * jnp.abs(value).astype(start.distance.dtype)


def square_norm(delta: Array) -> Array:
    """||delta||^2 per image, [B]; unlike the norm it has a gradient at 0."""
    flat = delta.reshape(delta.shape[0], -1).astype(wide(delta))
    return jnp.sum(flat**2, axis=1)
