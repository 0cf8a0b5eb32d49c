"""DDN in its shortest form."""

from attack_cases import AttackCase
from robustjax.attacks.ddn import ddn

CASES = {
    "ddn": AttackCase(
        lambda t: ddn(t, num_steps=4, initial_radius=0.4),
        threats=("l2",),
        representative=False,
    ),
}
