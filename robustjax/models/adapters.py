"""Flax modules as `Model`s: two pure functions, whatever the module library.

Neither adapter edits the module. Both read and tap layers by path and agree in what
`mode`, `capture`, `taps` and `key` mean; one test suite runs over both.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from robustjax import _checks
from robustjax._checks import InputError
from robustjax.models import _capture, _linen_calls, _nnx_hooks, _nnx_state
from robustjax.types import Array, Key, Mode, Model, ModelOutput, PyTree

# Flax's own ways to look inside; they have the batch size of `init` in them.
_NOT_STATE = ("params", "intermediates", "perturbations")


def _train_flag(mode: Mode) -> Mapping[str, Any]:
    return {"train": mode != "eval"}


def from_linen(
    module: nn.Module,
    *,
    call_kwargs: Callable[[Mode], Mapping[str, Any]] = _train_flag,
) -> Model:
    """A linen module as a `Model`.

    `model_state` is every collection besides "params". In the mode "train" BatchNorm
    uses batch statistics and the new running ones are returned; in "batch" it uses
    batch statistics and in "eval" running ones, and `model_state` comes back as given.

    A layer's path is its linen path, `"block2/conv"`; only `__call__` outputs are
    seen. A tap has the shape of the output or 1 as first axis, is added at every call
    of the layer and before the layer is captured; the gradient with respect to a tap
    is the gradient at that activation.

    Args:
      module: Called as `module(x, **call_kwargs(mode))`, returns logits [B, K]. Its
        random layers draw from the stream "dropout", which is `apply`'s `key`.
      call_kwargs: Keywords of the call in each mode. The default passes `train`, True
        but in "eval"; a module that takes none needs `lambda mode: {}`.

    Returns:
      A `Model`; `logits` are float32 whatever the module computes in.

    Raises:
      InputError: From `apply`: a path in `capture` or `taps` that did not run, a tap of
        the wrong shape, a captured layer called twice, `key` missing where the module
        draws random numbers, an unknown mode, or an output that is no [B, K].

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> x = jnp.ones((2, 3))
      >>> model = from_linen(nn.Dense(4), call_kwargs=lambda mode: {})
      >>> params, model_state = model.init(jax.random.key(0), x)
      >>> model.apply(params, model_state, x).logits.shape
      (2, 4)
    """

    def init(key: Key, x: Array) -> tuple[PyTree, PyTree]:
        _checks.keys(key)
        with _linen_calls.clear_errors(key, call_kwargs("eval")):
            variables = module.init(key, x, **call_kwargs("eval"))
        state = {name: v for name, v in variables.items() if name not in _NOT_STATE}
        return variables.get("params", {}), state

    def apply(
        params: PyTree,
        model_state: PyTree,
        x: Array,
        *,
        mode: Mode = "eval",
        capture: Sequence[str] = (),
        taps: Mapping[str, Array] | None = None,
        key: Key | None = None,
    ) -> ModelOutput:
        _check_call(mode, capture, key)
        logits, updated, features = _linen_calls.run(
            module,
            {"params": params, **model_state},
            x,
            kwargs=call_kwargs(mode),
            mutable=() if mode == "eval" else tuple(model_state),
            capture=capture,
            taps=taps or {},
            key=key,
        )
        if mode == "train":
            model_state = {
                name: updated.get(name, old) for name, old in model_state.items()
            }
        return ModelOutput(_capture.as_logits(logits, x), features, model_state)

    return Model(init, apply)


def from_nnx(module: nnx.Module | Callable[[nnx.Rngs], nnx.Module]) -> Model:
    """An nnx module, or a function that builds one, as a `Model`.

    `params` (every `nnx.Param`) and `model_state` (every other variable, dropout's
    random streams among them) are nested dictionaries of arrays with string keys,
    `params["layers"]["0"]["kernel"]`. A call merges a copy, puts it in `.train()` or
    `.eval()` and reads it: the module itself never changes.

    Modes, paths (`"layers/0/conv"`) and taps are those of `from_linen`. Layers inside
    nnx transforms (`nnx.remat`, `nnx.scan`) are out of reach of `capture` and `taps`.

    Randomness: given `key`, the random streams restart from it, whatever
    `model_state` says, and `model_state`'s own are returned as they came. Without
    `key` the streams in `model_state` are used, and "train" returns them advanced.

    Args:
      module: Called as `module(x)`, returns logits [B, K]. From an instance, `init`
        returns copies of its current values and uses no randomness; a function gets
        `nnx.Rngs(key)`.

    Returns:
      A `Model`; `logits` are float32 whatever the module computes in.

    Raises:
      InputError: As for `from_linen`, but for `key`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> model = from_nnx(lambda rngs: nnx.Linear(3, 4, rngs=rngs))
      >>> params, model_state = model.init(jax.random.key(0), jnp.ones((2, 3)))
      >>> model.apply(params, model_state, jnp.ones((2, 3))).logits.shape
      (2, 4)
    """
    if isinstance(module, nnx.Module):
        structure = _nnx_state.structure(lambda: module)
        values = lambda key: jax.tree.map(jnp.copy, _nnx_state.values_of(module))
    else:
        # The key decides values alone, never the structure.
        structure = _nnx_state.structure(lambda: module(nnx.Rngs(0)))
        values = lambda key: _nnx_state.values_of(module(nnx.Rngs(key)))

    def init(key: Key, x: Array) -> tuple[PyTree, PyTree]:
        del x
        _checks.keys(key)
        return structure.split(values(key))

    def apply(
        params: PyTree,
        model_state: PyTree,
        x: Array,
        *,
        mode: Mode = "eval",
        capture: Sequence[str] = (),
        taps: Mapping[str, Array] | None = None,
        key: Key | None = None,
    ) -> ModelOutput:
        _check_call(mode, capture, key)
        given = structure.join(params, model_state)
        streams = {} if key is None else structure.restarted(given, key)
        copy = structure.merge({**given, **streams})
        copy.train() if mode != "eval" else copy.eval()
        with _nnx_hooks.hooked(copy, capture, taps or {}) as outputs:
            logits = copy(x)
        features = {name: _capture.captured(name, outputs[name]) for name in capture}
        if mode == "train":
            kept = {path: given[path] for path in streams}
            new = {**_nnx_state.values_of(copy), **kept}
            model_state = structure.split(new)[1]
        return ModelOutput(_capture.as_logits(logits, x), features, model_state)

    return Model(init, apply)


def _check_call(mode: Mode, capture: Sequence[str], key: Key | None) -> None:
    _checks.one_of(get_args(Mode), mode=mode)
    if isinstance(capture, str):
        raise InputError(f"`capture` must be a sequence of paths, got {capture!r}.")
    if key is not None:
        _checks.keys(key)
