"""Influence of neurons by taking them away: layer ablation and neuron Shapley values.

A neuron that is taken away has the value `value` in place of its own, by a tap at the
layer. The layers below do not depend on that: under `vmap` they run once.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from robustjax import _checks, _random
from robustjax._checks import InputError
from robustjax._gradients import loop_safe
from robustjax.influence.gradients import Output, activations, check_labels, values
from robustjax.influence.outputs import logit
from robustjax.types import Array, Key, ModelFn


def ablation(
    model_fn: ModelFn,
    x: Array,
    y: Array,
    *,
    layer: str,
    output: Output = logit,
    value: Array | float = 0.0,
    channels: bool = False,
    at_once: int | None = None,
) -> Array:
    """f(a) - f(a without neuron j), [B, *layer], or [B, C] of whole channels.

    One pass of the upper layers for each neuron.

    Args:
      model_fn: The classifier.
      x: Images [B, H, W, C].
      y: Labels [B], at which `output` is taken.
      layer: The layer's path.
      output: f.
      value: What stands in for a neuron: a number, or an array of the layer's shape
        such as the mean over benign images.
      channels: Whether all places of a channel (the last axis) go at once.
      at_once: Neurons side by side, where memory does not take all of them.

    Raises:
      InputError: there is no such layer, or an argument does not fit.

    Example:
      >>> from robustjax.types import ModelOutput
      >>> def model_fn(x, *, capture=(), taps=None):
      ...     a = x + (taps or {}).get("a", 0)
      ...     return ModelOutput(a @ jnp.array([[1.0, 0], [2, 1]]), {"a": a}, {})
      >>> x, y = jnp.array([[1.0, 3.0]]), jnp.array([0])
      >>> ablation(model_fn, x, y, layer="a").tolist()
      [[1.0, 6.0]]
    """
    players = _Players(model_fn, x, y, layer, output, value, channels)
    whole = players.left(jnp.ones(players.count, bool))

    def without(player: Array) -> Array:
        return whole - players.left(jnp.arange(players.count) != player)

    lost = _mapped(without, jnp.arange(players.count), at_once)
    return jnp.moveaxis(lost, 0, 1).reshape(-1, *players.shape)


class ShapleyValues(NamedTuple):
    """Estimates with their uncertainty.

    Attributes:
      value: [B, *layer], or [B, C] of whole channels.
      standard_error: Of the same shape: the deviation over permutations divided by the
        root of their number.
    """

    value: Array
    standard_error: Array


def shapley(
    key: Key,
    model_fn: ModelFn,
    x: Array,
    y: Array,
    *,
    layer: str,
    output: Output = logit,
    num_permutations: int = 50,
    value: Array | float = 0.0,
    channels: bool = False,
    at_once: int | None = None,
) -> ShapleyValues:
    """Shapley values of neurons, by sampling permutations.

    The mean, over random orders in which the neurons come in, of what f gains by each
    ("Neuron Shapley", Ghorbani and Zou, 2020, without its early stopping). The sum over
    the neurons is f(a) - f(all of them away), whatever the permutations.

    Args:
      key: One key, folded with the position in the batch, or one key per image, [B].
      model_fn: As in `ablation`, with its errors, as is everything below but one.
      x: Images.
      y: Labels.
      layer: The layer's path.
      output: f.
      num_permutations: At least 2, one pass of the upper layers for each neuron each.
      value: What stands in for a neuron.
      channels: Whether all places of a channel count as one neuron.
      at_once: Neurons side by side.
    """
    _checks.positive_int(num_permutations=num_permutations)
    if num_permutations < 2:
        raise InputError("`num_permutations` must be at least 2, or there is no error.")
    players = _Players(model_fn, x, y, layer, output, value, channels)
    keys = _random.per_image_keys(key, x.shape[0])
    sizes = jnp.arange(players.count + 1)

    def gains(number: Array) -> Array:
        def order(key: Key) -> Array:
            return jax.random.permutation(key, players.count)

        # The place of each neuron in the order, [B, J].
        place = jax.vmap(order)(_random.fold_in(keys, number))
        values = _mapped(lambda size: players.left(place < size), sizes, at_once)
        return jnp.take_along_axis(jnp.diff(values, axis=0).T, place, axis=1)

    def add(before: tuple[Array, Array], number: Array):
        mean, squares = before
        found = gains(number)
        moved = mean + (found - mean) / (number + 1)
        return (moved, squares + (found - mean) * (found - moved)), None

    zeros = jnp.zeros((x.shape[0], players.count), players.dtype)
    numbers = jnp.arange(num_permutations)
    (mean, squares), _ = jax.lax.scan(add, (zeros, zeros), numbers)
    error = jnp.sqrt(squares / (num_permutations - 1) / num_permutations)
    shape = (-1, *players.shape)
    return ShapleyValues(mean.reshape(shape), error.reshape(shape))


class _Players:
    """The neurons of a layer, or its channels, as players who may be left out."""

    def __init__(self, model_fn, x, y, layer, output, value, channels):
        check_labels(x, y)
        found = activations(model_fn, x, layer)
        self._layer, self._own = layer, found.shape[1:]
        self.shape = self._own[-1:] if channels else self._own
        places = (1,) * (len(self._own) - 1)
        self._spread = (*places, *self.shape) if channels else self._own
        self.count = math.prod(self.shape)
        self._value = jnp.asarray(value, found.dtype)
        if self._value.shape not in ((), self._own):
            raise InputError(
                f"`value` must be a number or an array of the layer's shape "
                f"{self._own}, got shape {self._value.shape}."
            )
        self._activation = model_fn(x, capture=(layer,)).features[layer]
        self._of = lambda taps: values(output, model_fn(x, taps=taps).logits, y)
        self.dtype = jax.eval_shape(self.left, jnp.ones(self.count, bool)).dtype

    def left(self, present: Array) -> Array:
        """F of the neurons that are present, [J] or [B, J] bool."""
        lead = present.shape[:-1] or (1,)
        present = present.reshape(*lead, *self._spread)
        gone = jnp.broadcast_to(self._value, self._own)[None] - self._activation
        return self._of({self._layer: jnp.where(present, 0, gone)})


def _mapped(
    fun: Callable[[Array], Array], numbers: Array, at_once: int | None
) -> Array:
    if at_once is None:
        return jax.vmap(fun)(numbers)
    _checks.positive_int(at_once=at_once)
    return jax.lax.map(loop_safe(fun), numbers, batch_size=at_once)
