"""Small convolutional networks for 8x8 and 28x28 images."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from robustjax import _checks
from robustjax._checks import InputError
from robustjax.models import layers
from robustjax.types import Array

_kaiming = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class SmallCNN(nn.Module):
    """Stages of (convolution, ReLU) x n and 2x2 max-pooling, then a hidden layer.

    Paths: "normalise"; "conv1_2" and "relu1_2" (stage 1, second convolution, before and
    after the ReLU); "stage1" (after the pooling); "flatten", [B, D] in the order
    height, width, channel; "dense" (before the ReLU); "buffer" and "buffer/fc1", where
    there is one; "features" (the input of the head); "head".

    Attributes:
      num_classes: K.
      stages: The widths of each stage's convolutions.
      kernel_size: Of the convolutions, odd; the padding keeps the size.
      dense: Width of the hidden layer.
      buffer: Number of FC(dense, dense) + ReLU layers before the head; 0 is none.
      normalise: `(mean, std)` per channel, or None.
      dtype: Of the computation, but for the head; parameters are float32.

    Example:
      >>> import jax
      >>> x = jnp.ones((2, 8, 8, 1))
      >>> SmallCNN().init_with_output(jax.random.key(0), x)[0].shape
      (2, 10)
    """

    num_classes: int = 10
    stages: tuple[tuple[int, ...], ...] = ((16, 32),)
    kernel_size: int = 3
    dense: int = 128
    buffer: int = 0
    normalise: layers.ChannelStatistics | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Images [B, H, W, C] to logits [B, K], float32; `train` changes nothing."""
        del train
        x = layers.Normalise(self.normalise, name="normalise")(x)
        margin = self.kernel_size // 2
        for i, widths in enumerate(self.stages, 1):
            for j, width in enumerate(widths, 1):
                x = nn.Conv(
                    width,
                    (self.kernel_size, self.kernel_size),
                    padding=((margin, margin), (margin, margin)),
                    dtype=self.dtype,
                    kernel_init=_kaiming,
                    name=f"conv{i}_{j}",
                )(x)
                x = layers.Mark(name=f"relu{i}_{j}")(nn.relu(x))
            x = layers.Mark(name=f"stage{i}")(layers.max_pool2(x))
        x = layers.Mark(name="flatten")(x.reshape(x.shape[0], -1))
        x = nn.Dense(self.dense, dtype=self.dtype, kernel_init=_kaiming, name="dense")(
            x
        )
        return layers.classify(
            nn.relu(x),
            num_classes=self.num_classes,
            buffer=self.buffer,
            dtype=self.dtype,
        )


