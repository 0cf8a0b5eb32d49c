"""Carlini and Wagner's attacks in their shortest form."""

from attack_cases import AttackCase
from robustjax.attacks.carlini_wagner import carlini_wagner
from robustjax.attacks.carlini_wagner_fixed import carlini_wagner_fixed
from robustjax.attacks.carlini_wagner_linf import carlini_wagner_linf

CASES = {
    "carlini-wagner": AttackCase(
        lambda t: carlini_wagner(
            t, num_steps=4, search_steps=2, initial_constant=10.0, step_size=0.1
        ),
        threats=("l2",),
        representative=True,
    ),
    "carlini-wagner-linf": AttackCase(
        lambda t: carlini_wagner_linf(
            t, num_steps=4, search_steps=2, initial_constant=5.0, step_size=0.03
        ),
        threats=("linf",),
    ),
    "carlini-wagner-fixed": AttackCase(
        lambda t: carlini_wagner_fixed(t, num_steps=3, step_size=0.05)
    ),
}
