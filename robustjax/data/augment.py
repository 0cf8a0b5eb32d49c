"""Augmentations: keyed functions of a batch, run on the device inside the step.

Every image has its own key, so what is drawn for it does not depend on the images
beside it. All of them keep pixels in [0, 1].
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import _checks
from robustjax._random import fold_in, per_image_keys
from robustjax.types import Array, Key

Augmentation = Callable[[Key, Array], Array]
"""`(key, x [B, H, W, C]) -> x'`, of the dtype of `x`; `key` is one key, or one each."""


def as_float(x: Array) -> Array:
    """Pixels as float32 in [0, 1]: uint8 divided by 255, floats as they are.

    Args:
      x: [..., H, W, C], uint8 or floating point.

    Raises:
      InputError: `x` has another dtype.

    Example:
      >>> as_float(jnp.uint8([0, 255]))
      Array([0., 1.], dtype=float32)
    """
    if x.dtype == jnp.uint8:
        return jnp.asarray(x, jnp.float32) / 255
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise _checks.InputError(
            f"`x` must be uint8, or floating point in [0, 1], got dtype {x.dtype}."
        )
    return jnp.asarray(x)


def random_crop(padding: int = 4) -> Augmentation:
    """Crops of the original size out of images padded with zeros.

    The offsets are uniform in {0, ..., 2 padding}, drawn per image. See "Deep Residual
    Learning for Image Recognition" (He et al., 2016), section 4.2.

    Args:
      padding: Pixels added on each of the four sides; 0 is the identity.

    Raises:
      InputError: `padding` is no integer of at least 0.

    Example:
      >>> x = jnp.ones((2, 8, 8, 1))
      >>> random_crop(4)(jax.random.key(0), x).shape
      (2, 8, 8, 1)
    """
    if padding != 0:
        _checks.positive_int(padding=padding)

    def augment(key: Key, x: Array) -> Array:
        _check_batch(x)
        height, width, channels = x.shape[1:]
        sides = ((padding, padding), (padding, padding), (0, 0))

        def crop(key: Key, image: Array) -> Array:
            top, left = jax.random.randint(key, (2,), 0, 2 * padding + 1)
            return jax.lax.dynamic_slice(
                jnp.pad(image, sides), (top, left, 0), (height, width, channels)
            )

        return jax.vmap(crop)(per_image_keys(key, len(x)), x)

    return augment


def flip() -> Augmentation:
    """Each image mirrored left to right with probability 1/2.

    Example:
      >>> x = jnp.arange(2.0).reshape(1, 1, 2, 1)
      >>> once = flip()(jax.random.key(0), x)
      >>> bool((flip()(jax.random.key(0), once) == x).all())
      True
    """

    def augment(key: Key, x: Array) -> Array:
        _check_batch(x)
        keys = per_image_keys(key, len(x))
        mirrored = jax.vmap(jax.random.bernoulli)(keys)
        return jnp.where(mirrored[:, None, None, None], x[:, :, ::-1], x)

    return augment


def random_resized_crop(
    size: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Augmentation:
    """A random rectangle of each image, resized to `size` x `size`.

    Its share of the image's area is uniform in `scale`, the logarithm of its width
    over its height uniform in log `ratio`, its place uniform; bilinear, antialiased.
    See "Going Deeper with Convolutions" (Szegedy et al., 2015), section 6. Deviation:
    a rectangle that sticks out is cut to the image's height or width; other
    implementations draw again. Edges are not rounded to whole pixels.

    Args:
      size: Side of the result.
      scale: Smallest and largest share of the area, in (0, 1].
      ratio: Smallest and largest width / height.

    Raises:
      InputError: A range is empty or not positive, `scale` exceeds 1, or `size` is no
        positive integer. When called: `x` is not floating point.

    Example:
      >>> x = jnp.ones((2, 16, 16, 3))
      >>> random_resized_crop(8)(jax.random.key(0), x).shape
      (2, 8, 8, 3)
    """
    _checks.positive_int(size=size)
    _check_range("scale", scale, 1.0)
    _check_range("ratio", ratio, np.inf)

    def box(key: Key, height: int, width: int) -> tuple[Array, Array]:
        """Corner (top, left) and sides (height, width) of a rectangle, in pixels."""
        area_key, ratio_key, place_key = jax.random.split(key, 3)
        low, high = scale
        area = height * width * jax.random.uniform(area_key, minval=low, maxval=high)
        low, high = np.log(ratio)
        aspect = jnp.exp(jax.random.uniform(ratio_key, minval=low, maxval=high))
        whole = jnp.array([height, width], jnp.float32)
        sides = jnp.minimum(jnp.sqrt(jnp.stack([area / aspect, area * aspect])), whole)
        return jax.random.uniform(place_key, (2,)) * (whole - sides), sides

    def augment(key: Key, x: Array) -> Array:
        _check_batch(x)
        _checks.images(x=x)

        def crop(key: Key, image: Array) -> Array:
            corner, sides = box(key, *image.shape[:2])
            resized = jax.image.scale_and_translate(
                image,
                (size, size, image.shape[-1]),
                spatial_dims=(0, 1),
                scale=size / sides,
                translation=-corner * size / sides,
                method="linear",
                antialias=True,
            )
            # The weights are positive and sum to 1, up to rounding.
            return jnp.clip(resized, 0, 1)

        return jax.vmap(crop)(per_image_keys(key, len(x)), x)

    return augment


def chain(*augmentations: Augmentation) -> Augmentation:
    """All of them, the first one first, each with keys of its own.

    Example:
      >>> x = jnp.ones((2, 8, 8, 1))
      >>> chain(random_crop(1), flip())(jax.random.key(0), x).shape
      (2, 8, 8, 1)
    """

    def augment(key: Key, x: Array) -> Array:
        keys = per_image_keys(key, len(x))
        for position, augmentation in enumerate(augmentations):
            x = augmentation(fold_in(keys, position), x)
        return x

    return augment


def _check_batch(x: Array) -> None:
    if x.ndim != 4:
        raise _checks.InputError(f"`x` must be [B, H, W, C], got shape {x.shape}.")


def _check_range(name: str, value: tuple[float, float], largest: float) -> None:
    low, high = value
    if not 0 < low <= high <= largest:
        raise _checks.InputError(
            f"`{name}` must be (low, high) with 0 < low <= high <= {largest:g}, got "
            f"{value!r}."
        )
