"""Projected gradient attacks: three steps of half the radius."""

import optax

from attack_cases import AttackCase
from robustjax import attacks, objectives, threats


def _pgd(threat, **options):
    step = threat.eps / 2 + 1e-9
    return attacks.pgd(threat, step_size=step, num_steps=3, **options)


CASES = {
    "pgd": AttackCase(_pgd, representative=True),
    "fgsm": AttackCase(attacks.fgsm),
    "fgsm-random": AttackCase(
        lambda t: attacks.fgsm(t, step_size=1.25 * t.eps, random_start=t.sample)
    ),
    "bim": AttackCase(
        lambda t: attacks.bim(t, step_size=t.eps / 2 + 1e-9, num_steps=3)
    ),
    "pgd-best": AttackCase(lambda t: _pgd(t, iterate="best")),
    "pgd-frozen": AttackCase(lambda t: _pgd(t, freeze_broken=True)),
    "pgd-gaussian": AttackCase(
        lambda t: _pgd(
            t,
            objective=objectives.margin,
            random_start=threats.gaussian_start(0.001),
        )
    ),
    "mi-fgsm": AttackCase(lambda t: attacks.mi_fgsm(t, num_steps=3)),
    "adam": AttackCase(
        lambda t: attacks.projected_gradient(
            t, optax.adam(-0.05), num_steps=3, objective=objectives.dlr
        ),
        least_classes=3,
    ),
}
