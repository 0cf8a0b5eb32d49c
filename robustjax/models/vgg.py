"""VGG-19 with BatchNorm, for 32x32 images.

Source: "Very Deep Convolutional Networks for Large-Scale Image Recognition" (Simonyan
and Zisserman, 2014), https://arxiv.org/abs/1409.1556, table 1, column E. As is usual on
CIFAR, and in NAMID's code, one linear layer replaces the three fully connected ones.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from robustjax import _checks
from robustjax.models import layers
from robustjax.types import Array


class ConvNormReLU(nn.Module):
    """A 3x3 convolution with bias, BatchNorm, ReLU.

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
        """Maps [B, H, W, C] to maps [B, H, W, width]."""
        x = nn.Conv(
            self.width,
            (3, 3),
            padding=((1, 1), (1, 1)),
            dtype=self.dtype,
            kernel_init=layers.conv_init,
            name="conv",
        )(x)
        norm = layers.batch_norm("norm", train=self.train, dtype=self.dtype)
        return nn.relu(norm(x))


class VGGStage(nn.Module):
    """Layers "layer1", "layer2", ... of one width, then 2x2 max-pooling.

    Attributes:
      depth: Number of layers.
      width: Channels of each.
      train: Whether BatchNorm uses batch statistics.
      dtype: Of the computation.
    """

    depth: int
    width: int
    train: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, C] to maps [B, H / 2, W / 2, width]."""
        for index in range(1, self.depth + 1):
            x = ConvNormReLU(self.width, self.train, self.dtype, name=f"layer{index}")(
                x
            )
        return layers.max_pool2(x)


class VGG(nn.Module):
    """Five stages that each halve the maps, global average pooling, head.

    Paths: "normalise"; "stage1" to "stage5" (after the pooling); "stage1/layer2" (after
    its ReLU), "stage1/layer2/conv", "stage1/layer2/norm"; "flatten" and "pooled", the
    same [B, 512] features on 32x32 images and so by either of its usual names;
    "buffer" and "buffer/fc1", where there is one; "features" (the input of the head);
    "head".

    Attributes:
      depths: Layers of each stage.
      widths: Of the stages' layers.
      num_classes: K.
      buffer: Number of FC(512, 512) + ReLU layers before the head; 0 is none.
      normalise: `(mean, std)` per channel, or None.
      dtype: Of the computation, but for the head; parameters and BatchNorm statistics
        are float32.

    Example:
      >>> VGG((1, 1, 2, 2, 2)).widths  # VGG-11
      (64, 128, 256, 512, 512)
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    num_classes: int = 10
    buffer: int = 0
    normalise: layers.ChannelStatistics | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Images [B, H, W, C], H and W at least 32, to logits [B, K], float32."""
        x = layers.Normalise(self.normalise, name="normalise")(x)
        for index, (depth, width) in enumerate(
            zip(self.depths, self.widths, strict=True), 1
        ):
            x = VGGStage(depth, width, train, self.dtype, name=f"stage{index}")(x)
        x = layers.Mark(name="pooled")(x.mean(axis=(1, 2)))
        return layers.classify(
            layers.Mark(name="flatten")(x),
            num_classes=self.num_classes,
            buffer=self.buffer,
            dtype=self.dtype,
        )


def vgg19_bn(
    *,
    num_classes: int = 10,
    buffer: int = 0,
    normalise: Sequence[Sequence[float]] | None = None,
    dtype: Any = "float32",
) -> VGG:
    """VGG-19 with BatchNorm and one linear layer, 512 to K.

    Args:
      num_classes: K.
      buffer: Number of FC(512, 512) + ReLU layers before the head; 0 is none.
      normalise: `(mean, std)`, one number per channel each, or None.
      dtype: "float32" or "bfloat16".

    Raises:
      InputError: A value is out of range.

    Example:
      >>> vgg19_bn().depths
      (2, 2, 4, 4, 4)
    """
    _checks.positive_int(num_classes=num_classes)
    layers.checked_count(buffer=buffer)
    return VGG(
        (2, 2, 4, 4, 4),
        num_classes=num_classes,
        buffer=buffer,
        normalise=layers.checked_statistics(normalise),
        dtype=layers.checked_dtype(dtype),
    )
