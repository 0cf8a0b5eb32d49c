"""Models with their weights bound: what attacks and test-time defenses are handed.

Both functions return pytrees whose leaves are the weights. Passed through `jax.jit` as
arguments the weights stay arguments (nothing is baked in as a constant), and other
weights of the same model do not compile again.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import get_args

from jax.tree_util import Partial

from robustjax import _checks
from robustjax.types import (
    Array,
    LogitsFn,
    Mode,
    Model,
    ModelFn,
    ModelOutput,
    PyTree,
)


@dataclasses.dataclass(frozen=True)
class _Logits:
    # A dataclass compares by value, a closure by identity: equal ones share a trace.
    model: Model
    mode: Mode

    def __call__(self, params: PyTree, model_state: PyTree, x: Array) -> Array:
        return self.model.apply(params, model_state, x, mode=self.mode).logits


@dataclasses.dataclass(frozen=True)
class _Outputs:
    model: Model

    def __call__(
        self,
        params: PyTree,
        model_state: PyTree,
        x: Array,
        *,
        capture: Sequence[str] = (),
        taps: Mapping[str, Array] | None = None,
    ) -> ModelOutput:
        return self.model.apply(params, model_state, x, capture=capture, taps=taps)


def logits_fn(
    model: Model, params: PyTree, model_state: PyTree, *, mode: Mode = "eval"
) -> LogitsFn:
    """Images [B, H, W, C] to logits [B, K], float32, as a pytree of the weights.

    Args:
      model: The classifier.
      params: Its parameters.
      model_state: Its BatchNorm statistics; never updated here.
      mode: Which statistics BatchNorm uses. "batch" and "train" are the same here and
        let the images of a batch influence one another.

    Raises:
      InputError: `mode` is unknown.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> from robustjax import models
      >>> model = models.from_linen(models.small_cnn())
      >>> x = jnp.ones((2, 8, 8, 1))
      >>> f = logits_fn(model, *model.init(jax.random.key(0), x))
      >>> jax.jit(lambda f, x: f(x))(f, x).shape
      (2, 10)
    """
    _checks.one_of(get_args(Mode), mode=mode)
    return Partial(_Logits(model, mode), params, model_state)


def model_fn(model: Model, params: PyTree, model_state: PyTree) -> ModelFn:
    """The classifier in mode "eval" as a `ModelFn`, a pytree of the weights.

    Args:
      model: The classifier.
      params: Its parameters.
      model_state: Its BatchNorm statistics.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from robustjax import models
      >>> model = models.from_linen(models.small_cnn(dense=32))
      >>> x = jnp.ones((2, 8, 8, 1))
      >>> f = model_fn(model, *model.init(jax.random.key(0), x))
      >>> f(x, capture=("features",)).features["features"].shape
      (2, 32)
    """
    return Partial(_Outputs(model), params, model_state)
