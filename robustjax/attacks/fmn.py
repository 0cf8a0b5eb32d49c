"""FMN: gradient steps inside a ball whose radius is steered to the decision boundary.

See "Fast Minimum-norm Adversarial Attacks through Adaptive Norm Constraints" (Pintor
et al., 2021).
"""

import math
from typing import NamedTuple

import jax.numpy as jnp

from robustjax import _checks
from robustjax._gradients import input_gradient
from robustjax.attacks import _outcome
from robustjax.attacks._constant_search import CLEAR
from robustjax.attacks._outcome import Closest
from robustjax.objectives import margin
from robustjax.types import Array, IteratedAttack, Key, LogitsFn, Threat

_FLOOR = 1e-12


class FMNState(NamedTuple):
    """Between two steps.

    Attributes:
      x_adv: The current iterate, [B, ...].
      radius: Of the ball that it was projected onto, [B]; inf before the first.
      found: The nearest adversarial points so far.
      scale: |margin| at x, [B].
      index: Steps done.
    """

    x_adv: Array
    radius: Array
    found: Closest
    scale: Array
    index: Array


def fmn(
    threat: Threat,
    *,
    num_steps: int = 1000,
    step_size: float = 1.0,
    final_step_size: float | None = None,
    gamma: float = 0.05,
    final_gamma: float = 0.001,
    target: Array | None = None,
) -> IteratedAttack:
    """Fast minimum-norm: small L-inf, L2 or L1 perturbations in few steps.

    With g the gradient of the margin m at x + delta and ||g||_* its dual norm:

        radius <- min(radius (1 - gamma_i), best)               if misclassified
                  ||delta|| (1 + gamma_i) + |m| / ||g||_*       if nothing was found yet
                  radius (1 + gamma_i)                          otherwise
        delta  <- P(delta + alpha_i g / ||g||_2)

    alpha_i and gamma_i fall by a cosine; the radius stays below the distance of the
    farthest corner of the box. See "Fast Minimum-norm Adversarial Attacks through
    Adaptive Norm Constraints" (Pintor et al., 2021), algorithm 1. The last iterate is
    not looked at, as in the authors' code. Differences:

    - Their second line has no gamma_i, which ends on the boundary itself, with nothing
      found, where the margin is linear.
    - Misclassified means by a margin of at least 1e-4 of that at x. The radius settles
      so near to the boundary that by its rounding errors another compilation of the
      same model takes back a quarter of what was found in 1,000 steps.
    - P projects onto ball and box together; they project onto the ball and clip.
    - The start is x, without their option of an adversarial image.

    Args:
      threat: The norm, the box, and in `eps` the largest distance that counts as found:
        `threats.l2(jnp.inf)`, `threats.l1(jnp.inf)`, `threats.linf(1.0)` for no limit.
      num_steps: Gradient steps.
      step_size: alpha of the first step, an L2 length on the pixel scale.
      final_step_size: alpha at the end; `step_size / 100` if None.
      gamma: Relative change of the radius at the first step, in (0, 1).
      final_gamma: The same at the end.
      target: Classes [B] to reach; None for any but the label.

    Returns:
      An attack that returns x where nothing was found within `eps`.

    Raises:
      InputError: an argument is out of range.

    Example:
      >>> import jax
      >>> from robustjax import threats
      >>> attack = fmn(threats.linf(1.0), num_steps=100)
      >>> x, y = jnp.array([[0.6, 0.4]]), jnp.array([0])
      >>> x_adv = attack(jax.random.key(0), lambda z: z, x, y)
      >>> x_adv.round(2).tolist()
      [[0.5, 0.5]]
    """
    _checks.one_of(tuple(_DUALS), **{"threat.name": threat.name})
    _checks.positive_int(num_steps=num_steps)
    if final_step_size is None:
        final_step_size = step_size / 100
    _checks.positive(step_size=step_size, final_step_size=final_step_size)
    _checks.positive(gamma=gamma, final_gamma=final_gamma)
    _checks.fraction(gamma=gamma, final_gamma=final_gamma)
    low, high = threat.bounds
    dual = _DUALS[threat.name]

    def init(key: Key, logits_fn: LogitsFn, x: Array, y: Array) -> FMNState:
        del key  # nothing is drawn
        _outcome.check_call(logits_fn, x, y, target)
        found = _outcome.nothing_found(x)
        never = jnp.full_like(found.distance, jnp.inf)
        return FMNState(x, never, found, jnp.zeros_like(never), jnp.int32(0))

    def step(state: FMNState, logits_fn: LogitsFn, x: Array, y: Array) -> FMNState:
        climbed = _outcome.climbed(margin, logits_fn, y, target)
        value, is_broken, grad = input_gradient(climbed, state.x_adv)
        first = state.index == 0
        scale = jnp.where(first, jnp.abs(value).astype(state.scale.dtype), state.scale)
        is_broken &= first | ~(value < CLEAR * scale)
        distance = threat.norm(state.x_adv - x)
        found = _outcome.keep_closer(state.found, state.x_adv, distance, is_broken)

        wave = (
            1 + jnp.cos(math.pi * state.index.astype(state.radius.dtype) / num_steps)
        ) / 2
        length = final_step_size + (step_size - final_step_size) * wave
        change = final_gamma + (gamma - final_gamma) * wave
        to_plane = jnp.abs(value) / jnp.maximum(dual(_flat(grad)), _FLOOR)
        searching = distance.astype(change.dtype) * (1 + change) + to_plane
        outside = jnp.where(
            jnp.isinf(found.distance), searching, state.radius * (1 + change)
        )
        inside = jnp.minimum(state.radius * (1 - change), found.distance)
        corner = threat.norm(jnp.maximum(x - low, high - x)).astype(change.dtype)
        radius = jnp.minimum(jnp.where(is_broken, inside, outside), corner)

        moved = state.x_adv + length.astype(x.dtype) * _unit(grad)
        x_adv = threat.with_eps(radius).project(moved, x)
        return FMNState(x_adv, radius, found, scale, state.index + 1)

    def finish(state: FMNState, logits_fn: LogitsFn, x: Array, y: Array) -> Array:
        return _outcome.within(threat, state.found, x)

    return IteratedAttack(init, step, finish, num_steps)


_DUALS = {
    "linf": lambda grad: jnp.abs(grad).sum(axis=1),
    "l2": lambda grad: jnp.linalg.norm(grad, axis=1),
    "l1": lambda grad: jnp.abs(grad).max(axis=1),
}


def _unit(grad: Array) -> Array:
    length = jnp.maximum(jnp.linalg.norm(_flat(grad), axis=1), _FLOOR)
    return grad / length.reshape(length.shape + (1,) * (grad.ndim - 1))


def _flat(x: Array) -> Array:
    return x.reshape(x.shape[0], -1)
