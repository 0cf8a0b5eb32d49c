"""Defenses that move or compare the tested image: what NIP has to beat to be worth it.

All have the shape of `nip`, and all are attacked in the same ways.
"""

import dataclasses
import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from robustjax import _checks, _random, influence
from robustjax._checks import InputError
from robustjax._gradients import loop_safe, with_gradient_of
from robustjax.transforms import _nip_fit
from robustjax.transforms._directions import climbed
from robustjax.transforms._nip_candidates import prototype_scores, squared_distances
from robustjax.transforms._nip_options import NIPOptions, NIPState
from robustjax.transforms.nip import check_state
from robustjax.types import Array, Batch, Defense, Key, ModelFn, PyTree


def noise_voting(*, size: float = 0.05, num_votes: int = 16) -> Defense:
    """The answers to several noisy copies of the image, averaged.

    Args:
      size: Deviation of the Gaussian noise on the scale of pixels; copies are clipped.
      num_votes: How many copies; the logits are the log of their mean probabilities.

    Raises:
      InputError: an argument is out of range; from `apply`, pixels are outside [0, 1].

    Example:
      >>> noise_voting(num_votes=4).random
      True
    """
    _checks.non_negative(size=size)
    _checks.positive_int(num_votes=num_votes)
    return Defense(_learns_nothing, _NoiseVoting(size, num_votes), random=True)


def hedge(*, size: float = 8 / 255, num_steps: int = 20) -> Defense:
    """Moves the image away from all classes at once.

    "Attacking Adversarial Attacks as A Defense" (Wu et al., 2021): it climbs the sum
    over the classes of the cross-entropy, by signs, within `size` of the image.

    Args:
      size: The radius in every pixel.
      num_steps: Steps of 2.5 size / num_steps.

    Raises:
      InputError: an argument is out of range; from `apply`, pixels are outside [0, 1].

    Example:
      >>> hedge().random
      False
    """
    _checks.non_negative(size=size)
    _checks.positive_int(num_steps=num_steps)
    return Defense(_learns_nothing, _Pushed(size, num_steps, "all"))


def anti_adversary(*, size: float = 8 / 255, num_steps: int = 2) -> Defense:
    """Moves the image towards the class that is predicted.

    "Combating Adversaries with Anti-Adversaries" (Alfarra et al., 2022), but within
    `size` of the image. A classifier's own answer, louder: gradients of it vanish.

    Args:
      size: The radius in every pixel.
      num_steps: Steps of 2.5 size / num_steps.

    Raises:
      InputError: an argument is out of range; from `apply`, pixels are outside [0, 1].

    Example:
      >>> anti_adversary().random
      False
    """
    _checks.non_negative(size=size)
    _checks.positive_int(num_steps=num_steps)
    return Defense(_learns_nothing, _Pushed(size, num_steps, "predicted"))


def nearest_class_mean(
    *,
    layer: str = "flatten",
    front: int | float = 5,
    tail: int | float = 5,
    neurons: Literal["influence", "random"] = "influence",
) -> Defense:
    """The class whose mean is nearest on its front and tail neurons; nothing is moved.

    The scores of `nip`'s rule "proto" without a perturbation, as logits.

    Args:
      layer: As in `nip`.
      front: As in `nip`.
      tail: As in `nip`.
      neurons: As in `nip`.

    Raises:
      InputError: as from `nip`.

    Example:
      >>> nearest_class_mean(front=0.5, tail=0.5).random
      False
    """
    options = NIPOptions(layer=layer, front=front, tail=tail, neurons=neurons)
    return Defense(functools.partial(_nip_fit.fit, options), _NearestMean(options))


_SAMPLE = 250  # images that tell the scale of distances


class Neighbors(NamedTuple):
    """Benign images.

    Attributes:
      keys: [N, D], what is compared.
      labels: [N].
      scale: Spread over the classes of their smallest distances from other images.
    """

    keys: Array
    labels: Array
    scale: Array


def nearest_neighbor(
    *, layer: str | None = None, num_classes: int = 10, softness: float = 0.0
) -> Defense:
    """The class of the nearest benign image; no network is asked but for a layer.

    Logits are minus the smallest squared distance to each class.

    Args:
      layer: Whose outputs are compared; None compares pixels.
      num_classes: K.
      softness: Where above 0, the derivative is that of a softened smallest distance,
        -s logsumexp(-distance / s), s in units of the spread of these distances over
        the classes, so that an attack sees more than one neighbour. What is computed
        stays the same.

    Raises:
      InputError: an argument is out of range; from `fit`, a class has no image; from
        `apply`, the state is of another model, or pixels are outside [0, 1].

    Example:
      >>> x = jnp.array([0.0, 1.0]).reshape(2, 1, 1, 1)
      >>> defense, key = nearest_neighbor(num_classes=2), jax.random.key(0)
      >>> state = defense.fit(key, lambda x: None, Batch(x, jnp.array([0, 1])))
      >>> defense.apply(state, key, lambda x: None, x).tolist()
      [[-0.0, -1.0], [-1.0, -0.0]]
    """
    _checks.positive_int(num_classes=num_classes)
    _checks.non_negative(softness=softness)
    chosen = (layer, num_classes, softness)
    return Defense(_FitNeighbors(layer, num_classes), _Nearest(*chosen))


