"""Capture and taps on unmodified nnx modules, through their class.

nnx has no interceptors, and Python looks `__call__` up on the class. So each module
asked for is given, for the length of one call, a subclass of its own class whose
`__call__` also adds the tap and keeps the output.
"""

import contextlib
import contextvars
import functools
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from flax import nnx

from robustjax.models import _capture
from robustjax.types import Array

_Hook = Callable[[Any], Any]

# By identity of the module. Not an attribute of it, which nnx would take for a part of
# the model and carry into the traces of nested nnx transforms.
_HOOKS: contextvars.ContextVar[Mapping[int, _Hook]] = contextvars.ContextVar(
    "robustjax_nnx_hooks", default=types.MappingProxyType({})
)


@contextlib.contextmanager
def hooked(
    module: nnx.Module, capture: Sequence[str], taps: Mapping[str, Array]
) -> Iterator[dict[str, list[Any]]]:
    """Yields a dictionary that fills with the outputs of the layers named.

    On leaving, every module has its own class again.

    Args:
      module: A fresh copy, as `nnx.merge(..., copy=True)` makes; its classes change.
      capture: Paths to read.
      taps: Values to add to outputs, by path.

    Raises:
      InputError: A path names no layer of `module`, or, on leaving, one that did not
        run (nnx transforms such as `nnx.remat` rebuild the modules inside them, which
        are then out of reach).
    """
    layers = {
        "/".join(map(str, path)): layer
        for path, layer in nnx.iter_modules(module)
        if path and callable(layer)
    }
    asked = [("capture", name) for name in capture] + [("taps", name) for name in taps]
    for argument, name in asked:
        if name not in layers:
            raise _capture.unknown_layer(argument, name, layers)
    outputs: dict[str, list[Any]] = {name: [] for _, name in asked}

    def hook(name: str, output: Any) -> Any:
        if name in taps:
            output = _capture.tapped(name, output, taps[name])
        outputs[name].append(output)
        return output

    classes = {name: type(layers[name]) for name in outputs}
    token = _HOOKS.set(
        {id(layers[name]): functools.partial(hook, name) for name in outputs}
    )
    try:
        for name, own in classes.items():
            object.__setattr__(layers[name], "__class__", _with_hook(own))
        yield outputs
    finally:
        _HOOKS.reset(token)
        for name, own in classes.items():
            object.__setattr__(layers[name], "__class__", own)
    for argument, name in asked:
        if not outputs[name]:
            raise _capture.unknown_layer(argument, name, set(layers) - {name})


@functools.cache
def _with_hook(own: type) -> type:
    """Subclass of `own`; cached, because nnx keeps every class it has seen."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = own.__call__(self, *args, **kwargs)  # pyright: ignore[reportCallIssue]
        hook = _HOOKS.get().get(id(self))
        return output if hook is None else hook(output)

    return types.new_class(
        own.__name__,
        (own,),
        {"pytree": getattr(own, "_pytree__is_pytree", True)},
        lambda namespace: namespace.update(__call__=call, __module__=own.__module__),
    )
