"""Score-based gradients: SPSA and NES are projected ascent on an estimate.

For random directions v, each tried on both sides, the estimate is the mean of

    (L(x + delta v) - L(x - delta v)) / (2 delta) * v

whose mean is the gradient of L smoothed over v, since E[v v'] is the identity. SPSA
draws signs and steps with Adam; NES draws Gaussians and takes the steepest step.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from robustjax import _checks, _random
from robustjax._checks import InputError
from robustjax.attacks import _outcome
from robustjax.attacks.gradient import Start, steepest_rule
from robustjax.objectives import cross_entropy, margin
from robustjax.types import Array, IteratedAttack, Key, LogitsFn, Objective, Threat

Sampler = Callable[[Key, tuple[int, ...], Any], Array]
"""`(key, shape, dtype) -> direction`, with identity covariance."""


class EstimateState(NamedTuple):
    """Between two steps.

    Attributes:
      x_adv: The current iterate, [B, ...]; the first misclassified one, for good.
      broken: Whether it is misclassified, [B].
      rule: State of the step rule.
      keys: One per image, [B].
      index: Steps so far.
    """

    x_adv: Array
    broken: Array
    rule: Any
    keys: Key
    index: Array


def estimate_gradient(
    values_fn: Callable[[Array], Array],
    keys: Key,
    x: Array,
    *,
    sampler: Sampler,
    num_samples: int,
    delta: float | Array,
    chunk_size: int = 8,
) -> Array:
    """An unbiased estimate of the gradient of `values_fn`, smoothed, at x, [B, ...].

    The mean over num_samples / 2 directions v of
    (L(x + delta v) - L(x - delta v)) / (2 delta) v, each image with its own directions.
    The points are not clipped to the box: that would bias the estimate.

    Args:
      values_fn: Images to values [B].
      keys: One per image, [B].
      x: [B, ...].
      sampler: Of directions; their covariance should be the identity.
      num_samples: Forward passes, even: two per direction.
      delta: How far from x, on the pixel scale.
      chunk_size: Directions that are evaluated at once; memory grows with it.

    Example:
      >>> keys = jax.random.split(jax.random.key(0), 1)
      >>> grad = estimate_gradient(
      ...     lambda z: (z @ jnp.array([[1.0], [3.0]]))[:, 0], keys, jnp.zeros((1, 2)),
      ...     sampler=jax.random.rademacher, num_samples=1024, delta=0.1)
      >>> grad.round().tolist()
      [[1.0, 3.0]]
    """
    num_pairs = num_samples // 2
    chunk_size = min(chunk_size, num_pairs)
    distance = jnp.asarray(delta, x.dtype)

    def one(pair: Array) -> Array:
        along = _random.draw(_random.fold_in(keys, pair), x, sampler)
        rise = values_fn(x + distance * along) - values_fn(x - distance * along)
        slope = rise.astype(x.dtype) / (2 * distance)
        return slope.reshape(-1, *(1,) * (x.ndim - 1)) * along

    def add(total: Array, pairs: Array) -> tuple[Array, None]:
        return total + jax.vmap(one)(pairs).sum(axis=0), None

    pairs = jnp.arange(num_pairs, dtype=jnp.int32)
    whole = num_pairs - num_pairs % chunk_size
    chunks = pairs[:whole].reshape(-1, chunk_size)
    total, _ = jax.lax.scan(add, jnp.zeros_like(x), chunks)
    if whole < num_pairs:
        total, _ = add(total, pairs[whole:])
    return total / num_pairs


def estimated_gradient(
    threat: Threat,
    rule: optax.GradientTransformation,
    *,
    num_steps: int,
    sampler: Sampler,
    num_samples: int,
    delta: float | Array,
    objective: Objective = cross_entropy,
    random_start: Start | None = None,
    chunk_size: int = 8,
) -> IteratedAttack:
    """Projected ascent on a score-based gradient estimate, with any step rule.

    An image stays where it is from the first misclassified iterate on, since it needs
    no more queries. A step is num_samples + 1 forward passes: the estimate's, and one
    at the new iterate; the start is one.

    Args:
      threat: Ball and box.
      rule: Estimates to steps that are *added* to x; e.g. `optax.adam(-0.01)`.
      num_steps: Steps.
      sampler: Directions, as in `estimate_gradient`.
      num_samples: Forward passes per estimate, even.
      delta: How far from the iterate the objective is looked at, on the pixel scale.
        The points may leave box and ball by it.
      objective: What is climbed.
      random_start: None starts at x; else `(key, x) -> x'`.
      chunk_size: Directions that are evaluated at once; memory grows with it.

    Returns:
      An attack whose results lie in the threat set.

    Raises:
      InputError: an argument is out of range.
    """
    _checks.positive_int(
        num_steps=num_steps, num_samples=num_samples, chunk_size=chunk_size
    )
    _checks.positive(delta=delta)
    if num_samples % 2:
        raise InputError(
            f"`num_samples` must be even, two per direction, got {num_samples!r}."
        )

    def init(key: Key, logits_fn: LogitsFn, x: Array, y: Array) -> EstimateState:
        _outcome.check_call(logits_fn, x, y)
        keys = _random.per_image_keys(key, x.shape[0])
        start = x
        if random_start is not None:
            start = threat.project(random_start(_random.fold_in(keys, 0), x), x)
        is_broken = _outcome.scored(objective, logits_fn, y)(start)[1]
        return EstimateState(start, is_broken, rule.init(start), keys, jnp.int32(0))

    def step(
        state: EstimateState, logits_fn: LogitsFn, x: Array, y: Array
    ) -> EstimateState:
        climbed = _outcome.scored(objective, logits_fn, y)
        grad = estimate_gradient(
            lambda z: climbed(z)[0],
            _random.fold_in(state.keys, state.index + 1),
            state.x_adv,
            sampler=sampler,
            num_samples=num_samples,
            delta=delta,
            chunk_size=chunk_size,
        )
        ascent, rule_state = rule.update(grad, state.rule, state.x_adv)
        moved = threat.project(state.x_adv + jnp.asarray(ascent), x).astype(x.dtype)
        moved = _outcome.where(state.broken, state.x_adv, moved)
        is_broken = state.broken | climbed(moved)[1]
        return EstimateState(moved, is_broken, rule_state, state.keys, state.index + 1)

    def finish(state: EstimateState, logits_fn: LogitsFn, x: Array, y: Array) -> Array:
        del logits_fn, x, y
        return state.x_adv

    return IteratedAttack(
        init, step, finish, num_steps, broken=lambda state: state.broken
    )


def spsa(
    threat: Threat,
    *,
    num_steps: int = 100,
    num_samples: int = 128,
    delta: float | Array = 0.01,
    step_size: float | Array = 0.01,
    objective: Objective = margin,
    random_start: Start | None = None,
    chunk_size: int = 8,
) -> IteratedAttack:
    """Projected Adam on estimates from random signs (SPSA).

    See "Adversarial Risk and the Dangers of Evaluating Against Weak Attacks" (Uesato
    et al., 2018). Against a defense that hides gradients it sees what they hide. An
    image stops at its first misclassified iterate. A step is num_samples + 1 forward
    passes.

    Args:
      threat: Ball and box.
      num_steps: Steps.
      num_samples: Forward passes per estimate, even: two per direction.
      delta: How far from the iterate the objective is looked at, on the pixel scale.
      step_size: Adam's, on the pixel scale.
      objective: What is climbed.
      random_start: None starts at x; else `(key, x) -> x'`.
      chunk_size: Directions that are evaluated at once; memory grows with it.

    Raises:
      InputError: an argument is out of range.

    Example:
      >>> from robustjax import threats
      >>> attack = spsa(threats.linf(0.1), num_steps=8, num_samples=4, step_size=0.05)
      >>> x, y = jnp.array([[0.5, 0.45]]), jnp.array([0])
      >>> x_adv = attack(jax.random.key(0), lambda z: z, x, y)
      >>> bool(x_adv[0, 0] < x_adv[0, 1])
      True
    """
    _checks.positive(step_size=step_size)
    return estimated_gradient(
        threat,
        _adam(step_size),
        num_steps=num_steps,
        sampler=jax.random.rademacher,
        num_samples=num_samples,
        delta=delta,
        objective=objective,
        random_start=random_start,
        chunk_size=chunk_size,
    )


def nes(
    threat: Threat,
    *,
    num_steps: int = 200,
    num_samples: int = 50,
    delta: float | Array = 0.001,
    step_size: float | Array = 0.01,
    momentum: float = 0.0,
    objective: Objective = cross_entropy,
    random_start: Start | None = None,
    chunk_size: int = 8,
) -> IteratedAttack:
    """Projected steepest ascent on estimates from Gaussian directions (NES).

    See "Black-box Adversarial Attacks with Limited Queries and Information" (Ilyas et
    al., 2018), section 3.1. Under L-inf the step is the estimate's sign. An image stops
    at its first misclassified iterate. A step is num_samples + 1 forward passes.

    Args:
      threat: Ball and box.
      num_steps: Steps.
      num_samples: Forward passes per estimate, even: two per direction.
      delta: Standard deviation of the points about the iterate, the paper's sigma.
      step_size: Length of a step in the threat's norm, as in `pgd`.
      momentum: Share of the running estimate that is kept, in [0, 1].
      objective: What is climbed.
      random_start: None starts at x; else `(key, x) -> x'`.
      chunk_size: Directions that are evaluated at once; memory grows with it.

    Raises:
      InputError: an argument is out of range.

    Example:
      >>> from robustjax import threats
      >>> attack = nes(threats.linf(0.1), num_steps=8, num_samples=4, step_size=0.05)
      >>> x, y = jnp.array([[0.5, 0.45]]), jnp.array([0])
      >>> x_adv = attack(jax.random.key(0), lambda z: z, x, y)
      >>> bool(x_adv[0, 0] < x_adv[0, 1])
      True
    """
    _checks.positive(step_size=step_size)
    _checks.fraction(momentum=momentum)
    return estimated_gradient(
        threat,
        optax.chain(optax.trace(decay=momentum), steepest_rule(threat, step_size)),
        num_steps=num_steps,
        sampler=jax.random.normal,
        num_samples=num_samples,
        delta=delta,
        objective=objective,
        random_start=random_start,
        chunk_size=chunk_size,
    )


def _adam(step_size: float | Array) -> optax.GradientTransformation:
    """Adam's ascent steps; a step size per image [B] is spread over its pixels."""
    adam = optax.scale_by_adam()

    def update(updates, state, params=None):
        with jax.numpy_dtype_promotion("standard"):  # its step counter is an integer
            steps, state = adam.update(updates, state, params)
        steps = jnp.asarray(steps)
        length = jnp.asarray(step_size, steps.dtype)
        length = length.reshape(length.shape + (1,) * (steps.ndim - length.ndim))
        return length * steps, state

    return optax.GradientTransformation(adam.init, update)
