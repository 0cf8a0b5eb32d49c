"""The trunk of every residual network here: stem, stages, pooling, head."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from robustjax.models import layers
from robustjax.models.residual import ModuleFactory, Placement, Stage
from robustjax.types import Array


class ResNet(nn.Module):
    """Stem, residual stages, global average pooling, buffer, head.

    Paths: "normalise"; "stem" (its output), "stem/conv"; "stage1", "stage2", ... (a
    stage's output) and "stage1/block2" (a block's), after the block's last ReLU or, in
    pre-activation networks, the bare sum; inside a block "stage1/block2/conv1",
    "stage1/block2/norm1" and so on; "maps" (what is pooled: the last stage's output,
    after "norm" and ReLU in pre-activation networks); "pooled", [B, D]; "buffer" and
    "buffer/fc1", where there is one; "features" (the input of the head); "head".

    Attributes:
      stem: `(*, train, dtype, name) -> module`.
      block: `(width, stride, *, train, dtype, name) -> module`.
      depths: Blocks of each stage.
      widths: Of the stages' blocks; every stage but the first halves the maps.
      final_norm: BatchNorm and ReLU after the last stage (pre-activation networks).
      num_classes: K.
      buffer: Number of FC(D, D) + ReLU layers before the head; 0 is none.
      normalise: `(mean, std)` per channel, or None.
      dtype: Of the computation, but for the head; parameters and BatchNorm statistics
        are float32.
      denoise: Blocks that smooth maps, see `models.denoised`; inside their stages.

    Example:
      >>> from robustjax import models
      >>> isinstance(models.resnet20(), ResNet)
      True
    """

    stem: ModuleFactory
    block: ModuleFactory
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    final_norm: bool = False
    num_classes: int = 10
    buffer: int = 0
    normalise: layers.ChannelStatistics | None = None
    dtype: Any = jnp.float32
    denoise: Placement | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Images [B, H, W, C] to logits [B, K], float32."""
        x = layers.Normalise(self.normalise, name="normalise")(x)
        x = self.stem(train=train, dtype=self.dtype, name="stem")(x)
        for index, (depth, width) in enumerate(
            zip(self.depths, self.widths, strict=True)
        ):
            name = f"stage{index + 1}"
            has_denoising = self.denoise is not None and name in self.denoise.stages
            x = Stage(
                self.block,
                depth,
                width,
                stride=1 if index == 0 else 2,
                train=train,
                dtype=self.dtype,
                denoise=self.denoise if has_denoising else None,
                name=name,
            )(x)
        if self.final_norm:
            x = nn.relu(layers.batch_norm("norm", train=train, dtype=self.dtype)(x))
        x = layers.Mark(name="maps")(x)
        return layers.classify(
            layers.Mark(name="pooled")(x.mean(axis=(1, 2))),
            num_classes=self.num_classes,
            buffer=self.buffer,
            dtype=self.dtype,
        )
