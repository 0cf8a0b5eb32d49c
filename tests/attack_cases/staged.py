"""A sequence of short attacks, run like AutoAttack."""

from attack_cases import AttackCase
from robustjax import attacks


def _stages(threat):
    apgd = attacks.Stage("APGD", lambda turn: attacks.apgd(threat, num_steps=3), 2)
    square = attacks.Stage("Square", lambda turn: attacks.square(threat, num_queries=3))
    return lambda num_classes: (apgd, square)


CASES = {
    "staged": AttackCase(
        lambda t: attacks.StagedAttack("short", t, _stages(t)),
        iterated=False,
        maps_over_eps=False,
        on_host=True,
        representative=True,
    ),
}
