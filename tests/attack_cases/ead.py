"""EAD in its shortest form."""

from attack_cases import AttackCase
from robustjax.attacks.ead import ead

CASES = {
    "ead": AttackCase(
        lambda t: ead(
            t, num_steps=4, search_steps=2, initial_constant=10.0, step_size=0.05
        ),
        threats=("l2", "l1"),
        representative=False,
    ),
}
