"""AutoAttack: strong, different attacks in sequence, with nothing left to tune.

See "Reliable evaluation of adversarial robustness with an ensemble of diverse
parameter-free attacks" (Croce and Hein, 2020) and, for L1, "Mind the Box: l1-APGD for
Sparse Adversarial Attacks on Image Classifiers" (Croce and Hein, 2021). The order, the
budgets and the bookkeeping are those of the authors' code; what differs is stated at
`autoattack`.
"""

import functools
from collections.abc import Callable
from typing import Any

from robustjax import _checks
from robustjax.attacks.apgd import apgd, apgd_target
from robustjax.attacks.fab import fab, fab_target
from robustjax.attacks.iterate import early_stop
from robustjax.attacks.square import square
from robustjax.attacks.staged import Stage, StagedAttack
from robustjax.objectives import dlr, margin
from robustjax.types import Attack, IteratedAttack, LogitsFn, Threat


def autoattack(threat: Threat) -> StagedAttack:
    """AutoAttack `standard`, the four attacks of the paper with its budgets.

    L-inf and L2: APGD-CE (one start of 100 steps), APGD-T (targeted DLR towards 9
    classes), FAB-T (9 classes, 100 steps), Square (5,000 queries). L1: APGD-CE with 5
    starts and APGD-T towards 5 classes, both with the radii 3 eps, 2 eps and eps in
    turn, then FAB-T and Square.

    What differs from the authors' code: draws are per image (there one seed serves
    every batch, and Square's windows are shared by the batch); with fewer targets than
    classes the rest is left out; with fewer than 4 classes the margin loss replaces the
    targeted DLR, which does not exist then, and a warning says so; a broken image must
    also lie in the ball.

    Args:
      threat: Ball and box; the L-inf, L2 or L1 norm.

    Example:
      >>> from robustjax import threats
      >>> [stage.name for stage in autoattack(threats.linf(8 / 255)).stages(10)]
      ['APGD-CE', 'APGD-T', 'FAB-T', 'Square']
    """
    return _sequence("AutoAttack", threat, _standard)


def autoattack_plus(threat: Threat) -> StagedAttack:
    """AutoAttack `plus`: more restarts, and the untargeted DLR and FAB.

    APGD-CE, APGD-DLR and FAB with 5 starts each, Square, then APGD-T and FAB-T. With
    fewer than 3 classes the margin loss replaces the DLR. The authors made it for L-inf
    and L2; under L1 every APGD takes the three radii of `autoattack`.

    Args:
      threat: Ball and box; the L-inf, L2 or L1 norm.

    Example:
      >>> from robustjax import threats
      >>> [stage.rounds for stage in autoattack_plus(threats.l2(0.5)).stages(10)]
      [5, 5, 1, 1, 9, 9]
    """
    return _sequence("AutoAttack plus", threat, _plus)


def autoattack_rand(threat: Threat, attacked: LogitsFn) -> StagedAttack:
    """AutoAttack `rand` for randomised classifiers: APGD-CE and -DLR on an average.

    Args:
      threat: Ball and box; the L-inf, L2 or L1 norm.
      attacked: What is climbed, `expectation(random_logits_fn, key, 20)` in the
        authors' version. What judges is the classifier that the attack is called with,
        whose draws should be others.

    Example:
      >>> import jax
      >>> from robustjax import attacks, threats
      >>> noisy = lambda keys, x: x + jax.vmap(jax.random.normal)(keys)[:, None]
      >>> climbed = attacks.expectation(noisy, jax.random.key(0), 20)
      >>> [s.name for s in autoattack_rand(threats.linf(0.1), climbed).stages(10)]
      ['APGD-CE', 'APGD-DLR']
    """
    return _sequence("AutoAttack rand", threat, _rand, attacked)


