"""FMN in its shortest form."""

from attack_cases import AttackCase
from robustjax.attacks.fmn import fmn

CASES = {"fmn": AttackCase(lambda t: fmn(t, num_steps=5), representative=False)}
