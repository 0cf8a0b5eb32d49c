"""Pieces that all our models share, and the checks of their factories."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from robustjax import _checks
from robustjax._checks import InputError
from robustjax.types import Array

ChannelStatistics = tuple[tuple[float, ...], tuple[float, ...]]
"""(mean, standard deviation) of each channel, on the pixel scale [0, 1]."""

# He et al. (2015), backward form: variance 2 / (k * k * c_out), untruncated.
conv_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# Uniform in +-1/sqrt(fan_in), what the published codes get from PyTorch by default.
dense_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Mark(nn.Module):
    """The identity; gives a tensor a path, so that `capture` and `taps` reach it.

    Example:
      >>> Mark(name="features").apply({}, jnp.ones(2)).tolist()
      [1.0, 1.0]
    """

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`x` as it is."""
        return x


class Normalise(nn.Module):
    """The first layer of every model: `(x - mean) / std` per channel, float32.

    Attributes:
      statistics: `(mean, std)`, or None for the identity.

    Example:
      >>> layer = Normalise(((0.5,), (0.25,)))
      >>> layer.apply({}, jnp.ones((1, 1, 1, 1))).item()
      2.0
    """

    statistics: ChannelStatistics | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Images [B, H, W, C] in [0, 1], normalised.

        Raises:
          InputError: `x` is not [B, H, W, C] or not floating point, or has another
            number of channels than the statistics.
        """
        _checks.images(x=x)
        if x.ndim != 4:
            raise InputError(f"`x` must be images [B, H, W, C], got shape {x.shape}.")
        if self.statistics is None:
            return x
        mean, std = jnp.asarray(self.statistics, x.dtype)
        if mean.shape != x.shape[-1:]:
            raise InputError(
                f"`normalise` is for {mean.size} channels, but `x` has shape {x.shape}."
            )
        shape = (1, 1, 1, -1)
        return (x - mean.reshape(shape)) / std.reshape(shape)


class Buffer(nn.Module):
    """The WNLL papers' buffer: `depth` times (fully connected, ReLU), width kept.

    WNLL's second stage trains these weights alone: `params["buffer"]`.

    Attributes:
      depth: How many; 0 is the identity.
      dtype: Of the computation.

    Example:
      >>> import jax
      >>> Buffer(2).init_with_output(jax.random.key(0), jnp.ones((3, 4)))[0].shape
      (3, 4)
    """

    depth: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Features [B, D] to features [B, D]."""
        for index in range(1, self.depth + 1):
            dense = nn.Dense(
                x.shape[-1], dtype=self.dtype, kernel_init=dense_init, name=f"fc{index}"
            )
            x = nn.relu(dense(x))
        return x


def classify(
    features: Array,
    *,
    num_classes: int,
    buffer: int,
    dtype: Any,
    kernel_init: Any = dense_init,
) -> Array:
    """Logits [B, K], float32, of features [B, D], inside a model's `__call__`.

    Adds the layers "buffer" (if `buffer` > 0), "features", which marks the input of
    the head, and "head". The head computes in float32 at any `dtype`: 8 bits of
    mantissa would tie logits that differ.
    """
    if buffer:
        features = Buffer(buffer, dtype, name="buffer")(features)
    features = Mark(name="features")(features)
    head = nn.Dense(num_classes, kernel_init=kernel_init, name="head")
    return head(features.astype(jnp.float32))


def batch_norm(
    name: str,
    *,
    train: bool,
    dtype: Any,
    scale_init: nn.initializers.Initializer = nn.initializers.ones,
) -> nn.BatchNorm:
    """BatchNorm with PyTorch's constants; statistics and parameters are float32.

    Momentum 0.9 is PyTorch's 0.1. The running variance is the biased one, where
    PyTorch keeps the unbiased: a factor (n - 1) / n, n = batch * height * width.
    """
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        dtype=dtype,
        scale_init=scale_init,
        name=name,
    )


def max_pool2(x: Array) -> Array:
    """2x2 max-pooling of [B, H, W, C]; an odd last row or column is dropped.

    Raises:
      InputError: H or W is below 2.

    Example:
      >>> max_pool2(jnp.ones((1, 5, 4, 3))).shape
      (1, 2, 2, 3)
    """
    if min(x.shape[1:3]) < 2:
        raise InputError(
            f"`x` is too small for this model: its maps are {x.shape[1]}x{x.shape[2]} "
            "before a 2x2 pooling. Use larger images or fewer stages."
        )
    # Pairwise maxima instead of a window reduction, whose gradient (select and
    # scatter) took 10 times as long on CPU. As there, and in PyTorch, the gradient goes
    # to the first of equals: shared ones would halve what a black background shows to
    # an attack that takes few pixels.
    height, width = x.shape[1] // 2, x.shape[2] // 2
    x = x[:, : 2 * height, : 2 * width]
    x = x.reshape(x.shape[0], height, 2, width, 2, x.shape[3])
    columns = _first_largest(x[:, :, :, :, 0], x[:, :, :, :, 1])
    return _first_largest(columns[:, :, 0], columns[:, :, 1])


def _first_largest(a: Array, b: Array) -> Array:
    return jnp.where((a >= b) | jnp.isnan(a), a, b)


def checked_dtype(dtype: Any) -> Any:
    """`dtype` or its name as float32 or bfloat16.

    Raises:
      InputError: It is another.

    Example:
      >>> checked_dtype("bfloat16")
      dtype(bfloat16)
    """
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        found = None
    if found not in (jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16)):
        raise InputError(f"`dtype` must be 'float32' or 'bfloat16', got {dtype!r}.")
    return found


def checked_statistics(
    normalise: Sequence[Sequence[float]] | None,
) -> ChannelStatistics | None:
    """`normalise` as hashable `(mean, std)`, or None.

    Raises:
      InputError: It is no pair of equally long sequences, or a `std` is not above 0.

    Example:
      >>> checked_statistics([[0.5], [0.25]])
      ((0.5,), (0.25,))
    """
    if normalise is None:
        return None
    try:
        mean, std = (tuple(float(value) for value in part) for part in normalise)
    except (TypeError, ValueError):
        mean, std = (), ()
    if not mean or len(mean) != len(std) or min(std) <= 0:
        raise InputError(
            "`normalise` must be None or (mean, std), each with one number per channel "
            f"and every std above 0; got {normalise!r}."
        )
    return mean, std


def checked_count(**arguments: int) -> None:
    """Raises unless every keyword argument is an integer of at least 0.

    Raises:
      InputError: One is not.

    Example:
      >>> checked_count(buffer=0)
    """
    for name, value in arguments.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise InputError(
                f"`{name}` must be an integer of at least 0, got {value!r}."
            )