class WNLLMnistCNN(nn.Module):
    """The MNIST network of the released WNLL code, [B, 28, 28, 1] to 10 logits.

    Two unpadded 3x3 convolutions of 32, pooling, two of 64, pooling, 1024 features,
    200 hidden units, dropout, buffer, a linear head that starts at zero; convolutions
    start Kaiming-normal (fan-in). See "Deep Neural Nets with Interpolating Function as
    Output Activation" (Wang et al., 2018), https://arxiv.org/abs/1802.00168.

    Paths: "normalise"; "conv1_1" and "relu1_1" to "conv2_2" and "relu2_2"; "stage1",
    "stage2"; "flatten", [B, 1024]; "dense" (before the ReLU); "pooled" (after ReLU and
    dropout: the input of the buffer); "buffer", "buffer/fc1"; "features" (the input of
    the head); "head".

    Attributes:
      num_classes: K.
      dropout: Fraction of the hidden units dropped in the modes "train" and "batch".
      buffer: Number of FC(200, 200) + ReLU layers before the head; 0 is none.
      normalise: `(mean, std)` per channel, or None.
      dtype: Of the computation, but for the head; parameters are float32.

    Example:
      >>> WNLLMnistCNN(buffer=0).num_classes
      10
    """

    num_classes: int = 10
    dropout: float = 0.5
    buffer: int = 1
    normalise: layers.ChannelStatistics | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Images [B, H, W, C] to logits [B, K], float32."""
        x = layers.Normalise(self.normalise, name="normalise")(x)
        for i, width in enumerate((32, 64), 1):
            for j in (1, 2):
                x = nn.Conv(
                    width,
                    (3, 3),
                    padding="VALID",
                    dtype=self.dtype,
                    kernel_init=_kaiming,
                    name=f"conv{i}_{j}",
                )(x)
                x = layers.Mark(name=f"relu{i}_{j}")(nn.relu(x))
            x = layers.Mark(name=f"stage{i}")(layers.max_pool2(x))
        x = layers.Mark(name="flatten")(x.reshape(x.shape[0], -1))
        x = nn.Dense(
            200, dtype=self.dtype, kernel_init=layers.dense_init, name="dense"
        )(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(x))
        return layers.classify(
            layers.Mark(name="pooled")(x),
            num_classes=self.num_classes,
            buffer=self.buffer,
            dtype=self.dtype,
            kernel_init=nn.initializers.zeros,
        )


def small_cnn(
    *,
    num_classes: int = 10,
    stages: Sequence[Sequence[int]] = ((16, 32),),
    kernel_size: int = 3,
    dense: int = 128,
    buffer: int = 0,
    normalise: Sequence[Sequence[float]] | None = None,
    dtype: Any = "float32",
) -> SmallCNN:
    """A `SmallCNN`; the default is for 8x8 digits.

    Args:
      num_classes: K.
      stages: For each stage the widths of its convolutions, `((32,), (64,))`.
      kernel_size: Odd.
      dense: Width of the hidden layer.
      buffer: Number of buffer layers, at least 0.
      normalise: `(mean, std)`, one number per channel each, or None.
      dtype: "float32" or "bfloat16".

    Raises:
      InputError: A value is out of range.

    Example:
      >>> import jax
      >>> from robustjax import models
      >>> model = models.from_linen(small_cnn(stages=((8,), (8,)), dense=16))
      >>> x = jnp.ones((2, 28, 28, 1))
      >>> params, state = model.init(jax.random.key(0), x)
      >>> model.apply(params, state, x, capture=("flatten",)).features["flatten"].shape
      (2, 392)
    """
    _checks.positive_int(num_classes=num_classes, kernel_size=kernel_size, dense=dense)
    layers.checked_count(buffer=buffer)
    if kernel_size % 2 == 0:
        raise InputError(f"`kernel_size` must be odd, got {kernel_size}.")
    for stage in stages:
        if not isinstance(stage, Sequence):
            raise InputError(
                f"`stages` must hold one sequence of widths per stage, got {stages!r}."
            )
        for width in stage:
            _checks.positive_int(stages=width)
    return SmallCNN(
        num_classes,
        tuple(tuple(stage) for stage in stages),
        kernel_size,
        dense,
        buffer,
        layers.checked_statistics(normalise),
        layers.checked_dtype(dtype),
    )


def wnll_mnist_cnn(
    *,
    num_classes: int = 10,
    dropout: float = 0.5,
    buffer: int = 1,
    normalise: Sequence[Sequence[float]] | None = None,
    dtype: Any = "float32",
) -> WNLLMnistCNN:
    """A `WNLLMnistCNN`.

    Args:
      num_classes: K.
      dropout: In [0, 1].
      buffer: Number of buffer layers, at least 0.
      normalise: `(mean, std)`, one number per channel each, or None.
      dtype: "float32" or "bfloat16".

    Raises:
      InputError: A value is out of range.

    Example:
      >>> wnll_mnist_cnn(buffer=0).dropout
      0.5
    """
    _checks.positive_int(num_classes=num_classes)
    _checks.fraction(dropout=dropout)
    layers.checked_count(buffer=buffer)
    return WNLLMnistCNN(
        num_classes,
        dropout,
        buffer,
        layers.checked_statistics(normalise),
        layers.checked_dtype(dtype),
    )
