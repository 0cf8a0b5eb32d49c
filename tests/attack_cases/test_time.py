"""Attacks that belong to defenses at test time."""

import jax
import jax.numpy as jnp

from attack_cases import AttackCase
from robustjax.attacks import pgd_minimal, selector, towards_other
from robustjax.attacks.selector import Candidates, pack_candidates


def _selector(threat):
    """On a defense whose candidates are scored by the logits of the image."""

    def attack(key, logits_fn, x, y):
        def candidates(z):
            logits = logits_fn(z)
            if logits.ndim != 2:
                return logits
            shape = (*logits.shape, logits.shape[1])
            return pack_candidates(
                Candidates(logits, jnp.broadcast_to(logits[:, None], shape))
            )

        own = selector(threat, step_size=threat.eps / 2 + 1e-9, num_steps=2)
        return own(key, candidates, x, y)

    return attack


def _other(threat):
    def attack(key, logits_fn, x, y):
        images = jax.random.uniform(jax.random.key(9), (8, *x.shape[1:]))
        return towards_other(images, jnp.arange(8) % 4)(key, logits_fn, x, y)

    return attack


CASES = {
    "selector": AttackCase(_selector, iterated=False, breaks=False),
    "pgd-minimal": AttackCase(
        lambda t: pgd_minimal(t, num_steps=2, search_steps=2),
        iterated=False,
        moves=False,
    ),
    "towards-other": AttackCase(
        _other, bounded=False, iterated=False, maps_over_eps=False
    ),
}
