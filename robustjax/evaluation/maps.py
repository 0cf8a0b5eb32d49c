"""Where in an image the influence of a convolutional layer sits."""

import jax.numpy as jnp
import numpy as np

from robustjax import influence
from robustjax._checks import InputError
from robustjax.types import Array, ModelFn


def influence_maps(model_fn: ModelFn, x: Array, y: Array, *, layer: str) -> np.ndarray:
    """Where in the image a convolutional layer's influence sits, [B, h, w].

    The absolute products of activation and gradient of the log-probability, summed over
    channels.

    Raises:
      InputError: there is no such layer, or its outputs have no places.
    """
    check_places(model_fn, x, layer)
    found = influence.activation_x_gradient(
        model_fn, x, y, layer=layer, output=influence.log_probability
    )
    return np.asarray(jnp.abs(found).sum(axis=-1))


def check_places(
    model_fn: ModelFn, x: Array, layer: str, *, argument: str = "layer"
) -> None:
    """Raises unless a layer, the value of `argument`, has outputs [B, h, w, C]."""
    shape = influence.activations(model_fn, x, layer, argument=argument).shape
    if len(shape) != 4:
        raise InputError(
            f"`{argument}` {layer!r} must have outputs [B, h, w, C] for a map, got "
            f"{shape}."
        )
