"""Feature denoising: blocks that smooth the maps inside a network.

    out = x + BN(conv_1x1(op(x)))

See "Feature Denoising for Improving Adversarial Robustness" (Xie et al., 2019), section
3. The convolution keeps the channels and has no bias, nothing follows the sum, and the
BatchNorm's scale starts at 0, so that a block starts as the identity. The window of 3
and what happens at borders are ours: the sources do not say.
"""

import functools
from collections.abc import Sequence
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from robustjax import _checks
from robustjax._checks import InputError
from robustjax.models import layers
from robustjax.models.residual import Placement
from robustjax.models.trunk import ResNet
from robustjax.types import Array

Op = Literal["gaussian", "dot_product", "bilateral", "mean", "median", "null"]
Weighting = Literal["gaussian", "dot_product"]
Border = Literal["inside", "zeros", "reflect", "edge"]

_EMBED_STD = 0.01
_PADDING = dict(zeros="constant", reflect="reflect", edge="edge")
_BORDERS = dict(mean=("inside", "zeros"), median=("reflect", "edge"))


class DenoisingBlock(nn.Module):
    """x + BN(conv(op(x))), of maps [B, H, W, C].

    Paths: "theta" and "phi" (the embeddings of "gaussian"), "conv", "norm".

    Attributes:
      op: "gaussian", softmax-weighted mean over all positions; "dot_product", over all
        positions without softmax; "bilateral", one of the two in a window; "mean" and
        "median" of a window; "null", the identity, the control.
      weighting: Of "bilateral".
      embed: Whether Gaussian weights compare 1x1 convolutions to C / 2 channels,
        divided by sqrt(C / 2), instead of the maps themselves.
      window: Side of the windows, odd.
      border: What a window holds beyond the image: see `local_mean`, `local_median`.
      train: Whether BatchNorm uses batch statistics.
      dtype: Of the convolutions; weights and sums are float32 or wider.

    Example:
      >>> block = DenoisingBlock("mean", train=False)
      >>> x = jnp.arange(8.0).reshape(1, 2, 2, 2)
      >>> out, _ = block.init_with_output(jax.random.key(0), x)
      >>> bool((out == x).all())
      True
    """

    op: Op = "gaussian"
    weighting: Weighting = "gaussian"
    embed: bool = True
    window: int = 3
    border: Border | None = None
    train: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, C], denoised.

        Raises:
          InputError: an attribute is out of range.
        """
        _check_block(self.op, self.weighting, self.window, self.border)
        smooth = self._smoothed(_wide(x)).astype(x.dtype)
        out = nn.Conv(
            x.shape[-1],
            (1, 1),
            use_bias=False,
            dtype=self.dtype,
            kernel_init=layers.conv_init,
            name="conv",
        )(smooth)
        return x + layers.batch_norm(
            "norm",
            train=self.train,
            dtype=self.dtype,
            scale_init=nn.initializers.zeros,
        )(out)

    def _smoothed(self, x: Array) -> Array:
        local = functools.partial(bilateral, x, window=self.window)
        if self.op == "gaussian":
            return non_local(x, *self._embedded(x))
        if self.op == "dot_product":
            return dot_product(x)
        if self.op == "bilateral" and self.weighting == "gaussian":
            return local(*self._embedded(x))
        if self.op == "bilateral":
            return local(weighting="dot_product")
        if self.op == "mean":
            return local_mean(x, window=self.window, border=self.border or "inside")
        if self.op == "median":
            return local_median(x, window=self.window, border=self.border or "reflect")
        return x

    def _embedded(self, x: Array) -> tuple[Array, Array] | tuple[()]:
        if not self.embed:
            return ()
        width = max(x.shape[-1] // 2, 1)
        init = nn.initializers.normal(_EMBED_STD)
        theta, phi = (
            nn.Conv(width, (1, 1), use_bias=False, kernel_init=init, name=name)(x)
            for name in ("theta", "phi")
        )
        return theta / jnp.sqrt(width), phi


def denoised(
    module: ResNet,
    *,
    op: Op = "gaussian",
    after: Literal["stages", "blocks"] | Sequence[str] = "stages",
    weighting: Weighting = "gaussian",
    embed: bool = True,
    window: int = 3,
    border: Border | None = None,
) -> ResNet:
    """The network with a denoising block after stages, or after every residual block.

    A stage's output, what `capture=("stage1",)` gives, is that after its denoising. The
    paths of the blocks are "stage1/denoise" and, after every block,
    "stage1/denoise1", ... Parameters of the network keep their places.

    Args:
      module: One of the residual networks here.
      op: See `DenoisingBlock`.
      after: "stages" (all of them, Xie et al.'s four blocks), "blocks" (their entry to
        a competition, with `op="dot_product"`), or names of stages.
      weighting: Of "bilateral"; other operations have none.
      embed: See `DenoisingBlock`.
      window: Odd.
      border: "inside" or "zeros" for "mean", "reflect" or "edge" for "median".

    Raises:
      InputError: an argument is out of range, or there is no such stage.

    Example:
      >>> from robustjax import models
      >>> model = models.from_linen(denoised(models.resnet20(), after=("stage3",)))
      >>> x = jnp.zeros((1, 32, 32, 3))
      >>> params, _ = jax.eval_shape(model.init, jax.random.key(0), x)
      >>> sorted(params["stage3"]["denoise"])
      ['conv', 'norm', 'phi', 'theta']
    """
    if not isinstance(module, ResNet):
        raise InputError(
            "`module` must be one of the residual networks of robustjax.models, got "
            f"{type(module).__name__}."
        )
    _check_block(op, weighting, window, border)
    stages = tuple(f"stage{i + 1}" for i in range(len(module.depths)))
    if after in ("stages", "blocks"):
        chosen = stages
    else:
        chosen = (after,) if isinstance(after, str) else tuple(after)
        if not chosen:
            raise InputError(
                '`after` must name at least one stage, "stages" or "blocks", got '
                f"{after!r}: for no block leave the network as it is."
            )
        for name in chosen:
            _checks.one_of(stages, after=name)
    block = functools.partial(
        DenoisingBlock, op, weighting, bool(embed), window, border
    )
    return module.clone(denoise=Placement(block, chosen, after == "blocks"))


def non_local(x: Array, theta: Array | None = None, phi: Array | None = None) -> Array:
    """y_i = sum_j softmax_j(theta_i . phi_j) x_j over all positions, [B, H, W, C].

    Args:
      x: [B, H, W, C], in float32 or wider.
      theta: What positions are compared by, [B, H, W, D]; `x` if None.
      phi: Likewise.

    Example:
      >>> non_local(jnp.array([1.0, 3.0]).reshape(1, 1, 2, 1)).round(3).ravel().tolist()
      [2.76..., 2.99...]
    """
    flat = _flat(x)
    theta = flat if theta is None else _flat(theta)
    phi = flat if phi is None else _flat(phi)
    weights = jax.nn.softmax(jnp.einsum("bid,bjd->bij", theta, phi), axis=2)
    return jnp.einsum("bij,bjc->bic", weights, flat).reshape(x.shape)


def dot_product(x: Array) -> Array:
    """y_i = 1/N sum_j (x_i . x_j) x_j over all N positions, [B, H, W, C].

    Example:
      >>> dot_product(jnp.array([1.0, 3.0]).reshape(1, 1, 2, 1)).ravel().tolist()
      [5.0, 15.0]
    """
    flat = _flat(x)
    count, width = flat.shape[1:]
    if width <= count:  # the same sums, the smaller product first
        inner = jnp.einsum("bjc,bjd->bcd", flat, flat)
        found = jnp.einsum("bic,bcd->bid", flat, inner)
    else:
        inner = jnp.einsum("bic,bjc->bij", flat, flat)
        found = jnp.einsum("bij,bjc->bic", inner, flat)
    return (found / count).reshape(x.shape)


def bilateral(
    x: Array,
    theta: Array | None = None,
    phi: Array | None = None,
    *,
    window: int = 3,
    weighting: Weighting = "gaussian",
) -> Array:
    """`non_local` or `dot_product` over the neighbours inside the image, [B, H, W, C].

    Args:
      x: [B, H, W, C], in float32 or wider.
      theta: As in `non_local`.
      phi: As in `non_local`.
      window: Side of the neighbourhood, odd.
      weighting: "gaussian" or "dot_product", divided by the number of neighbours.

    Raises:
      InputError: an argument is out of range.

    Example:
      >>> x = jnp.array([1.0, 3.0, 0.0]).reshape(1, 1, 3, 1)
      >>> bilateral(x, weighting="dot_product").ravel().tolist()
      [5.0, 10.0, 0.0]
    """
    _checks.one_of(get_args(Weighting), weighting=weighting)
    theta = x if theta is None else theta
    phi = x if phi is None else phi
    inside = _windows(jnp.ones_like(x[:1, :, :, :1]), window, "zeros")[..., 0] > 0
    values = _windows(x, window, "zeros")
    scores = (theta[None] * _windows(phi, window, "zeros")).sum(axis=4)
    if weighting == "dot_product":
        weights = jnp.where(inside, scores, 0.0) / inside.sum(axis=0)[None]
    else:
        weights = jax.nn.softmax(jnp.where(inside, scores, -jnp.inf), axis=0)
    return (weights[..., None] * values).sum(axis=0)


def local_mean(x: Array, *, window: int = 3, border: Border = "inside") -> Array:
    """The mean of a window around every position, [B, H, W, C].

    Args:
      x: [B, H, W, C].
      window: Side, odd.
      border: "inside" leaves neighbours beyond the image out, "zeros" counts them as 0.

    Raises:
      InputError: an argument is out of range.

    Example:
      >>> local_mean(jnp.array([1.0, 3.0]).reshape(1, 1, 2, 1)).ravel().tolist()
      [2.0, 2.0]
    """
    _check_window(window)
    _checks.one_of(_BORDERS["mean"], border=border)
    place = (1, window, window, 1)
    total = jax.lax.reduce_window(x, 0.0, jax.lax.add, place, (1,) * 4, "SAME")
    if border == "zeros":
        return total / window**2
    ones = jnp.ones_like(x[:1, :, :, :1])
    return total / _windows(ones, window, "zeros").sum(axis=0)


def local_median(x: Array, *, window: int = 3, border: Border = "reflect") -> Array:
    """The median of a window around every position, channel by channel, [B, H, W, C].

    Args:
      x: [B, H, W, C].
      window: Side, odd.
      border: "reflect" mirrors the image about its outermost positions, "edge" goes on
        with these.

    Raises:
      InputError: an argument is out of range.

    Example:
      >>> x = jnp.array([1.0, 3.0]).reshape(1, 1, 2, 1)
      >>> local_median(x, border="edge").ravel().tolist()
      [1.0, 3.0]
    """
    _checks.one_of(_BORDERS["median"], border=border)
    return jnp.sort(_windows(x, window, border), axis=0)[window**2 // 2]


def _windows(x: Array, window: int, border: Border) -> Array:
    """The neighbours of every position, [window^2, B, H, W, C]."""
    _check_window(window)
    out = window // 2
    around = ((0, 0), (out, out), (out, out), (0, 0))
    padded = jnp.pad(x, around, mode=_PADDING[border])
    height, width = x.shape[1:3]
    return jnp.stack(
        [
            padded[:, i : i + height, j : j + width]
            for i in range(window)
            for j in range(window)
        ]
    )


def _check_block(op: str, weighting: str, window: int, border: str | None) -> None:
    _checks.one_of(get_args(Op), op=op)
    _checks.one_of(get_args(Weighting), weighting=weighting)
    if weighting != "gaussian" and op != "bilateral":
        raise InputError(
            f"`weighting` is of the operation bilateral; {op} has none, got "
            f"{weighting!r}: leave it out."
        )
    if border is not None and op not in _BORDERS:
        raise InputError(
            f"`border` is of the operations {', '.join(_BORDERS)}; {op} has none, got "
            f"{border!r}: leave it out."
        )
    if border is not None:
        _checks.one_of(_BORDERS[op], border=border)
    _check_window(window)


def _check_window(window: int) -> None:
    _checks.positive_int(window=window)
    if window % 2 == 0:
        raise InputError(f"`window` must be odd, got {window}.")


def _flat(x: Array) -> Array:
    return x.reshape(x.shape[0], -1, x.shape[-1])


def _wide(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
