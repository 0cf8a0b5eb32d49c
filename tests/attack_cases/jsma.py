"""The Jacobian saliency map attack, which has a budget of coordinates and no radius."""

from attack_cases import AttackCase
from robustjax.attacks.jsma import jsma

CASES = {
    "jsma": AttackCase(
        lambda t: jsma(gamma=0.2),
        threats=("linf",),
        bounded=False,
        iterated=False,
        maps_over_eps=False,
        representative=False,
    ),
    "jsma-single": AttackCase(
        lambda t: jsma(theta=-0.5, gamma=0.1, pairs=False),
        threats=("linf",),
        bounded=False,
        iterated=False,
        maps_over_eps=False,
    ),
}
