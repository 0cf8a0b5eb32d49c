"""Projected gradient attacks: FGSM, BIM, PGD and MI-FGSM are one loop.

    x <- project(x + rule(grad of the objective at x))

The rule is an optax transformation from gradients to ascent steps, so momentum, Adam
or a schedule come from optax; the threat gives the steepest direction and the
projection. Every step is one forward and one backward pass, whatever the options.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import optax

from robustjax import _checks
from robustjax._gradients import input_gradient
from robustjax._interned import interned
from robustjax.attacks import _outcome
from robustjax.attacks._outcome import Candidate
from robustjax.objectives import cross_entropy
from robustjax.types import Array, IteratedAttack, Key, LogitsFn, Objective, Threat

Start = Callable[[Key, Array], Array]


def uniform_start(key: Key, x: Array) -> Array:
    """Stands for `threat.sample` in signatures, where the threat is not known yet."""
    raise AssertionError("replaced by `projected_gradient` before any call")


class GradientState(NamedTuple):
    """Between two steps.

    Attributes:
      x_adv: The current iterate, [B, ...].
      rule: State of the step rule.
      best: The most adversarial iterate evaluated so far; None for `iterate="last"`.
      value: The objective at the iterate before, [B].
      broken: Whether an iterate up to that one was misclassified, [B].
    """

    x_adv: Array
    rule: Any
    best: Candidate | None
    value: Array
    broken: Array


def projected_gradient(
    threat: Threat,
    rule: optax.GradientTransformation,
    *,
    num_steps: int,
    objective: Objective = cross_entropy,
    random_start: Start | None = uniform_start,
    iterate: Literal["last", "best"] = "last",
    freeze_broken: bool = False,
) -> IteratedAttack:
    """Projected gradient ascent with any step rule.

    Args:
      threat: Ball and box.
      rule: Gradients to steps that are *added* to x; e.g. `optax.adam(-0.01)`.
      num_steps: Gradient steps.
      objective: What is climbed.
      random_start: None starts at x; else `(key, x) -> x'`, by default
        `threat.sample`; `threats.gaussian_start(0.001)` is that of TRADES and MART.
      iterate: What is returned: the last iterate, as most papers do, or the best one
        (misclassified first, then the largest objective), for one more forward pass.
      freeze_broken: An image stays where it is from the first misclassified iterate
        on. Shapes do not change, so this saves no time; it keeps perturbations small.

    Returns:
      An attack whose results lie in the threat set.

    Raises:
      InputError: an argument is out of range.

    Example:
      >>> import jax
      >>> from robustjax import threats
      >>> attack = projected_gradient(
      ...     threats.linf(0.1), optax.adam(-0.05), num_steps=4, random_start=None)
      >>> x, y = jnp.full((1, 2), 0.5), jnp.array([0])
      >>> x_adv = attack(jax.random.key(0), lambda z: z, x, y)
      >>> x_adv.round(3).tolist()
      [[0.4..., 0.6...]]
    """
    _checks.positive_int(num_steps=num_steps)
    _checks.one_of(("last", "best"), iterate=iterate)
    start = threat.sample if random_start is uniform_start else random_start

    def init(key: Key, logits_fn: LogitsFn, x: Array, y: Array) -> GradientState:
        _outcome.check_call(logits_fn, x, y)
        x_adv = x if start is None else start(key, x)
        wide = jnp.promote_types(x.dtype, "float32")
        never = jnp.full(x.shape[:1], -jnp.inf, wide)
        none = jnp.zeros(x.shape[:1], bool)
        best = Candidate(x_adv, never, none) if iterate == "best" else None
        return GradientState(x_adv, rule.init(x_adv), best, never, none)

    def step(
        state: GradientState, logits_fn: LogitsFn, x: Array, y: Array
    ) -> GradientState:
        climbed = _outcome.climbed(objective, logits_fn, y)
        value, is_broken, grad = input_gradient(climbed, state.x_adv)
        best = state.best
        if best is not None:
            best = _outcome.keep_worse(best, Candidate(state.x_adv, value, is_broken))
        ascent, rule_state = rule.update(grad, state.rule, state.x_adv)
        moved = threat.project(state.x_adv + jnp.asarray(ascent), x).astype(x.dtype)
        if freeze_broken:
            moved = _outcome.where(is_broken, state.x_adv, moved)
        value, ever = value.astype(state.value.dtype), state.broken | is_broken
        return GradientState(moved, rule_state, best, value, ever)

    def finish(state: GradientState, logits_fn: LogitsFn, x: Array, y: Array) -> Array:
        # A start outside the ball (a Gaussian one) may have been kept as it was.
        x_adv = threat.project(state.x_adv, x) if freeze_broken else state.x_adv
        if state.best is None:
            return x_adv
        last = Candidate(x_adv, *_outcome.climbed(objective, logits_fn, y)(x_adv))
        return threat.project(_outcome.keep_worse(state.best, last).x_adv, x)

    seen = lambda state: (state.value, state.broken)
    return IteratedAttack(init, step, finish, num_steps, seen=seen)


@interned
def pgd(
    threat: Threat,
    *,
    step_size: float | Array,
    num_steps: int,
    objective: Objective = cross_entropy,
    random_start: Start | None = uniform_start,
    iterate: Literal["last", "best"] = "last",
    freeze_broken: bool = False,
) -> IteratedAttack:
    """Projected gradient descent, x <- P(x + step_size * steepest(gradient)).

    See "Towards Deep Learning Models Resistant to Adversarial Attacks" (Madry et al.,
    2018), section 2.1. Under L-inf the step is the gradient's sign, under L2 the unit
    gradient, under L1 the k-sparse direction of the threat.

    Args:
      threat: Ball and box.
      step_size: Length of a step in the threat's norm, on the pixel scale, scalar or
        one per image [B]; may be traced.
      num_steps: Gradient steps.
      objective: What is climbed.
      random_start: `threat.sample` by default, None to start at x, or any
        `(key, x) -> x'` such as `threats.gaussian_start(0.001)`.
      iterate: `"last"` or `"best"`, see `projected_gradient`.
      freeze_broken: Keep the first misclassified iterate, see `projected_gradient`.

    Raises:
      InputError: an argument is out of range.

    Example:
      >>> import jax
      >>> from robustjax import threats
      >>> attack = pgd(threats.linf(0.1), step_size=0.05, num_steps=4)
      >>> x, y = jnp.full((1, 2), 0.5), jnp.array([0])
      >>> run = jax.jit(attack, static_argnums=1)
      >>> x_adv = run(jax.random.key(0), lambda z: z, x, y)
      >>> x_adv.round(3).tolist()
      [[0.4..., 0.6...]]
    """
    _checks.positive(step_size=step_size)
    return projected_gradient(
        threat,
        steepest_rule(threat, step_size),
        num_steps=num_steps,
        objective=objective,
        random_start=random_start,
        iterate=iterate,
        freeze_broken=freeze_broken,
    )


@interned
def fgsm(
    threat: Threat,
    *,
    step_size: float | Array | None = None,
    objective: Objective = cross_entropy,
    random_start: Start | None = None,
) -> IteratedAttack:
    """The fast gradient (sign) method: one step of the whole radius.

    See "Explaining and Harnessing Adversarial Examples" (Goodfellow et al., 2015).
    With `random_start=threat.sample` and a step of 1.25 eps it is the training attack
    of "Fast is better than free" (Wong et al., 2020).

    Args:
      threat: Ball and box.
      step_size: Length of the step, as in `pgd`; `threat.eps` if None.
      objective: What is climbed.
      random_start: As in `pgd`, but None by default.

    Raises:
      InputError: an argument is out of range.

    Example:
      >>> import jax
      >>> from robustjax import threats
      >>> x, y = jnp.full((1, 2), 0.5), jnp.array([0])
      >>> fgsm(threats.linf(0.25))(jax.random.key(0), lambda z: z, x, y).tolist()
      [[0.25, 0.75]]
    """
    if step_size is None:
        step_size = threat.eps
    _checks.non_negative(step_size=step_size)
    return projected_gradient(
        threat,
        steepest_rule(threat, step_size),
        num_steps=1,
        objective=objective,
        random_start=random_start,
    )


@interned
def bim(
    threat: Threat,
    *,
    step_size: float | Array,
    num_steps: int,
    objective: Objective = cross_entropy,
    iterate: Literal["last", "best"] = "last",
    freeze_broken: bool = False,
) -> IteratedAttack:
    """The basic iterative method (iterative FGSM): PGD that starts at x.

    See "Adversarial examples in the physical world" (Kurakin et al., 2017), section
    2.2. Arguments and errors as in `pgd`.

    Example:
      >>> import jax
      >>> from robustjax import threats
      >>> x, y = jnp.full((1, 2), 0.5), jnp.array([0])
      >>> attack = bim(threats.linf(0.25), step_size=0.125, num_steps=2)
      >>> attack(jax.random.key(0), lambda z: z, x, y).tolist()
      [[0.25, 0.75]]
    """
    return pgd(
        threat,
        step_size=step_size,
        num_steps=num_steps,
        objective=objective,
        random_start=None,
        iterate=iterate,
        freeze_broken=freeze_broken,
    )


@interned
def mi_fgsm(
    threat: Threat,
    *,
    num_steps: int = 10,
    step_size: float | Array | None = None,
    momentum: float = 1.0,
    objective: Objective = cross_entropy,
    random_start: Start | None = None,
    iterate: Literal["last", "best"] = "last",
    freeze_broken: bool = False,
) -> IteratedAttack:
    """Momentum PGD: g <- momentum * g + grad / ||grad||_1, step along steepest(g).

    See "Boosting Adversarial Attacks with Momentum" (Dong et al., 2018), algorithm 1.
    A zero gradient adds nothing (some implementations divide by its zero norm).

    Args:
      threat: Ball and box.
      num_steps: Gradient steps.
      step_size: Length of a step, as in `pgd`; `threat.eps / num_steps`, the paper's,
        if None.
      momentum: The paper's mu.
      objective: What is climbed.
      random_start: As in `pgd`, but None by default, as in the paper.
      iterate: `"last"` or `"best"`, see `projected_gradient`.
      freeze_broken: Keep the first misclassified iterate, see `projected_gradient`.

    Raises:
      InputError: an argument is out of range.

    Example:
      >>> import jax
      >>> from robustjax import threats
      >>> x, y = jnp.full((1, 2), 0.5), jnp.array([0])
      >>> attack = mi_fgsm(threats.linf(0.25), num_steps=2)
      >>> attack(jax.random.key(0), lambda z: z, x, y).tolist()
      [[0.25, 0.75]]
    """
    _checks.positive_int(num_steps=num_steps)
    _checks.non_negative(momentum=momentum)
    if step_size is None:
        step_size = threat.eps / num_steps
    _checks.non_negative(step_size=step_size)
    rule = optax.chain(
        optax.stateless(_normalise),
        optax.trace(decay=momentum),
        steepest_rule(threat, step_size),
    )
    return projected_gradient(
        threat,
        rule,
        num_steps=num_steps,
        objective=objective,
        random_start=random_start,
        iterate=iterate,
        freeze_broken=freeze_broken,
    )


def steepest_rule(
    threat: Threat, step_size: float | Array
) -> optax.GradientTransformation:
    """The rule of PGD: a step of that length in the steepest direction."""

    def scaled(grad, _):
        length = jnp.asarray(step_size, grad.dtype)
        length = length.reshape(length.shape + (1,) * (grad.ndim - length.ndim))
        return length * threat.steepest(grad)

    return optax.stateless(scaled)


def _normalise(grad: Any, _: Any) -> Array:
    return unit_l1(grad)


def unit_l1(grad: Array) -> Array:
    """A gradient over its L1 norm, row by row; a zero one stays zero."""
    axes = tuple(range(1, grad.ndim))
    size = jnp.abs(grad).sum(axis=axes, keepdims=True)
    return grad / jnp.where(size > 0, size, 1.0)
