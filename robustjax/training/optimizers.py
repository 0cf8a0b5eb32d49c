"""Optimizers and schedules with the conventions of the field's training recipes."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from robustjax import _checks
from robustjax.types import PyTree

Schedule = optax.Schedule


def sgd(
    schedule: Schedule,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    decay_all: bool = True,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """SGD with weight decay added to the gradient, before momentum, as PyTorch does.

    Args:
      schedule: Learning rate by update.
      momentum: 0 for none.
      nesterov: Nesterov's form of momentum.
      weight_decay: Coefficient of the weights in the gradient.
      decay_all: Whether biases and normalisation parameters (everything with fewer
        than two axes) decay too, as in the papers' code.
      clip_norm: Largest global norm of the gradient; None does not clip.

    Raises:
      InputError: an argument is out of range.

    Example:
      >>> optimizer = sgd(constant(0.1), weight_decay=5e-4, decay_all=False)
      >>> state = optimizer.init({"w": jnp.ones((2, 2))})
    """
    _checks.fraction(momentum=momentum)
    return optax.chain(
        _clip(clip_norm),
        _decay(weight_decay, decay_all),
        optax.sgd(schedule, momentum=momentum or None, nesterov=nesterov),
    )


def adam(
    schedule: Schedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    weight_decay: float = 0.0,
    decay_all: bool = True,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """Adam; weight decay is added to the gradient. Arguments as in `sgd`.

    Example:
      >>> optimizer = adam(constant(1e-3))
    """
    _checks.fraction(b1=b1, b2=b2)
    return optax.chain(
        _clip(clip_norm), _decay(weight_decay, decay_all), optax.adam(schedule, b1, b2)
    )


def adamw(
    schedule: Schedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    weight_decay: float = 0.01,
    decay_all: bool = False,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay. Arguments as in `sgd`.

    Example:
      >>> optimizer = adamw(cosine(1e-3, total_steps=100), weight_decay=0.05)
    """
    _checks.fraction(b1=b1, b2=b2)
    _checks.non_negative(weight_decay=weight_decay)
    mask = None if decay_all else _matrices
    return optax.chain(
        _clip(clip_norm),
        optax.adamw(schedule, b1, b2, weight_decay=weight_decay, mask=mask),
    )


def constant(value: float) -> Schedule:
    """The same learning rate throughout.

    Example:
      >>> float(constant(0.5)(10))
      0.5
    """
    _checks.positive(value=value)
    return lambda step: jnp.full(jnp.shape(step), value, jnp.float32)


def piecewise(
    value: float, *, total_steps: int, drops: Sequence[float], factor: float = 0.1
) -> Schedule:
    """`value`, multiplied by `factor` at each of `drops`, fractions of the run.

    Example:
      >>> schedule = piecewise(1.0, total_steps=100, drops=(0.75, 0.9))
      >>> [round(float(schedule(t)), 3) for t in (0, 74, 75, 90)]
      [1.0, 1.0, 0.1, 0.01]
    """
    _checks.positive(value=value, factor=factor)
    _checks.positive_int(total_steps=total_steps)
    _checks.fraction(drops=list(drops))
    boundaries = jnp.array([round(total_steps * drop) for drop in drops], jnp.int32)
    return lambda step: value * factor ** jnp.sum(jnp.asarray(step) >= boundaries)


def cosine(value: float, *, total_steps: int, warmup: float = 0.0) -> Schedule:
    """Half a cosine from `value` to 0, after a linear rise over a `warmup` fraction.

    Example:
      >>> schedule = cosine(1.0, total_steps=100)
      >>> [round(float(schedule(t)), 3) for t in (0, 50, 100)]
      [1.0, 0.5, 0.0]
    """
    _checks.positive(value=value)
    _checks.positive_int(total_steps=total_steps)
    _checks.fraction(warmup=warmup)
    rise = round(warmup * total_steps)
    return optax.warmup_cosine_decay_schedule(
        0.0 if rise else value, value, rise, max(total_steps, rise + 1)
    )


def one_cycle(value: float, *, total_steps: int, peak: float = 0.4) -> Schedule:
    """Linear from 0 to `value` at the fraction `peak` of the run, linear back to 0.

    The schedule of "Fast is better than free" (Wong et al., 2020).

    Example:
      >>> schedule = one_cycle(1.0, total_steps=100)
      >>> [round(float(schedule(t)), 3) for t in (0, 20, 40, 70)]
      [0.0, 0.5, 1.0, 0.5]
    """
    _checks.positive(value=value)
    _checks.positive_int(total_steps=total_steps)
    _checks.fraction(peak=peak)
    knots = jnp.array([0.0, peak * total_steps, total_steps])
    return lambda step: jnp.interp(step, knots, jnp.array([0.0, value, 0.0]))


def freeze(
    optimizer: optax.GradientTransformation, trainable: PyTree
) -> optax.GradientTransformation:
    """The optimizer on the parameters marked True, no change to the others.

    Args:
      optimizer: Any optax transformation.
      trainable: Bools, a prefix of the parameters.

    Example:
      >>> params = {"model": jnp.ones(2), "critic": jnp.ones(2)}
      >>> tx = freeze(optax.sgd(1.0), {"model": True, "critic": False})
      >>> updates, _ = tx.update(params, tx.init(params), params)
      >>> updates["critic"].tolist(), updates["model"].tolist()
      ([0.0, 0.0], [-1.0, -1.0])
    """
    return optax.partition({True: optimizer, False: optax.set_to_zero()}, trainable)


def _clip(clip_norm: float | None) -> optax.GradientTransformation:
    if clip_norm is None:
        return optax.identity()
    _checks.positive(clip_norm=clip_norm)
    return optax.clip_by_global_norm(clip_norm)


def _decay(weight_decay: float, decay_all: bool) -> optax.GradientTransformation:
    _checks.non_negative(weight_decay=weight_decay)
    if weight_decay == 0:
        return optax.identity()
    return optax.add_decayed_weights(weight_decay, None if decay_all else _matrices)


def _matrices(params: PyTree) -> PyTree:
    return jax.tree.map(lambda p: p.ndim > 1, params)
