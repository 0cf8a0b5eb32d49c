"""Attacks from what another one found, and one that leaves the clean logits."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from robustjax import _checks, _random, pairing
from robustjax.attacks import _outcome
from robustjax.attacks.adaptive import Static
from robustjax.attacks.gradient import Start, pgd, uniform_start
from robustjax.types import Array, Attack, Key, LogitsFn, Threat, as_pytree

Jitter = Callable[[Key, Array, Array], Array]


def warm_start(
    start: Attack,
    attack_from: Callable[[Start], Attack],
    *,
    jitter: Jitter | None = None,
) -> Attack:
    """An attack that starts at another one's result.

    Args:
      start: On the same model, or from another (`transfer`), or without any (`grey`).
      attack_from: A start, `(key, x) -> x'`, to an attack: `lambda s: pgd(threat, ...,
        random_start=s)`.
      jitter: `(key, x', x) -> x''` such as `around(threat)`: what makes restarts from
        one place differ. None starts exactly there.

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
    return Partial(Static(_warm, (attack_from, jitter)), as_pytree(start))


def _warm(attack_from, jitter, start, key, logits_fn, x: Array, y: Array) -> Array:
    keys = _random.per_image_keys(key, x.shape[0])
    first, then = (_random.fold_in(keys, number) for number in (0, 1))
    begun = jax.lax.stop_gradient(start(first, logits_fn, x, y)).astype(x.dtype)

    def begin(key: Key, x: Array) -> Array:
        return begun if jitter is None else jitter(key, begun, x).astype(x.dtype)

    return attack_from(begin)(then, logits_fn, x, y)


def around(threat: Threat, share: float = 0.1) -> Jitter:
    """A jitter of `warm_start`: noise of a share of the radius around a point.

    Args:
      threat: Ball and box around x, neither of which is left.
      share: Of the threat's radius, in [0, 1].

    Raises:
      InputError: `share` is out of range.

    Example:
      >>> from robustjax import threats
      >>> x, edge = jnp.full((1, 2), 0.5), jnp.full((1, 2), 0.75)
      >>> moved = around(threats.linf(0.25), 0.5)(jax.random.key(0), edge, x)
      >>> bool((moved >= 0.625).all() and (moved <= 0.75).all())
      True
    """
    _checks.fraction(share=share)

    def jitter(key: Key, begun: Array, x: Array) -> Array:
        near = threat.with_eps(share * threat.eps)
        return threat.project(near.sample(key, begun), x)

    return jitter


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
