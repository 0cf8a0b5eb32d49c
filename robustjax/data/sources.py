"""Data sets by name: digits, image folders, and whatever TFDS has prepared."""

import dataclasses
import pathlib

import numpy as np

from robustjax import _checks
from robustjax.data import _folder, _tfds
from robustjax.data.dataset import Dataset, Splits, stratified_cut


def load(
    name: str,
    *,
    data_dir: str | pathlib.Path | None = None,
    validation: float = 0.0,
    seed: int = 0,
    image_size: int | None = None,
    crop: int | None = None,
) -> Splits:
    """Train, validation and test images of a data set, read into memory.

    Where a set has no test split, its validation split is the test. A set that has
    both keeps its validation split, and `validation` is of no effect.

    Args:
      name: One of
        - `"digits"`: scikit-learn's 8x8 digits, 1,200 / 597, nothing to download;
        - `"image_folder"`: `data_dir/train/CLASS/*.png`, and beside it test or
          validation;
        - any image classification set that TFDS has prepared in the array_record
          format, as `NAME` or `NAME/CONFIG`, with `:VERSION` if not the newest.
      data_dir: The image folder, or TFDS' directory; None is `$TFDS_DATA_DIR`, or
        else `~/tensorflow_datasets`.
      validation: What is cut from train for validation, with the class shares of
        the whole: a fraction below 1, or a number of images.
      seed: Of that cut. The test split does not depend on it.
      image_size: Side of the square that images are resized and centre-cropped to;
        None keeps them. Needed where sizes differ.
      crop: Side of the centre that is cut out of validation and test images after that;
        training images stay larger, for `random_resized_crop`.

    Returns:
      The splits, uint8 (digits: float32 in [0, 1]). TFDS examples are in the order of
      their `id` where they have one, so that the first 1,000 test images are those of
      the original set. A test split that is sorted by class, as image folders are, is
      mixed, always in the same way, or its first images would be of few classes; its
      `index` says where each of them stood.

    Raises:
      InputError: One line: what is missing, damaged or of the wrong kind, and what to
        do about it.

    Example:
      >>> splits = load("digits", validation=200)
      >>> splits.train, splits.test
      (Dataset('digits', 1000 images 8x8x1 float32, 10 classes),
       Dataset('digits', 597 images 8x8x1 float32, 10 classes))
      >>> len(splits.validation)
      200
    """
    if image_size is not None:
        _checks.positive_int(image_size=image_size)
    if crop is not None:
        _check_crop(crop, image_size)
    if name == "digits":
        splits = _digits(image_size)
    elif name == "image_folder":
        splits = _folder.read(data_dir, image_size)
    else:
        splits = _tfds.read(name, data_dir, image_size)
    arranged = _arrange(splits, name, validation, seed)
    if crop is None:
        return arranged
    own = arranged.validation
    return dataclasses.replace(
        arranged,
        validation=None if own is None else centred(own, crop),
        test=centred(arranged.test, crop),
    )


def centred(dataset: Dataset, side: int) -> Dataset:
    """The centre of every image, [N, side, side, C]; odd rests are left at the end.

    Args:
      dataset: Images that are no smaller.
      side: In pixels.

    Raises:
      InputError: the images are smaller.

    Example:
      >>> centred(load("digits").test, 4)
      Dataset('digits', 597 images 4x4x1 float32, 10 classes)
    """
    height, width = dataset.images.shape[1:3]
    if side > min(height, width):
        raise _checks.InputError(
            f"`crop` must be at most the images' size, {height}x{width}, got {side}."
        )
    top, left = (height - side) // 2, (width - side) // 2
    cut = dataset.images[:, top : top + side, left : left + side]
    return dataclasses.replace(dataset, images=np.ascontiguousarray(cut))


def _check_crop(crop: int, image_size: int | None) -> None:
    _checks.positive_int(crop=crop)
    if image_size is None or crop > image_size:
        raise _checks.InputError(
            f"`crop` must be at most `image_size`, got {crop} and {image_size}: images "
            "are resized to the latter, then cut."
        )


def _digits(image_size: int | None) -> dict[str, Dataset]:
    from sklearn.datasets import load_digits  # a second to import

    if image_size not in (None, 8):
        raise _checks.InputError(
            f"`image_size` must be None or 8 for digits, got {image_size}."
        )
    images, labels = load_digits(return_X_y=True)
    whole = Dataset(
        images=(images.reshape(-1, 8, 8, 1) / 16).astype(np.float32),
        labels=labels.astype(np.int32),
        index=np.arange(len(labels), dtype=np.int64),
        class_names=tuple("0123456789"),
        name="digits",
    )
    train, test = stratified_cut(whole, 597, seed=0, argument="test")
    return {"train": train, "test": test}


def _arrange(
    splits: dict[str, Dataset], name: str, validation: float, seed: int
) -> Splits:
    """The three splits out of those a source has."""
    if "train" not in splits or not {"test", "validation"} & set(splits):
        raise _checks.InputError(
            f"`name`: {name} must have the splits train and test (or validation), got "
            f"{', '.join(splits) or 'none of them'}. Sort its images into an "
            "image_folder yourself."
        )
    train, own = splits["train"], splits.get("validation")
    count = _count(validation, len(train))
    if "test" not in splits:
        splits, own = {**splits, "test": splits["validation"]}, None
    if own is None and count:
        train, own = stratified_cut(train, count, seed=seed, argument="validation")
    return Splits(train=train, validation=own, test=_mixed(splits["test"]))


def _mixed(dataset: Dataset) -> Dataset:
    """The same, in an order of its own if it is sorted by class."""
    labels = dataset.labels
    if len(labels) < 2 or np.any(np.diff(labels) < 0) or labels[0] == labels[-1]:
        return dataset
    return dataset.take(np.random.default_rng(0).permutation(len(labels)))


def _count(validation: float, num_train: int) -> int:
    """How many images `validation` stands for.

    Whole numbers above 1 count even as floats, which is what configs make of an
    integer when the default was 0.0.
    """
    fraction = 0 <= validation < 1 and not isinstance(validation, bool)
    number = 1 < validation < num_train and validation == int(validation)
    if (
        not fraction
        and not number
        and not (type(validation) is int and validation == 1)
    ):
        raise _checks.InputError(
            f"`validation` must be a fraction in [0, 1) or a number of images below "
            f"train's {num_train}, got {validation!r}."
        )
    return round(validation * num_train) if fraction else int(validation)
