"""Who is judged, and how hard an evaluation looks at itself."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from robustjax import data
from robustjax._checks import InputError, positive_int
from robustjax.evaluation import Estimate, check_features
from robustjax.types import Key, LogitsFn, Threat, is_transductive

LOOKED_AT = 64  # images of curves
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 8.0, 16.0)  # of eps
STEPS = (1, 2, 5, 10, 20, 50)
MEASURED = 128  # images of indicators and of the curve over restarts
SURFACES, NOISE, RESTARTS = 2, 10_000, 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    """How hard an evaluation looks at itself.

    Attributes:
      indicators: Whether failure indicators are measured.
      pictures: Whether curves over radii and steps (on the first 64 images, or a whole
        batch of a transductive classifier) and over restarts (on up to 128, spread over
        the set) and the loss around 2 images are measured, where no more was asked for.
      binarization: Images of the binarization test; 0 leaves it out.
    """

    indicators: bool = True
    pictures: bool = True
    binarization: int = 0

    def __post_init__(self):
        """Raises an InputError if a field is of another kind."""
        for name in ("indicators", "pictures"):
            if not isinstance(value := getattr(self, name), bool):
                raise InputError(f"`{name}` must be True or False, got {value!r}.")
        if self.binarization != 0:
            positive_int(binarization=self.binarization)


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
      features_fn: All of the classifier but its last layer, for the binarization test;
        None reads out the logits, a weaker test.
      source_features_fn: The same with the gradient that attacks take; None is
        `features_fn`, or with it None `source`.
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
    source_features_fn: Any = None

    @property
    def climbed(self) -> LogitsFn:
        """What attacks climb."""
        return self.source or self.logits_fn

    @functools.cached_property
    def has_gradient(self) -> bool:
        """Whether what attacks climb can be differentiated."""
        image = jax.ShapeDtypeStruct((1, *self.dataset.images.shape[1:]), np.float32)
        try:
            jax.eval_shape(jax.grad(lambda x: self.climbed(x).sum()), image)
        except InputError:
            raise
        except (ValueError, TypeError, NotImplementedError):
            return False
        return True

    @property
    def has_radius(self) -> bool:
        """Whether curves over radii and steps mean anything."""
        return 0 < float(self.threat.eps) < float("inf")


def check(wanted: Wanted, subject: Subject, num_surfaces: int = 0) -> None:
    """Says before any attack what could not be measured after them.

    Raises:
      InputError: the classifier has no binarization test, or there is no radius for
        surfaces.
    """
    if num_surfaces and not subject.has_radius:
        raise InputError(
            f"`--surfaces` needs a finite `eps` above 0, got {subject.threat.eps}."
        )
    on_logits = wanted.binarization and subject.features_fn is None
    if on_logits and (is_transductive(subject.logits_fn) or _is_random(subject)):
        raise InputError(
            "`binarization` needs one answer for each image: give `features_fn` of a "
            "random or transductive classifier, or leave the test out."
        )
    if not wanted.binarization:
        return
    for name in ("features_fn", "source_features_fn"):
        if (fun := getattr(subject, name)) is not None:
            check_features(subject.dataset.images[:2], **{name: fun})
    if not subject.has_radius:
        raise InputError(
            f"`binarization` needs a finite `eps` above 0, got {subject.threat.eps}."
        )


def seconds_of(wanted: Wanted, subject: Subject, expected: Estimate) -> float:
    """About how long `gathered` takes.

    Args:
      wanted: What is looked at.
      subject: The classifier.
      expected: Of its attacks.
    """
    total = subject.num_examples or len(subject.dataset)
    images, shown = min(MEASURED, total), min(LOOKED_AT, total)
    steps, passes, programs = 3 * subject.num_steps, 0.0, 0
    if wanted.indicators:
        passes += images * (16 * steps + 300) + NOISE * min(16, images)
        programs += 12
    if wanted.pictures and subject.has_radius:
        passes += shown * (len(SHARES) * steps + 4 * 3 * STEPS[-1])
        passes += images * RESTARTS * steps
        programs += 4
    passes += wanted.binarization * (4000 + steps)
    return passes * expected.per_pass + programs * expected.compiling


def _is_random(subject: "Subject") -> bool:
    image = jax.ShapeDtypeStruct((1, *subject.dataset.images.shape[1:]), np.float32)
    return len(jax.eval_shape(subject.logits_fn, image).shape) == 3