def _learns_nothing(key: Key, model_fn: ModelFn, batch: Batch) -> PyTree:
    del key, model_fn, batch
    return ()


@dataclasses.dataclass(frozen=True)
class _NoiseVoting:
    size: float
    num_votes: int

    def __call__(self, state: PyTree, key: Key, model_fn: ModelFn, x: Array) -> Array:
        del state
        _nip_fit.check_images(x)
        keys = _random.per_image_keys(key, x.shape[0])

        def vote(number: Array) -> Array:
            noise = _random.draw(_random.fold_in(keys, number), x, jax.random.normal)
            noisy = jnp.clip(x + self.size * noise, 0, 1)
            return jax.nn.log_softmax(model_fn(noisy).logits)

        found = jax.lax.map(loop_safe(vote), jnp.arange(self.num_votes))
        return jax.nn.logsumexp(found, axis=0) - jnp.log(float(self.num_votes))


@dataclasses.dataclass(frozen=True)
class _Pushed:
    size: float
    num_steps: int
    towards: Literal["all", "predicted"]

    def __call__(self, state: PyTree, key: Key, model_fn: ModelFn, x: Array) -> Array:
        del state, key
        _nip_fit.check_images(x)
        clean = model_fn(x).logits
        label = clean.argmax(axis=1)

        def score(z: Array) -> Array:
            logs = jax.nn.log_softmax(model_fn(z[0]).logits)
            if self.towards == "predicted":
                return jnp.take_along_axis(logs, label[:, None], axis=1).sum()
            return -logs.sum()

        moved = climbed(jax.grad(score), x, 1, jnp.asarray(self.size), self.num_steps)
        return model_fn(moved[0]).logits


@dataclasses.dataclass(frozen=True)
class _NearestMean:
    options: NIPOptions

    def __call__(self, state: NIPState, key: Key, model_fn: ModelFn, x: Array) -> Array:
        del key
        check_state(self.options, state, model_fn, x)
        layer = self.options.layer
        a = model_fn(x, capture=(layer,)).features[layer]
        each = jnp.arange(len(state.masks))[:, None]
        classes = jnp.broadcast_to(each, (len(state.masks), x.shape[0]))
        return prototype_scores(state, a[None], classes).T


@dataclasses.dataclass(frozen=True)
class _FitNeighbors:
    layer: str | None
    num_classes: int

    def __call__(self, key: Key, model_fn: ModelFn, batch: Batch) -> Neighbors:
        del key
        _nip_fit.check_images(batch.x)
        _checks.class_labels(x=batch.x, y=batch.y)
        _checks.label_range(batch.y, self.num_classes)
        if _checks.is_concrete(batch.y):
            counts = jnp.bincount(batch.y, length=self.num_classes)
            if not counts.all():
                raise InputError(
                    f"`batch` has no image of class {int(counts.argmin())}: give more "
                    "benign images."
                )
        keys = _keys(self.layer, model_fn, batch.x)
        few = keys[:_SAMPLE]
        apart = squared_distances(few, keys)
        itself = jnp.arange(len(few))[:, None] == jnp.arange(len(keys))[None]
        apart = jnp.where(itself, jnp.inf, apart)
        least = _smallest(apart, batch.y, self.num_classes)
        spread = jnp.where(jnp.isfinite(least), least, 0.0).std(axis=1).mean()
        scale = jnp.where(spread > 0, spread, 1.0)
        return Neighbors(keys, batch.y, scale)


@dataclasses.dataclass(frozen=True)
class _Nearest:
    layer: str | None
    num_classes: int
    softness: float

    def __call__(
        self, state: Neighbors, key: Key, model_fn: ModelFn, x: Array
    ) -> Array:
        del key
        _nip_fit.check_images(x)
        if not isinstance(state, Neighbors):
            raise InputError(
                "`state` must be what nearest_neighbor's `fit` returned, got "
                f"{type(state).__name__}."
            )
        keys = _keys(self.layer, model_fn, x)
        if keys.shape[1] != state.keys.shape[1]:
            raise InputError(
                f"`state` belongs to another model or other images: it compares "
                f"{state.keys.shape[1]} numbers, here are {keys.shape[1]}. Fit again."
            )
        apart = squared_distances(keys, state.keys)
        found = -_smallest(apart, state.labels, self.num_classes)
        if not self.softness:
            return found
        unit = self.softness * state.scale
        by_class = _by_class(apart, state.labels, self.num_classes)
        soft = unit * jax.nn.logsumexp(-by_class / unit, axis=1)
        return with_gradient_of(found, soft)


def _by_class(apart: Array, labels: Array, num_classes: int) -> Array:
    """Distances [B, N] to images of each class, inf to those of others, [B, N, K]."""
    is_class = labels[:, None] == jnp.arange(num_classes)[None]
    return jnp.where(is_class[None], apart[:, :, None], jnp.inf)


def _smallest(apart: Array, labels: Array, num_classes: int) -> Array:
    return _by_class(apart, labels, num_classes).min(axis=1)


def _keys(layer: str | None, model_fn: ModelFn, x: Array) -> Array:
    found = x
    if layer is not None:
        found = influence.captured(model_fn, x, layer)
    return found.reshape(x.shape[0], -1).astype(jnp.float32)
