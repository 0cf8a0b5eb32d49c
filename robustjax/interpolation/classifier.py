"""Classifiers out of a model's features and a head, and the templates they need.

Templates depend on the weights: `embed` them again when the weights change, once, and
hand the same template to as many calls as there are.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from robustjax import _checks
from robustjax._checks import InputError
from robustjax._gradients import with_gradient_of
from robustjax.types import (
    Array,
    Head,
    Key,
    LogitsFn,
    Model,
    PyTree,
    as_pytree,
    is_transductive,
)


def interpolated_logits_fn(
    model: Model,
    params: PyTree,
    model_state: PyTree,
    head: Head,
    *,
    layer: str = "features",
    gradient: Literal["exact", "straight_through"] | LogitsFn = "exact",
) -> LogitsFn:
    """The model with another head in place of its own, as a pytree of the weights.

    What an attack sees of the head is its gradient, so that is an argument. The papers
    attack through their linear head: values of WNLL, derivative of the model's own
    logits; with `wnll_released` this is their very gradient, (softmax(U) - onehot) W_L.
    That gradient hardly reacts to what WNLL answers; judge by "exact".

    Args:
      model: The classifier whose features are used, in mode "eval".
      params: Its parameters.
      model_state: Its BatchNorm statistics.
      head: E.g. `wnll(template, num_classes)`, the template embedded by these weights.
      layer: Whose output the head is on, flattened to [B, D].
      gradient: "exact" differentiates the head, solve and bandwidths included;
        "straight_through" the model's own logits in its place; a function of the
        images, [B, ...] to [B, K], that function.

    Returns:
      Images [B, H, W, C] to logits [B, K], float32.

    Raises:
      InputError: `gradient` is unknown.

    Example:
      >>> from robustjax import models
      >>> from robustjax.interpolation import Similarity, make_template, wnll
      >>> model = models.from_linen(models.small_cnn(num_classes=2, dense=4))
      >>> x = jax.random.uniform(jax.random.key(0), (6, 8, 8, 1))
      >>> weights = model.init(jax.random.key(1), x)
      >>> features = embed(model, *weights, x)
      >>> labels = jnp.array([0, 1, 0, 1, 0, 1])
      >>> template = make_template(features, labels, Similarity(4, 2))
      >>> f = interpolated_logits_fn(model, *weights, wnll(template, 2))
      >>> jnp.exp(f(x)).sum(axis=1).round(3).tolist()
      [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    """
    if not callable(gradient):
        _checks.one_of(("exact", "straight_through"), gradient=gradient)
        kind, surrogate = gradient, None
    else:
        kind = "surrogate"
        surrogate = as_pytree(gradient)
    static = _Classifier(model, layer, kind, is_transductive(head))
    return Partial(static, params, model_state, head, surrogate)


def among(head: Head, companions: Array) -> Head:
    """The head as it answers each row among the same companions, [P, D].

    A transductive head has no answer to one row: this is the answer that it gives if
    the other queries of the batch are these, e.g. clean ones.

    Args:
      head: Any.
      companions: Features of the other queries.

    Example:
      >>> mean = lambda features, valid: features + features.mean(
      ...     axis=0, keepdims=True)
      >>> head = among(mean, jnp.array([[0.0], [2.0]]))
      >>> head(jnp.array([[1.0], [4.0]]), jnp.array([True, True])).tolist()
      [[2.0], [6.0]]
    """
    return Partial(_Among(), as_pytree(head), companions)


def embed(
    model: Model,
    params: PyTree,
    model_state: PyTree,
    x: Array,
    *,
    layer: str = "features",
    batch_size: int = 500,
) -> Array:
    """The features of many images, float32 [N, D], in blocks.

    Args:
      model: The classifier, used in mode "eval".
      params: Its parameters.
      model_state: Its BatchNorm statistics.
      x: [N, H, W, C].
      layer: Whose output, flattened to [N, D].
      batch_size: Images at a time.

    Example:
      >>> from robustjax import models
      >>> model = models.from_linen(models.small_cnn(dense=4))
      >>> x = jnp.ones((6, 8, 8, 1))
      >>> embed(model, *model.init(jax.random.key(0), x), x, batch_size=4).shape
      (6, 4)
    """
    _checks.positive_int(batch_size=batch_size)
    size = min(batch_size, x.shape[0])
    return _embedded(model, layer, size, params, model_state, jnp.asarray(x))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _embedded(
    model: Model,
    layer: str,
    size: int,
    params: PyTree,
    model_state: PyTree,
    x: Array,
) -> Array:
    missing = [(0, -x.shape[0] % size)] + [(0, 0)] * (x.ndim - 1)
    blocks = jnp.pad(x, missing).reshape(-1, size, *x.shape[1:])
    features = jax.lax.map(
        lambda block: features_and_logits(model, params, model_state, block, layer)[0],
        blocks,
    )
    return features.reshape(-1, features.shape[-1])[: x.shape[0]]


def draw_templates(
    key: Key,
    labels: Array,
    size: int,
    *,
    num_sets: int = 1,
    balanced: bool = False,
    disjoint: bool = False,
) -> Array:
    """Positions of random templates, [S, size], without repetition inside a set.

    Args:
      key: A typed key; another key, other templates.
      labels: Of the images to draw from, [N].
      size: Templates of each set.
      num_sets: S.
      balanced: Whether every class has the same share as far as it goes; else the draw
        is uniform, as in the papers.
      disjoint: Whether the sets share nothing: chunks of the whole, of which the papers
        average 10 of 5,000.

    Raises:
      InputError: there are too few images.

    Example:
      >>> labels = jnp.array([0, 0, 0, 1, 1, 1])
      >>> rows = draw_templates(
      ...     jax.random.key(0), labels, 2, num_sets=3, balanced=True, disjoint=True)
      >>> labels[rows].sort(axis=1).tolist()
      [[0, 1], [0, 1], [0, 1]]
    """
    _checks.positive_int(size=size, num_sets=num_sets)
    needed = size * num_sets if disjoint else size
    if needed > labels.shape[0]:
        raise InputError(
            f"`size` times `num_sets` of disjoint sets must be at most "
            f"{labels.shape[0]}, the images, got {needed}."
        )

    return _drawn(size, num_sets, balanced, disjoint, key, labels)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _drawn(
    size: int, num_sets: int, balanced: bool, disjoint: bool, key: Key, labels: Array
) -> Array:
    def order(key: Key) -> Array:
        shuffled = jax.random.permutation(key, labels.shape[0])
        if not balanced:
            return shuffled
        # By the place in its own class: the first of each class, the second of each...
        classes = labels[shuffled]
        by_class = jnp.argsort(classes, stable=True)
        first = jnp.searchsorted(classes[by_class], classes[by_class])
        place = jnp.arange(labels.shape[0]) - first
        return shuffled[by_class[jnp.argsort(place, stable=True)]]

    if disjoint:
        return order(key)[: size * num_sets].reshape(num_sets, size)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num_sets))
    return jax.vmap(lambda k: order(k)[:size])(keys)


def features_and_logits(
    model: Model, params: PyTree, model_state: PyTree, x: Array, layer: str
) -> tuple[Array, Array]:
    """Features [B, D], float32, and the model's own logits, in mode "eval"."""
    output = model.apply(params, model_state, x, capture=(layer,))
    features = output.features[layer]
    width = int(np.prod(features.shape[1:]))
    wide = jnp.promote_types(features.dtype, jnp.float32)
    return features.reshape(x.shape[0], width).astype(wide), output.logits


@dataclasses.dataclass(frozen=True)
class _Classifier:
    model: Model
    layer: str
    gradient: str
    transductive: bool

    def __call__(
        self,
        params: PyTree,
        model_state: PyTree,
        head: Head,
        surrogate: LogitsFn | None,
        x: Array,
    ) -> Array:
        features, logits = features_and_logits(
            self.model, params, model_state, x, self.layer
        )
        if surrogate is not None:
            logits = surrogate(x)
        if self.gradient != "exact":
            features = jax.lax.stop_gradient(features)
        scores = head(features, jnp.ones(x.shape[0], bool))
        if self.gradient == "exact":
            return scores
        return with_gradient_of(scores, jnp.broadcast_to(logits, scores.shape))


@dataclasses.dataclass(frozen=True)
class _Among:
    transductive: bool = False

    def __call__(
        self,
        head: Callable[[Array, Array], Array],
        companions: Array,
        features: Array,
        valid: Array,
    ) -> Array:
        del valid  # rows do not know of one another
        everyone = jnp.ones(1 + companions.shape[0], bool)

        def answer(row: Array) -> Array:
            scores = head(jnp.concatenate([row[None], companions]), everyone)
            return scores[..., 0, :]

        answers = jax.lax.map(answer, features, batch_size=min(16, len(features)))
        return jnp.moveaxis(answers, 0, -2)
