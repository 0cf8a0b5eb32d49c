"""Attacks made of attacks."""

import jax
import jax.numpy as jnp

from robustjax import _checks, _random
from robustjax.attacks import _outcome
from robustjax.attacks._outcome import Candidate
from robustjax.objectives import cross_entropy
from robustjax.types import Array, Attack, Key, LogitsFn, Objective


def restarts(
    attack: Attack, num_restarts: int, *, objective: Objective = cross_entropy
) -> Attack:
    """Runs an attack from several starts at once and keeps the worst per image.

    The restarts run under `vmap`, so memory grows with their number. Worst means
    misclassified first, then the largest objective.

    Args:
      attack: Any attack with a random start.
      num_restarts: How many.
      objective: Decides between restarts that agree on misclassification.

    Raises:
      InputError: `num_restarts` is not a positive integer.

    Example:
      >>> from robustjax import attacks, threats
      >>> once = attacks.pgd(threats.linf(0.1), step_size=0.05, num_steps=2)
      >>> x, y = jnp.full((1, 2), 0.5), jnp.array([0])
      >>> restarts(once, 3)(jax.random.key(0), lambda z: z, x, y).shape
      (1, 2)
    """
    _checks.positive_int(num_restarts=num_restarts)

    def run(key: Key, logits_fn: LogitsFn, x: Array, y: Array) -> Array:
        keys = _random.per_image_keys(key, x.shape[0])

        def one(index: Array) -> Candidate:
            x_adv = attack(_random.fold_in(keys, index), logits_fn, x, y)
            logits = logits_fn(x_adv)
            return Candidate(x_adv, objective(logits, y), _outcome.broken(logits, y))

        found = jax.vmap(one)(jnp.arange(num_restarts))
        # Broken first, then the value: `value` is finite wherever it can decide.
        rank = jnp.where(found.broken, 1, 0), found.value
        order = jnp.lexsort((rank[1], rank[0]), axis=0)[-1]
        return jax.vmap(lambda points, i: points[i], (1, 0))(found.x_adv, order)

    return run
