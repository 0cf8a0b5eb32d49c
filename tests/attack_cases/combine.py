"""Combinators around short PGD attacks."""

from attack_cases import AttackCase
from robustjax import attacks, objectives


def _pgd(threat, **options):
    step = threat.eps / 2 + 1e-9
    return attacks.pgd(threat, step_size=step, num_steps=2, **options)


def _towards(threat):
    objective = objectives.targeted
    return lambda target: _pgd(threat, objective=objective(objectives.margin, target))


def _linear(x):
    """Another model with the shapes of the suite's."""
    return x.reshape(x.shape[0], -1)[:, :4] - x.reshape(x.shape[0], -1)[:, 4:8]


CASES = {
    "restarts": AttackCase(
        lambda t: attacks.restarts(_pgd(t), 4, at_once=2),
        iterated=False,
        representative=True,
    ),
    "strongest": AttackCase(
        lambda t: attacks.strongest([attacks.fgsm(t), _pgd(t)]), iterated=False
    ),
    "worst-case": AttackCase(
        lambda t: attacks.worst_case([attacks.fgsm(t), _pgd(t)]), iterated=False
    ),
    "each-target": AttackCase(
        lambda t: attacks.each_target(_towards(t), 3), iterated=False
    ),
    "each-target-at-once": AttackCase(
        lambda t: attacks.each_target(_towards(t), 3, at_once=2), iterated=False
    ),
    "masked": AttackCase(
        lambda t: attacks.masked(_pgd(t), chunk_size=1), iterated=False
    ),
    "oblivious": AttackCase(
        lambda t: attacks.oblivious(_pgd(t), lambda x: -_linear(x)),
        iterated=False,
        breaks=False,
        least_classes=4,  # those of the source
    ),
    "transfer": AttackCase(
        lambda t: attacks.transfer(_pgd(t), [_linear, lambda x: -_linear(x)]),
        iterated=False,
        breaks=False,
        least_classes=4,
    ),
    "early-stop": AttackCase(lambda t: attacks.early_stop(_pgd(t)), iterated=False),
}
