"""The binarization test: would this attack find an adversarial example that is there?

For each image the classifier's last layer is replaced by a two-way readout of its
features. Class 0 are the image and points well inside the ball, class 1 is one point on
its surface, so an adversarial example exists by construction. An attack that misses it
is too weak for this classifier, and its robust accuracy is no evidence. See "Increasing
Confidence in Adversarial Robustness Evaluations" (Zimmermann et al., 2022).

What hides gradients has to be inside the features: an input transform, quantisation, a
denoiser, all but the last layer.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.tree_util import Partial

from robustjax import _checks
from robustjax._checks import InputError
from robustjax.attacks import StagedAttack
from robustjax.data import Dataset, as_float
from robustjax.evaluation._batching import rows_of
from robustjax.evaluation._binarized import FeaturesFn, Settings, binarized
from robustjax.evaluation.results import wilson_interval
from robustjax.training import sharding
from robustjax.types import (
    Array,
    Attack,
    Key,
    ModelFn,
    Threat,
    as_pytree,
    is_transductive,
)

THRESHOLD = 0.95
TOO_EASY = 0.5
_AT_A_TIME = 32  # images; each of them holds a Gram matrix of its points


class Binarization(NamedTuple):
    """What the test found, one entry per image.

    Attributes:
      index: Position of the image in its split, [N].
      separable: Whether the readout could be fitted, and the network says again that
        the boundary point is class 1 and the image class 0, [N] bool.
      success: Whether the attack returned a point of class 1 in the ball, [N] bool;
        False where not separable.
      random_success: Whether one of as many random points as there are inner ones is
        of class 1, [N] bool; False where not separable.
      outside: Whether the attack's point is outside of ball or box, which never counts
        as a success, [N] bool.
      margin: Distance of the boundary point's features from the hull of the others',
        as a share of the farthest, [N].
      still: Whether the features are the same at all these points but for rounding, of
        which no readout is made: no attack climbs through them, [N] bool.
    """

    index: np.ndarray
    separable: np.ndarray
    success: np.ndarray
    random_success: np.ndarray
    outside: np.ndarray
    margin: np.ndarray
    still: np.ndarray


def features_of(model_fn: ModelFn, layer: str) -> FeaturesFn:
    """The output of a layer, and the logits for their scale: what the test reads out.

    Args:
      model_fn: A classifier with its weights.
      layer: Its path, usually of what the last layer is given.

    Returns:
      `x -> (features [B, D], logits [B, K])`, a pytree of the weights.

    Example:
      >>> from robustjax import models
      >>> model = models.from_linen(models.small_cnn(dense=32))
      >>> x = jnp.ones((2, 8, 8, 1))
      >>> weights = model.init(jax.random.key(0), x)
      >>> fun = features_of(models.model_fn(model, *weights), "features")
      >>> [part.shape for part in fun(x)]
      [(2, 32), (2, 10)]
    """
    return Partial(_Layer(layer), as_pytree(model_fn))


def binarization(
    features_fn: FeaturesFn,
    images: Dataset | Array,
    threat: Threat,
    attack: Attack,
    *,
    key: Key,
    num_images: int = 64,
    num_inner: int = 999,
    inner_share: float = 0.95,
    corners: bool = False,
    closeness: float = 0.999,
    source: FeaturesFn | None = None,
    batch_size: int = 512,
    mesh: Mesh | None = None,
) -> Binarization:
    """Runs an attack on classifiers that have an adversarial example for certain.

    See "Increasing Confidence in Adversarial Robustness Evaluations" (Zimmermann et
    al., 2022); defaults are of the paper and its code, but for the number of
    images (512 there). The readout is the hyperplane of largest margin, which
    unregularised logistic regression (theirs) tends to. The decision boundary lies
    between the boundary point and the middle of the margin, 1 - `closeness` of the way
    from the point. Binary logits are scaled to the range of the classifier's own on the
    same points, so that an attack which fails for their scale fails here too. Images
    whose readout cannot be fitted are left out and reported. Objectives that need more
    classes than two, such as DLR, do not apply.

    Image `i` draws from `fold_in(key, i)`, whatever the batch size.

    Args:
      features_fn: The classifier but for its last layer, with everything that stands
        before it; `features_of(model_fn, layer)`, or any function. Of a random one,
        the mean of draws: `attacks.expectation(..., average="logits")`. A function to
        logits is a weaker test: ten numbers hide little, and are seldom separable.
      images: A data set, or float images [N, H, W, C].
      threat: Ball and box of the attack.
      attack: With the settings that the robust accuracy was measured with.
      key: A typed key.
      num_images: The first so many; all, if there are fewer.
      num_inner: Points inside, beside the image; and random points to compare with.
      inner_share: Their largest distance, as a share of the radius, in (0, 1].
      corners: Under L-inf, draw the boundary and random points from the corners of the
        ball.
      closeness: In [0, 1).
      source: What the attack climbs in place of `features_fn`, read out alike: with
        other gradients, or the model without its defense.
      batch_size: Points through the network at a time; memory is proportional.
      mesh: Devices, by default all of them.

    Returns:
      Outcomes per image; see `summarise_binarization`.

    Raises:
      InputError: an argument is out of range, features do not fit the images, or
        the attack runs on the host.

    Example:
      >>> from robustjax import attacks, threats
      >>> x = jax.random.uniform(jax.random.key(0), (4, 4, 4, 1))
      >>> threat = threats.linf(0.1)
      >>> attack = attacks.pgd(threat, step_size=0.05, num_steps=4)
      >>> found = binarization(lambda z: z, x, threat, attack, key=jax.random.key(1),
      ...     num_inner=99)
      >>> found.success.tolist(), found.random_success.tolist()
      ([True, True, True, True], [False, False, False, False])
    """
    _checks.positive_int(
        num_images=num_images, num_inner=num_inner, batch_size=batch_size
    )
    _checks.positive(inner_share=inner_share)
    _checks.fraction(inner_share=inner_share, closeness=closeness)
    if closeness == 1:
        raise InputError("`closeness` must be below 1, or the point is on the plane.")
    if corners and threat.name != "linf":
        raise InputError(f"`corners` are those of an L-inf ball, got {threat.name!r}.")
    if np.ndim(threat.eps):
        raise InputError("`threat` must have one radius for all images.")
    if isinstance(attack, StagedAttack):
        raise InputError(
            "`attack` must be one that compiles, got a staged one: take a part of it, "
            "such as apgd."
        )
    if not isinstance(threat.eps, float):
        threat = threat.with_eps(float(threat.eps))
    if not isinstance(images, Dataset):
        _checks.images(images=images)
    pixels = images.images if isinstance(images, Dataset) else np.asarray(images)
    total = min(num_images, len(pixels))
    index = images.index if isinstance(images, Dataset) else np.arange(total)
    rows = (pixels[:total], index[:total].astype(np.uint32))
    size = min(_AT_A_TIME, batch_size, total)
    settings = Settings(
        threat, num_inner, inner_share, corners, closeness, max(1, batch_size // size)
    )
    climbed = features_fn if source is None else source
    for name, fun in (("features_fn", features_fn), ("source", climbed)):
        check_features(pixels[:2], **{name: fun})
    functions = (as_pytree(features_fn), as_pytree(climbed), as_pytree(attack))
    found = [
        sharding.to_host(binarized(settings, *functions, key, *block))
        for block in rows_of(rows, size, mesh)
    ]
    joined = jax.tree.map(lambda *parts: np.concatenate(parts)[:total], *found)
    return Binarization(*joined)._replace(index=np.asarray(index[:total]))


def summarise_binarization(
    found: Binarization, *, threshold: float = THRESHOLD
) -> dict[str, Any]:
    """The share of planted examples that the attack found, JSON-able.

    Of the images that count: separable ones on which no random point succeeds.

    Args:
      found: Of `binarization`.
      threshold: A smaller share is flagged.

    Returns:
      `success` (None if no image counts) with its Wilson `interval`; `random_success`
      with `random_interval`, of all separable images; `num_images`, `num_separable`,
      `num_counted`, `num_outside`, `num_still`; `threshold`; `flagged`, whether the
      attack fails the test; `too_easy`, whether random points succeed on more than
      half, so that the test says little; `detail`, a line with the numbers.

    Example:
      >>> yes, no = np.ones(4, bool), np.zeros(4, bool)
      >>> found = Binarization(np.arange(4), yes, no, no, no, np.ones(4), no)
      >>> summary = summarise_binarization(found)
      >>> summary["success"], summary["flagged"], summary["detail"]
      (0.0, True, '0 of 4 planted examples found; random points find 0 of 4')
    """
    _checks.fraction(threshold=threshold)
    counted = found.separable & ~found.random_success
    hits, count = int((found.success & counted).sum()), int(counted.sum())
    separable = int(found.separable.sum())
    by_chance = int(found.random_success.sum())
    total = len(found.separable)
    success = hits / count if count else None
    random_success = by_chance / separable if separable else None
    detail = f"{hits} of {count} planted examples found"
    detail += f"; random points find {by_chance} of {separable}"
    if separable < total:
        detail += f"; {total - separable} of {total} images could not be fitted"
    still = int(found.still.sum())
    if still:
        detail += f"; around {still} the features stand still"
    return dict(
        success=success,
        interval=list(wilson_interval(hits, count)),
        random_success=random_success,
        random_interval=list(wilson_interval(by_chance, separable)),
        num_images=total,
        num_separable=separable,
        num_counted=count,
        num_outside=int(found.outside.sum()),
        num_still=still,
        threshold=threshold,
        flagged=success is not None and success < threshold,
        too_easy=random_success is None or random_success > TOO_EASY,
        detail=detail,
    )


@dataclasses.dataclass(frozen=True)
class _Layer:
    layer: str

    def __call__(self, model_fn: ModelFn, x: Array) -> tuple[Array, Array]:
        output = model_fn(x, capture=(self.layer,))
        return output.features[self.layer].reshape(len(x), -1), output.logits


def check_features(images: np.ndarray, **functions: FeaturesFn) -> None:
    """Says before anything runs which functions, by argument, have no such test.

    Args:
      images: Some, [B, H, W, C].
      **functions: As `features_fn` and `source` of `binarization`.

    Raises:
      InputError: one is no function of images to features, or transductive.
    """
    x = as_float(jnp.asarray(images))
    for name, fun in functions.items():
        if not callable(fun):
            raise InputError(
                f"`{name}` must be a function of images to features, got {fun!r}."
            )
        if is_transductive(fun):
            raise InputError(
                f"`{name}` must answer image by image, got a transductive one: take "
                "queries='single'."
            )
        found: Any = jax.eval_shape(fun, x)
        for part in found if isinstance(found, tuple) else (found,):
            if part.ndim < 2 or part.shape[0] != len(x):
                raise InputError(
                    f"`{name}` must return features [B, D], or (features, logits), "
                    f"got {part.shape} for {len(x)} images; of a random one, the mean."
                )
