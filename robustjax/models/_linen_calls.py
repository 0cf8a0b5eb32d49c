"""One forward pass of an unmodified linen module, its layers read and tapped."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.errors
import flax.linen as nn

from robustjax._checks import InputError
from robustjax.models import _capture
from robustjax.types import Array, Key, PyTree

_SEEN = "intermediates"


def run(
    module: nn.Module,
    variables: PyTree,
    x: Array,
    *,
    kwargs: Mapping[str, Any],
    mutable: Sequence[str],
    capture: Sequence[str],
    taps: Mapping[str, Array],
    key: Key | None,
) -> tuple[Any, PyTree, dict[str, Array]]:
    """`module.apply` with layers by path: (output, updated collections, features).

    Raises:
      InputError: A path did not run, a tap has the wrong shape, a captured layer was
        called twice, or the module draws random numbers without `key`.
    """
    ran: dict[str, None] = {}

    def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        output = call(*args, **kwargs)
        layer = _path(context.module)
        if context.method_name != "__call__" or not layer:
            return output
        ran[layer] = None
        return _capture.tapped(layer, output, taps[layer]) if layer in taps else output

    with clear_errors(key, kwargs), nn.intercept_methods(intercept):
        output, updated = module.apply(
            variables,
            x,
            rngs=None if key is None else {"dropout": key},
            mutable=[*mutable, _SEEN] if capture else list(mutable),
            # Flax stores what it captures after the interceptors: after the tap.
            capture_intermediates=lambda layer, method: (
                method == "__call__" and _path(layer) in capture
            ),
            **kwargs,
        )
    for argument, layers in (("capture", capture), ("taps", taps)):
        for layer in layers:
            if layer not in ran:
                raise _capture.unknown_layer(argument, layer, ran)
    # A transform may have kept the collection from coming into being.
    seen: Any = updated.get(_SEEN, {})
    features = {layer: _seen(seen, layer) for layer in capture}
    return output, updated, features


@contextlib.contextmanager
def clear_errors(key: Key | None, kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Turns flax's errors about keys and keywords into ones that say what to pass."""
    try:
        yield
    except flax.errors.InvalidRngError as error:
        if key is None:
            line = "`key` must be given: the model draws random numbers in this mode."
        else:
            line = f"`key` feeds the random stream 'dropout' alone: {error}"
        raise InputError(line) from error
    except TypeError as error:
        if "unexpected keyword argument" in str(error):
            error.add_note(
                f"`from_linen` calls the module with {dict(kwargs)}; give "
                "`call_kwargs` to call it with something else."
            )
        raise


def _path(layer: nn.Module) -> str:
    return "/".join(layer.path)


def _seen(collection: Mapping[str, Any], layer: str) -> Array:
    for part in layer.split("/"):
        collection = collection.get(part, {})
    if "__call__" not in collection:
        raise InputError(
            f"`capture` names '{layer}', which runs inside a linen transform that does "
            f"not carry the collection '{_SEEN}'; name a layer outside of it."
        )
    return _capture.captured(layer, collection["__call__"])
