"""What a classifier makes of points: one answer, or those of many draws.

A random defense draws anew at each call. What counts is then the expected accuracy on
the points that the adversary hands in, and expectation is over draws that it has not
seen. The draws are cut in three: by one part an attack picks among its own runs, by one
the adversary picks among attacks, and the last one judges. A minimum over noisy shares
that are picked by or reported as they are would be lower than what any point deserves.
One choice is made on the judging draws: whether one attack for all images does better
than each image's own. That lowers a coin's 70% by half a point at 200 images.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax.attacks import broken
from robustjax.attacks.adaptive import num_averaged
from robustjax.types import Array, LogitsFn


class Verdict(NamedTuple):
    """Of B points.

    Attributes:
      correct: Whether the classifier is right, [B] bool; of a random one the share of
        the judging draws that are, [B] float32.
      seen: The same on the draws by which the adversary picks among attacks.
      own: The same on those by which an attack picks among its runs.
    """

    correct: Array
    seen: Array
    own: Array


def judged(judges: tuple[LogitsFn, ...], x: Array, y: Array) -> Verdict:
    """The worst of the judges' verdicts, each [B, K] or, with draws, [S, B, K]."""
    return functools.reduce(_worse, (_judged(judge(x), y) for judge in judges))


def _judged(logits: Array, y: Array) -> Verdict:
    if logits.ndim != 3 or len(logits) == 1:
        right = ~broken(logits, y)
        return Verdict(right, right, right)
    right = jax.vmap(lambda draw: ~broken(draw, y))(logits)
    third = max(len(right) // 3, 1)
    own, rest = right[:third], right[third:]
    seen, correct = (rest[:third], rest[third:]) if len(rest) > 1 else (own, rest)
    return Verdict(*(part.mean(axis=0) for part in (correct, seen, own)))


def _worse(one: Verdict, other: Verdict) -> Verdict:
    take = other.own < one.own
    return Verdict(*(jnp.where(take, o, v) for v, o in zip(one, other, strict=True)))


def num_draws(logits_fn: LogitsFn, x: Array) -> int:
    """S of a random classifier, whose logits are [S, B, K]; else 1."""
    shape = jax.eval_shape(logits_fn, x).shape
    return shape[0] if len(shape) == 3 else 1


def num_climbed(logits_fn: LogitsFn, x: Array) -> int:
    """How many draws an attack on a classifier climbs at once, averages included."""
    return max(num_draws(logits_fn, x), num_averaged(logits_fn))


def worst_so_far(correct: np.ndarray, seen: np.ndarray, draws: int = 1) -> np.ndarray:
    """What is left of `correct` [A, N] under the first a + 1 attacks, for every a.

    The adversary takes each image's worst attack by `seen`, of equals the one that is
    stronger on all images, as if one more draw had gone as on average; or one attack
    for all images, where picking by few draws does worse.

    Args:
      correct: Shares of the judging draws.
      seen: Those of the draws to pick by.
      draws: Of all.

    Example:
      >>> correct = np.array([[True, True], [False, True], [True, False]])
      >>> worst_so_far(correct, correct).tolist()
      [[True, True], [False, True], [False, False]]
    """
    score = max(draws // 3, 1) * seen + seen.mean(axis=1, keepdims=True)
    left = []
    for count in range(1, len(seen) + 1):
        picked = score[:count].argmin(axis=0)
        by_image = np.take_along_axis(correct, picked[None], axis=0)[0]
        left.append(min(by_image, *correct[:count], key=np.mean))
    return np.stack(left)
