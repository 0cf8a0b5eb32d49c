"""Encoded images to pixels, one shape for a whole split."""

import io
import pathlib
from collections.abc import Iterable

import numpy as np

from robustjax import _checks


def reason(error: Exception) -> str:
    """The first line of an error, for messages of one line.

    Example:
      >>> reason(ValueError("no image\\nbecause ..."))
      'no image'
    """
    return str(error).partition("\n")[0] or type(error).__name__


def decode(
    encoded: bytes | pathlib.Path, *, channels: int, image_size: int | None
) -> np.ndarray:
    """Pixels of one image, [H, W, C] uint8.

    Args:
      encoded: A file of any format that Pillow reads, or its bytes.
      channels: 1 (grey) or 3 (RGB); other modes are converted.
      image_size: Side of the square result: the shorter side is resized to it
        (Lanczos), then the centre is cut out. None keeps the size.

    Raises:
      OSError: The bytes are no image, or end early.
      ValueError: More than 8 bits per channel, which conversion would clip.
    """
    from PIL import Image, ImageOps

    file = io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded
    with Image.open(file) as opened:
        if opened.mode.startswith(("I", "F")):
            raise ValueError(f"has {opened.mode} pixels, only 8 bits are read")
        image = opened.convert("L" if channels == 1 else "RGB")
    if image_size is not None and image.size != (image_size, image_size):
        image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.LANCZOS)
    pixels = np.asarray(image)
    return pixels[..., None] if channels == 1 else pixels


def stack(images: Iterable[np.ndarray], count: int, where: str) -> np.ndarray:
    """`count` images as one array, [count, H, W, C].

    Images are written where they belong as they come: a list of them all, stacked
    at the end, would need twice the memory.

    Raises:
      InputError: Two images differ in size; `where` says whose they are.
    """
    stacked = None
    for row, image in enumerate(images):
        if stacked is None:
            stacked = np.empty((count, *image.shape), image.dtype)
        if image.shape != stacked.shape[1:]:
            raise _checks.InputError(
                f"`image_size` must be given: the images of {where} differ in size, "
                f"{_size(stacked[0])} and {_size(image)} pixels among them."
            )
        stacked[row] = image
    if stacked is None:
        raise _checks.InputError(f"{where} has no images.")
    return stacked


def _size(image: np.ndarray) -> str:
    return f"{image.shape[0]}x{image.shape[1]}"
