"""Bilinear sampling of images, for the attacks that move pixels instead of values."""

import jax
import jax.numpy as jnp

from robustjax.types import Array


def sample(x: Array, rows: Array, columns: Array) -> Array:
    """Images read at real positions, bilinearly, zero outside.

    Differentiable in the positions without a scatter, as long as `x` is constant. At
    whole positions it reads pixels exactly.

    Args:
      x: [B, H, W, C].
      rows: Where to read, in pixels from the top, [B, h, w].
      columns: The same from the left, [B, h, w].

    Returns:
      [B, h, w, C].

    Example:
      >>> x = jnp.arange(3.0).reshape(1, 1, 3, 1)
      >>> at = jnp.array([0.5, 2.0, 2.5]).reshape(1, 1, 3)
      >>> sample(x, jnp.zeros((1, 1, 3)), at).ravel().tolist()
      [0.5, 2.0, 1.0]
    """
    height, width = x.shape[1:3]
    # One row and column of zeros before the image and two after it: from there on
    # positions may be cut off.
    padded = jnp.pad(x, ((0, 0), (1, 2), (1, 2), (0, 0)))
    flat = padded.reshape(x.shape[0], -1, x.shape[3])
    rows, columns = jnp.clip(rows, -1, height), jnp.clip(columns, -1, width)
    top, left = jnp.floor(rows), jnp.floor(columns)
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    corner = (top.astype(jnp.int32) + 1) * (width + 3) + left.astype(jnp.int32) + 1

    def pixel(step_down: int, step_right: int) -> Array:
        index = corner + step_down * (width + 3) + step_right
        return jax.vmap(lambda image, at: image[at])(flat, index)

    upper = (1 - right) * pixel(0, 0) + right * pixel(0, 1)
    lower = (1 - right) * pixel(1, 0) + right * pixel(1, 1)
    read = (1 - down) * upper + down * lower
    # Weights that sum to 1 up to rounding must not leave the range of the pixels. The
    # slope is that of the unclipped value, which may sit at the end of the range.
    low = jnp.minimum(x.min(axis=(1, 2, 3), keepdims=True), 0)
    high = jnp.maximum(x.max(axis=(1, 2, 3), keepdims=True), 0)
    return read + jax.lax.stop_gradient(jnp.clip(read, low, high) - read)


def identity(x: Array) -> tuple[Array, Array]:
    """The rows and columns, [H, W], at which `sample` returns `x`.

    Example:
      >>> rows, columns = identity(jnp.zeros((1, 2, 3, 1)))
      >>> columns.tolist()
      [[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]]
    """
    height, width = x.shape[1:3]
    rows = jnp.arange(height, dtype=x.dtype)[:, None]
    columns = jnp.arange(width, dtype=x.dtype)[None, :]
    return (
        jnp.broadcast_to(rows, (height, width)),
        jnp.broadcast_to(columns, (height, width)),
    )


def resizing_matrix(
    size: int, side: Array, offset: Array, canvas: int, dtype: jnp.dtype
) -> Array:
    """The matrix that resizes a line of pixels and lays it on a line of zeros.

    Bilinear with half-pixel centres, the ends repeated, no smoothing when shrinking:
    `F.interpolate(..., mode="bilinear", align_corners=False)` of PyTorch.

    Args:
      size: Pixels of the line.
      side: Pixels after resizing, a scalar, may be traced.
      offset: Where they begin on the canvas, a scalar, may be traced.
      canvas: Pixels of the result.
      dtype: Of the matrix.

    Returns:
      [canvas, size].

    Example:
      >>> both = resizing_matrix(2, jnp.int32(1), jnp.int32(1), 3, jnp.float32)
      >>> both.tolist()
      [[0.0, 0.0], [0.5, 0.5], [0.0, 0.0]]
    """
    place = jnp.arange(canvas) - offset
    scale = size / side.astype(dtype)
    centre = (place.astype(dtype) + 0.5) * scale - 0.5
    centre = jnp.clip(centre, 0, size - 1)[:, None]
    pixels = jnp.arange(size, dtype=dtype)[None, :]
    weights = jnp.maximum(1 - jnp.abs(centre - pixels), 0)
    covered = ((place >= 0) & (place < side))[:, None]
    return jnp.where(covered, weights, 0)
