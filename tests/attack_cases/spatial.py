"""Attacks that move pixels: no radius of a threat bounds them."""

from attack_cases import AttackCase
from robustjax.attacks.rotation_translation import rotation_translation
from robustjax.attacks.stadv import stadv
from robustjax.attacks.wasserstein import wasserstein_pgd

_ANY = {"threats": ("linf",), "bounded": False}

CASES = {
    "stadv": AttackCase(lambda _: stadv(num_steps=5, step_size=0.2), **_ANY),
    "rotation-translation": AttackCase(
        lambda _: rotation_translation(max_shift=1.0, num_angles=3, num_shifts=2),
        **_ANY,
        representative=True,
    ),
    "wasserstein-pgd": AttackCase(
        lambda t: wasserstein_pgd(
            eps=t.eps, num_steps=3, step_size=0.1, kernel_size=3, search_steps=10
        ),
        **_ANY,
    ),
    "wasserstein-pgd-unclipped": AttackCase(
        lambda t: wasserstein_pgd(
            eps=t.eps,
            num_steps=2,
            step_size=0.2,
            kernel_size=4,
            search_steps=10,
            clip=False,
        ),
        **_ANY,
        boxed=False,
    ),
}
