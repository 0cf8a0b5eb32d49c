"""Universal perturbations: one delta that breaks many images.

    delta <- project(delta + step_size * steepest(mean gradient over a minibatch))

in the form of stochastic gradients, without the inner minimum-norm attack of
"Universal adversarial perturbations" (Moosavi-Dezfooli et al., 2017); see "Universal
Adversarial Training" (Shafahi et al., 2020).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from robustjax import _checks, threats
from robustjax._checks import InputError
from robustjax._gradients import input_gradient
from robustjax.attacks import _outcome
from robustjax.objectives import cross_entropy
from robustjax.types import (
    Array,
    Attack,
    IteratedAttack,
    Key,
    LogitsFn,
    Objective,
    Threat,
)

_BALLS = {"linf": threats.linf, "l2": threats.l2, "l1": threats.l1}


class UniversalState(NamedTuple):
    """Between two steps.

    Attributes:
      x_adv: The images with the current delta, in the box, [B, ...].
      delta: The perturbation, [1, ...], in the ball.
    """

    x_adv: Array
    delta: Array


def universal(
    threat: Threat,
    *,
    num_steps: int,
    step_size: float | Array,
    objective: Objective = cross_entropy,
    ceiling: float = float("inf"),
) -> IteratedAttack:
    """One perturbation for the whole batch, trained on that batch.

    By nature an image's result depends on its batch: on few images it overfits them.
    `universal_perturbation` trains on a data set. Every step is one forward and one
    backward pass. It starts at zero.

    Args:
      threat: Ball and box; its radius is one for all images.
      num_steps: Steps.
      step_size: Length of a step in the threat's norm, on the pixel scale.
      objective: What is climbed, in the mean.
      ceiling: An image whose objective is above no longer counts, so that a few broken
        beyond measure do not dominate; the beta of the paper, section 3.

    Raises:
      InputError: an argument is out of range.

    Example:
      >>> x, y = jnp.full((3, 2), 0.5), jnp.array([0, 0, 1])
      >>> attack = universal(threats.linf(0.25), num_steps=2, step_size=0.25)
      >>> attack(jax.random.key(0), lambda z: 4 * z, x, y)[0].tolist()
      [0.25, 0.75]
    """
    _check(threat, num_steps, step_size)

    def init(key: Key, logits_fn: LogitsFn, x: Array, y: Array) -> UniversalState:
        del key  # nothing is drawn
        _outcome.check_call(logits_fn, x, y)
        return UniversalState(x, jnp.zeros_like(x[:1]))

    def step(
        state: UniversalState, logits_fn: LogitsFn, x: Array, y: Array
    ) -> UniversalState:
        grad = _mean_gradient(logits_fn, x, y, state.delta, threat, objective, ceiling)
        delta = _moved(state.delta, grad, threat, step_size)
        return UniversalState(_added(x, delta, threat), delta)

    def finish(state: UniversalState, logits_fn: LogitsFn, x: Array, y: Array) -> Array:
        del logits_fn, y
        return threat.project(state.x_adv, x)

    return IteratedAttack(init, step, finish, num_steps)


def universal_perturbation(
    key: Key,
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    threat: Threat,
    num_epochs: int,
    batch_size: int,
    step_size: float | Array,
    objective: Objective = cross_entropy,
    ceiling: float = float("inf"),
) -> Array:
    """A perturbation trained on a data set in shuffled minibatches.

    One scan over all minibatches, so it compiles once; call it under `jit` to keep the
    compilation. The images must fit on the device. Each epoch takes every image once;
    the last minibatch of an epoch may be smaller.

    Args:
      key: Orders the images.
      logits_fn: The classifier.
      images: [N, ...] in the box.
      labels: [N], or distributions [N, K].
      threat: Ball and box; its radius is one for all images.
      num_epochs: Passes over the images.
      batch_size: Images per step.
      step_size: Length of a step in the threat's norm, on the pixel scale.
      objective: What is climbed, in the mean.
      ceiling: As in `universal`.

    Returns:
      delta, of the shape of one image, in the ball; `apply_perturbation` adds it.

    Raises:
      InputError: an argument is out of range.

    Example:
      >>> images, labels = jnp.full((3, 2), 0.5), jnp.array([0, 0, 1])
      >>> delta = universal_perturbation(
      ...     jax.random.key(0), lambda z: 4 * z, images, labels,
      ...     threat=threats.linf(0.25), num_epochs=1, batch_size=3, step_size=0.25)
      >>> delta.tolist()
      [-0.25, 0.25]
    """
    _check(threat, num_epochs, step_size)
    _checks.positive_int(batch_size=batch_size)
    _checks.keys(key)
    _outcome.check_call(logits_fn, images, labels)
    count = images.shape[0]
    batch_size = min(batch_size, count)
    per_epoch = -(-count // batch_size)

    def step(delta: Array, rows: Array) -> tuple[Array, None]:
        valid = rows < count
        rows = jnp.minimum(rows, count - 1)
        grad = _mean_gradient(
            logits_fn, images[rows], labels[rows], delta, threat, objective, ceiling,
            valid,
        )  # fmt: skip
        return _moved(delta, grad, threat, step_size), None

    def epoch(delta: Array, index: Array) -> tuple[Array, None]:
        order = jax.random.permutation(jax.random.fold_in(key, index), count)
        # Rows that do not exist fill up the last minibatch.
        order = jnp.pad(
            order, (0, per_epoch * batch_size - count), constant_values=count
        )
        return jax.lax.scan(step, delta, order.reshape(per_epoch, batch_size))

    start = jnp.zeros_like(images[:1])
    delta, _ = jax.lax.scan(epoch, start, jnp.arange(num_epochs))
    return jax.lax.stop_gradient(delta[0])


def apply_perturbation(threat: Threat, delta: Array) -> Attack:
    """The attack that adds one and the same delta to every image.

    Args:
      threat: Ball and box, onto which x + delta is projected.
      delta: [...], of the shape of one image.

    Example:
      >>> x, y = jnp.full((2, 2), 0.5), jnp.array([0, 1])
      >>> attack = apply_perturbation(threats.linf(0.25), jnp.array([-0.25, 0.5]))
      >>> attack(jax.random.key(0), lambda z: 4 * z, x, y)[1].tolist()
      [0.25, 0.75]
    """

    def attack(key: Key, logits_fn: LogitsFn, x: Array, y: Array) -> Array:
        del key  # nothing is drawn
        _outcome.check_call(logits_fn, x, y)
        _checks.same_shape(delta=delta, image=x[0])
        x_adv = threat.project(x + delta[None].astype(x.dtype), x)
        return jax.lax.stop_gradient(x_adv.astype(x.dtype))

    return attack


def _mean_gradient(
    logits_fn: LogitsFn,
    x: Array,
    y: Array,
    delta: Array,
    threat: Threat,
    objective: Objective,
    ceiling: float,
    valid: Array | None = None,
) -> Array:
    """The gradient of the mean objective with respect to delta, [1, ...].

    Taken through the box: a pixel at its bound does not feel delta.
    """
    climbed = _outcome.climbed(objective, logits_fn, y)
    x_adv = _added(x, delta, threat)
    values, _, grad = input_gradient(climbed, x_adv)
    counts = values < ceiling
    if valid is not None:
        counts &= valid
    grad = jnp.where(x + delta == x_adv, grad, 0)
    grad = _outcome.where(counts, grad, jnp.zeros_like(grad))
    return grad.mean(axis=0, keepdims=True)


def _added(x: Array, delta: Array, threat: Threat) -> Array:
    # With delta in the ball this is the projection onto ball and box.
    return jnp.clip(x + delta, *threat.bounds)


def _moved(
    delta: Array, grad: Array, threat: Threat, step_size: float | Array
) -> Array:
    """Delta after a step of ascent, projected onto the ball, without the box."""
    ball = _BALLS[threat.name](threat.eps, bounds=(-jnp.inf, jnp.inf))
    step = jnp.asarray(step_size, delta.dtype) * threat.steepest(grad)
    return ball.project(delta + step, jnp.zeros_like(delta)).astype(delta.dtype)


def _check(threat: Threat, count: int, step_size: float | Array) -> None:
    _checks.positive_int(num_steps=count)
    _checks.non_negative(step_size=step_size)
    _checks.one_of(_BALLS, **{"threat.name": threat.name})
    if jnp.ndim(threat.eps):
        raise InputError(
            "`threat.eps` must be one radius for the one perturbation, got shape "
            f"{jnp.shape(threat.eps)}."
        )
