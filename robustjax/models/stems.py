"""What comes before the first residual stage."""

from typing import Any

import flax.linen as nn

from robustjax.models import layers
from robustjax.models.residual import conv
from robustjax.types import Array


class BareStem(nn.Module):
    """A 3x3 convolution alone, for blocks that normalise their input themselves.

    Attributes:
      width: Channels out.
      padding: Zeros on each side.
      train: Unused.
      dtype: Of the computation.
    """

    width: int
    padding: int
    train: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Images [B, H, W, C] to maps [B, H, W, width]."""
        return conv("conv", self.width, 3, padding=self.padding, dtype=self.dtype)(x)


class CifarStem(nn.Module):
    """A 3x3 convolution, BatchNorm, ReLU.

    Attributes:
      width: Channels out.
      padding: Zeros on each side; 0 makes 30x30 maps of 32x32 images.
      train: Whether BatchNorm uses batch statistics.
      dtype: Of the computation.
      stride: Of the convolution.
    """

    width: int
    padding: int
    train: bool
    dtype: Any
    stride: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Images [B, H, W, C] to maps [B, H / stride, W / stride, width]."""
        x = conv(
            "conv",
            self.width,
            3,
            stride=self.stride,
            padding=self.padding,
            dtype=self.dtype,
        )(x)
        norm = layers.batch_norm("norm", train=self.train, dtype=self.dtype)
        return nn.relu(norm(x))


class ImageNetStem(nn.Module):
    """A 7x7 convolution of stride 2, BatchNorm, ReLU, 3x3 max-pooling of stride 2.

    Attributes:
      width: Channels out.
      train: Whether BatchNorm uses batch statistics.
      dtype: Of the computation.
    """

    width: int
    train: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Images [B, H, W, C] to maps [B, H / 4, W / 4, width]."""
        x = conv("conv", self.width, 7, stride=2, padding=3, dtype=self.dtype)(x)
        norm = layers.batch_norm("norm", train=self.train, dtype=self.dtype)
        x = nn.relu(norm(x))
        margins: Any = ((1, 1), (1, 1))  # Annotated as str upstream.
        return nn.max_pool(x, (3, 3), (2, 2), padding=margins)
