"""Attacks on single pixels; they have no radius."""

from attack_cases import AttackCase
from robustjax.attacks.pixel import pixel, single_pixel

CASES = {
    "pixel": AttackCase(
        lambda t: pixel(num_steps=2, population=8, num_pixels=2, chunk_size=4),
        bounded=False,
        maps_over_eps=False,
        representative=False,
    ),
    "single-pixel": AttackCase(
        lambda t: single_pixel(num_steps=5), bounded=False, maps_over_eps=False
    ),
}
