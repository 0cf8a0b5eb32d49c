"""What a report shows beside accuracies: whether the attacks worked, and pictures."""

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import data, evaluation
from robustjax.attacks import pgd
from robustjax.evaluation import NamedAttack, Robustness
from robustjax.judging.planted import binarized
from robustjax.judging.subject import (
    LOOKED_AT,
    RESTARTS,
    SHARES,
    STEPS,
    SURFACES,
    Subject,
    Wanted,
)
from robustjax.types import Array, Attack, IteratedAttack, Threat, is_transductive


def gathered(
    wanted: Wanted,
    subject: Subject,
    result: Robustness,
    attacks: Sequence[NamedAttack],
    known: Collection[str] = (),
) -> dict[str, Any]:
    """Keywords of `evaluation.write_report`, all but its context.

    Args:
      wanted: What to look at.
      subject: The classifier.
      result: Of `evaluate`.
      attacks: What it ran.
      known: What is there already, and is not measured again.

    Raises:
      InputError: the binarization test cannot be run.
    """
    test = subject.dataset
    shown = data.as_float(jnp.asarray(test.images[:8]))
    found: dict[str, Any] = dict(
        result=result, images=np.asarray(shown), class_names=test.class_names
    )
    sizes: dict[str, Any] = dict(batch_size=subject.batch_size, mesh=subject.mesh)
    if wanted.indicators:
        found["indicators"] = evaluation.indicators(
            result,
            subject.logits_fn,
            test,
            subject.threat,
            key=subject.key,
            step_size=subject.step_size,
            num_steps=subject.num_steps,
            source=subject.source,
            surrogates=subject.surrogates,
            **sizes,
        )
    if wanted.pictures and subject.has_radius:
        found |= _curves(subject, _count(subject, len(result.index)), sizes, known)
    if wanted.binarization:
        given = (subject, result, attacks, wanted.binarization, sizes)
        found["binarization"] = binarized(*given)
    return found


def _count(subject: Subject, total: int) -> int:
    """How many images pictures are of; one whole block of a transductive classifier."""
    whole = any(map(is_transductive, (subject.logits_fn, subject.climbed)))
    return min(subject.batch_size if whole else LOOKED_AT, total)


def _curves(
    subject: Subject, count: int, sizes: dict[str, Any], known: Collection[str]
) -> dict[str, Any]:
    """Accuracy by radius, down to chance, and by steps; the loss around images."""
    found: dict[str, Any] = {}
    if not subject.has_gradient:
        return found
    options = dict(sizes, key=subject.key, num_examples=count)
    if "curve" not in known:
        found["curve"] = _by_radius(subject, count, options)
    if "steps" not in known:
        eps, threat = float(subject.threat.eps), subject.threat
        steps = evaluation.step_curves(
            subject.climbed,
            subject.dataset,
            _pgd_of_step(threat, STEPS[-1]),
            [eps / 2, eps / 4, eps / 8, eps / 16],
            STEPS,
            **options,
        )
        labels = subject.dataset.labels[: steps["num_examples"]]
        limit = evaluation.limit_at(threat, eps, labels)
        found["steps"] = steps | dict(limit=limit)
    found["restarts"] = evaluation.restart_curve(
        subject.logits_fn,
        subject.dataset.take(slice(subject.num_examples)),
        subject.threat,
        key=subject.key,
        step_size=subject.step_size,
        num_steps=subject.num_steps,
        num_restarts=RESTARTS,
        source=subject.source,
        **sizes,
    )
    if "surfaces" not in known:
        found["surfaces"] = surfaces(subject, SURFACES)
    return found


def _by_radius(subject: Subject, count: int, options: dict[str, Any]) -> dict[str, Any]:
    """Accuracy at radii up to where one answer is all that is left."""
    threat, eps = subject.threat, float(subject.threat.eps)
    low, high = threat.bounds
    widest = (high - low) if threat.name == "linf" else float("inf")
    chosen = {np.float32(min(share * eps, widest)) for share in SHARES}
    radii, share = sorted(map(float, chosen)), subject.step_size / eps
    if count % subject.batch_size:  # all radii go through the network together
        fewer = max(1, subject.batch_size // len(radii))
        options = options | dict(batch_size=fewer)

    at_radius = _pgd_of_radius(threat, share, subject.num_steps)
    correct = evaluation.robustness_curve(
        *(subject.logits_fn, subject.dataset, at_radius, radii),
        source=subject.source,
        **options,
    )
    accuracy = correct.mean(axis=1).tolist()
    labels = subject.dataset.labels[:count]
    limits = evaluation.curve_limits(threat, radii, labels)
    return dict(eps=radii, accuracy=accuracy, num_examples=count) | limits


def surfaces(subject: Subject, count: int) -> dict[str, Any]:
    """The loss within eps of the first images, and the health of their gradients.

    Args:
      subject: The classifier.
      count: How many images.

    Raises:
      InputError: `count` is not positive, or there is no radius.
    """
    rows = subject.dataset.take(slice(count))
    x, y = data.as_float(jnp.asarray(rows.images)), jnp.asarray(rows.labels)
    radius = float(subject.threat.eps)
    key = jax.random.fold_in(subject.key, 0)
    found = evaluation.loss_surface(subject.climbed, x, y, key=key, radius=radius)
    health = jax.device_get(evaluation.gradient_health(subject.climbed, x, y))
    shares = dict(
        count=len(y),
        vanished=float(health.vanished.mean()),
        not_finite=float(1 - health.finite.mean()),
        zero_share=float(health.zero_share.mean()),
    )
    return dict(health=shares, **jax.device_get(found)._asdict())


# One object for one threat, so that what was compiled for it is found again.
@functools.lru_cache(maxsize=8)
def _pgd_of_radius(
    threat: Threat, share: float, num_steps: int
) -> Callable[[Array], Attack]:
    def at(radius: Array) -> Attack:
        return pgd(
            threat.with_eps(radius), step_size=radius * share, num_steps=num_steps
        )

    return at


@functools.lru_cache(maxsize=8)
def _pgd_of_step(threat: Threat, num_steps: int) -> Callable[[Array], IteratedAttack]:
    return lambda size: pgd(threat, step_size=size, num_steps=num_steps)
