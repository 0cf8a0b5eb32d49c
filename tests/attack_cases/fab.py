"""FAB in its three forms."""

from attack_cases import AttackCase
from robustjax.attacks.fab import fab, fab_target, fab_targeted

CASES = {
    "fab": AttackCase(
        lambda t: fab(t, num_steps=3, num_restarts=2), representative=True
    ),
    "fab-targeted": AttackCase(
        lambda t: fab_targeted(t, num_targets=2, num_steps=2, num_restarts=2)
    ),
    "fab-target": AttackCase(lambda t: fab_target(t, rank=3, num_steps=4)),
}
