"""Attacks on score-based gradient estimates."""

from attack_cases import AttackCase
from robustjax.attacks.spsa import nes, spsa

CASES = {
    "spsa": AttackCase(
        lambda t: spsa(t, num_steps=2, num_samples=6, chunk_size=2),
        representative=False,
    ),
    "nes": AttackCase(lambda t: nes(t, num_steps=2, num_samples=6, momentum=0.5)),
}
