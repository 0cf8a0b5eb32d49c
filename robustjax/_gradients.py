"""The one place where input gradients are taken, with loop-safe convolutions.

XLA on CPU brings a convolution into the layout of its fast kernel only in the entry
computation. Inside a `while` body, where every attack runs, the gradient of a
convolution keeps the dimension order of its derivation and falls to a naive kernel,
10 to 20 times slower. `loop_safe` re-emits every convolution of a function in the
canonical layout (NHWC, HWIO, NHWC), with barriers that keep the simplifier from folding
the transposes back into the dimension numbers. On other backends it returns the
function unchanged.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.extend.core.primitives import conv_general_dilated_p

from robustjax.types import Array, PyTree

_F = TypeVar("_F", bound=Callable[..., Any])
Rules = Mapping[core.Primitive, Callable[..., Array]]
"""Primitives to what takes their operands and parameters in their place."""

# (batch, feature, *spatial) positions of NHWC; (out, in, *spatial) of HWIO, by rank.
_NHWC = {n: (0, n + 1, *range(1, n + 1)) for n in (1, 2, 3)}
_HWIO = {n: (n + 1, n, *range(n)) for n in (1, 2, 3)}

# Calls that only group equations: their bodies are evaluated in place. Those with
# derivatives of their own (custom_jvp, custom_vjp) stay, or the rules would be lost.
_INLINED = ("jit", "pjit", "closed_call")


@jax.custom_jvp
def with_gradient_of(value: Array, smooth: Array) -> Array:
    """`value` with the derivative of `smooth`, of the same shape; the dtype is its own.

    Adding `smooth` and subtracting it again, as is usual, would round.
    """
    del smooth
    return value


@with_gradient_of.defjvp
def _with_gradient_of_jvp(primals, tangents):
    value, _ = primals
    return value, tangents[1].astype(value.dtype)


def input_gradient(
    objective_fn: Callable[[Array], tuple[Array, PyTree]],
    x: Array,
    *,
    raw: bool = False,
) -> tuple[Array, PyTree, Array]:
    """Per-example values, auxiliary output and input gradients.

    The gradient is of the sum over the batch, so that examples stay independent
    wherever the model treats them so. What is not a number in it becomes 0, so that no
    step leads to a pixel that is none, and infinity the largest number.

    Args:
      objective_fn: `x -> ([B] values, aux)`.
      x: [B, ...].
      raw: Leaves the gradient as it is, for who looks at its health.

    Returns:
      values [B], aux, and the gradient of the shape of `x`.

    Example:
      >>> square = lambda x: ((x**2).sum(1), ())
      >>> values, _, grad = input_gradient(square, jnp.ones((2, 3)))
      >>> values.tolist(), grad[0].tolist()
      ([3.0, 3.0], [2.0, 2.0, 2.0])
    """

    def total(z: Array) -> tuple[Array, tuple[Array, PyTree]]:
        values, aux = objective_fn(z)
        return values.sum(), (values, aux)

    differentiated = loop_safe(jax.value_and_grad(total, has_aux=True))
    (_, (values, aux)), grad = differentiated(x)
    return values, aux, grad if raw else jnp.nan_to_num(grad)


def input_jacobian(
    logits_fn: Callable[[Array], Array], x: Array, classes: Array | None = None
) -> tuple[Array, Array]:
    """Logits and the input gradient of each, one backward pass per class.

    The passes run one after another, so that memory beyond the result is that of a
    single one. Examples stay independent as in `input_gradient`.

    Args:
      logits_fn: `x -> [B, K]`.
      x: [B, ...].
      classes: Which logits to differentiate, int [B, M]; all of them if None.

    Returns:
      All logits [B, K], and gradients [B, M, ...] (or [B, K, ...]) in the dtype of `x`.

    Example:
      >>> logits, jacobian = input_jacobian(lambda x: x**2, jnp.array([[1.0, 3.0]]))
      >>> jacobian.tolist()
      [[[2.0, 0.0], [0.0, 6.0]]]
    """

    def differentiated(z: Array, classes: Array | None) -> tuple[Array, Array]:
        logits, pull_back = jax.vjp(logits_fn, z)
        num_classes = logits.shape[1]
        if classes is None:
            every = jnp.arange(num_classes)[:, None]
            rows = jnp.broadcast_to(every, (num_classes, z.shape[0]))
        else:
            rows = classes.T

        def gradient(row: Array) -> Array:
            return pull_back(jax.nn.one_hot(row, num_classes, dtype=logits.dtype))[0]

        return logits, jnp.moveaxis(jax.lax.map(gradient, rows), 0, 1)

    return loop_safe(differentiated)(x, classes)


def loop_safe(fun: _F) -> _F:
    """`fun` with every convolution in the layout that is fast inside CPU loops.

    The values are the same up to the order of additions. Sub-computations (`jit`,
    `scan`, `cond`, `remat`, custom derivatives) are rewritten where they hold a
    convolution, and left as they are elsewhere.

    Args:
      fun: Any traceable function of arrays, usually a gradient.

    Returns:
      A function of the same signature.

    Example:
      >>> double = loop_safe(lambda x: 2 * x)
      >>> float(double(jnp.float32(3.0)))
      6.0
    """

    safe = rewritten(fun, {conv_general_dilated_p: _convolution})

    @functools.wraps(fun)
    def wrapped(*args, **kwargs):
        run = safe if jax.default_backend() == "cpu" else fun
        return run(*args, **kwargs)

    return wrapped  # pyright: ignore[reportReturnType]


def rewritten(fun: _F, rules: Rules) -> _F:
    """`fun` with some of its primitives computed in another way.

    Sub-computations are rewritten where they hold such a primitive, and left as they
    are elsewhere. The new ways are not asked again about what they do themselves.

    Args:
      fun: Any traceable function of arrays.
      rules: For each primitive, what is called with its operands, and its parameters
        as keywords; it returns the one result.

    Example:
      >>> twice = rewritten(jnp.sin, {jax.lax.sin_p: lambda x, **_: 2 * x})
      >>> float(twice(jnp.float32(3.0)))
      6.0
    """

    @functools.wraps(fun)
    def wrapped(*args, **kwargs):
        closed, shapes = jax.make_jaxpr(fun, return_shape=True)(*args, **kwargs)
        outputs = _evaluate(closed, jax.tree.leaves((args, kwargs)), rules)
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return wrapped  # pyright: ignore[reportReturnType]


def _evaluate(closed: core.ClosedJaxpr, args: Sequence[Any], rules: Rules) -> list[Any]:
    """Runs a jaxpr as it stands, except for what has a rule."""
    jaxpr = closed.jaxpr
    values: dict[Any, Any] = {}
    values.update(zip(jaxpr.constvars, closed.consts, strict=True))
    values.update(zip(jaxpr.invars, args, strict=True))

    def read(atom):
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        if eqn.primitive in rules:
            outputs = [rules[eqn.primitive](*operands, **eqn.params)]
        elif not _holds(eqn.params, rules):
            outputs = _bind(eqn, operands, eqn.params)
        elif eqn.primitive.name in _INLINED:
            body = eqn.params.get("jaxpr") or eqn.params.get("call_jaxpr")
            outputs = _evaluate(_closed(body), operands, rules)
        else:
            params = {n: _rewritten(value, rules) for n, value in eqn.params.items()}
            outputs = _bind(eqn, operands, params)
        values.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _bind(eqn: core.JaxprEqn, operands: list[Any], params: dict[str, Any]) -> list[Any]:
    params = eqn.primitive.get_bind_params(params)
    outputs = eqn.primitive.bind(*operands, **params)
    return outputs if eqn.primitive.multiple_results else [outputs]


def _rewritten(value: Any, rules: Rules) -> Any:
    """A parameter with every jaxpr in it rewritten."""
    if hasattr(value, "_fields"):  # a named tuple, as linear solvers have
        return type(value)(*(_rewritten(item, rules) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(_rewritten(item, rules) for item in value)
    if not isinstance(value, (core.Jaxpr, core.ClosedJaxpr)):
        return value
    if not _holds(value, rules):
        return value
    closed = _closed(value)
    body = lambda *args: _evaluate(closed, args, rules)
    new = jax.make_jaxpr(body)(*closed.in_avals)
    return new if isinstance(value, core.ClosedJaxpr) else new.jaxpr


def _holds(value: Any, rules: Rules) -> bool:
    if isinstance(value, dict):
        return any(_holds(item, rules) for item in value.values())
    if isinstance(value, (tuple, list)):
        return any(_holds(item, rules) for item in value)
    if isinstance(value, core.ClosedJaxpr):
        value = value.jaxpr
    return isinstance(value, core.Jaxpr) and any(
        eqn.primitive in rules or _holds(eqn.params, rules) for eqn in value.eqns
    )


def _closed(value: core.Jaxpr | core.ClosedJaxpr) -> core.ClosedJaxpr:
    if isinstance(value, core.ClosedJaxpr):
        return value
    return core.ClosedJaxpr(value, ())


def _convolution(
    lhs: Array,
    rhs: Array,
    *,
    window_strides,
    padding,
    lhs_dilation,
    dimension_numbers,
    feature_group_count,
    batch_group_count,
    **rest,
) -> Array:
    """One convolution in canonical layout; the keywords are the primitive's."""
    rank = len(window_strides)
    specs = tuple(dimension_numbers)
    plain = (*window_strides, *lhs_dilation, *rest["rhs_dilation"])
    if (
        all(step == 1 for step in (*plain, feature_group_count, batch_group_count))
        and specs == (_NHWC.get(rank), _HWIO.get(rank), _NHWC.get(rank))
        and _is_small_stem(lhs, rhs, padding)
    ):
        return _shifted_sum(lhs, rhs, padding)
    # Grouped convolutions have no fast kernel: the naive one is the better of the two.
    leave = feature_group_count > 1 or batch_group_count > 1 or rank not in _NHWC
    # Padding comes first where XLA goes astray otherwise: with a kernel larger than the
    # image it swaps their roles and takes the naive kernel, and with negative padding
    # (jax 0.10.2) it reads beyond the image.
    pad_first = any(low < 0 or high < 0 for low, high in padding)
    pad_first |= _area(rhs, specs[1]) > _area(lhs, specs[0])
    if not leave and not pad_first:
        leave = specs == (_NHWC[rank], _HWIO[rank], _NHWC[rank])
    if not leave:
        lhs = lhs.transpose(specs[0][0], *specs[0][2:], specs[0][1])
        rhs = rhs.transpose(*specs[1][2:], specs[1][1], specs[1][0])
        dimension_numbers = jax.lax.ConvDimensionNumbers(
            _NHWC[rank], _HWIO[rank], _NHWC[rank]
        )
        if pad_first:
            sides = ((*p, d - 1) for p, d in zip(padding, lhs_dilation, strict=True))
            config = ((0, 0, 0), *sides, (0, 0, 0))
            lhs = jax.lax.pad(lhs, jnp.zeros((), lhs.dtype), config)
            padding, lhs_dilation = ((0, 0),) * rank, (1,) * rank
        lhs, rhs = jax.lax.optimization_barrier((lhs, rhs))
    out = jax.lax.conv_general_dilated(
        lhs,
        rhs,
        window_strides,
        padding,
        lhs_dilation=lhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
        **rest,
    )
    if leave:
        return out
    # Axis a of the result is batch, spatial or feature, wherever specs[2] put it.
    order = [0] * (rank + 2)
    for source, place in zip((0, rank + 1, *range(1, rank + 1)), specs[2], strict=True):
        order[place] = source
    return out.transpose(order)


