"""Auto-PGD: projected gradient ascent that chooses its own steps.

Nothing but the number of steps has to be set. Each step is one forward and one
backward pass; before the first there is one more, and a forward pass of x. The climb
itself is in `_apgd` (L-inf, L2) and `_apgd_l1` (L1).
"""

from typing import Any

import jax
import jax.numpy as jnp

from robustjax import _checks, _random
from robustjax._checks import InputError
from robustjax._interned import interned
from robustjax.attacks import _apgd, _apgd_l1, _outcome, _targets
from robustjax.attacks._apgd import Climb, Start, Task
from robustjax.objectives import cross_entropy, dlr, targeted
from robustjax.types import (
    Array,
    Attack,
    IteratedAttack,
    Key,
    LogitsFn,
    Objective,
    Threat,
)


def _start_of_the_reference(key: Key, x: Array) -> Array:
    """Stands for `_apgd.reference_start(threat)` in signatures."""
    raise AssertionError("replaced by `_climb` before any call")


@interned
def apgd(
    threat: Threat,
    *,
    num_steps: int = 100,
    objective: Objective = cross_entropy,
    rho: float = 0.75,
    momentum: float = 0.75,
    random_start: Start | None = _start_of_the_reference,
    large_eps_phases: bool = False,
) -> IteratedAttack:
    """A misclassified point if APGD passed one, else that of the largest objective.

        u       = P(x_t + step * steepest(gradient at x_t)),   step = 2 eps at first
        x_{t+1} = P(x_t + momentum * (u - x_t) + (1 - momentum) * (x_t - x_{t-1}))

    At checkpoints fixed in advance, the step of an image is halved and the image goes
    back to its best point, if at most rho of the steps since the last checkpoint raised
    the objective, or if the best one has not risen since a checkpoint that did not
    halve. See "Reliable evaluation of adversarial robustness with an ensemble of
    diverse parameter-free attacks" (Croce and Hein, 2020), algorithm 1. Under L1 the
    steps are sparse instead and there is no momentum: see "Mind the Box: l1-APGD for
    Sparse Adversarial Attacks on Image Classifiers" (Croce and Hein, 2021).

    As in the authors' code, P under L2 scales into the ball and then clips to the box,
    the momentum starts at the second step, the first step counts as a rise where the
    objective is positive, and of several misclassified points the last is returned.
    Unlike there, a gradient counts however small it is, and the random start of the L1
    phases is noise around x, projected (theirs is projected around 0 first).

    Args:
      threat: Ball and box; L-inf, L2 or L1, of finite radius. The `sparsity` of an L1
        threat plays no role.
      num_steps: Gradient steps.
      objective: What is climbed.
      rho: The share of rising steps that leaves the step as it is; not under L1.
      momentum: The weight of the new step, the paper's alpha; not under L1.
      random_start: `(key, x) -> x'`, projected onto the threat; None starts at x. By
        default the authors': noise on the surface of the ball, clipped to the box, or
        under L1 standard Gaussian noise, projected.
      large_eps_phases: L1 only. Climb in the ball of 3 eps for 30% of the steps, then
        of 2 eps for 30%, then of eps, each from the projected best point of the one
        before, for two more passes.

    Raises:
      InputError: an argument is out of range, or has no role under this norm.

    Example:
      >>> from robustjax import threats
      >>> x, y = jnp.full((1, 2), 0.5), jnp.array([0])
      >>> attack = apgd(threats.linf(0.25), num_steps=5)
      >>> attack(jax.random.key(0), lambda z: z, x, y).tolist()
      [[0.25, 0.75]]
    """
    climb = _climb(
        threat,
        objective,
        num_steps=num_steps,
        rho=rho,
        momentum=momentum,
        random_start=random_start,
        large_eps_phases=large_eps_phases,
    )

    def init(key: Key, logits_fn: LogitsFn, x: Array, y: Array) -> Any:
        _outcome.check_call(logits_fn, x, y)
        _, clean_broken = _outcome.climbed(objective, logits_fn, y)(x)
        return climb.start(
            climb.draw(key, x), logits_fn, x, y, Task(None, clean_broken)
        )

    seen = None if threat.name == "l1" else _seen
    return IteratedAttack(init, climb.step, _finish, climb.num_steps, _broken, seen)


