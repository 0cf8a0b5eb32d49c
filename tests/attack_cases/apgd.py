"""APGD under every norm and towards ranked classes, and PGD with Adam."""

from attack_cases import AttackCase
from robustjax import objectives
from robustjax.attacks.adam_pgd import adam_pgd
from robustjax.attacks.apgd import apgd, apgd_target, apgd_targeted

CASES = {
    "apgd": AttackCase(lambda t: apgd(t, num_steps=4), representative=True),
    "apgd-dlr": AttackCase(
        lambda t: apgd(t, num_steps=3, objective=objectives.dlr, random_start=None),
        least_classes=3,
    ),
    "apgd-phases": AttackCase(
        lambda t: apgd(t, num_steps=5, large_eps_phases=True), threats=("l1",)
    ),
    "apgd-target": AttackCase(
        lambda t: apgd_target(t, rank=2, num_steps=3), least_classes=4
    ),
    "apgd-targeted": AttackCase(
        lambda t: apgd_targeted(t, num_targets=2, num_steps=3),
        iterated=False,
        least_classes=4,
    ),
    "adam-pgd": AttackCase(
        lambda t: adam_pgd(t, num_steps=3, objective=objectives.margin)
    ),
}
