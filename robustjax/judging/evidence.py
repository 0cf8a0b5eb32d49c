"""What a report shows beside accuracies: whether the attacks worked, and pictures."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from robustjax import attacks, data, evaluation
from robustjax._checks import InputError, non_negative, positive_int
from robustjax.evaluation import Robustness
from robustjax.types import Array, Attack, Key, LogitsFn, Threat

_LOOKED_AT = 128  # images of curves
_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 8.0, 16.0)  # of eps
_STEPS = (1, 2, 5, 10, 20, 50)
_SURFACES = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    """How hard an evaluation looks at itself.

    Attributes:
      indicators: Whether failure indicators are measured.
      pictures: Whether curves over radii and steps and loss surfaces are measured, on
        the first 128 images, where nothing more was asked for.
      binarization: Images of the binarization test; 0 leaves it out.
    """

    indicators: bool = True
    pictures: bool = True
    binarization: int = 0

    def __post_init__(self):
        """Raises an InputError if a number is negative."""
        non_negative(binarization=self.binarization)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """What is looked at, and how it was attacked.

    Attributes:
      logits_fn: The classifier that is judged.
      source: What attacks climb, if it is another function.
      dataset: What it is judged on.
      threat: What attacks are held to.
      step_size: Of PGD.
      num_steps: Of PGD.
      key: A typed key.
      batch_size: Images at a time.
      num_examples: Only the first that many; None for all.
      mesh: Devices; None for all.
      surrogates: Other classifiers, for transfer.
      features_fn: All of the classifier but its last layer, for the binarization test.
    """

    logits_fn: LogitsFn
    source: LogitsFn | None = None
    dataset: data.Dataset
    threat: Threat
    step_size: float
    num_steps: int
    key: Key
    batch_size: int = 512
    num_examples: int | None = None
    mesh: Mesh | None = None
    surrogates: Sequence[LogitsFn] = ()
    features_fn: Any = None

    @property
    def climbed(self) -> LogitsFn:
        """What attacks climb."""
        return self.source or self.logits_fn

    @property
    def has_radius(self) -> bool:
        """Whether curves over radii and steps mean anything."""
        return 0 < float(self.threat.eps) < float("inf")


def gathered(wanted: Wanted, subject: Subject, result: Robustness) -> dict[str, Any]:
    """Keywords of `evaluation.write_report`, all but its context.

    Args:
      wanted: What to look at.
      subject: The classifier.
      result: Of `evaluate`.

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
        found |= _curves(subject, min(_LOOKED_AT, len(result.index)), sizes)
    if wanted.binarization:
        found["binarization"] = _binarized(subject, wanted.binarization, sizes)
    return found


def _curves(subject: Subject, count: int, sizes: dict[str, Any]) -> dict[str, Any]:
    """Accuracy by radius, down to chance, and by steps; the loss around images."""
    threat, eps = subject.threat, float(subject.threat.eps)
    low, high = threat.bounds
    widest = (high - low) if threat.name == "linf" else float("inf")
    radii = sorted({min(share * eps, widest) for share in _SHARES})
    share = subject.step_size / eps
    options = dict(sizes, key=subject.key, num_examples=count)

    def at_radius(radius: Array) -> Attack:
        steps = subject.num_steps
        return attacks.pgd(
            threat.with_eps(radius), step_size=radius * share, num_steps=steps
        )

    correct = evaluation.robustness_curve(
        *(subject.logits_fn, subject.dataset, at_radius, radii),
        source=subject.source,
        **options,
    )
    curve = dict(eps=radii, accuracy=correct.mean(axis=1).tolist(), num_examples=count)
    steps = evaluation.step_curves(
        subject.climbed,
        subject.dataset,
        lambda size: attacks.pgd(threat, step_size=size, num_steps=_STEPS[-1]),
        [eps / 2, eps / 4, eps / 8, eps / 16],
        _STEPS,
        **options,
    )
    return dict(curve=curve, steps=steps, surfaces=surfaces(subject, _SURFACES))


def surfaces(subject: Subject, count: int) -> dict[str, Any]:
    """The loss within eps of the first images, and the health of their gradients.

    Args:
      subject: The classifier.
      count: How many images.

    Raises:
      InputError: `count` is not positive, or there is no radius.
    """
    positive_int(surfaces=count)
    if not subject.has_radius:
        raise InputError(
            f"`--surfaces` needs a finite `eps` above 0, got {subject.threat.eps}."
        )
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


def _binarized(subject: Subject, count: int, sizes: dict[str, Any]) -> dict[str, Any]:
    """The test of PGD as it was run, with the margin: two classes have no DLR."""
    attack = attacks.pgd(
        subject.threat, step_size=subject.step_size, num_steps=subject.num_steps
    )
    features_fn = subject.features_fn or subject.logits_fn
    found = evaluation.binarization(
        features_fn,
        subject.dataset,
        subject.threat,
        attack,
        key=subject.key,
        num_images=count,
        **sizes,
    )
    label = f"PGD-{subject.num_steps}"
    return dict(attack=label, **evaluation.summarise_binarization(found))