def _is_small_stem(lhs: Array, rhs: Array, padding: Sequence[tuple[int, int]]) -> bool:
    """Whether a 2-D convolution reads few values to make few, as on grey images."""
    return (
        rhs.ndim == 4
        and math.prod(rhs.shape[:3]) <= 27  # 3 x 3 of 3 channels
        and 1 < rhs.shape[3] <= 32
        and lhs.dtype == rhs.dtype
        and lhs.dtype in (jnp.float32, jnp.float64)
        and all(low >= 0 and high >= 0 for low, high in padding)
    )


def _shifted_sum(lhs: Array, rhs: Array, padding: Sequence[tuple[int, int]]) -> Array:
    """Sum over offsets and input channels of image * kernel entry, [B, H, W, O].

    XLA fuses it into one pass, which beats the kernel for large matrices 2 to 5 times
    where there is almost nothing to multiply.
    """
    padded = jnp.pad(lhs, ((0, 0), *padding, (0, 0)))
    height, width = (
        side - size + 1
        for side, size in zip(padded.shape[1:3], rhs.shape[:2], strict=True)
    )
    return sum(
        padded[:, i : i + height, j : j + width, c : c + 1]
        * rhs[i, j, c][None, None, None]
        for i in range(rhs.shape[0])
        for j in range(rhs.shape[1])
        for c in range(rhs.shape[2])
    )  # pyright: ignore[reportReturnType]


def _area(x: Array, spec: Sequence[int]) -> int:
    return math.prod(x.shape[axis] for axis in spec[2:])
