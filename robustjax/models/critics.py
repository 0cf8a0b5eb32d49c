"""The critics of mutual-information estimators, as NAMID's released code has them.

A local net turns an image (or a perturbation) into a map of local vectors, a global net
the logits (or an inner layer) of a classifier into one vector; both end in a LayerNorm
over channels. See "Learning Adversarially Robust Representations via Worst-Case Mutual
Information Maximization" (Zhu et al., 2020), to which "Improving Adversarial Robustness
via Mutual Information Estimation" (Zhou et al., 2022) refers for the architecture.
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from robustjax import _checks
from robustjax._checks import InputError
from robustjax.models import layers
from robustjax.types import Array, Key, MIEstimator, Mode, PyTree


def _conv(
    features: int,
    name: str,
    *,
    size: int = 1,
    stride: int = 1,
    pad: int = 0,
    use_bias: bool = False,
) -> nn.Conv:
    return nn.Conv(
        features,
        (size, size),
        strides=stride,
        padding=pad,
        use_bias=use_bias,
        kernel_init=layers.dense_init,
        bias_init=_bias_init,
        name=name,
    )


def _norm(name: str, train: bool) -> nn.BatchNorm:
    return layers.batch_norm(name, train=train, dtype=None)  # as wide as its input


def _bias_init(key: Key, shape: tuple[int, ...], dtype: Any) -> Array:
    """Uniform in +-1/sqrt(fan_in); in these nets biases follow equally wide layers."""
    bound = 1 / math.sqrt(shape[0])
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def _eye_init(key: Key, shape: tuple[int, ...], dtype: Any) -> Array:
    """Of a 1x1 kernel [1, 1, n, units]: small noise and 1 on the diagonal."""
    if shape[-2] > shape[-1]:
        return layers.dense_init(key, shape, dtype)
    noise = jax.random.uniform(key, shape, dtype, -0.01, 0.01)
    diagonal = jnp.eye(shape[-2], shape[-1], dtype=bool)[None, None]
    return jnp.where(diagonal, jnp.ones((), dtype), noise)


class CriticHead(nn.Module):
    """Two 1x1 convolutions beside a nearly linear shortcut, then LayerNorm.

    The shortcut starts as the identity into the first channels, with small noise.

    Attributes:
      units: Channels out, U.
      train: Whether BatchNorm uses batch statistics.
    """

    units: int
    train: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [N, H, W, C] to maps [N, H, W, U]."""
        main = _conv(self.units, "conv1")(x)
        main = nn.relu(_norm("norm1", self.train)(main))
        main = _conv(self.units, "conv2", use_bias=True)(main)
        shortcut = nn.Conv(
            self.units,
            (1, 1),
            use_bias=False,
            kernel_init=_eye_init,
            name="shortcut",
        )(x)
        return nn.LayerNorm(epsilon=1e-5, name="layer_norm")(main + shortcut)


class LocalCritic(nn.Module):
    """Images to a map of local vectors: two halvings, then a `CriticHead`.

    4,863,360 parameters with the defaults and three channels.

    Attributes:
      units: U.
      widths: Channels after each halving.

    Example:
      >>> net, x = LocalCritic(units=16), jnp.zeros((2, 32, 32, 3))
      >>> net.init_with_output(jax.random.key(0), x)[0].shape
      (2, 8, 8, 16)
    """

    units: int = 2048
    widths: Sequence[int] = (64, 128)

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """[N, H, W, C] to [N, H / 4, W / 4, U]."""
        _checks.images(x=x)
        for number, width in enumerate(self.widths, 1):
            x = _conv(width, f"conv{number}", size=4, stride=2, pad=1)(x)
            x = nn.relu(_norm(f"norm{number}", train)(x))
        return CriticHead(self.units, train, name="head")(x)


class GlobalCritic(nn.Module):
    """Logits to one vector: a `CriticHead`.

    4,245,504 parameters with the defaults and ten classes.

    Attributes:
      units: U.

    Example:
      >>> net, z = GlobalCritic(units=16), jnp.zeros((2, 10))
      >>> net.init_with_output(jax.random.key(0), z)[0].shape
      (2, 1, 1, 16)
    """

    units: int = 2048

    @nn.compact
    def __call__(self, z: Array, train: bool = False) -> Array:
        """[N, K] to [N, 1, 1, U]."""
        return CriticHead(self.units, train, name="head")(z[:, None, None])


