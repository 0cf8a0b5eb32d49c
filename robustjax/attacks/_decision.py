"""What decision-based attacks share: decision, start, search of the boundary."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from robustjax import _checks, _random
from robustjax.attacks import _outcome
from robustjax.types import Array, Key, LogitsFn, Threat

Decide = Callable[[Array], Array]
"""Images to whether they are adversarial, [B]."""


class Start(NamedTuple):
    """Where a decision-based attack begins.

    Attributes:
      x_adv: An adversarial image each, [B, ...]; x where none was found.
      found: Whether x_adv is adversarial, [B].
    """

    x_adv: Array
    found: Array


def decision(logits_fn: LogitsFn, y: Array, target: Array | None = None) -> Decide:
    """Whether images are misclassified, or classified as `target`."""
    nothing = lambda logits, _: jnp.zeros(logits.shape[:1])
    climbed = _outcome.scored(nothing, logits_fn, y, target)
    return lambda z: climbed(z)[1]


def first_start(
    decide: Decide,
    keys: Key,
    x: Array,
    *,
    start: Array | None,
    num_start_draws: int,
    bounds: tuple[float, float],
) -> Start:
    """X itself if it is adversarial, else `start`, else the first such uniform noise.

    Noise is drawn until every image has a start, at most `num_start_draws` times. Two
    forward passes, or one and one per draw.
    """
    found = decide(x)
    if start is not None:
        _checks.same_shape(start=start, x=x)
        given = decide(start)
        x_adv = _outcome.where(given & ~found, start.astype(x.dtype), x)
        return Start(x_adv, found | given)
    low, high = bounds
    uniform = lambda k, s, t: jax.random.uniform(k, s, t, low, high)

    def draw(carry: tuple[Start, Array]) -> tuple[Start, Array]:
        state, turn = carry
        noise = _random.draw(_random.fold_in(keys, turn), x, uniform)
        wins = decide(noise) & ~state.found
        x_adv = _outcome.where(wins, noise, state.x_adv)
        return Start(x_adv, state.found | wins), turn + 1

    def searching(carry: tuple[Start, Array]) -> Array:
        return ~carry[0].found.all() & (carry[1] < num_start_draws)

    return jax.lax.while_loop(searching, draw, (Start(x, found), jnp.int32(0)))[0]


def to_boundary(
    decide: Decide, threat: Threat, x: Array, x_adv: Array, num_halvings: int
) -> Array:
    """The adversarial end of a bisection between x and x_adv, both kept [B, ...].

    L2 searches the segment from x to x_adv, L-inf the boxes of radius r around x, into
    which x_adv is clipped. x_adv counts as adversarial without a look, so that the
    result is x_adv where no nearer point is; `num_halvings` forward passes.
    """
    delta = x_adv - x
    radius = threat.norm(delta)

    def at(share: Array) -> Array:
        share = share.reshape(-1, *(1,) * (x.ndim - 1))
        if threat.name == "linf":
            reach = share * radius.reshape(share.shape)
            return jnp.where(share == 1, x_adv, x + jnp.clip(delta, -reach, reach))
        return jnp.where(share == 1, x_adv, x + share * delta)

    def halve(_, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        inside, outside = ends
        middle = (inside + outside) / 2
        is_adv = decide(at(middle))
        return jnp.where(is_adv, inside, middle), jnp.where(is_adv, middle, outside)

    ends = jnp.zeros(x.shape[:1], x.dtype), jnp.ones(x.shape[:1], x.dtype)
    return at(jax.lax.fori_loop(0, num_halvings, halve, ends)[1])
