"""Attacks made of attacks."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from robustjax import _checks, _random
from robustjax._interned import interned
from robustjax.attacks import _outcome
from robustjax.attacks._outcome import Candidate
from robustjax.attacks._targets import ranked_class
from robustjax.attacks.adaptive import Static
from robustjax.objectives import cross_entropy
from robustjax.types import Array, Attack, Key, LogitsFn, Objective, as_pytree


@interned
def restarts(
    attack: Attack,
    num_restarts: int,
    *,
    objective: Objective = cross_entropy,
    at_once: int | None = None,
) -> Attack:
    """Runs an attack from several starts and keeps the worst per image.

    Worst means misclassified first, then the largest objective.

    Args:
      attack: Any attack with a random start.
      num_restarts: How many.
      objective: Decides between restarts that agree on misclassification.
      at_once: How many run side by side under `vmap`; memory grows with it, not with
        `num_restarts`, of which it must be a divisor. None is all of them.

    Raises:
      InputError: `num_restarts` is not a positive integer, or not a multiple of
        `at_once`.

    Example:
      >>> from robustjax import attacks, threats
      >>> once = attacks.pgd(threats.linf(0.1), step_size=0.05, num_steps=2)
      >>> x, y = jnp.full((1, 2), 0.5), jnp.array([0])
      >>> restarts(once, 4, at_once=2)(jax.random.key(0), lambda z: z, x, y).shape
      (1, 2)
    """
    _checks.positive_int(num_restarts=num_restarts)
    at_once = num_restarts if at_once is None else at_once
    _checks.positive_int(at_once=at_once)
    if num_restarts % at_once:
        raise _checks.InputError(
            f"`at_once` must divide `num_restarts`, got {at_once} and {num_restarts}."
        )

    static = Static(_restarted, (num_restarts, at_once, objective))
    return Partial(static, as_pytree(attack))


def _restarted(num_restarts, at_once, objective, attack, key, logits_fn, x, y) -> Array:
    _outcome.check_call(logits_fn, x, y)
    keys = _random.per_image_keys(key, x.shape[0])
    evaluate = _outcome.climbed(objective, logits_fn, y)

    def one(index: Array) -> Candidate:
        x_adv = attack(_random.fold_in(keys, index), logits_fn, x, y)
        return Candidate(x_adv, *evaluate(x_adv))

    def some(indices: Array) -> Candidate:
        found = jax.vmap(one)(indices)
        # Broken first, then the value, then the earlier restart.
        earlier = jnp.broadcast_to(-indices[:, None], found.broken.shape)
        order = jnp.lexsort((earlier, found.value, found.broken), axis=0)[-1]
        best = lambda points: jax.vmap(lambda p, i: p[i], (1, 0))(points, order)
        return jax.tree.map(best, found)

    indices = jnp.arange(num_restarts).reshape(-1, at_once)
    worst, _ = jax.lax.scan(
        lambda worst, block: (_outcome.keep_worse(worst, some(block)), None),
        some(indices[0]),
        indices[1:],
    )
    return jax.lax.stop_gradient(worst.x_adv)


def worst_case(attacks: Sequence[Attack]) -> Attack:
    """Runs attacks one after the other; per image the first success is kept.

    An image that no attack breaks keeps the result of the last one. Once every image of
    the batch is broken, the attacks that are left do not run.

    Args:
      attacks: At least one; strong and cheap ones first.

    Raises:
      InputError: `attacks` is empty.

    Example:
      >>> from robustjax import attacks, threats
      >>> weak, strong = (attacks.fgsm(threats.linf(e)) for e in (0.0625, 0.25))
      >>> x, y = jnp.array([[0.625, 0.375]]), jnp.array([0])
      >>> worst_case([weak, strong])(jax.random.key(0), lambda z: z, x, y).tolist()
      [[0.375, 0.625]]
    """
    if not attacks:
        raise _checks.InputError("`attacks` must hold at least one attack, got none.")

    return Partial(Static(_worst, ()), tuple(map(as_pytree, attacks)))


def _worst(attacks, key: Key, logits_fn: LogitsFn, x: Array, y: Array) -> Array:
    _outcome.check_call(logits_fn, x, y)
    keys = _random.per_image_keys(key, x.shape[0])
    is_broken, x_adv = _outcome.broken(logits_fn(x), y), x
    for number, attack in enumerate(attacks):
        attacked = unless_all(
            is_broken,
            lambda keys, attack=attack: attack(keys, logits_fn, x, y),
            _random.fold_in(keys, number),
            otherwise=x_adv,
        )
        x_adv = _outcome.where(is_broken, x_adv, attacked)
        is_broken |= _outcome.broken(logits_fn(x_adv), y)
    return jax.lax.stop_gradient(x_adv)


def strongest(
    attacks: Sequence[Attack], *, objective: Objective = cross_entropy
) -> Attack:
    """Runs all attacks and keeps the most adversarial result per image.

    Misclassified first, then the largest objective: where `worst_case` is after one
    success, this looks for the best point to go on from, see `warm_start`.

    Args:
      attacks: At least one.
      objective: Decides between attacks that agree on misclassification.

    Raises:
      InputError: `attacks` is empty.

    Example:
      >>> from robustjax import attacks, threats
      >>> strong, weak = (attacks.fgsm(threats.linf(e)) for e in (0.25, 0.0625))
      >>> x, y = jnp.array([[0.75, 0.0]]), jnp.array([0])
      >>> strongest([strong, weak])(jax.random.key(0), lambda z: z, x, y).tolist()
      [[0.5, 0.25]]
    """
    if not attacks:
        raise _checks.InputError("`attacks` must hold at least one attack, got none.")
    return Partial(Static(_strongest, (objective,)), tuple(map(as_pytree, attacks)))


def _strongest(objective, attacks, key, logits_fn, x: Array, y: Array) -> Array:
    _outcome.check_call(logits_fn, x, y)
    keys = _random.per_image_keys(key, x.shape[0])
    evaluate = _outcome.climbed(objective, logits_fn, y)
    found = None
    for number, attack in enumerate(attacks):
        x_adv = attack(_random.fold_in(keys, number), logits_fn, x, y)
        new = Candidate(x_adv.astype(x.dtype), *evaluate(x_adv))
        found = new if found is None else _outcome.keep_worse(found, new)
    assert found is not None
    return jax.lax.stop_gradient(found.x_adv)


def each_target(
    attack_towards: Callable[[Array], Attack],
    num_targets: int | None,
    *,
    at_once: int = 1,
) -> Attack:
    """Runs a targeted attack towards the likeliest wrong classes, one after the other.

    The targets are the 2nd, 3rd, ... most likely class of the clean image. Any
    misclassification counts, and the first is kept; once all images of the batch are
    broken, the targets that are left cost nothing.

    Args:
      attack_towards: Targets [B] to an attack, e.g.
        `lambda t: pgd(threat, ..., objective=targeted(margin, t))`; traced once.
      num_targets: How many; capped at the number of classes less one, which None is.
      at_once: Targets in one vmapped run: more memory, and on accelerators less time.

    Raises:
      InputError: `num_targets` or `at_once` is not a positive integer.

    Example:
      >>> from robustjax import attacks, objectives, threats
      >>> towards = lambda t: attacks.pgd(
      ...     threats.linf(0.2), step_size=0.1, num_steps=3,
      ...     objective=objectives.targeted(objectives.margin, t))
      >>> x, y = jnp.array([[0.5, 0.4, 0.0]]), jnp.array([0])
      >>> x_adv = each_target(towards, 2)(jax.random.key(0), lambda z: z, x, y)
      >>> int(x_adv.argmax())
      1
    """
    _checks.positive_int(at_once=at_once)
    if num_targets is not None:
        _checks.positive_int(num_targets=num_targets)

    def run(key: Key, logits_fn: LogitsFn, x: Array, y: Array) -> Array:
        _outcome.check_call(logits_fn, x, y)
        keys, y = _random.per_image_keys(key, x.shape[0]), _outcome.label_of(y)
        clean = logits_fn(x)
        others = clean.shape[-1] - 1
        count = others if num_targets is None else min(num_targets, others)
        width = max(1, min(at_once, count))

        def towards(rank: Array, keys: Key) -> Array:
            attack = attack_towards(ranked_class(clean, y, rank))
            return attack(_random.fold_in(keys, rank), logits_fn, x, y)

        def judged(rank: Array, keys: Key) -> tuple[Array, Array]:
            x_adv = towards(rank, keys)
            return x_adv, _outcome.broken(logits_fn(x_adv), y)

        def several(ranks: Array, keys: Key) -> Array:
            found, is_broken = jax.vmap(judged, (0, None))(ranks, keys)
            first = jnp.where(is_broken.any(axis=0), is_broken.argmax(axis=0), -1)
            return jax.vmap(lambda points, i: points[i], (1, 0))(found, first)

        def chunk(carry, ranks):
            x_adv, is_broken = carry
            one = functools.partial(towards, ranks[0])
            attacked = one if width == 1 else functools.partial(several, ranks)
            found = unless_all(is_broken, attacked, keys, otherwise=x_adv)
            x_adv = _outcome.where(is_broken, x_adv, found)
            return (x_adv, is_broken | _outcome.broken(logits_fn(x_adv), y)), None

        # The last rank again, with the same draws, fills up the last chunk.
        ranks = jnp.arange(2, 2 + -(-count // width) * width)
        ranks = jnp.minimum(ranks, count + 1).reshape(-1, width)
        (x_adv, _), _ = jax.lax.scan(chunk, (x, _outcome.broken(clean, y)), ranks)
        return jax.lax.stop_gradient(x_adv)

    return run


def masked(attack: Attack, *, chunk_size: int | None = None) -> Attack:
    """Spares images that are misclassified already; they are returned as they are.

    Shapes are fixed under `jit`, so work is saved in whole chunks: the images still to
    be attacked are moved to the front, and chunks that hold none are skipped.

    Args:
      attack: Any attack.
      chunk_size: Images attacked at a time, a divisor of the batch size; None is the
        whole batch, which is then skipped only if all of it is misclassified.

    Raises:
      InputError: at the call, if `chunk_size` does not divide the batch.

    Example:
      >>> from robustjax import attacks, threats
      >>> attack = masked(attacks.fgsm(threats.linf(0.25)), chunk_size=1)
      >>> x, y = jnp.array([[0.5, 0.25], [0.5, 0.25]]), jnp.array([0, 1])
      >>> attack(jax.random.key(0), lambda z: z, x, y).tolist()
      [[0.25, 0.5], [0.5, 0.25]]
    """
    if chunk_size is not None:
        _checks.positive_int(chunk_size=chunk_size)

    def run(key: Key, logits_fn: LogitsFn, x: Array, y: Array) -> Array:
        _outcome.check_call(logits_fn, x, y)
        size = x.shape[0] if chunk_size is None else chunk_size
        if x.shape[0] % size:
            raise _checks.InputError(
                f"`chunk_size` must divide the batch of {x.shape[0]}, got {size}."
            )
        is_broken = _outcome.broken(logits_fn(x), y)
        order = jnp.argsort(is_broken, stable=True)
        rows = (_random.per_image_keys(key, x.shape[0]), x, y, is_broken)
        chunks = jax.tree.map(lambda a: a[order].reshape(-1, size, *a.shape[1:]), rows)

        def one(chunk):
            keys, x, y, is_broken = chunk
            attacked = unless_all(
                is_broken, lambda k: attack(k, logits_fn, x, y), keys, otherwise=x
            )
            return _outcome.where(is_broken, x, attacked)

        x_adv = jax.lax.map(one, chunks).reshape(x.shape)
        return jax.lax.stop_gradient(x_adv[jnp.argsort(order)])

    return run


def unless_all(
    is_broken: Array, attacked: Callable[[Key], Array], keys: Key, *, otherwise: Array
) -> Array:
    """`attacked(keys)`, or `otherwise` without running it if all images are broken."""
    # Raw, since `vmap` makes of `cond` a select, which counts as a use of a key.
    data, impl = jax.random.key_data(keys), jax.random.key_impl(keys)

    def run(data: Array) -> Array:
        keys = jax.random.wrap_key_data(data, impl=impl)
        return attacked(keys).astype(otherwise.dtype)

    return jax.lax.cond(is_broken.all(), lambda _: otherwise, run, data)
