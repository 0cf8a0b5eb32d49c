"""Attacks made to transfer: momentum with what keeps it from fitting one classifier.

    g <- momentum * g + u / ||u||_1,   x <- project(x + step_size * steepest(g))

where u is the gradient, seen from a little ahead (NI), through random resizing (DI),
averaged over darker copies (SI), corrected by that of the neighbourhood (VMI), and
smoothed in space (TI). Each is one argument of `transferable`; the papers' attacks, in
`momentum.py`, are presets of it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from robustjax import _checks, _random
from robustjax._checks import InputError
from robustjax._gradients import input_gradient
from robustjax.attacks import _outcome
from robustjax.attacks.gradient import unit_l1
from robustjax.attacks.input_diversity import Diversity, smoothed
from robustjax.objectives import cross_entropy
from robustjax.types import Array, IteratedAttack, Key, LogitsFn, Objective, Threat


class MomentumState(NamedTuple):
    """Between two steps.

    Attributes:
      x_adv: The current iterate, [B, ...].
      momentum: The accumulated gradient, [B, ...].
      variance: What the neighbourhood's mean gradient exceeds the last one by; None
        without variance tuning.
      keys: One per image, [B].
      index: Steps taken.
    """

    x_adv: Array
    momentum: Array
    variance: Array | None
    keys: Key
    index: Array


def transferable(
    threat: Threat,
    *,
    num_steps: int = 10,
    step_size: float | Array | None = None,
    momentum: float = 1.0,
    nesterov: bool = False,
    smoothing_kernel: Array | None = None,
    diversity: Diversity | None = None,
    num_scales: int = 1,
    num_neighbors: int = 0,
    neighborhood: float = 1.5,
    objective: Objective = cross_entropy,
    random_start: Callable[[Key, Array], Array] | None = None,
) -> IteratedAttack:
    """Momentum PGD with any of the options that make its results transfer.

    With all of them off it is `mi_fgsm`. A step takes `num_scales * (1 +
    num_neighbors)` forward and backward passes, one after another. A zero gradient adds
    nothing. As in the papers, the points at which gradients are taken (ahead,
    neighbours) are not brought back into the box.

    Args:
      threat: Ball and box.
      num_steps: Steps.
      step_size: Length of a step in the threat's norm, scalar or one per image [B];
        `threat.eps / num_steps` if None.
      momentum: The papers' mu.
      nesterov: Take the gradient at x + step_size * momentum * g, where g is scaled to
        the length of a step: under L-inf to a mean absolute value of 1, which is what
        the authors' code does (by the paper's unit L1 norm the point would hardly
        differ from x). See "Nesterov Accelerated Gradient and Scale Invariance for
        Adversarial Attacks" (Lin et al., 2020).
      smoothing_kernel: [k], k odd, such as `gaussian_kernel(15, 3.0)`: the gradient is
        convolved with it along height and width, zeros beyond the edge.
      diversity: `(key, x) -> x'`, such as `resize_and_pad()`, drawn anew for every
        pass; the gradient is taken through it.
      num_scales: The gradient is averaged over the images x / 2^i, i below this.
      num_neighbors: How many points of the neighbourhood give the variance that is
        added to the next step's gradient; 0 turns it off. See "Enhancing the
        Transferability of Adversarial Attacks through Variance Tuning" (Wang and He,
        2021), algorithm 1.
      neighborhood: Half the side of the cube around x, as a multiple of `threat.eps`,
        from which the neighbours are drawn; the paper's beta.
      objective: What is climbed.
      random_start: None starts at x; else `(key, x) -> x'` such as `threat.sample`.

    Returns:
      An attack whose results lie in the threat set.

    Raises:
      InputError: an argument is out of range.

    Example:
      >>> from robustjax import threats
      >>> from robustjax.attacks import gaussian_kernel, resize_and_pad
      >>> attack = transferable(
      ...     threats.linf(0.25), num_steps=2, nesterov=True,
      ...     smoothing_kernel=gaussian_kernel(3), diversity=resize_and_pad())
      >>> x, y = jnp.full((1, 4, 4, 1), 0.5), jnp.array([0])
      >>> bright = lambda z: jnp.stack([z.sum((1, 2, 3)), 8 - z.sum((1, 2, 3))], 1)
      >>> float(attack(jax.random.key(0), bright, x, y).max())
      0.25
    """
    _check_options(num_steps, momentum, smoothing_kernel, num_scales, num_neighbors)
    _checks.non_negative(neighborhood=neighborhood)
    length = threat.eps / num_steps if step_size is None else step_size
    _checks.non_negative(step_size=length)

    def gradient(logits_fn: LogitsFn, x: Array, y: Array, keys: Key) -> Array:
        climbed = _outcome.climbed(objective, logits_fn, y)
        return _mean_over_scales(climbed, x, keys, diversity, num_scales)

    def init(key: Key, logits_fn: LogitsFn, x: Array, y: Array) -> MomentumState:
        _outcome.check_call(logits_fn, x, y)
        if smoothing_kernel is not None:
            _checks.image_axes(x=x)
        keys = _random.per_image_keys(key, x.shape[0])
        x_adv = x
        if random_start is not None:
            x_adv = random_start(_random.fold_in(keys, 0), x)
        zero = jnp.zeros_like(x)
        return MomentumState(
            x_adv, zero, zero if num_neighbors else None, keys, jnp.int32(0)
        )

    def step(
        state: MomentumState, logits_fn: LogitsFn, x: Array, y: Array
    ) -> MomentumState:
        index = state.index + 1
        keys = _random.fold_in(state.keys, index)
        here = state.x_adv
        if nesterov:
            ahead = _step_long(threat, state.momentum) * state.momentum
            here = here + momentum * _per_image(length, x) * ahead
        grad = gradient(logits_fn, here, y, _random.fold_in(keys, 0))
        tuned, variance = grad, state.variance
        if variance is not None:
            tuned = grad + variance

            def neighbor(i: Array) -> Array:
                noise_key, pass_key = _two(_random.fold_in(keys, i + 1))
                noise = _random.draw(noise_key, x, _cube)
                near = state.x_adv + neighborhood * _per_image(threat.eps, x) * noise
                return gradient(logits_fn, near, y, pass_key)

            variance = _mean(neighbor, num_neighbors, x) - grad
        if smoothing_kernel is not None:
            tuned = smoothed(tuned, smoothing_kernel)
        total = momentum * state.momentum + unit_l1(tuned)
        moved = state.x_adv + _per_image(length, x) * threat.steepest(total)
        moved = threat.project(moved, x).astype(x.dtype)
        return MomentumState(moved, total, variance, state.keys, index)

    def finish(state: MomentumState, logits_fn: LogitsFn, x: Array, y: Array) -> Array:
        del logits_fn, x, y
        return state.x_adv

    return IteratedAttack(init, step, finish, num_steps)


def _mean_over_scales(
    climbed: Callable[[Array], tuple[Array, Array]],
    x: Array,
    keys: Key,
    diversity: Diversity | None,
    num_scales: int,
) -> Array:
    """The gradient at x of the mean objective over x / 2^i, [B, ...]."""

    def scaled(i: Array) -> Array:
        def evaluate(z: Array) -> tuple[Array, Array]:
            z = z * jnp.exp2(-i.astype(z.dtype))
            if diversity is not None:
                z = diversity(_random.fold_in(keys, i), z)
            return climbed(z)

        return input_gradient(evaluate, x)[2]

    return _mean(scaled, num_scales, x)


def _mean(term: Callable[[Array], Array], count: int, x: Array) -> Array:
    """The mean of `term(i)`, i below `count`, one at a time to save memory."""
    if count == 1:
        return term(jnp.int32(0))
    total = jax.lax.fori_loop(
        0, count, lambda i, total: total + term(jnp.int32(i)), jnp.zeros_like(x)
    )
    return total / count


def _step_long(threat: Threat, g: Array) -> Array:
    """What makes g, a unit in L1, as long in L1 as a step of length 1, [B, 1, ...]."""
    axes = tuple(range(1, g.ndim))
    return jnp.abs(threat.steepest(g)).sum(axis=axes, keepdims=True)


def _cube(key: Key, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    return jax.random.uniform(key, shape, dtype, -1.0, 1.0)


def _two(keys: Key) -> tuple[Key, Key]:
    pair = jax.vmap(jax.random.split)(keys)
    return pair[:, 0], pair[:, 1]


def _per_image(value: float | Array, x: Array) -> Array:
    value = jnp.asarray(value, x.dtype)
    return value.reshape(value.shape + (1,) * (x.ndim - value.ndim))


def _check_options(num_steps, momentum, smoothing_kernel, num_scales, num_neighbors):
    _checks.positive_int(num_steps=num_steps, num_scales=num_scales)
    _checks.non_negative(momentum=momentum)
    if num_neighbors:
        _checks.positive_int(num_neighbors=num_neighbors)
    shape = (1,) if smoothing_kernel is None else smoothing_kernel.shape
    if len(shape) != 1 or shape[0] % 2 == 0:
        raise InputError(
            "`smoothing_kernel` must be [k] with an odd k, as `gaussian_kernel()` is; "
            f"it is applied along both axes. Got shape {shape}."
        )
