"""Residual networks: the CIFAR families and ResNet-50 for 224x224.

Sources: "Deep Residual Learning for Image Recognition" (He et al., 2015),
https://arxiv.org/abs/1512.03385, sections 3.4 and 4.2; "Identity Mappings in Deep
Residual Networks" (He et al., 2016), https://arxiv.org/abs/1603.05027.

All factories share these keywords: `num_classes`; `buffer`, how many FC(D, D) + ReLU
layers stand before the head, 0 for none; `normalise`, `(mean, std)` with one number per
channel each, or None; `dtype`, "float32" or "bfloat16". They raise `InputError` for
values out of range. The paths of the layers are in the docstring of `ResNet`.
"""

import functools
from collections.abc import Sequence
from typing import Any

from robustjax import _checks
from robustjax._checks import InputError
from robustjax.models import layers
from robustjax.models.residual import (
    BasicBlock,
    Bottleneck,
    ModuleFactory,
    PreActBlock,
)
from robustjax.models.stems import BareStem, CifarStem, ImageNetStem
from robustjax.models.trunk import ResNet

Statistics = Sequence[Sequence[float]] | None


def resnet20(
    *,
    num_classes: int = 10,
    buffer: int = 0,
    normalise: Statistics = None,
    dtype: Any = "float32",
) -> ResNet:
    """CIFAR ResNet-20: three stages of three basic blocks, widths 16, 32, 64.

    As in the WNLL papers' code, and unlike He et al. (2015), section 4.2, whose
    shortcuts have no parameters, a shortcut that changes shape is a 1x1 convolution
    with BatchNorm. `buffer=1` is those papers' network.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from robustjax import models
      >>> model = models.from_linen(resnet20(buffer=1))
      >>> x = jnp.ones((1, 32, 32, 3))
      >>> params, state = jax.eval_shape(model.init, jax.random.key(0), x)
      >>> jax.eval_shape(
      ...     lambda p, s: model.apply(p, s, x, capture=("stage3",)), params, state
      ... ).features["stage3"].shape
      (1, 8, 8, 64)
    """
    return _narrow(3, num_classes, buffer, normalise, dtype)


def resnet32(
    *,
    num_classes: int = 10,
    buffer: int = 0,
    normalise: Statistics = None,
    dtype: Any = "float32",
) -> ResNet:
    """CIFAR ResNet-32: as `resnet20`, five blocks to a stage.

    Example:
      >>> resnet32().depths
      (5, 5, 5)
    """
    return _narrow(5, num_classes, buffer, normalise, dtype)


def resnet44(
    *,
    num_classes: int = 10,
    buffer: int = 0,
    normalise: Statistics = None,
    dtype: Any = "float32",
) -> ResNet:
    """CIFAR ResNet-44: as `resnet20`, seven blocks to a stage.

    Example:
      >>> resnet44().depths
      (7, 7, 7)
    """
    return _narrow(7, num_classes, buffer, normalise, dtype)


def resnet56(
    *,
    num_classes: int = 10,
    buffer: int = 0,
    normalise: Statistics = None,
    dtype: Any = "float32",
) -> ResNet:
    """CIFAR ResNet-56: as `resnet20`, nine blocks to a stage.

    `buffer=2` is the network of the WNLL papers' natural training of 2019.

    Example:
      >>> resnet56(buffer=2).depths
      (9, 9, 9)
    """
    return _narrow(9, num_classes, buffer, normalise, dtype)


def resnet110(
    *,
    num_classes: int = 10,
    buffer: int = 0,
    normalise: Statistics = None,
    dtype: Any = "float32",
) -> ResNet:
    """CIFAR ResNet-110: as `resnet20`, eighteen blocks to a stage.

    Example:
      >>> resnet110().depths
      (18, 18, 18)
    """
    return _narrow(18, num_classes, buffer, normalise, dtype)


def small_resnet(
    *,
    depths: Sequence[int] = (1, 1, 1),
    widths: Sequence[int] = (16, 32, 64),
    stem_stride: int = 1,
    num_classes: int = 10,
    buffer: int = 0,
    normalise: Statistics = None,
    dtype: Any = "float32",
) -> ResNet:
    """Basic blocks behind a 3x3 stem, of any depths and widths, for small machines.

    Args:
      depths: Blocks of each stage.
      widths: Of each stage.
      stem_stride: 2 halves the maps of all stages.
      num_classes: K.
      buffer: See the module's docstring.
      normalise: See the module's docstring.
      dtype: See the module's docstring.

    Example:
      >>> small_resnet(depths=(1, 2), widths=(8, 16), num_classes=17).depths
      (1, 2)
    """
    _checks.positive_int(num_classes=num_classes, stem_stride=stem_stride)
    for sizes in (dict(depths=depths), dict(widths=widths)):
        for name, given in sizes.items():
            for size in given:
                _checks.positive_int(**{name: size})
    if not depths or len(depths) != len(widths):
        raise InputError(
            f"`widths` must have one number per stage of `depths`, got {widths} and "
            f"{depths}."
        )
    layers.checked_count(buffer=buffer)
    return ResNet(
        functools.partial(CifarStem, widths[0], 1, stride=stem_stride),
        BasicBlock,
        tuple(depths),
        tuple(widths),
        num_classes=num_classes,
        buffer=buffer,
        normalise=layers.checked_statistics(normalise),
        dtype=layers.checked_dtype(dtype),
    )


