"""Learns influence, sets, directions and levels of classes from benign images."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import _checks, influence
from robustjax._checks import InputError
from robustjax._gradients import loop_safe
from robustjax.transforms._directions import rms_normalised, slopes
from robustjax.transforms._nip_options import Dictionary, NIPOptions, NIPState
from robustjax.types import Array, Batch, Key, ModelFn, as_pytree

_FLOOR = 0.1  # of the mean deviation: neurons that hardly ever move decide nothing


def fit(options: NIPOptions, key: Key, model_fn: ModelFn, batch: Batch) -> NIPState:
    """The state of `nip`: see there for errors."""
    _checks.keys(key)
    check_images(batch.x)
    if not batch.x.shape[0]:
        raise InputError("`batch` has no images: give benign images of every class.")
    _checks.class_labels(x=batch.x, y=batch.y)
    shape = influence.activations(model_fn, batch.x[:1], options.layer).shape
    count = int(np.prod(shape[1:]))
    compared = influence.set_sizes(count, options.front, options.tail)
    if options.chooses_by_neurons and not any(compared):
        raise InputError(
            f"`front` and `tail` must leave some of the {count} neurons of the layer "
            f"to compare with the classes' means, got {options.front!r} and "
            f"{options.tail!r}."
        )
    num_classes = jax.eval_shape(lambda z: model_fn(z).logits, batch.x[:1]).shape[1]
    _checks.label_range(batch.y, num_classes)
    # The size does not matter here, and may be traced, which no static argument is.
    static = dataclasses.replace(options, size=0.0)
    found = _fit(static, num_classes, key, as_pytree(model_fn), batch)
    if _checks.is_concrete(found.counts) and not np.all(np.asarray(found.counts)):
        missing = int(np.argmin(np.asarray(found.counts)))
        raise InputError(
            f"`batch` has no image of class {missing} that the model classifies "
            "correctly: give more benign images, or train the model."
        )
    return found


def check_images(x: Array) -> None:
    """Raises unless images have pixels in [0, 1], as far as is known."""
    _checks.images(x=x)
    _checks.image_axes(x=x)
    _checks.no_nan(x=x)
    if _checks.is_concrete(x) and x.size:
        low, high = np.min(np.asarray(x)), np.max(np.asarray(x))
        if low < 0 or high > 1:
            raise InputError(
                f"`x` must have pixels in [0, 1], got {low:g} to {high:g}. Divide "
                "images of 0 to 255 by 255."
            )


def image_masks(options: NIPOptions, model_fn: ModelFn, x: Array, y: Array) -> Array:
    """Sets of neurons by the influence at each image itself, [B, *layer]."""
    given = (model_fn, x, y)
    found = options.measure(*given, layer=options.layer, output=options.output)
    return _sets(options, found)


def weighted(options: NIPOptions, masks: Array) -> Array:
    """Masks m of the equations: sets with the weights of front and tail."""
    return jnp.where(
        masks > 0, options.front_weight * masks, options.tail_weight * masks
    )


def flat_keys(options: NIPOptions, x: Array, a: Array) -> Array:
    """What the dictionary compares, [B, D], float32."""
    chosen = x if options.nearest_by == "pixels" else a
    return chosen.reshape(chosen.shape[0], -1).astype(jnp.float32)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _fit(
    options: NIPOptions, num_classes: int, key: Key, model_fn: ModelFn, batch: Batch
) -> NIPState:
    x, y = batch

    def first(x: Array, y: Array) -> "_First":
        output = model_fn(x, capture=(options.layer,))
        own = options.measure(
            model_fn, x, y, layer=options.layer, output=options.output
        )
        right = output.logits.argmax(axis=1) == y
        return _First(output.features[options.layer], own, right)

    seen = _chunked(first, options.chunk_size, x, y)
    right = seen.right.astype(jnp.float32)
    means = influence.class_means(seen.activation, y, num_classes, right)
    deviation = _deviation(seen.activation, right)
    by_class = influence.class_means(seen.influence, y, num_classes, right).mean
    everything = influence.class_means(seen.influence, jnp.zeros_like(y), 1, right).mean
    masks, pooled = (_sets(options, found) for found in (by_class, everything))
    if options.neurons == "random":
        masks, pooled = (
            influence.random_sets(k, found.shape, options.front, options.tail)
            for k, found in zip(jax.random.split(key), (masks, pooled), strict=True)
        )

    def second(x: Array, y: Array) -> "_Second":
        own = masks[y]
        if options.sets == "image" and options.neurons == "influence":
            own = image_masks(options, model_fn, x, y)
        both = jnp.stack([own, jnp.broadcast_to(pooled, own.shape)])
        both = weighted(options, both)
        classes = jnp.stack([y, y])
        way = slopes(*(model_fn, x, options.layer, both, classes, options.class_weight))
        return _Second(way.score.T, jnp.moveaxis(way.direction, 0, 1))

    moves = _chunked(second, options.chunk_size, x, y)
    level = influence.class_means(moves.score[:, 0], y, num_classes, right).mean
    pooled_level = jnp.average(moves.score[:, 1], weights=right)
    directions = rms_normalised(
        influence.class_means(moves.direction[:, 0], y, num_classes, right).mean
    )
    pooled_direction = influence.class_means(
        moves.direction[:, 1], jnp.zeros_like(y), 1, right
    ).mean
    if options.direction == "random":
        every = jnp.concatenate([directions, pooled_direction])
        drawn = jax.random.normal(jax.random.fold_in(key, 2), every.shape)
        directions, pooled_direction = jnp.split(rms_normalised(drawn), [num_classes])
    kept = slice(None) if options.policy == "dictionary" else slice(0)
    keys = flat_keys(options, x, seen.activation)
    labels = jnp.where(seen.right, y, -1)
    return NIPState(
        influence=by_class,
        masks=masks,
        directions=directions,
        pooled_mask=pooled,
        pooled_direction=rms_normalised(pooled_direction),
        means=means.mean,
        deviation=deviation,
        level=jnp.append(level, pooled_level),
        scale=jnp.ones(()),
        counts=means.weight,
        dictionary=Dictionary(keys[kept], moves.direction[kept, 0], labels[kept]),
    )


class _First(NamedTuple):
    activation: Array
    influence: Array
    right: Array


class _Second(NamedTuple):
    score: Array
    direction: Array


def _sets(options: NIPOptions, found: Array) -> Array:
    return influence.front_and_tail(
        found, options.front, options.tail, tail_order=options.tail_order
    )


def _deviation(a: Array, weights: Array) -> Array:
    rows = weights.reshape(-1, *(1,) * (a.ndim - 1))
    total = jnp.maximum(weights.sum(), 1)
    mean = (rows * a).sum(axis=0) / total
    found = jnp.sqrt((rows * jnp.square(a - mean[None])).sum(axis=0) / total)
    floor = _FLOOR * found.mean()
    return jnp.maximum(found, jnp.where(floor > 0, floor, 1.0))


def _chunked(fun: Callable[..., Any], size: int, x: Array, y: Array) -> Any:
    """`fun` of images and labels, so many at a time."""
    count = x.shape[0]
    size = min(size, count)
    chunks = -(-count // size)
    # The last chunk is filled up with images that are looked at twice.
    rows = jnp.arange(chunks * size) % count
    split = lambda a: a[rows].reshape(chunks, size, *a.shape[1:])
    run = fun if chunks == 1 else loop_safe(fun)
    found = jax.lax.map(lambda part: run(*part), (split(x), split(y)))
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:count], found)