@interned
def apgd_target(
    threat: Threat,
    *,
    rank: int | Array,
    num_steps: int = 100,
    objective: Objective = dlr,
    rho: float = 0.75,
    momentum: float = 0.75,
    random_start: Start | None = _start_of_the_reference,
    large_eps_phases: bool = False,
) -> IteratedAttack:
    """APGD towards the `rank`-th most likely class of the clean image.

    One run of `apgd_targeted`, for those who run the ranks themselves: `rank` may be
    traced, so that one compilation serves all. Success is any wrong class.

    Args:
      threat: As in `apgd`.
      rank: 2 is the most likely wrong class, see `_targets.ranked_class`.
      num_steps: Gradient steps.
      objective: Made targeted by `objectives.targeted`; `dlr` needs 4 classes.
      rho: As in `apgd`.
      momentum: As in `apgd`.
      random_start: As in `apgd`.
      large_eps_phases: As in `apgd`.

    Raises:
      InputError: an argument is out of range; at the call, if there are fewer classes
        than the objective needs, or `y` is not labels [B].

    Example:
      >>> from robustjax import threats
      >>> x, y = jnp.full((1, 4), 0.5).at[0, 2].set(0.4), jnp.array([0])
      >>> attack = apgd_target(threats.linf(0.25), rank=4, num_steps=5)
      >>> attack(jax.random.key(0), lambda z: 9 * z, x, y).argmax().item()
      2
    """
    _targets.check_rank(rank)
    climb = _climb(
        threat,
        objective,
        num_steps=num_steps,
        rho=rho,
        momentum=momentum,
        random_start=random_start,
        large_eps_phases=large_eps_phases,
    )

    def init(key: Key, logits_fn: LogitsFn, x: Array, y: Array) -> Any:
        _outcome.check_call(logits_fn, x, y)
        task = _task(objective, logits_fn(x), y, rank)
        return climb.start(climb.draw(key, x), logits_fn, x, y, task)

    seen = None if threat.name == "l1" else _seen
    return IteratedAttack(init, climb.step, _finish, climb.num_steps, _broken, seen)


@interned
def apgd_targeted(
    threat: Threat,
    *,
    num_targets: int = 9,
    num_steps: int = 100,
    objective: Objective = dlr,
    rho: float = 0.75,
    momentum: float = 0.75,
    random_start: Start | None = _start_of_the_reference,
    large_eps_phases: bool = False,
) -> Attack:
    """The first misclassified point of APGD runs towards one wrong class after another.

    The targets are the `num_targets` most likely wrong classes of the clean image, most
    likely first; any wrong class is a success. See "Reliable evaluation of adversarial
    robustness with an ensemble of diverse parameter-free attacks" (Croce and Hein,
    2020). An image keeps the point that broke it while others go on; once
    all are broken, the remaining runs are skipped. Without success the point of the
    largest objective is returned (the authors' code returns x).

    Args:
      threat: As in `apgd`.
      num_targets: How many classes to try, at most all wrong ones.
      num_steps: Gradient steps per target.
      objective: As in `apgd_target`.
      rho: As in `apgd`.
      momentum: As in `apgd`.
      random_start: As in `apgd`; each target draws its own.
      large_eps_phases: As in `apgd`.

    Raises:
      InputError: as in `apgd_target`.

    Example:
      >>> from robustjax import threats
      >>> x, y = jnp.full((1, 4), 0.5), jnp.array([0])
      >>> attack = apgd_targeted(threats.linf(0.25), num_targets=3, num_steps=5)
      >>> attack(jax.random.key(0), lambda z: 9 * z, x, y).argmax().item()
      1
    """
    _checks.positive_int(num_targets=num_targets)
    climb = _climb(
        threat,
        objective,
        num_steps=num_steps,
        rho=rho,
        momentum=momentum,
        random_start=random_start,
        large_eps_phases=large_eps_phases,
    )

    def attack(key: Key, logits_fn: LogitsFn, x: Array, y: Array) -> Array:
        _outcome.check_call(logits_fn, x, y)
        clean = logits_fn(x)
        keys = _random.per_image_keys(key, x.shape[0])

        def run(found: tuple[Array, Array, Array], rank: Array, first: Array):
            task = _task(objective, clean, y, rank)
            state = climb.start(first, logits_fn, x, y, task)
            state, _ = jax.lax.scan(
                lambda state, _: (climb.step(state, logits_fn, x, y), None),
                state,
                length=climb.num_steps,
            )
            return _keep_first(found, state, x)

        def run_or_skip(found: tuple[Array, Array, Array], rank: Array):
            first = climb.draw(_random.fold_in(keys, rank), x)
            skip = lambda found, *_: found
            return jax.lax.cond(found[2].all(), skip, run, found, rank, first), None

        task = _task(objective, clean, y, 2)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        never = jnp.full(x.shape[:1], -jnp.inf, wide)
        ranks = 2 + jnp.arange(_targets.count_targets(num_targets, clean.shape[-1]))
        found = (x, never, task.clean_broken)
        found, _ = jax.lax.scan(run_or_skip, found, ranks)
        return jax.lax.stop_gradient(found[0])

    return attack


