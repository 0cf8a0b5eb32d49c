"""Influence of neurons by derivatives: what a layer's outputs do to the model's.

A neuron is an entry of a layer's output a, a model z = h(a) from there on, and f a
scalar function of its logits (a logit by default). The gradient with respect to a `tap`
of zeros at the layer is the derivative df/da: nothing below the layer is
differentiated, and the model is not split.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from robustjax import _checks
from robustjax._checks import InputError
from robustjax._gradients import loop_safe
from robustjax.influence.outputs import logit
from robustjax.types import Array, ModelFn

Output = Callable[[Array, Array], Array]
"""`(logits [B, K], y [B]) -> [B]`: see `robustjax.influence.outputs`."""


class Measure(Protocol):
    """Images [B, H, W, C] and labels [B] to the influence of neurons, [B, *layer].

    `layer` is a path as in `Model.apply`, `output` what the neurons have an influence
    on. The result is of the layer's shape, of its dtype, and differentiable.
    """

    def __call__(
        self,
        model_fn: ModelFn,
        x: Array,
        y: Array,
        /,
        *,
        layer: str,
        output: Output = logit,
    ) -> Array:
        """The influence of each neuron on f of its own image."""
        ...


def gradient(
    model_fn: ModelFn, x: Array, y: Array, *, layer: str, output: Output = logit
) -> Array:
    """df/da_j, [B, *layer].

    Its mean over images is the internal influence of "Influence-Directed Explanations
    for Deep Convolutional Networks" (Leino et al., 2018).

    Args:
      model_fn: The classifier.
      x: Images [B, H, W, C].
      y: Labels [B], at which `output` is taken.
      layer: The layer's path.
      output: f.

    Raises:
      InputError: there is no such layer (those that exist are named), or labels do not
        fit.

    Example:
      >>> import flax.linen as nn
      >>> from robustjax import models
      >>> class Net(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         x = nn.relu(nn.Dense(3, name="hidden")(x))
      ...         return nn.Dense(2, name="head")(x)
      >>> model = models.from_linen(Net(), call_kwargs=lambda mode: {})
      >>> x = jnp.ones((4, 5))
      >>> model_fn = models.model_fn(model, *model.init(jax.random.key(0), x))
      >>> gradient(model_fn, x, jnp.zeros(4, int), layer="hidden").shape
      (4, 3)
    """
    return _derivative(model_fn, x, y, layer, output).gradient


def activation_x_gradient(
    model_fn: ModelFn, x: Array, y: Array, *, layer: str, output: Output = logit
) -> Array:
    """a_j df/da_j, [B, *layer]: to first order what f loses without the neuron.

    At the input of a linear head the sum over the neurons is z_y - b_y. It is what the
    scripts of NIP rank neurons by, with f the probability (Chen et al., 2021).

    Args:
      model_fn: As in `gradient`, with its errors, as is everything else.
      x: Images.
      y: Labels.
      layer: The layer's path.
      output: f.
    """
    found = _derivative(model_fn, x, y, layer, output)
    return found.activation * found.gradient


def conductance(
    model_fn: ModelFn,
    x: Array,
    y: Array,
    *,
    layer: str,
    output: Output = logit,
    baseline: Array | float = 0.0,
    num_steps: int = 20,
) -> Array:
    """The flow of f(x) - f(baseline) through each neuron, [B, *layer].

    The integral of df/da_j da_j along the straight line from `baseline` to x ("How
    Important Is a Neuron?", Dhamdhere et al., 2018, eq. 2) by the trapezoid rule: the
    sum over the neurons of a layer that everything passes through is the difference of
    outputs, up to an error that falls with the square of the number of steps.

    Args:
      model_fn: As in `gradient`, with its errors.
      x: Images.
      y: Labels.
      layer: The layer's path.
      output: f.
      baseline: A number, an image, or an image for each one of `x`.
      num_steps: Pieces of the line; costs a forward pass and a backward pass of the
        upper layers each, and one more.

    Raises:
      InputError: also for a baseline of another shape or steps that are no positive
        integer.
    """
    _checks.positive_int(num_steps=num_steps)
    start = _baseline(baseline, x)
    exact = lambda a: a.astype(jnp.promote_types(a.dtype, jnp.float32))

    def at(share: Array) -> _Derivative:
        low, high = exact(start), exact(x)
        point = low + share.astype(low.dtype) * (high - low)
        found = _derivative(model_fn, point.astype(x.dtype), y, layer, output)
        # Small pieces of many steps vanish in half precision.
        return _Derivative(exact(found.activation), exact(found.gradient))

    at = loop_safe(at)

    def piece(before: tuple[_Derivative, Array], share: Array):
        last, total = before
        here = at(share)
        slope = (last.gradient + here.gradient) / 2
        return (here, total + slope * (here.activation - last.activation)), None

    first = at(jnp.zeros(()))
    shares = jnp.arange(1, num_steps + 1) / num_steps
    start_of_sum = (first, jnp.zeros_like(first.activation))
    (_, total), _ = jax.lax.scan(piece, start_of_sum, shares)
    return total.astype(activations(model_fn, x, layer).dtype)


def all_classes(
    measure: Measure,
    model_fn: ModelFn,
    x: Array,
    num_classes: int,
    *,
    layer: str,
    output: Output = logit,
    at_once: int | None = None,
) -> Array:
    """The influence on every class, [B, K, *layer].

    Args:
      measure: `gradient` or the like; of its passes only what depends on the class is
        repeated, the upper layers' backward one.
      model_fn: As in `gradient`, with its errors.
      x: Images.
      num_classes: K.
      layer: The layer's path.
      output: f.
      at_once: Classes side by side, where memory does not take all of them.

    Raises:
      InputError: also for counts that are no positive integers.
    """
    _checks.positive_int(num_classes=num_classes)
    at_once = num_classes if at_once is None else at_once
    _checks.positive_int(at_once=at_once)

    def of_class(label: Array) -> Array:
        y = jnp.broadcast_to(label, x.shape[:1])
        return measure(model_fn, x, y, layer=layer, output=output)

    labels = jnp.arange(num_classes)
    if at_once >= num_classes:
        return jax.vmap(of_class, out_axes=1)(labels)
    found = jax.lax.map(loop_safe(of_class), labels, batch_size=at_once)
    return jnp.moveaxis(found, 0, 1)


class _Derivative(NamedTuple):
    activation: Array
    gradient: Array


def _derivative(
    model_fn: ModelFn, x: Array, y: Array, layer: str, output: Output
) -> _Derivative:
    """A and df/da at these images."""
    check_labels(x, y)

    def total(tap: Array) -> tuple[Array, Array]:
        found = model_fn(x, capture=(layer,), taps={layer: tap})
        return values(output, found.logits, y).sum(), found.features[layer]

    shape = activations(model_fn, x, layer)
    tap = jnp.zeros(shape.shape, shape.dtype)
    slope, activation = jax.grad(total, has_aux=True)(tap)
    return _Derivative(activation, slope)


def check_labels(x: Array, y: Array) -> None:
    """Raises unless labels [B] are of images [B, ...]."""
    _checks.same_batch(x=x, y=y)
    if jnp.ndim(y) != 1:
        raise InputError(
            f"`y` must be one label per image, [{x.shape[0]}], got shape "
            f"{jnp.shape(y)}. Of one-hot rows take the argmax."
        )


def values(output: Output, logits: Array, y: Array) -> Array:
    """F of each image, [B].

    Raises:
      InputError: `output` returns something else.
    """
    found = output(logits, y)
    if jnp.shape(found) != y.shape:
        raise InputError(
            f"`output` must return one number per image, [{y.shape[0]}], got shape "
            f"{jnp.shape(found)}."
        )
    return found


def activations(
    model_fn: ModelFn, x: Array, layer: str, *, argument: str = "layer"
) -> jax.ShapeDtypeStruct:
    """Shape and dtype of a layer's output, [B, *layer], without running the model.

    Args:
      model_fn: The classifier.
      x: Images.
      layer: The layer's path.
      argument: What the caller calls it, for messages.

    Raises:
      InputError: there is no such layer, or its output has no axis of images.
    """
    ask = lambda z: model_fn(z, capture=(layer,)).features[layer]
    try:
        found = jax.eval_shape(ask, x)
    except InputError as error:
        # The model's word for it, which the caller has not said.
        words = str(error).replace("`capture` names", f"`{argument}` names", 1)
        raise InputError(words) from error
    if not found.shape or found.shape[0] != x.shape[0]:
        raise InputError(
            f"`{argument}` {layer!r} must have an output for each of the {x.shape[0]} "
            f"images, got shape {found.shape}."
        )
    return found


def captured(model_fn: ModelFn, x: Array, layer: str) -> Array:
    """A layer's output, [B, *layer].

    Raises:
      InputError: as for `activations`.
    """
    activations(model_fn, x, layer)
    return model_fn(x, capture=(layer,)).features[layer]


def _baseline(baseline: Array | float, x: Array) -> Array:
    start = jnp.asarray(baseline, x.dtype)
    if start.shape not in ((), x.shape[1:], (1, *x.shape[1:]), x.shape):
        raise InputError(
            f"`baseline` must be a number, an image {x.shape[1:]} or one per image, "
            f"{x.shape}; got shape {start.shape}."
        )
    return jnp.broadcast_to(start, x.shape)
