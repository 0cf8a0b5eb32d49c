"""Attacks that ask no model: noise of the whole radius, and grey.

What any classifier should stand, and what every gradient attack must beat: if one of
these breaks more images, the gradients are masked. `restarts` makes any of the random
ones the best of n draws.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from robustjax import _checks, _random
from robustjax.attacks import _outcome
from robustjax.types import Array, Attack, Key, LogitsFn, Threat


def uniform_noise(threat: Threat) -> Attack:
    """A point drawn uniformly from the ball, then brought into the box.

    Example:
      >>> from robustjax import threats
      >>> x, y = jnp.full((1, 2), 0.5), jnp.array([0])
      >>> attack = uniform_noise(threats.linf(0.25))
      >>> x_adv = attack(jax.random.key(0), lambda z: z, x, y)
      >>> bool(jnp.abs(x_adv - x).max() <= 0.25)
      True
    """
    return _without_a_model(threat.sample)


def sign_noise(threat: Threat) -> Attack:
    """Random signs at the full radius: x + eps * steepest(signs), then projected.

    Under L-inf every pixel moves by eps, a corner of the ball. Under L2 and L1 all
    pixels move alike, to the ball's surface.

    Example:
      >>> from robustjax import threats
      >>> x, y = jnp.full((1, 2), 0.5), jnp.array([0])
      >>> attack = sign_noise(threats.linf(0.25))
      >>> jnp.abs(attack(jax.random.key(0), lambda z: z, x, y) - x).tolist()
      [[0.25, 0.25]]
    """

    def move(key: Key, x: Array) -> Array:
        signs = _random.draw(key, x, jax.random.rademacher)
        radius = jnp.asarray(threat.eps, x.dtype)
        radius = radius.reshape(radius.shape + (1,) * (x.ndim - radius.ndim))
        return threat.project(x + radius * threat.steepest(signs), x)

    return _without_a_model(move)


def gaussian_noise(threat: Threat, *, scale: float | Array) -> Attack:
    """Normal noise, projected onto ball and box.

    Args:
      threat: Ball and box.
      scale: Standard deviation on the pixel scale.

    Raises:
      InputError: `scale` is negative.

    Example:
      >>> from robustjax import threats
      >>> x, y = jnp.full((1, 2), 0.5), jnp.array([0])
      >>> attack = gaussian_noise(threats.l2(0.25), scale=0.1)
      >>> attack(jax.random.key(0), lambda z: z, x, y).shape
      (1, 2)
    """
    _checks.non_negative(scale=scale)

    def move(key: Key, x: Array) -> Array:
        noise = _random.draw(key, x, jax.random.normal)
        return threat.project(x + jnp.asarray(scale, x.dtype) * noise, x)

    return _without_a_model(move)


def grey(threat: Threat) -> Attack:
    """The image as grey as the threat allows: the projection of the box's middle.

    Under L-inf that is x + clip(0.5 - x, -eps, eps). At eps = 0.5 all images become
    one, so no classifier can be right on more than its largest class.

    Example:
      >>> from robustjax import threats
      >>> x, y = jnp.array([[0.0, 0.4, 0.5, 1.0]]), jnp.array([0])
      >>> grey(threats.linf(0.25))(jax.random.key(0), lambda z: z, x, y).tolist()
      [[0.25, 0.5, 0.5, 0.75]]
    """
    middle = sum(threat.bounds) / 2

    def move(key: Key, x: Array) -> Array:
        del key
        return threat.project(jnp.full_like(x, middle), x)

    return _without_a_model(move)


def _without_a_model(move: Callable[[Key, Array], Array]) -> Attack:
    def attack(key: Key, logits_fn: LogitsFn, x: Array, y: Array) -> Array:
        _outcome.check_call(logits_fn, x, y)
        keys = _random.per_image_keys(key, x.shape[0])
        return jax.lax.stop_gradient(move(keys, x).astype(x.dtype))

    return attack
