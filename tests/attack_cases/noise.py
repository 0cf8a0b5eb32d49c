"""Attacks that ask no model."""

from attack_cases import AttackCase
from robustjax.attacks import noise

_ANY = {"iterated": False, "breaks": False}

CASES = {
    "uniform-noise": AttackCase(noise.uniform_noise, **_ANY),
    "sign-noise": AttackCase(noise.sign_noise, **_ANY, representative=False),
    "gaussian-noise": AttackCase(lambda t: noise.gaussian_noise(t, scale=0.2), **_ANY),
    "grey": AttackCase(noise.grey, **_ANY),
}
