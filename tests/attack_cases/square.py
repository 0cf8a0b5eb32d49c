"""The Square attack."""

from attack_cases import AttackCase
from robustjax.attacks.square import square

CASES = {
    "square": AttackCase(lambda t: square(t, num_queries=4), representative=True),
}
