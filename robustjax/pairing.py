"""How far apart two passes of a network are: their attention maps and their logits.

With A the output of a layer, [B, H, W, C], and A_c its channels,

    F_sum(A) = sum_c |A_c|^p,    F_mean(A) = mean_c |A_c|^p,    F_max(A) = max_c |A_c|^p

is an attention map, [B, H, W]: see "Paying More Attention to Attention" (Zagoruyko and
Komodakis, 2017), section 3.1. Maps are compared after q = F / ||F||_2 over positions:
they say where a network looks and not how much. Scales, signs and the order of channels
do not matter, and what moves evidence between channels at one place is not seen.

Everything here is computed in float32 or wider.
"""

from collections.abc import Mapping
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from robustjax import _checks
from robustjax._checks import InputError
from robustjax.types import Array

MapKind = Literal["sum", "mean", "max"]
Distance = Literal["l2", "sq", "mse", "l1"]
LogitDistance = Literal["mse", "sq", "l2"]
Reduction = Literal["sum", "mean"]


def attention_map(a: Array, *, kind: MapKind = "sum", power: float = 2.0) -> Array:
    """F(A) of a layer's output, [B, H, W].

    Args:
      a: [B, H, W, C].
      kind: Over channels. The mean is the sum up to a factor that `unit_map` removes.
      power: p > 0; the larger, the more the strongest responses count.

    Raises:
      InputError: `a` is not [B, H, W, C], or an argument is out of range.

    Example:
      >>> a = jnp.array([[1.0, 2.0], [2.0, 0.0]]).reshape(1, 1, 2, 2)
      >>> attention_map(a).tolist()
      [[[5.0, 4.0]]]
    """
    _check_map(a, kind, power)
    return _reduced(_powers(_wide(a), power), kind)


def unit_map(
    a: Array, *, kind: MapKind = "sum", power: float = 2.0, floor: float = 1e-12
) -> Array:
    """The map as a vector, q = F / max(||F||_2, floor), row by row, [B, H * W].

    A map that is zero everywhere stays zero, with gradient zero.

    Args:
      a: [B, H, W, C].
      kind: See `attention_map`.
      power: See `attention_map`.
      floor: 1e-12 is that of the attention-transfer code.

    Raises:
      InputError: `a` is not [B, H, W, C], or an argument is out of range.

    Example:
      >>> unit_map(jnp.array([3.0, 4.0]).reshape(1, 1, 2, 1), power=1.0).tolist()
      [[0.6..., 0.8...]]
    """
    _check_map(a, kind, power)
    _checks.non_negative(floor=floor)
    a = _wide(a)
    # q does not depend on the scale of A, so a constant one keeps powers and their
    # squares in range: float32 loses (1e-6)^8 and (1e5)^8.
    top = jax.lax.stop_gradient(jnp.abs(a).max(axis=(1, 2, 3), keepdims=True))
    scale = jnp.where(top == 0, 1.0, top)
    flat = _reduced(_powers(a / scale, power), kind).reshape(a.shape[0], -1)
    # scale^p may have left the range: 0 / 0 where there is no floor.
    least = jnp.where(floor == 0, 0.0, floor / scale.reshape(-1, 1) ** power)
    size = _norm(flat)[:, None]
    zero = size == 0
    return jnp.where(zero, 0.0, flat / jnp.where(zero, 1.0, jnp.maximum(size, least)))


def map_distance(one: Array, other: Array, *, kind: Distance = "l2") -> Array:
    """How far apart unit maps are, [B].

    With d = q' - q: "l2" is ||d||_2, at most sqrt(2); "sq" ||d||_2^2 = 2 - 2 cos;
    "mse" that over the number of positions; "l1" ||d||_1. Where d = 0 every gradient
    is 0.

    Args:
      one: q, [B, P].
      other: q', of the same shape.
      kind: The distance.

    Raises:
      InputError: the shapes differ, or there is no such distance.

    Example:
      >>> q = jnp.array([[1.0, 0.0], [0.0, 1.0]])
      >>> map_distance(q[:1], q[1:], kind="sq").tolist()
      [2.0]
    """
    _checks.same_shape(one=one, other=other)
    _checks.one_of(get_args(Distance), kind=kind)
    return _distance(one, other, kind)


