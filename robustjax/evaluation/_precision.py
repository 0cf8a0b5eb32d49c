"""A classifier as hardware with short multiplicands computes it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core.primitives import conv_general_dilated_p, dot_general_p
from jax.tree_util import Partial

from robustjax._gradients import rewritten
from robustjax.types import Array, LogitsFn, as_pytree


def in_bfloat16(logits_fn: LogitsFn) -> Partial:
    """The classifier with the operands of every product rounded to bfloat16.

    Sums stay in their own type. That is what matrix units do at JAX's default precision
    on TPUs, and roughly (8 bits of mantissa in place of 11) what TensorFloat-32 does on
    GPUs; a CPU, which ignores `jax_default_matmul_precision`, can look at it so.

    Args:
      logits_fn: The classifier; for forward passes only.

    Example:
      >>> weights = jnp.array([[1.001], [-1.0]])
      >>> rounded = in_bfloat16(lambda x: x @ weights)
      >>> float(rounded(jnp.ones((1, 2)))[0, 0])
      0.0
    """
    return Partial(_Rounded(), as_pytree(logits_fn))


@dataclasses.dataclass(frozen=True)
class _Rounded:
    """Static, so that `jit` knows it again."""

    def __call__(self, logits_fn: LogitsFn, x: Array) -> Array:
        rules = {p: _product(p) for p in (dot_general_p, conv_general_dilated_p)}
        return rewritten(logits_fn, rules)(x)


def _product(primitive: Any) -> Callable[..., Array]:
    def run(left: Array, right: Array, **params: Any) -> Array:
        return primitive.bind(_short(left), _short(right), **params)

    return run


def _short(operand: Array) -> Array:
    if not jnp.issubdtype(operand.dtype, jnp.floating):
        return operand
    # Not a cast there and back, which XLA may leave out.
    return jax.lax.reduce_precision(operand, exponent_bits=8, mantissa_bits=7)
