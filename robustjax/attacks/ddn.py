"""DDN: a gradient direction on a sphere whose radius follows success and failure.

See "Decoupling Direction and Norm for Efficient Gradient-Based L2 Adversarial Attacks
and Defenses" (Rony et al., 2019).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from robustjax import _checks, _random
from robustjax._checks import InputError
from robustjax._gradients import input_gradient
from robustjax.attacks import _outcome
from robustjax.attacks._outcome import Closest
from robustjax.objectives import cross_entropy
from robustjax.types import Array, IteratedAttack, Key, LogitsFn, Objective, Threat

_LARGEST_STEP, _SMALLEST_STEP = 1.0, 0.01
_NO_GRADIENT = 1e-12


class DDNState(NamedTuple):
    """Between two steps.

    Attributes:
      x_adv: The current iterate, [B, ...].
      radius: Of the sphere that it was put on, [B].
      found: The nearest adversarial points so far.
      keys: One per image, for directions where there is no gradient.
      index: Steps done.
    """

    x_adv: Array
    radius: Array
    found: Closest
    keys: Key
    index: Array


def ddn(
    threat: Threat,
    *,
    num_steps: int = 100,
    initial_radius: float = 1.0,
    gamma: float = 0.05,
    levels: int | None = 256,
    objective: Objective = cross_entropy,
    target: Array | None = None,
) -> IteratedAttack:
    """Decoupled direction and norm: small L2 perturbations in few steps.

    With g the gradient of the objective at x + delta, in this order:

        delta  <- delta + alpha_i g / ||g||
        radius <- radius (1 - gamma) if misclassified, else radius (1 + gamma)
        delta  <- radius delta / ||delta||, then x + delta in the box and on a level

    alpha_i falls from 1 to 0.01 by a cosine; the radius stays below the distance of the
    farthest corner of the box; a gradient shorter than 1e-12 is replaced by Gaussian
    noise. See "Decoupling Direction and Norm for Efficient Gradient-Based L2
    Adversarial Attacks and Defenses" (Rony et al., 2019), algorithm 1. The first
    iterate is x itself, and the last is not looked at.

    NAMID evaluates with `num_steps=20, levels=16`.

    Args:
      threat: L2: the box, and in `eps` the largest distance that counts as found;
        `threats.l2(jnp.inf)` sets no limit.
      num_steps: Gradient steps.
      initial_radius: On the pixel scale.
      gamma: Relative change of the radius, in (0, 1).
      levels: Values that a pixel can take, evenly spaced over the bounds; None for no
        quantisation. An x that comes back unchanged is not quantised.
      objective: What is climbed.
      target: Classes [B] to reach; None for any but the label.

    Returns:
      An attack that returns x where nothing was found within `eps`.

    Raises:
      InputError: an argument is out of range.

    Example:
      >>> from robustjax import threats
      >>> attack = ddn(threats.l2(1.0), levels=None)
      >>> x, y = jnp.array([[0.6, 0.4]]), jnp.array([0])
      >>> x_adv = attack(jax.random.key(0), lambda z: z, x, y)
      >>> x_adv.round(2).tolist()
      [[0.5, 0.5]]
    """
    _checks.one_of(("l2",), **{"threat.name": threat.name})
    _checks.positive_int(num_steps=num_steps)
    _checks.positive(initial_radius=initial_radius, gamma=gamma)
    _checks.fraction(gamma=gamma)
    if levels is not None and (not isinstance(levels, int) or levels < 2):
        raise InputError(
            f"`levels` must be None or an integer of at least 2, got {levels!r}."
        )
    low, high = threat.bounds

    def init(key: Key, logits_fn: LogitsFn, x: Array, y: Array) -> DDNState:
        _outcome.check_call(logits_fn, x, y, target)
        found = _outcome.nothing_found(x)
        radius = jnp.full_like(found.distance, initial_radius)
        keys = _random.per_image_keys(key, x.shape[0])
        return DDNState(x, radius, found, keys, jnp.int32(0))

    def step(state: DDNState, logits_fn: LogitsFn, x: Array, y: Array) -> DDNState:
        climbed = _outcome.climbed(objective, logits_fn, y, target)
        _, is_broken, grad = input_gradient(climbed, state.x_adv)
        distance = threat.norm(state.x_adv - x)
        found = _outcome.keep_closer(state.found, state.x_adv, distance, is_broken)

        size = _step_length(state.index.astype(state.radius.dtype), num_steps)
        delta = state.x_adv - x + size.astype(x.dtype) * _direction(state, grad, threat)
        factor = jnp.where(is_broken, 1 - gamma, 1 + gamma).astype(state.radius.dtype)
        corner = threat.norm(jnp.maximum(x - low, high - x))
        radius = jnp.minimum(state.radius * factor, corner.astype(factor.dtype))
        length = threat.norm(delta)
        scale = radius.astype(x.dtype) / jnp.where(length > 0, length, 1.0)
        x_adv = jnp.clip(x + delta * _per_image(scale, x), low, high)
        if levels is not None:
            x_adv = _quantised(x_adv, levels, threat.bounds)
        return DDNState(x_adv, radius, found, state.keys, state.index + 1)

    def finish(state: DDNState, logits_fn: LogitsFn, x: Array, y: Array) -> Array:
        return _outcome.within(threat, state.found, x)

    return IteratedAttack(init, step, finish, num_steps)


def _step_length(index: Array, num_steps: int) -> Array:
    wave = (1 + jnp.cos(math.pi * index / num_steps)) / 2
    return _SMALLEST_STEP + (_LARGEST_STEP - _SMALLEST_STEP) * wave


def _direction(state: DDNState, grad: Array, threat: Threat) -> Array:
    """The unit gradient, or Gaussian noise where there is none."""
    lost = threat.norm(grad) < _NO_GRADIENT

    def noise() -> Array:
        keys = _random.fold_in(state.keys, state.index)
        return _random.draw(keys, grad, jax.random.normal)

    # Drawn only where an image needs it: random numbers cost as much as a small model.
    drawn = jax.lax.cond(lost.any(), noise, lambda: jnp.zeros_like(grad))
    return _outcome.where(lost, drawn, threat.steepest(grad))


def _quantised(x: Array, levels: int, bounds: tuple[float, float]) -> Array:
    low, high = bounds
    unit = (x - low) / (high - low)
    return low + (high - low) * (jnp.round(unit * (levels - 1)) / (levels - 1))


def _per_image(values: Array, x: Array) -> Array:
    return values.reshape(values.shape + (1,) * (x.ndim - 1))
