"""The loss around images: over a plane, and its gradient."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from robustjax import _checks, attacks
from robustjax._gradients import input_gradient, loop_safe
from robustjax.objectives import cross_entropy, over_draws
from robustjax.types import (
    Array,
    Key,
    LogitsFn,
    Objective,
    as_pytree,
)

VANISHED = 1e-8


class Surface(NamedTuple):
    """The loss over a plane through each image.

    Attributes:
      offsets: a and b, [G].
      loss: At x + a r1 + b r2, [B, G, G].
      broken: Whether the classifier is wrong there, as it is where a logit is NaN,
        [B, G, G].
    """

    offsets: Array
    loss: Array
    broken: Array


def loss_surface(
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    *,
    key: Key,
    radius: float,
    num: int = 21,
    objective: Objective = cross_entropy,
) -> Surface:
    """The loss at x + a r1 + b r2, r1 the sign of its gradient and r2 random signs.

    See "Evaluating and Understanding the Robustness of Adversarial Logit Pairing"
    (Engstrom et al., 2018), figure 3. Points are not clipped to the box of pixels,
    which would bend the plane.

    Args:
      logits_fn: The classifier; of draws [S, B, K] the loss is the mean, and broken is
        judged on the mean probabilities.
      x: [B, ...].
      y: [B].
      key: Of r2.
      radius: Largest |a| and |b|.
      num: Points along each, odd to have x itself among them.
      objective: The loss.

    Raises:
      InputError: an argument is out of range.

    Example:
      >>> x, y = jnp.full((1, 2), 0.5), jnp.array([0])
      >>> found = loss_surface(lambda z: z, x, y, key=jax.random.key(0), radius=0.5,
      ...     num=3, objective=lambda z, y: z[:, 1] - z[:, 0])
      >>> found.loss[0, :, 1].tolist()
      [-1.0, 0.0, 1.0]
    """
    _checks.positive(radius=radius)
    _checks.positive_int(num=num)
    _check(logits_fn, x, y)
    given = (as_pytree(logits_fn), x, y, key, jnp.float32(radius))
    return _surface(objective, num, *given)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _surface(objective, num, predict, x, y, key, radius) -> Surface:
    loss_of = over_draws(objective)
    first = jnp.sign(jax.grad(lambda z: loss_of(predict(z), y).sum())(x))
    other = jax.random.rademacher(key, x.shape, x.dtype)
    offsets = jnp.linspace(-radius, radius, num).astype(x.dtype)

    @loop_safe
    def along(point: Array) -> tuple[Array, Array]:
        logits = predict(point)
        return loss_of(logits, y), attacks.broken(logits, y)

    def row(a: Array) -> Any:
        return jax.lax.map(lambda b: along(x + a * first + b * other), offsets)

    loss, wrong = jax.lax.map(row, offsets)
    return Surface(offsets, jnp.moveaxis(loss, 2, 0), jnp.moveaxis(wrong, 2, 0))


class GradientHealth(NamedTuple):
    """What a gradient attack has to work with, per image.

    Attributes:
      largest: Largest absolute derivative, [B]; below 1e-8 it has `vanished`.
      zero_share: Share of pixels whose derivative is exactly 0, [B].
      finite: Whether all are finite, [B].
    """

    largest: Array
    zero_share: Array
    finite: Array

    @property
    def vanished(self) -> Array:
        """[B]."""
        return self.largest < VANISHED


def gradient_health(
    logits_fn: LogitsFn, x: Array, y: Array, *, objective: Objective = cross_entropy
) -> GradientHealth:
    """How large the gradient of the objective is at x, and how much of it is 0.

    Args:
      logits_fn: The classifier; of draws [S, B, K] the objective is the mean.
      x: [B, ...].
      y: [B].
      objective: As attacks climb it.

    Example:
      >>> x, y = jnp.full((1, 2), 0.5), jnp.array([0])
      >>> health = gradient_health(lambda z: jnp.round(z), x, y)
      >>> health.vanished.tolist(), health.zero_share.tolist()
      ([True], [1.0])
    """
    _check(logits_fn, x, y)
    loss_of = over_draws(objective)
    climbed = lambda z: (loss_of(logits_fn(z), y), jnp.zeros(x.shape[:1], bool))
    grad = input_gradient(climbed, x, raw=True)[2].reshape(x.shape[0], -1)
    size = jnp.abs(grad)
    return GradientHealth(
        size.max(axis=1), (grad == 0).mean(axis=1), jnp.isfinite(grad).all(axis=1)
    )


def _check(logits_fn: LogitsFn, x: Array, y: Array) -> None:
    logits = logits_fn(x)
    _checks.labels(logits[0] if logits.ndim == 3 else logits, y)
