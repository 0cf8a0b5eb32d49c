"""What input-diversity and translation-invariant attacks do to images and gradients."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from robustjax import _checks, _random
from robustjax._checks import InputError
from robustjax.attacks import _warp
from robustjax.types import Array, Key

Diversity = Callable[[Key, Array], Array]


def gaussian_kernel(size: int = 15, span: float = 3.0) -> Array:
    """A Gaussian sampled at `size` points of [-span, span], with sum 1, [size].

    Along both axes it makes the kernel of "Evading Defenses to Transferable
    Adversarial Examples by Translation-Invariant Attacks" (Dong et al., 2019).

    Args:
      size: How many points, odd.
      span: Standard deviations from the centre to the ends.

    Raises:
      InputError: an argument is out of range.

    Example:
      >>> gaussian_kernel(3, 1.0).round(3).tolist()
      [0.27..., 0.45..., 0.27...]
    """
    _checks.positive_int(size=size)
    _checks.positive(span=span)
    _check_odd(size, "size")
    if size == 1:
        return jnp.ones(1)
    bell = jnp.exp(-(jnp.linspace(-span, span, size) ** 2) / 2)
    return bell / bell.sum()


def resize_and_pad(
    low: float = 0.9,
    high: float = 1.0,
    *,
    probability: float = 0.5,
    size: tuple[int, int] | None = None,
) -> Diversity:
    """Images resized at random and laid at random on black, each by its own draw.

    With `probability` an image is resized, bilinearly, to a height drawn from the whole
    numbers between `low` and `high` times its own (the width in proportion), and put
    at a random place of a black canvas of `high` times its size; else it stays as it
    is. See "Improving Transferability of Adversarial Examples with Input Diversity"
    (Xie et al., 2019). Shapes are static, so where the canvas is not of the size that
    the classifier takes, canvas and untouched images alike are resized to that.

    Args:
      low: The smallest share of the side, above 0.
      high: The largest, at least `low`.
      probability: Of being resized.
      size: (height, width) of the result; None keeps the input's, which any
        classifier takes.

    Returns:
      `(key, x) -> x'`; `key` is one key or one per image. Differentiable in x.

    Raises:
      InputError: an argument is out of range.

    Example:
      >>> diversity = resize_and_pad(0.5, 1.0)
      >>> diversity(jax.random.key(0), jnp.ones((2, 8, 6, 1))).shape
      (2, 8, 6, 1)
    """
    _checks.positive(low=low, high=high)
    _checks.fraction(probability=probability)
    if low > high:
        raise InputError(f"`low` must be at most `high` = {high!r}, got {low!r}.")

    def apply(key: Key, x: Array) -> Array:
        _checks.image_axes(x=x)
        keys = _random.per_image_keys(key, x.shape[0])
        canvas = (_share(high, x.shape[1]), _share(high, x.shape[2]))
        result = x.shape[1:3] if size is None else size

        def matrices(key: Key) -> list[Array]:
            chance_key, side_key, *offset_keys = jax.random.split(key, 4)
            touched = jax.random.bernoulli(chance_key, probability)
            tall = jax.random.randint(
                side_key, (), _share(low, x.shape[1]), canvas[0] + 1
            )
            wide = (2 * tall * x.shape[2] + x.shape[1]) // (2 * x.shape[1])
            wide = jnp.clip(wide, 1, canvas[1])
            out = []
            for axis, side in enumerate((tall, wide)):
                count = x.shape[1 + axis]
                free = canvas[axis] - side
                offset = jax.random.randint(offset_keys[axis], (), 0, free + 1)
                moved = _warp.resizing_matrix(
                    count, side, offset, canvas[axis], x.dtype
                )
                moved = _fitted(canvas[axis], result[axis], x.dtype) @ moved
                still = _fitted(count, result[axis], x.dtype)
                out.append(jnp.where(touched, moved, still))
            return out

        rows, columns = jax.vmap(matrices)(keys)
        x = jnp.einsum("bhi,biwc->bhwc", rows, x)
        return jnp.einsum("bwj,bhjc->bhwc", columns, x)

    return apply


def smoothed(grad: Array, kernel: Array) -> Array:
    """`grad` [B, H, W, C] convolved with a symmetric kernel [k] along height and width.

    Zeros lie beyond the edge. Written as two band matrices: as a convolution with one
    channel it would be slower.

    Example:
      >>> point = jnp.zeros((1, 1, 3, 1)).at[0, 0, 1, 0].set(4.0)
      >>> smoothed(point, jnp.array([0.25, 0.5, 0.25])).ravel().tolist()
      [0.5, 1.0, 0.5]
    """

    def band(count: int) -> Array:
        lag = jnp.arange(count)[:, None] - jnp.arange(count)[None, :]
        index = lag + kernel.shape[0] // 2
        inside = (index >= 0) & (index < kernel.shape[0])
        taken = kernel[jnp.clip(index, 0, kernel.shape[0] - 1)].astype(grad.dtype)
        return jnp.where(inside, taken, 0)

    grad = jnp.einsum("hi,biwc->bhwc", band(grad.shape[1]), grad)
    return jnp.einsum("wj,bhjc->bhwc", band(grad.shape[2]), grad)


def _fitted(count: int, size: int, dtype: jnp.dtype) -> Array:
    """The matrix that resizes a line from `count` to `size` pixels."""
    return _warp.resizing_matrix(count, jnp.int32(size), jnp.int32(0), size, dtype)


def _share(share: float, count: int) -> int:
    return max(1, round(share * count))


def _check_odd(size: int, name: str) -> None:
    if size % 2 == 0:
        raise InputError(f"`{name}` must have an odd length, got {size}.")
