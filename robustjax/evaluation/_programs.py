"""What a traced program multiplies, and how often."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from robustjax.types import Array, LogitsFn, as_pytree

# Small convolutions in loops are rewritten to elementwise products.
_PRODUCTS = ("dot_general", "conv_general_dilated", "mul")


def products(jaxpr: Any, times: float = 1.0) -> Iterator[tuple[Any, float]]:
    """Every product of a program, and how often it is made."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in _PRODUCTS:
            yield eqn, times
        inside = list(_inside(eqn.params))
        times_inside = times
        if eqn.primitive.name == "scan":
            times_inside = times * eqn.params["length"]
        if eqn.primitive.name == "while":
            times_inside = times * _limit(eqn.params["cond_jaxpr"].jaxpr)
        if eqn.primitive.name == "cond":
            inside = [max(inside, key=total)]
        for one in inside:
            yield from products(one, times_inside)


def multiply_adds(logits_fn: LogitsFn, x: Array) -> float:
    """Multiplications of numbers in a forward pass, counted in its program.

    Of matrix products, of convolutions, and element by element, which is what small
    convolutions in loops are rewritten to.

    Example:
      >>> multiply_adds(lambda z: z @ jnp.ones((8, 2)), jnp.ones((4, 8)))
      64.0
    """
    jaxpr = jax.make_jaxpr(lambda fun, z: fun(z))(as_pytree(logits_fn), x).jaxpr
    return total(jaxpr)


def total(jaxpr: Any) -> float:
    """Multiplications of numbers in a program."""
    return sum(times * multiplications(eqn) for eqn, times in products(jaxpr))


def multiplications(eqn: Any) -> float:
    """Of floating-point numbers, in a product."""
    result = eqn.outvars[0].aval
    if not jnp.issubdtype(result.dtype, jnp.floating):
        return 0.0
    left, right = (v.aval.shape for v in eqn.invars)
    summed = 1.0
    if eqn.primitive.name == "dot_general":
        contracted = eqn.params["dimension_numbers"][0][0]
        summed = math.prod(left[axis] for axis in contracted)
    elif eqn.primitive.name == "conv_general_dilated":
        outputs = right[eqn.params["dimension_numbers"].rhs_spec[0]]
        summed = math.prod(right) // outputs
    return summed * math.prod(result.shape)


def _inside(params: Mapping[str, Any]) -> Iterator[Any]:
    """The programs in an equation."""
    for value in params.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(one, (ClosedJaxpr, Jaxpr)):
                yield one.jaxpr if isinstance(one, ClosedJaxpr) else one


def _limit(condition: Any) -> float:
    """The number that a loop's counter is compared with, as in `i < 100`; else 1."""
    found = [1.0]
    for eqn in condition.eqns:
        limits = [v.val for v in eqn.invars if isinstance(v, Literal)]
        if eqn.primitive.name == "lt" and limits and np.ndim(limits[0]) == 0:
            found.append(float(limits[0]))
    return max(found)
