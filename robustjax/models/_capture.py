"""Reading and tapping layers by path: what the linen and the nnx adapter share.

A path is the names on the way to a module joined by "/", `"block2/conv"`.
"""

import difflib
from collections.abc import Iterable, Sequence

import jax.numpy as jnp

from robustjax._checks import InputError
from robustjax.types import Array

_MOST_LISTED = 12


def tapped(layer: str, output: object, tap: Array) -> Array:
    """`output + tap`, in the dtype of `output`.

    Args:
      layer: Path of the layer, for the message.
      output: What the layer returned.
      tap: Of the shape of `output`, or with a first axis of 1: the same for the batch.

    Raises:
      InputError: `output` is no array, or `tap` has another shape.

    Example:
      >>> tapped("conv", jnp.ones((2, 3)), jnp.ones((1, 3))).tolist()
      [[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]]
    """
    output = _one_array("taps", layer, output)
    if tap.shape not in (output.shape, (1, *output.shape[1:])):
        raise InputError(
            f"`taps` for layer '{layer}' must have the shape of its output, "
            f"{output.shape}, or 1 as first axis; got {tap.shape}."
        )
    # A float32 tap must not widen a bfloat16 model.
    return output + tap.astype(output.dtype)


def captured(layer: str, outputs: Sequence[object]) -> Array:
    """The single output in `outputs`, which holds one for each call of the layer.

    Raises:
      InputError: The layer was called several times, or returned no single array.

    Example:
      >>> captured("relu", [jnp.ones(2)]).shape
      (2,)
    """
    if len(outputs) != 1:
        raise InputError(
            f"`capture` names '{layer}', which the model calls {len(outputs)} times; "
            "name a layer that is called once."
        )
    return _one_array("capture", layer, outputs[0])


def unknown_layer(argument: str, layer: str, layers: Iterable[str]) -> InputError:
    """The error for a path that no layer of this forward pass has.

    Example:
      >>> print(unknown_layer("capture", "haed", ["conv", "head"]))
      `capture` names 'haed', but no layer of that path ran. Layers: head, conv.
    """
    known = list(layers)
    near = difflib.get_close_matches(layer, known, n=3)
    order = near + [name for name in known if name not in near]
    more = len(order) - _MOST_LISTED
    listed = ", ".join(order[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else "")
    return InputError(
        f"`{argument}` names '{layer}', but no layer of that path ran. "
        f"Layers: {listed}."
    )


def as_logits(output: object, x: Array) -> Array:
    """`output` as float32 logits [B, K] of the images `x` [B, ...].

    Raises:
      InputError: `output` is no array [B, K].

    Example:
      >>> as_logits(jnp.ones((2, 10), jnp.bfloat16), jnp.ones((2, 8, 8, 1))).dtype
      dtype('float32')
    """
    shape = getattr(output, "shape", type(output).__name__)
    if not isinstance(shape, tuple) or len(shape) != 2 or shape[0] != x.shape[0]:
        raise InputError(
            f"The model must return logits [{x.shape[0]}, num_classes] for `x` "
            f"{x.shape}, got {shape}."
        )
    return jnp.asarray(output).astype(jnp.float32)


def _one_array(argument: str, layer: str, output: object) -> Array:
    if not hasattr(output, "shape"):
        raise InputError(
            f"`{argument}` names '{layer}', which returns a {type(output).__name__}; "
            "name a layer that returns one array."
        )
    return jnp.asarray(output)