def screen(threat: Threat) -> StagedAttack:
    """APGD-CE and APGD-T: most of what AutoAttack finds for a fifth of its passes.

    A screening, not AutoAttack: no FAB, and no Square to notice masked gradients.

    Args:
      threat: Ball and box; the L-inf, L2 or L1 norm.

    Example:
      >>> from robustjax import threats
      >>> screen(threats.linf(8 / 255)).name
      'screen'
    """
    return _sequence("screen", threat, lambda *args: _standard(*args)[:2])


def aa_namid(threat: Threat) -> StagedAttack:
    """What NAMID's released code runs as AutoAttack: APGD and FAB with 40 steps.

    Not AutoAttack, whose budgets are fixed; only for comparison with that paper.

    Args:
      threat: Ball and box; the L-inf or L2 norm.

    Example:
      >>> from robustjax import threats
      >>> aa_namid(threats.linf(8 / 255)).name
      'aa_namid (40 iterations)'
    """
    _checks.one_of(("linf", "l2"), **{"threat.name": threat.name})
    standard = functools.partial(_standard, num_steps=40)
    return _sequence("aa_namid (40 iterations)", threat, standard)


def _sequence(
    name: str,
    threat: Threat,
    stages: Callable[[Threat, int], tuple[Stage, ...]],
    attacked: LogitsFn | None = None,
) -> StagedAttack:
    _checks.one_of(("linf", "l2", "l1"), **{"threat.name": threat.name})
    # Cached, since `jit` knows a stage again by its identity.
    of_classes = functools.cache(lambda num_classes: stages(threat, num_classes))
    return StagedAttack(name, threat, of_classes, attacked)


def _standard(
    threat: Threat, num_classes: int, num_steps: int = 100
) -> tuple[Stage, ...]:
    sparse = threat.name == "l1"
    options = dict(num_steps=num_steps, large_eps_phases=sparse)
    return (
        Stage("APGD-CE", _each(apgd, threat, **options), 5 if sparse else 1),
        _apgd_t(threat, num_classes, 5 if sparse else 9, **options),
        _fab_t(threat, num_classes, num_steps),
        Stage("Square", _each(square, threat)),
    )


def _plus(threat: Threat, num_classes: int) -> tuple[Stage, ...]:
    return (
        *_rand(threat, num_classes, rounds=5),
        # One round: the first start is x itself, only later ones are drawn.
        Stage("FAB", _each(fab, threat, num_restarts=5)),
        Stage("Square", _each(square, threat)),
        _apgd_t(threat, num_classes, 9, large_eps_phases=threat.name == "l1"),
        _fab_t(threat, num_classes, 100),
    )


def _rand(threat: Threat, num_classes: int, rounds: int = 1) -> tuple[Stage, ...]:
    ratio = dlr if num_classes >= 3 else margin
    options = dict(large_eps_phases=threat.name == "l1")
    return (
        Stage("APGD-CE", _each(apgd, threat, **options), rounds),
        Stage("APGD-DLR", _each(apgd, threat, objective=ratio, **options), rounds),
    )


def _apgd_t(threat: Threat, num_classes: int, targets: int, **options: Any) -> Stage:
    objective = dlr if num_classes >= 4 else margin
    attack = _each_rank(apgd_target, threat, objective=objective, **options)
    return Stage("APGD-T", attack, min(targets, num_classes - 1))


def _fab_t(threat: Threat, num_classes: int, num_steps: int) -> Stage:
    attack = _each_rank(fab_target, threat, num_steps=num_steps)
    return Stage("FAB-T", attack, min(9, num_classes - 1))


def _each(factory: Callable[..., Any], threat: Threat, **options: Any):
    """A stage whose rounds differ by their draws."""
    return lambda turn: _stopping(factory(threat, **options))


def _each_rank(factory: Callable[..., Any], threat: Threat, **options: Any):
    """A stage whose rounds go through the wrong classes, the likeliest first."""
    return lambda turn: _stopping(factory(threat, rank=2 + turn, **options))


def _stopping(attack: Attack) -> Attack:
    """Ends with the last image of the batch, if that costs no passes."""
    if isinstance(attack, IteratedAttack) and attack.broken is not None:
        return early_stop(attack)
    return attack