def resnet18(
    *,
    num_classes: int = 10,
    stem_padding: int = 1,
    buffer: int = 0,
    normalise: Statistics = None,
    dtype: Any = "float32",
) -> ResNet:
    """CIFAR ResNet-18: four stages of two basic blocks, widths 64 to 512, 3x3 stem.

    Args:
      num_classes: K.
      stem_padding: Zeros around the image in the stem. 0 is NAMID's released network,
        whose maps on 32x32 images are 30, 15, 8 and 4 wide instead of 32, 16, 8, 4.
      buffer: See the module's docstring.
      normalise: See the module's docstring.
      dtype: See the module's docstring.

    Example:
      >>> resnet18(num_classes=100).num_classes
      100
    """
    layers.checked_count(stem_padding=stem_padding)
    stem = functools.partial(CifarStem, 64, stem_padding)
    return _wide(stem, BasicBlock, (2, 2, 2, 2), num_classes, buffer, normalise, dtype)


def preact_resnet18(
    *,
    num_classes: int = 10,
    final_norm: bool = True,
    activated_shortcut: bool = True,
    buffer: int = 0,
    normalise: Statistics = None,
    dtype: Any = "float32",
) -> ResNet:
    """CIFAR ResNet-18 with pre-activation; BatchNorm and ReLU before the pooling.

    "stage1" to "stage4" are the stages' bare sums.

    Args:
      num_classes: K.
      final_norm: Many released copies leave that last BatchNorm and ReLU out (1,024
        parameters fewer); He et al. (2016), section 4, has them.
      activated_shortcut: False where the 1x1 convolution of a shortcut sees the
        block's bare input, as in RobustBench's standard block, instead of BatchNorm's
        and ReLU's output. The weights do not tell.
      buffer: See the module's docstring.
      normalise: See the module's docstring.
      dtype: See the module's docstring.

    Example:
      >>> preact_resnet18().final_norm
      True
    """
    stem = functools.partial(BareStem, 64, 1)
    block = functools.partial(PreActBlock, activated_shortcut=activated_shortcut)
    network = _wide(stem, block, (2, 2, 2, 2), num_classes, buffer, normalise, dtype)
    return network.clone(final_norm=final_norm)


def resnet50(
    *,
    num_classes: int = 1000,
    buffer: int = 0,
    normalise: Statistics = None,
    dtype: Any = "float32",
) -> ResNet:
    """ResNet-50 for 224x224 images: bottlenecks (3, 4, 6, 3), stride on the 3x3.

    Example:
      >>> resnet50(dtype="bfloat16").depths
      (3, 4, 6, 3)
    """
    stem = functools.partial(ImageNetStem, 64)
    return _wide(stem, Bottleneck, (3, 4, 6, 3), num_classes, buffer, normalise, dtype)


def _narrow(
    depth: int, num_classes: int, buffer: int, normalise: Statistics, dtype: Any
) -> ResNet:
    _checks.positive_int(num_classes=num_classes)
    layers.checked_count(buffer=buffer)
    return ResNet(
        functools.partial(CifarStem, 16, 1),
        BasicBlock,
        (depth,) * 3,
        (16, 32, 64),
        num_classes=num_classes,
        buffer=buffer,
        normalise=layers.checked_statistics(normalise),
        dtype=layers.checked_dtype(dtype),
    )


def _wide(
    stem: ModuleFactory,
    block: ModuleFactory,
    depths: tuple[int, ...],
    num_classes: int,
    buffer: int,
    normalise: Statistics,
    dtype: Any,
) -> ResNet:
    _checks.positive_int(num_classes=num_classes)
    layers.checked_count(buffer=buffer)
    return ResNet(
        stem,
        block,
        depths,
        (64, 128, 256, 512),
        num_classes=num_classes,
        buffer=buffer,
        normalise=layers.checked_statistics(normalise),
        dtype=layers.checked_dtype(dtype),
    )