class InternalCritic(nn.Module):
    """A layer's map to one vector: halvings to 1x1 beside a linear shortcut.

    For an 8x8 map with `depth` 3 and for a 4x4 map with `depth` 2, the third and the
    fourth stage of a ResNet-18: 75,510,784 and 67,121,152 parameters with the defaults.

    Attributes:
      units: U.
      depth: Halvings of the map, 2 or 3.
    """

    units: int = 2048
    depth: int = 3

    @nn.compact
    def __call__(self, z: Array, train: bool = False) -> Array:
        """[N, 2^depth, 2^depth, C] to [N, 1, 1, U]."""
        _checks.one_of((2, 3), depth=self.depth)
        side = 2**self.depth
        if z.ndim != 4 or z.shape[1:3] != (side, side):
            raise InputError(
                f"`z` must be maps of {side}x{side} for `depth` {self.depth}, got "
                f"shape {z.shape}."
            )
        widths = [self.units // 2**n for n in reversed(range(self.depth))]
        main = z
        for number, width in enumerate(widths, 1):
            main = _conv(width, f"conv{number}", size=4, stride=2, pad=1)(main)
            main = nn.relu(_norm(f"norm{number}", train)(main))
        main = _conv(self.units, f"conv{self.depth + 1}", use_bias=True)(main)
        shortcut = z
        for number, (size, stride, width) in enumerate(self._linear(), 1):
            layer = _conv(width, f"shortcut{number}", size=size, stride=stride)
            shortcut = layer(shortcut)
        shortcut = _conv(self.units, f"shortcut{self.depth}")(shortcut)
        return nn.LayerNorm(epsilon=1e-5, name="layer_norm")(main + shortcut)

    def _linear(self) -> Sequence[tuple[int, int, int]]:
        """Kernel size, stride and channels of what takes the map to 1x1."""
        if self.depth == 2:
            return ((4, 1, self.units),)
        return ((4, 2, self.units // 2), (3, 1, self.units))


class DenseCritic(nn.Module):
    """A fully connected net beside a linear shortcut, for samples that are vectors.

    Its units are SiLUs: log ratios of densities are curved (those of Gaussians
    quadratic), and ReLUs, piecewise linear, follow that slowly.

    Attributes:
      units: U.
      widths: Of the hidden layers.

    Example:
      >>> net, z = DenseCritic(units=16), jnp.zeros((2, 5))
      >>> net.init_with_output(jax.random.key(0), z)[0].shape
      (2, 1, 1, 16)
    """

    units: int = 64
    widths: Sequence[int] = (256, 256)

    @nn.compact
    def __call__(self, z: Array, train: bool = False) -> Array:
        """[N, D] to [N, 1, 1, U]."""
        del train
        if z.ndim != 2:
            raise InputError(
                f"`z` must be vectors [N, D], got shape {z.shape}: take another critic."
            )
        main = z
        for number, width in enumerate(self.widths, 1):
            main = nn.silu(nn.Dense(width, name=f"dense{number}")(main))
        shortcut = nn.Dense(self.units, use_bias=False, name="shortcut")(z)
        main = nn.Dense(self.units, name="out")(main) + shortcut
        return main[:, None, None] / self.units**0.5


def mi_estimator(local_net: nn.Module, global_net: nn.Module) -> MIEstimator:
    """Two linen modules as an `MIEstimator`.

    Args:
      local_net: `(x, train) -> [N, H, W, U]`.
      global_net: `(z, train) -> [N, H, W, U]`, of the same U.

    Returns:
      The estimator; params and state have the entries "local" and "global".

    Example:
      >>> estimator = mi_estimator(LocalCritic(units=16), GlobalCritic(units=16))
      >>> x, z = jnp.zeros((2, 8, 8, 1)), jnp.zeros((2, 10))
      >>> params, state = estimator.init(jax.random.key(0), x, z)
      >>> local, glob, _ = estimator.features(params, state, x, z)
      >>> local.shape, glob.shape
      ((2, 16, 4), (2, 16, 1))
    """
    nets = {"local": local_net, "global": global_net}

    def init(key: Key, x: Array, z: Array) -> tuple[PyTree, PyTree]:
        keys = jax.random.split(key)
        made = {
            name: net.init(each, sample, train=False)
            for (name, net), each, sample in zip(
                nets.items(), keys, (x, z), strict=True
            )
        }
        params = {name: made[name]["params"] for name in nets}
        return params, {name: _statistics(made[name]) for name in nets}

    def part(name: str):
        def features(
            params: PyTree, state: PyTree, sample: Array, *, mode: Mode = "eval"
        ) -> tuple[Array, PyTree]:
            _checks.one_of(("train", "batch", "eval"), mode=mode)
            variables = {"params": params[name], **state[name]}
            found, updated = nets[name].apply(
                variables,
                sample,
                train=mode != "eval",
                mutable=["batch_stats"] if mode != "eval" else [],
            )
            new = {**state, name: _statistics(updated)} if mode == "train" else state
            count, units = found.shape[0], found.shape[-1]
            return jnp.moveaxis(found.reshape(count, -1, units), 2, 1), new

        return features

    return MIEstimator(init, part("local"), part("global"))


def logits_critic(
    units: int = 2048, *, widths: Sequence[int] = (64, 128)
) -> MIEstimator:
    """The estimator of images (or perturbations) in logits, with the released nets.

    Example:
      >>> estimator = logits_critic(units=16)
      >>> x, z = jnp.zeros((2, 8, 8, 1)), jnp.zeros((2, 10))
      >>> params, _ = estimator.init(jax.random.key(0), x, z)
      >>> list(params)
      ['local', 'global']
    """
    return mi_estimator(LocalCritic(units, widths), GlobalCritic(units))


def layer_critic(
    units: int = 2048,
    *,
    layer: str = "stage3",
    depth: int = 3,
    widths: Sequence[int] = (64, 128),
) -> MIEstimator:
    """The same in a layer's map of 2^depth x 2^depth.

    Args:
      units: U.
      layer: Of the classifier. The released code offers the third and the fourth stage
        of its ResNet-18 on 32x32 images, with depth 3 and 2.
      depth: See `InternalCritic`.
      widths: See `LocalCritic`.
    """
    nets = LocalCritic(units, widths), InternalCritic(units, depth)
    return mi_estimator(*nets)._replace(layer=layer)


def _statistics(variables: PyTree) -> PyTree:
    return {k: v for k, v in variables.items() if k == "batch_stats"}
