"""One perturbation for all images."""

import jax.numpy as jnp

from attack_cases import AttackCase
from robustjax.attacks.universal import apply_perturbation, universal

CASES = {
    "universal": AttackCase(
        lambda t: universal(t, num_steps=3, step_size=t.eps / 2),
        independent=False,
        breaks=False,
        representative=True,
    ),
}


def _constant(threat):
    """Adds the same to all pixels, whatever the number of channels."""

    def attack(key, logits_fn, x, y):
        delta = jnp.full(x.shape[1:], 0.05, x.dtype)
        return apply_perturbation(threat, delta)(key, logits_fn, x, y)

    return attack


CASES["apply-perturbation"] = AttackCase(_constant, iterated=False, breaks=False)
