"""Wide residual networks, ten times the width of the CIFAR ResNets.

Source: "Wide Residual Networks" (Zagoruyko and Komodakis, 2016),
https://arxiv.org/abs/1605.07146, table 1.
"""

import functools
from collections.abc import Sequence
from typing import Any

from robustjax import _checks
from robustjax.models import layers
from robustjax.models.residual import PreActBlock
from robustjax.models.stems import BareStem
from robustjax.models.trunk import ResNet


def wide_resnet28_10(
    *,
    num_classes: int = 10,
    dropout: float = 0.0,
    buffer: int = 0,
    normalise: Sequence[Sequence[float]] | None = None,
    dtype: Any = "float32",
) -> ResNet:
    """WideResNet-28-10: three stages of four pre-activation blocks, 160 to 640 wide.

    Layers are named as in `ResNet`; "stage1" to "stage3" are bare sums, "maps" follows
    the last BatchNorm and ReLU.

    Args:
      num_classes: K.
      dropout: Rate between a block's convolutions, in [0, 1].
      buffer: Number of FC(640, 640) + ReLU layers before the head; 0 is none.
      normalise: `(mean, std)`, one number per channel each, or None.
      dtype: "float32" or "bfloat16".

    Raises:
      InputError: A value is out of range.

    Example:
      >>> wide_resnet28_10(num_classes=100).widths
      (160, 320, 640)
    """
    return _wide_resnet(4, num_classes, dropout, buffer, normalise, dtype)


def wide_resnet34_10(
    *,
    num_classes: int = 10,
    dropout: float = 0.0,
    buffer: int = 0,
    normalise: Sequence[Sequence[float]] | None = None,
    dtype: Any = "float32",
) -> ResNet:
    """WideResNet-34-10: as `wide_resnet28_10` with five blocks to a stage.

    The network of TRADES and MART. NAMID's file holds 2,102,112 parameters more, a
    block that its forward pass never uses; it is left out.

    Args:
      num_classes: K.
      dropout: Rate between a block's convolutions, in [0, 1].
      buffer: Number of FC(640, 640) + ReLU layers before the head; 0 is none.
      normalise: `(mean, std)`, one number per channel each, or None.
      dtype: "float32" or "bfloat16".

    Raises:
      InputError: A value is out of range.

    Example:
      >>> wide_resnet34_10(dropout=0.3).depths
      (5, 5, 5)
    """
    return _wide_resnet(5, num_classes, dropout, buffer, normalise, dtype)


def _wide_resnet(
    depth: int,
    num_classes: int,
    dropout: float,
    buffer: int,
    normalise: Sequence[Sequence[float]] | None,
    dtype: Any,
) -> ResNet:
    _checks.positive_int(num_classes=num_classes)
    _checks.fraction(dropout=dropout)
    layers.checked_count(buffer=buffer)
    return ResNet(
        functools.partial(BareStem, 16, 1),
        functools.partial(PreActBlock, dropout=dropout),
        (depth,) * 3,
        (160, 320, 640),
        final_norm=True,
        num_classes=num_classes,
        buffer=buffer,
        normalise=layers.checked_statistics(normalise),
        dtype=layers.checked_dtype(dtype),
    )
