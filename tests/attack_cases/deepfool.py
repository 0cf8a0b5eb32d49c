"""DeepFool."""

from attack_cases import AttackCase
from robustjax.attacks.deepfool import deepfool

CASES = {
    "deepfool": AttackCase(
        lambda t: deepfool(t, num_steps=4, num_candidates=3),
        threats=("linf", "l2"),
        representative=False,
    ),
}
