"""Images pulled to the features of others."""

import jax
import jax.numpy as jnp

from attack_cases import AttackCase
from robustjax.attacks.feature_collision import feature_collision


def _collision(threat):
    """Guides with as many channels as the images."""

    def attack(key, logits_fn, x, y):
        images = jax.random.uniform(jax.random.key(9), (5, *x.shape[1:]))
        attack = feature_collision(
            threat,
            lambda z: jnp.tanh(z[:, ::2]),
            images,
            jnp.array([0, 1, 2, 3, 0]),
            num_targets=2,
            num_steps=2,
            step_size=threat.eps / 2 + 1e-9,
            random_start=threat.sample,
        )
        return attack(key, logits_fn, x, y)

    return attack


CASES = {
    "feature-collision": AttackCase(_collision, iterated=False, representative=False)
}
