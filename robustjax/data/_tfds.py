"""Prepared TFDS directories, read whole and without TensorFlow.

Image bytes are decoded by Pillow here and not by TFDS: half again as fast, and no
warning about OpenCV.
"""

import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from robustjax import _checks
from robustjax.data import _images
from robustjax.data.dataset import Dataset

SPLITS = ("train", "validation", "test")
NAME = re.compile(r"(?P<path>\w+(/[\w.+-]+)?)(:(?P<version>\d+\.\d+\.\d+))?")
# A single random read takes time in the number of records of the file, a block of
# them does not: 310 us against 10 us a record at 200,000 records.
BLOCK = 1024


def read(
    name: str, data_dir: str | pathlib.Path | None, image_size: int | None
) -> dict[str, Dataset]:
    """The splits train, validation and test of a prepared data set, if it has them.

    Args:
      name: `NAME`, `NAME/CONFIG`, or either with `:VERSION`; without, the newest.
      data_dir: TFDS' directory; None is `$TFDS_DATA_DIR`, or else
        `~/tensorflow_datasets`.
      image_size: See `_images.decode`.

    Returns:
      Examples in the order of their `id`, where they have one, numbers in it counting
      as numbers; otherwise in the order of the records, which TFDS shuffles once.

    Raises:
      InputError: Not there, damaged, or not made of an image and a label each.
    """
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    root = pathlib.Path(data_dir or default).expanduser()
    if not NAME.fullmatch(name):
        raise _checks.InputError(
            f"`name` must be digits, image_folder, or a TFDS name such as cifar10, "
            f"NAME/CONFIG or NAME:1.0.0; got {name!r}."
        )
    builder = _open_directory(name, root) or _open_code(name, root)
    folder = str(builder.data_path)
    channels, class_names = _image_and_label(name, builder.info.features)
    try:
        return {
            split: _read_split(builder, split, channels, class_names, image_size)
            for split in SPLITS
            if split in builder.info.splits
        }
    except (_checks.InputError, MemoryError):
        raise
    except NotImplementedError as error:
        raise _checks.InputError(
            f"`name`: {folder} is not in the array_record format, the only one that is "
            f"read without TensorFlow. Prepare it anew: {_command(name, root)}."
        ) from error
    except Exception as error:  # array_record, protobuf and Pillow each have their own
        raise _damaged(name, folder, error) from error


def _open_directory(name: str, root: pathlib.Path) -> Any:
    """The data set as its own files describe it, or None if there are none."""
    import tensorflow_datasets as tfds

    path, _, version = name.partition(":")
    versions = [
        entry.name
        for entry in (root / path).glob(version or "*")
        if re.fullmatch(r"\d+\.\d+\.\d+", entry.name) and entry.is_dir()
    ]
    if not versions:
        return None
    newest = max(versions, key=lambda text: tuple(map(int, text.split("."))))
    folder = root / path / newest
    try:
        return tfds.builder_from_directory(folder)
    except Exception as error:  # bad JSON, missing keys, missing files
        raise _damaged(name, str(folder), error) from error


def _open_code(name: str, root: pathlib.Path) -> Any:
    """The data set as TFDS' code describes it, which knows its default config."""
    import tensorflow_datasets as tfds

    from robustjax.data import oxford_flowers17

    if re.split("[/:]", name)[0] == oxford_flowers17.OxfordFlowers17.name:
        how = (
            "put 17flowers.tgz and datasplits.mat into a directory DIR and run "
            "`from robustjax.data import oxford_flowers17; "
            f"oxford_flowers17.prepare(DIR, data_dir={str(root)!r})`"
        )
    else:
        how = f"prepare it: {_command(name, root)}"
    missing = _checks.InputError(
        f"`name`: {name} is not in {root}. Set TFDS_DATA_DIR (or `data_dir`) to the "
        f"directory that has it, or {how}."
    )
    try:
        builder = tfds.builder(name, data_dir=root, file_format="array_record")
    except tfds.core.DatasetNotFoundError as error:
        raise _checks.InputError(
            f"`name`: {name} is neither in {root} nor a name TFDS knows. Correct it, "
            "or set TFDS_DATA_DIR (or `data_dir`) to the directory that has it."
        ) from error
    except Exception as error:  # whatever a builder's code needs, TensorFlow often
        raise missing from error
    if not builder.data_path.exists():
        raise missing
    return builder


def _image_and_label(name: str, features: Any) -> tuple[int, tuple[str, ...]]:
    """Channels of `image` and the names of the classes of `label`."""
    import tensorflow_datasets as tfds

    known = dict(features.items())
    image, label = known.get("image"), known.get("label")
    channels = None
    # Not `image.dtype`, which asks TensorFlow.
    if isinstance(image, tfds.features.Image) and image.np_dtype == np.uint8:
        channels = tuple(image.shape)[-1]  # pyright: ignore[reportArgumentType]
    if channels not in (1, 3) or not isinstance(label, tfds.features.ClassLabel):
        raise _checks.InputError(
            f"`name`: {name} must have the features image (uint8, 1 or 3 channels) and "
            f"label (a class), got {', '.join(sorted(known))}."
        )
    # Nothing says how many classes there are where neither names nor a number do.
    return channels, tuple(label.names or map(str, range(label.num_classes or 0)))


def _read_split(
    builder: Any,
    split: str,
    channels: int,
    class_names: tuple[str, ...],
    image_size: int | None,
) -> Dataset:
    import tensorflow_datasets as tfds

    source = builder.as_data_source(
        split, decoders={"image": tfds.decode.SkipDecoding()}
    )
    labels, ids = [], []

    def pixels() -> Iterator[np.ndarray]:
        for start in range(0, len(source), BLOCK):
            rows = range(start, min(start + BLOCK, len(source)))
            for example in source.__getitems__(list(rows)):
                labels.append(int(example["label"]))
                ids.append(example.get("id"))
                yield _images.decode(
                    example["image"], channels=channels, image_size=image_size
                )

    where = f"{builder.data_path} ({split})"
    dataset = Dataset(
        images=_images.stack(pixels(), len(source), where),
        labels=np.array(labels, np.int32),
        index=np.arange(len(source), dtype=np.int64),
        class_names=class_names,
        name=builder.info.full_name,
    )
    return _in_order_of_id(dataset, ids)


def _in_order_of_id(dataset: Dataset, ids: list[Any]) -> Dataset:
    if not all(isinstance(name, bytes) for name in ids):
        return dataset

    def natural(row: int) -> list[bytes | int]:
        parts = re.split(rb"(\d+)", ids[row])
        return [int(part) if i % 2 else part for i, part in enumerate(parts)]

    rows = sorted(range(len(ids)), key=natural)
    if rows == list(range(len(ids))):
        return dataset
    return Dataset(
        images=dataset.images[rows],
        labels=dataset.labels[rows],
        index=dataset.index,
        class_names=dataset.class_names,
        name=dataset.name,
    )


def _command(name: str, root: pathlib.Path) -> str:
    return (
        "`pip install robustjax[download]`, then `tfds build "
        f"{name} --file_format=array_record --data_dir={root}`"
    )


def _damaged(name: str, folder: str, error: Exception) -> _checks.InputError:
    return _checks.InputError(
        f"`name`: {name} in {folder} is damaged; remove the directory and prepare it "
        f"again ({_images.reason(error)})."
    )