def attention_distance(
    one: Mapping[str, Array],
    other: Mapping[str, Array],
    *,
    kind: Distance = "l2",
    map_kind: MapKind = "sum",
    power: float = 2.0,
    floor: float = 1e-12,
    reduction: Reduction = "sum",
) -> Array:
    """Distances of the maps of several layers, added up or averaged, [B].

    Every layer is compared at its own resolution: nothing is resized.

    Args:
      one: Outputs of layers by name, [B, H, W, C] each: `ModelOutput.features`.
      other: Those of the other images, or of another network.
      kind: See `map_distance`.
      map_kind: See `attention_map`.
      power: See `attention_map`.
      floor: See `unit_map`.
      reduction: Over layers.

    Raises:
      InputError: the layers or their maps' shapes differ, a layer has no maps, or there
        are no layers.

    Example:
      >>> a = {"stage1": jnp.ones((1, 2, 2, 3))}
      >>> b = {"stage1": jnp.eye(2).reshape(1, 2, 2, 1)}
      >>> attention_distance(a, b, kind="sq").round(3).tolist()
      [0.58...]
    """
    if not one or set(one) != set(other):
        raise InputError(
            f"`one` and `other` must hold the same layers, at least one, got "
            f"{sorted(one)} and {sorted(other)}."
        )
    _checks.one_of(get_args(Reduction), reduction=reduction)
    total = jnp.zeros(())
    for name in one:
        a, b = one[name], other[name]
        for maps in (a, b):
            if maps.ndim != 4:
                raise InputError(
                    f"`layers` must name those with maps [B, H, W, C]: {name!r} has "
                    f"outputs of shape {maps.shape}."
                )
        if a.shape[:3] != b.shape[:3]:
            raise InputError(
                f"The maps of {name!r} must have equal shapes, got {a.shape[1:3]} and "
                f"{b.shape[1:3]} of {a.shape[0]} and {b.shape[0]} images."
            )
        q, q_other = (
            unit_map(maps, kind=map_kind, power=power, floor=floor) for maps in (a, b)
        )
        total += map_distance(q, q_other, kind=kind)
    return total / len(one) if reduction == "mean" else total


def logit_distance(one: Array, other: Array, *, kind: LogitDistance = "mse") -> Array:
    """How far apart logits are, [B].

    "mse" is the mean over classes of (z' - z)^2, as in the official code of
    "Adversarial Logit Pairing" (Kannan et al., 2018); "sq" the sum; "l2" its root.

    Args:
      one: z, [B, K].
      other: z', of the same shape.
      kind: The distance.

    Raises:
      InputError: the shapes differ, or there is no such distance.

    Example:
      >>> z, z_adv = jnp.array([[2.0, 0.0, -1.0]]), jnp.array([[1.0, 1.0, -1.0]])
      >>> logit_distance(z, z_adv, kind="sq").tolist()
      [2.0]
    """
    _checks.same_shape(one=one, other=other)
    _checks.one_of(get_args(LogitDistance), kind=kind)
    return _distance(one, other, kind)


def _distance(one: Array, other: Array, kind: Distance) -> Array:
    off = _wide(other) - _wide(one)
    if kind == "l2":
        return _norm(off)
    if kind == "l1":
        return _magnitude(off).sum(axis=1)
    square = jnp.square(off)
    return square.sum(axis=1) if kind == "sq" else square.mean(axis=1)


def _check_map(a: Array, kind: str, power: float) -> None:
    _checks.one_of(get_args(MapKind), kind=kind)
    _checks.positive(power=power)
    if a.ndim != 4:
        raise InputError(
            f"`a` must be maps [B, H, W, C] of a convolutional layer, got shape "
            f"{a.shape}."
        )


def _powers(a: Array, power: float) -> Array:
    if power == 2:
        return jnp.square(a)
    if power == 1:
        return _magnitude(a)
    # The derivative of |a|^p at 0 is not finite below p = 1.
    positive = a != 0
    return jnp.where(positive, jnp.abs(jnp.where(positive, a, 1.0)) ** power, 0.0)


def _magnitude(a: Array) -> Array:
    """|a|; the derivative at 0 is 0, where that of `jnp.abs` is 1."""
    return a * jnp.sign(a)


def _reduced(powers: Array, kind: str) -> Array:
    if kind == "sum":
        return powers.sum(axis=3)
    return powers.mean(axis=3) if kind == "mean" else powers.max(axis=3)


def _norm(rows: Array) -> Array:
    """||v||_2 of every row, [B]; at v = 0 both value and gradient are 0."""
    square = jnp.square(rows).sum(axis=1)
    zero = square == 0  # not NaN, which must not pass for 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square)))


def _wide(a: Array) -> Array:
    return a.astype(jnp.promote_types(a.dtype, jnp.float32))
