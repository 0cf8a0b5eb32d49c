"""Attacks from what another one found, and one that leaves the clean logits."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from robustjax import _random, pairing
from robustjax.attacks import _outcome
from robustjax.attacks.gradient import Start, pgd, uniform_start
from robustjax.types import Array, Attack, Key, LogitsFn, Threat


def warm_start(start: Attack, attack_from: Callable[[Start], Attack]) -> Attack:
    """An attack that starts at another one's result.

    Args:
      start: On the same model, or from another (`transfer`), or without any (`grey`).
      attack_from: A start, `(key, x) -> x'`, to an attack: `lambda s: pgd(threat, ...,
        random_start=s)`.

    Example:
      >>> from robustjax import attacks, threats
      >>> linf = threats.linf(0.25)
      >>> step = lambda s: attacks.pgd(
      ...     linf, step_size=0.125, num_steps=1, random_start=s)
      >>> attack = warm_start(attacks.grey(linf), step)
      >>> x, y = jnp.array([[0.75, 0.5]]), jnp.array([0])
      >>> attack(jax.random.key(0), lambda z: z, x, y).tolist()
      [[0.5, 0.625]]
    """

    def run(key: Key, logits_fn: LogitsFn, x: Array, y: Array) -> Array:
        first, then = (_random.fold_in(key, number) for number in (0, 1))
        begun = jax.lax.stop_gradient(start(first, logits_fn, x, y)).astype(x.dtype)
        return attack_from(lambda key, x: begun)(then, logits_fn, x, y)

    return run


def drift(
    threat: Threat,
    *,
    step_size: float | Array,
    num_steps: int,
    random_start: Start | None = uniform_start,
) -> Attack:
    """PGD away from the clean logits, ||z(x') - z(x)||^2, whatever the label.

    Where the cross-entropy is flat, it leaves the place: see `warm_start`.

    Args:
      threat: As in `pgd`.
      step_size: As in `pgd`.
      num_steps: As in `pgd`.
      random_start: As in `pgd`; at x itself the gradient is 0.

    Raises:
      InputError: an argument is out of range.

    Example:
      >>> from robustjax import threats
      >>> attack = drift(threats.linf(0.25), step_size=0.25, num_steps=2)
      >>> x, y = jnp.full((1, 2), 0.5), jnp.array([0])
      >>> abs(attack(jax.random.key(0), lambda z: 3 * z, x, y) - 0.5).tolist()
      [[0.25, 0.25]]
    """

    def from_clean(clean: Array) -> Attack:
        return pgd(
            threat,
            step_size=step_size,
            num_steps=num_steps,
            objective=lambda z, y: pairing.logit_distance(clean, z, kind="sq"),
            random_start=random_start,
        )

    from_clean(jnp.zeros(()))  # checks the arguments

    def run(key: Key, logits_fn: LogitsFn, x: Array, y: Array) -> Array:
        _outcome.check_call(logits_fn, x, y)
        return from_clean(logits_fn(x))(key, logits_fn, x, y)

    return run
