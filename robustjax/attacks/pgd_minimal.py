"""PGD of the smallest radius that succeeds, by bisection.

What attack libraries of the first years did by default, and what flatters a defense
that nudges images: the points lie on the boundary, where nearly any nudge takes them
back. An attack with the full budget belongs beside it.
"""

import jax
import jax.numpy as jnp

from robustjax import _checks, _random
from robustjax.attacks import _outcome
from robustjax.attacks.gradient import pgd
from robustjax.objectives import cross_entropy
from robustjax.types import Array, Attack, Key, LogitsFn, Objective, Threat


def pgd_minimal(
    threat: Threat,
    *,
    num_steps: int = 20,
    search_steps: int = 16,
    objective: Objective = cross_entropy,
) -> Attack:
    """Per image, PGD from x at the smallest radius that bisection finds.

    At each radius r the attack takes `num_steps` steps of 2.5 r / num_steps. Success
    need not grow with the radius, so the smallest one found is an upper bound.

    Args:
      threat: Norm and box; `eps` is the largest radius, tried first.
      num_steps: Of each attack.
      search_steps: Halvings of [0, eps] after that. After few of them the point is as
        far behind the boundary as eps / 2**search_steps, out of reach of small nudges.
      objective: What is climbed.

    Returns:
      An attack; images that `eps` does not break are returned as they are.

    Raises:
      InputError: an argument is out of range.

    Example:
      >>> from robustjax import threats
      >>> attack = pgd_minimal(threats.linf(0.5), num_steps=4, search_steps=6)
      >>> x, y = jnp.array([[0.625, 0.375]]), jnp.array([0])
      >>> x_adv = attack(jax.random.key(0), lambda z: z, x, y)
      >>> 0.125 < float(jnp.abs(x_adv - x).max()) < 0.14
      True
    """
    _checks.positive_int(num_steps=num_steps, search_steps=search_steps)
    _checks.finite(eps=threat.eps)

    def run(key: Key, logits_fn: LogitsFn, x: Array, y: Array) -> Array:
        _outcome.check_call(logits_fn, x, y)
        keys = _random.per_image_keys(key, x.shape[0])
        evaluate = _outcome.scored(objective, logits_fn, y)

        def one(key: Key, x: Array, y: Array, eps: Array) -> Array:
            attack = pgd(
                threat.with_eps(eps),
                step_size=2.5 * eps / num_steps,
                num_steps=num_steps,
                objective=objective,
                random_start=None,
                iterate="best",
            )
            return attack(key[None], logits_fn, x[None], y[None])[0]

        def at(radius: Array, found: _outcome.Closest):
            x_adv = jax.vmap(one)(jax.random.clone(keys), x, y, radius)
            is_broken = evaluate(x_adv)[1]
            distance = threat.norm(x_adv - x)
            return is_broken, _outcome.keep_closer(found, x_adv, distance, is_broken)

        largest = jnp.full(x.shape[:1], threat.eps, x.dtype)
        is_broken, found = at(largest, _outcome.nothing_found(x))
        # Where eps breaks nothing the search stays there.
        low = jnp.where(is_broken, 0, largest)

        def halve(state, _):
            low, high, found = state
            middle = (low + high) / 2
            is_broken, found = at(middle, found)
            return (
                jnp.where(is_broken, low, middle),
                jnp.where(is_broken, middle, high),
                found,
            ), None

        state = (low, largest, found)
        (_, _, found), _ = jax.lax.scan(halve, state, length=search_steps)
        return jax.lax.stop_gradient(_outcome.within(threat, found, x))

    return run
