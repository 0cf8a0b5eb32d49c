"""The attack on defenses that make a candidate per class and choose one by a score.

Of an image the defense makes x_c for every class c, scores q_c and answers with the
logits z(x_c) of the best. Somebody who knows that makes a wrong class win twice: its
candidate must be chosen, and must be classified as it. Such a defense hands over its
candidates in place of logits, as one array per image (`pack_candidates`).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from robustjax import _checks, _random
from robustjax._checks import InputError
from robustjax.attacks import _outcome
from robustjax.attacks._outcome import Candidate
from robustjax.attacks._targets import count_targets, ranked_class
from robustjax.attacks.gradient import Start, pgd, uniform_start
from robustjax.types import Array, Attack, Key, LogitsFn, Threat


class Candidates(NamedTuple):
    """What a defense chooses from.

    Attributes:
      scores: q, [B, K]: the largest is chosen.
      logits: [B, K, K]: those of the candidate of each class.
    """

    scores: Array
    logits: Array


def pack_candidates(candidates: Candidates) -> Array:
    """All of it in one array, [B, K + K^2].

    Example:
      >>> found = Candidates(jnp.zeros((2, 3)), jnp.ones((2, 3, 3)))
      >>> pack_candidates(found).shape
      (2, 12)
    """
    scores, logits = candidates
    count = scores.shape[1]
    if logits.shape != (scores.shape[0], count, count):
        raise InputError(
            f"`logits` must be [B, K, K] for scores {scores.shape}, got shape "
            f"{logits.shape}: a candidate for every class."
        )
    return jnp.concatenate([scores, logits.reshape(-1, count * count)], axis=1)


def unpack_candidates(packed: Array) -> Candidates:
    """The reverse of `pack_candidates`.

    Raises:
      InputError: `packed` is no [B, K + K^2].

    Example:
      >>> unpack_candidates(jnp.zeros((2, 12))).logits.shape
      (2, 3, 3)
    """
    width = packed.shape[-1] if packed.ndim else 0
    count = (math.isqrt(1 + 4 * width) - 1) // 2
    if packed.ndim != 2 or count * (count + 1) != width or not count:
        raise InputError(
            "`logits_fn` must return the candidates of a defense, [B, K + K^2] as of "
            f'`pack_candidates` (a view with answer="candidates"), got {packed.shape}.'
        )
    return Candidates(packed[:, :count], packed[:, count:].reshape(-1, count, count))


def selector(
    threat: Threat,
    *,
    step_size: float | Array,
    num_steps: int,
    weight: float | Array = 10.0,
    num_targets: int | None = None,
    random_start: Start | None = uniform_start,
    at_once: int | None = None,
) -> Attack:
    """PGD on the choice of a candidate, towards every wrong class.

    For each wrong class t it climbs

        weight * (q_t - q_y) + z_t(x_t) - z_y(x_t)

    and keeps, per image, the best iterate of the first class that fools the defense.
    `logits_fn` returns packed candidates, of scores scaled to order 1.

    Args:
      threat: Ball and box.
      step_size: As in `pgd`.
      num_steps: For each class.
      weight: Of the choice; a large one matters where choices are stable.
      num_targets: The likeliest wrong classes only; None for all.
      random_start: As in `pgd`, drawn anew for every class.
      at_once: Classes side by side; None for all.

    Raises:
      InputError: an argument is out of range, or no candidates are returned.

    Example:
      >>> from robustjax import threats
      >>> def candidates(x):  # three classes; each is scored by a pixel of its own
      ...     own = jnp.broadcast_to(9.0 * jnp.eye(3), (len(x), 3, 3))
      ...     return pack_candidates(Candidates(x, own))
      >>> attack = selector(threats.linf(0.25), step_size=0.25, num_steps=2)
      >>> x, y = jnp.array([[0.5, 0.25, 0.0]]), jnp.array([0])
      >>> x_adv = attack(jax.random.key(0), candidates, x, y)
      >>> int(x_adv.argmax())
      1
    """
    _checks.non_negative(weight=weight)
    if num_targets is not None:
        _checks.positive_int(num_targets=num_targets)
    if at_once is not None:
        _checks.positive_int(at_once=at_once)
    attack = pgd(
        threat,
        step_size=step_size,
        num_steps=num_steps,
        objective=_shift,
        random_start=random_start,
        iterate="best",
    )

    def run(key: Key, logits_fn: LogitsFn, x: Array, y: Array) -> Array:
        def answer(z: Array) -> Array:
            return chosen(unpack_candidates(logits_fn(z)))

        _outcome.check_call(answer, x, y)
        keys = _random.per_image_keys(key, x.shape[0])
        clean = answer(x)

        def towards(rank: Array) -> Candidate:
            target = ranked_class(clean, y, rank)

            def shifted(z: Array) -> Array:
                found = unpack_candidates(logits_fn(z))
                logits = chosen(found)
                amount = _lead(found, y, target, weight)
                return logits - logits.mean(axis=1, keepdims=True) + amount[:, None]

            x_adv = attack(_random.fold_in(keys, rank), shifted, x, y)
            return Candidate(x_adv, *_outcome.climbed(_shift, shifted, y)(x_adv))

        count = clean.shape[1] - 1
        count = count if num_targets is None else count_targets(num_targets, count + 1)
        ranks = jnp.arange(2, 2 + count)
        found = jax.lax.map(towards, ranks, batch_size=min(at_once or count, count))
        # Broken first, then the likelier class.
        first = found.broken.argmax(axis=0)
        return jax.lax.stop_gradient(
            jax.vmap(lambda points, i: points[i], (1, 0))(found.x_adv, first)
        )

    return run


def chosen(candidates: Candidates) -> Array:
    """The logits of the candidate with the best score, [B, K].

    Example:
      >>> scores, logits = jnp.array([[0.0, 1.0]]), jnp.array([[[1.0, 2], [3, 4]]])
      >>> chosen(Candidates(scores, logits)).tolist()
      [[3.0, 4.0]]
    """
    best = candidates.scores.argmax(axis=1)
    return jnp.take_along_axis(candidates.logits, best[:, None, None], axis=1)[:, 0]


def _shift(logits: Array, y: Array) -> Array:
    del y
    return logits.mean(axis=1)


def _lead(found: Candidates, y: Array, target: Array, weight: float | Array) -> Array:
    """How far the target is ahead of the label, [B]."""
    at = lambda rows, label: jnp.take_along_axis(rows, label[:, None], axis=1)[:, 0]
    own = jnp.take_along_axis(found.logits, target[:, None, None], axis=1)[:, 0]
    ahead = at(found.scores, target) - at(found.scores, y)
    return weight * ahead + at(own, target) - at(own, y)
