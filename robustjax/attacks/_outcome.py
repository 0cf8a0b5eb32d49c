"""What counts as broken, and which of two candidates an attacker keeps."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from robustjax import _checks
from robustjax._checks import InputError
from robustjax._gradients import loop_safe
from robustjax.objectives import over_draws, targeted
from robustjax.types import Array, LogitsFn, Objective, Threat

_BEYOND = 1e-5  # a share of the distance


class Candidate(NamedTuple):
    """A point per image, with how well it serves the attacker.

    Attributes:
      x_adv: [B, ...].
      value: The objective there, [B].
      broken: Whether the classifier is wrong there, [B].
    """

    x_adv: Array
    value: Array
    broken: Array


class Closest(NamedTuple):
    """The nearest adversarial point found so far, for minimum-norm attacks.

    Attributes:
      x_adv: [B, ...]; x itself as long as none was found.
      distance: Its distance from x, [B]; inf as long as none was found.
    """

    x_adv: Array
    distance: Array


def nothing_found(x: Array) -> Closest:
    """Where a minimum-norm attack starts: x, infinitely far."""
    wide = jnp.promote_types(x.dtype, "float32")
    return Closest(x, jnp.full(x.shape[:1], jnp.inf, wide))


def keep_closer(old: Closest, x_adv: Array, distance: Array, is_broken: Array):
    """`old`, or per image `x_adv` where it is misclassified and closer, a `Closest`."""
    wins = is_broken & (distance < old.distance)
    return Closest(
        where(wins, x_adv, old.x_adv),
        jnp.where(wins, distance.astype(old.distance.dtype), old.distance),
    )


def within(threat: Threat, found: Closest, x: Array) -> Array:
    """The points found at a distance of at most `eps`, and x for the other images."""
    return where(found.distance <= threat.eps, found.x_adv, x)


def moved_on(threat: Threat, found: Closest, x: Array) -> Closest:
    """`found`, by a little further from x where `eps` leaves the room.

    A search that projects or bisects ends so near to the boundary that the rounding
    errors of another compilation of the model take a part of it back.
    """
    start, end = (a.astype(found.distance.dtype) for a in (x, found.x_adv))
    points = jnp.clip(start + (1 + _BEYOND) * (end - start), *threat.bounds)
    has_room = found.distance * (1 + 2 * _BEYOND) <= threat.eps
    return found._replace(x_adv=where(has_room, points.astype(x.dtype), found.x_adv))


def climbed(
    objective: Objective, logits_fn: LogitsFn, y: Array, target: Array | None = None
) -> Callable[[Array], tuple[Array, Array]]:
    """Images to (objective [B], broken [B]): what every gradient attack climbs.

    With a `target` the objective is the targeted one, and broken means classified as
    the target. A randomised classifier under `expectation` answers with samples
    [S, B, K]. Then the objective is the mean over the samples, so that its gradient is
    that of expectation over transformation, and broken is judged on the mean
    probabilities.
    """
    if target is not None:
        objective = targeted(objective, target)

    def judge(logits: Array) -> Array:
        return broken(logits, y) if target is None else ~broken(logits, target)

    def evaluate(z: Array) -> tuple[Array, Array]:
        logits = logits_fn(z)
        return over_draws(objective)(logits, y), judge(logits)

    return evaluate


def scored(
    objective: Objective, logits_fn: LogitsFn, y: Array, target: Array | None = None
) -> Callable[[Array], tuple[Array, Array]]:
    """`climbed` for loops that take no gradient: the forward pass is loop-safe."""
    return climbed(objective, loop_safe(logits_fn), y, target)


def check_call(
    logits_fn: LogitsFn, x: Array, y: Array, target: Array | None = None
) -> None:
    """What can be said about an attack's arguments before it runs.

    Shapes and dtypes always; outside `jit`, where values are known, also that pixels
    are numbers, and from the logits of a few images that they are [B, K], fit the
    labels, and do not look like probabilities.

    Raises:
      InputError: an argument does not fit.
    """
    _checks.images(x=x)
    _checks.same_batch(x=x, y=y)
    if y.ndim == 1 and not jnp.issubdtype(y.dtype, jnp.integer):
        raise InputError(f"`y` must be integer labels [B], got dtype {y.dtype}.")
    _checks.no_nan(x=x)
    if target is not None:
        _checks.same_batch(target=target, y=y)
        _checks.targets_differ(target, y)
    first = jnp.abs(x[:4])  # a tracer inside any trace, even if x is not
    if not x.shape[0] or not _checks.is_concrete(first):
        return
    logits = logits_fn(x[:4])
    broken(logits, y[:4])
    if logits.ndim == 3:  # samples of a randomised classifier
        return
    for labels in (y, target):
        if labels is not None and labels.ndim == 1:
            _checks.label_range(labels, logits.shape[1])
    if _checks.is_concrete(logits):  # weights may be traced where x is not
        _checks.warn_of_probabilities(logits)


def broken(logits: Array, y: Array) -> Array:
    """Whether the prediction differs from the label (the mode of a distribution), [B].

    NaN logits count as broken: they are no answer. Samples [S, B, K] of a randomised
    classifier are judged by their mean probabilities.

    Raises:
      InputError: the logits are not of these shapes.
    """
    if logits.ndim not in (2, 3) or logits.shape[-2] != y.shape[0]:
        raise InputError(
            f"`logits_fn` must return [B, K], got shape {logits.shape} for "
            f"{y.shape[0]} images."
        )
    if logits.ndim == 3:
        logits = jax.nn.softmax(logits.astype(jnp.float32)).mean(axis=0)
    return (logits.argmax(axis=1) != label_of(y)) | jnp.isnan(logits).any(axis=1)


def label_of(y: Array) -> Array:
    """Labels [B], of distributions [B, K] the likeliest class."""
    return y if y.ndim == 1 else y.argmax(axis=1).astype(jnp.int32)


def keep_worse(old: Candidate, new: Candidate) -> Candidate:
    """Per image the more adversarial candidate: broken first, then the larger value.

    Without the first criterion an iterate that fools the classifier can be dropped for
    one with a larger loss that does not (cross-entropy is not monotone in the margin).
    """
    wins = (new.broken & ~old.broken) | (
        (new.broken == old.broken) & (new.value > old.value)
    )
    return Candidate(
        where(wins, new.x_adv, old.x_adv),
        jnp.where(wins, new.value, old.value),
        new.broken | old.broken,
    )


def where(rows: Array, this: Array, other: Array) -> Array:
    """`jnp.where` over the batch axis: rows [B], images [B, ...]."""
    return jnp.where(rows.reshape(rows.shape + (1,) * (this.ndim - 1)), this, other)


def check_same_classes(
    source: LogitsFn, logits_fn: LogitsFn, x: Array, name: str = "sources"
) -> None:
    """Raises unless a surrogate has the classes of the model under attack."""
    theirs, ours = (jax.eval_shape(f, x).shape[-1] for f in (source, logits_fn))
    if theirs != ours:
        raise InputError(
            f"`{name}` must have the classes of the model under attack, {ours}, got "
            f"{theirs}."
        )