def _climb(
    threat: Threat,
    objective: Objective,
    *,
    num_steps: int,
    rho: float,
    momentum: float,
    random_start: Start | None,
    large_eps_phases: bool,
) -> Climb:
    """The climb of the threat's norm, after all checks."""
    _checks.one_of(("linf", "l2", "l1"), **{"threat.name": threat.name})
    _checks.positive_int(num_steps=num_steps)
    _checks.fraction(rho=rho, momentum=momentum)
    _checks.finite(**{"threat.eps": threat.eps})
    if random_start is _start_of_the_reference:
        random_start = _apgd.reference_start(threat)
    if threat.name == "l1":
        if (rho, momentum) != (0.75, 0.75):
            raise InputError(
                "`rho` and `momentum` have no role under L1; leave them out, got "
                f"{rho} and {momentum}."
            )
        return _apgd_l1.climb(
            threat,
            objective,
            num_steps=num_steps,
            large_eps_phases=large_eps_phases,
            random_start=random_start,
        )
    if large_eps_phases:
        raise InputError(
            "`large_eps_phases` are for L1 threats, got True with "
            f"{threat.name!r}. Leave it out."
        )
    return _apgd.climb(
        threat,
        objective,
        num_steps=num_steps,
        rho=rho,
        momentum=momentum,
        random_start=random_start,
    )


def _task(objective: Objective, clean: Array, y: Array, rank: int | Array) -> Task:
    """The target of a rank, given the logits of x."""
    target = _targets.ranked_class(clean, y, rank)
    objective = targeted(objective, target)
    _, clean_broken = _outcome.climbed(objective, lambda _: clean, y)(clean)
    return Task(target, clean_broken)


def _keep_first(
    found: tuple[Array, Array, Array], state: Any, x: Array
) -> tuple[Array, Array, Array]:
    """(x_adv, value, broken) after another run; broken images stay as they are."""
    x_adv, value, broken = found
    now = state.record
    wins = ~broken & (now.broken | (now.best.value > value))
    return (
        _outcome.where(wins, _apgd.result(state, x), x_adv),
        jnp.where(wins, now.best.value, value),
        broken | now.broken,
    )


def _broken(state: Any) -> Array:
    return state.record.broken


def _seen(state: Any) -> tuple[Array, Array]:
    return state.value, state.record.broken


def _finish(state: Any, logits_fn: LogitsFn, x: Array, y: Array) -> Array:
    return _apgd.result(state, x)
