"""Residual blocks and the trunk that ResNets and Wide ResNets are built from.

Padding is explicit and symmetric, as in PyTorch, so that converted weights give the
same logits ("SAME" pads stride-2 convolutions on one side only).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn

from robustjax.models import layers
from robustjax.types import Array

ModuleFactory = Callable[..., nn.Module]
"""Block: `(width, stride, *, train, dtype, name)`; stem: `(*, train, dtype, name)`."""


def conv(
    name: str, width: int, size: int, *, stride: int = 1, padding: int, dtype: Any
) -> nn.Conv:
    """A square convolution without bias, `padding` zeros on each side."""
    return nn.Conv(
        width,
        (size, size),
        strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        use_bias=False,
        dtype=dtype,
        kernel_init=layers.conv_init,
        name=name,
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; ReLU after the sum. See He et al. (2015), figure 2.

    Attributes:
      width: Channels out.
      stride: Of the first convolution and the shortcut.
      train: Whether BatchNorm uses batch statistics.
      dtype: Of the computation.
    """

    width: int
    stride: int
    train: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, C] to maps [B, H / stride, W / stride, width]."""
        norm = {"train": self.train, "dtype": self.dtype}
        out = conv(
            "conv1", self.width, 3, stride=self.stride, padding=1, dtype=self.dtype
        )(x)
        out = nn.relu(layers.batch_norm("norm1", **norm)(out))
        out = conv("conv2", self.width, 3, padding=1, dtype=self.dtype)(out)
        out = layers.batch_norm("norm2", **norm)(out)
        return nn.relu(out + _shortcut(x, self.width, self.stride, **norm))


class Bottleneck(nn.Module):
    """1x1, 3x3 (which strides), 1x1 convolutions to `4 * width`; ReLU after the sum.

    The stride sits on the 3x3 convolution, as in the weights in use today, not on the
    first 1x1 as in He et al. (2015).

    Attributes:
      width: Channels inside.
      stride: Of the 3x3 convolution and the shortcut.
      train: Whether BatchNorm uses batch statistics.
      dtype: Of the computation.
    """

    width: int
    stride: int
    train: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, C] to maps [B, H / stride, W / stride, 4 * width]."""
        norm = {"train": self.train, "dtype": self.dtype}
        out = conv("conv1", self.width, 1, padding=0, dtype=self.dtype)(x)
        out = nn.relu(layers.batch_norm("norm1", **norm)(out))
        out = conv(
            "conv2", self.width, 3, stride=self.stride, padding=1, dtype=self.dtype
        )(out)
        out = nn.relu(layers.batch_norm("norm2", **norm)(out))
        out = conv("conv3", 4 * self.width, 1, padding=0, dtype=self.dtype)(out)
        out = layers.batch_norm("norm3", **norm)(out)
        return nn.relu(out + _shortcut(x, 4 * self.width, self.stride, **norm))


class PreActBlock(nn.Module):
    """BatchNorm and ReLU before each 3x3 convolution; the sum is left as it is.

    Where the shape changes, the shortcut is a 1x1 convolution of the activated input,
    or in some released networks of the bare one. See "Identity Mappings in Deep
    Residual Networks" (He et al., 2016), figure 4e, and "Wide Residual Networks"
    (Zagoruyko and Komodakis, 2016) for the dropout.

    Attributes:
      width: Channels out.
      stride: Of the first convolution and the shortcut.
      train: Whether BatchNorm uses batch statistics and dropout is active.
      dtype: Of the computation.
      dropout: Rate between the convolutions.
      activated_shortcut: Whether the shortcut's convolution sees the activated input.
    """

    width: int
    stride: int
    train: bool
    dtype: Any
    dropout: float = 0.0
    activated_shortcut: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, C] to maps [B, H / stride, W / stride, width]."""
        norm = {"train": self.train, "dtype": self.dtype}
        active = nn.relu(layers.batch_norm("norm1", **norm)(x))
        if self.stride != 1 or x.shape[-1] != self.width:
            x = conv(
                "shortcut",
                self.width,
                1,
                stride=self.stride,
                padding=0,
                dtype=self.dtype,
            )(active if self.activated_shortcut else x)
        out = conv(
            "conv1", self.width, 3, stride=self.stride, padding=1, dtype=self.dtype
        )(active)
        out = nn.relu(layers.batch_norm("norm2", **norm)(out))
        if self.dropout:
            out = nn.Dropout(self.dropout, deterministic=not self.train)(out)
        return x + conv("conv2", self.width, 3, padding=1, dtype=self.dtype)(out)


class Placement(NamedTuple):
    """Where a network has blocks that smooth its maps: see `models.denoised`.

    Attributes:
      block: `(*, train, dtype, name) -> module`.
      stages: After which stages.
      every: Whether after each of their residual blocks.
    """

    block: ModuleFactory
    stages: tuple[str, ...]
    every: bool


class Stage(nn.Module):
    """Blocks "block1", "block2", ... of one width; the first strides.

    Attributes:
      block: What the stage repeats.
      depth: How often.
      width: Of each block.
      stride: Of the first block; the others have 1.
      train: Handed on.
      dtype: Handed on.
      denoise: What follows the last block, "denoise", or every one, "denoise1", ...
    """

    block: ModuleFactory
    depth: int
    width: int
    stride: int
    train: bool
    dtype: Any
    denoise: Placement | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, C] to the output of the last block."""
        for index in range(self.depth):
            x = self.block(
                self.width,
                self.stride if index == 0 else 1,
                train=self.train,
                dtype=self.dtype,
                name=f"block{index + 1}",
            )(x)
            if self.denoise is not None and self.denoise.every:
                x = self._denoised(self.denoise, f"denoise{index + 1}", x)
        if self.denoise is not None and not self.denoise.every:
            x = self._denoised(self.denoise, "denoise", x)
        return x

    def _denoised(self, denoise: Placement, name: str, x: Array) -> Array:
        return denoise.block(train=self.train, dtype=self.dtype, name=name)(x)


def _shortcut(x: Array, width: int, stride: int, *, train: bool, dtype: Any) -> Array:
    """`x`, or where the shape changes its 1x1 convolution and BatchNorm."""
    if stride == 1 and x.shape[-1] == width:
        return x
    x = conv("shortcut", width, 1, stride=stride, padding=0, dtype=dtype)(x)
    return layers.batch_norm("shortcut_norm", train=train, dtype=dtype)(x)
