"""Image folders: one directory per split, in it one per class."""

import pathlib
from collections.abc import Iterator

import numpy as np

from robustjax import _checks
from robustjax.data import _images
from robustjax.data.dataset import Dataset

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


def read(
    data_dir: str | pathlib.Path | None, image_size: int | None
) -> dict[str, Dataset]:
    """The splits of `data_dir/{train,validation,test}/CLASS/*.png`, as RGB.

    Classes are numbered in the sorted order of train's directory names, images
    listed in the sorted order of class, then file. `val` may stand for `validation`.

    Raises:
      InputError: No such directories, a class that train does not have, a file that
        cannot be read, or images of several sizes and no `image_size`.
    """
    if data_dir is None:
        raise _checks.InputError(
            "`data_dir` must be given for image_folder: the directory with "
            "train/CLASS/*.png and test/CLASS/*.png."
        )
    root = pathlib.Path(data_dir).expanduser()
    folders = {
        split: root / folder
        for folder, split in (
            ("train", "train"),
            ("val", "validation"),
            ("validation", "validation"),
            ("test", "test"),
        )
        if (root / folder).is_dir()
    }
    if "train" not in folders:
        raise _checks.InputError(
            f"`data_dir` must hold train/CLASS/*.png, got {str(root)!r}, which has no "
            "directory train."
        )
    names = tuple(_classes(folders["train"]))
    return {
        split: _read_split(folder, names, image_size)
        for split, folder in folders.items()
    }


def _classes(folder: pathlib.Path) -> list[str]:
    return sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.is_dir() and not entry.name.startswith(".")
    )


def _read_split(
    folder: pathlib.Path, names: tuple[str, ...], image_size: int | None
) -> Dataset:
    if unknown := sorted(set(_classes(folder)) - set(names)):
        raise _checks.InputError(
            f"`data_dir`: {folder} has the class {unknown[0]!r}, which train has not."
        )
    files, labels = [], []
    for label, name in enumerate(names):
        found = sorted((folder / name).glob("*")) if (folder / name).is_dir() else []
        found = [
            file
            for file in found
            if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
        ]
        files += found
        labels += [label] * len(found)
    return Dataset(
        images=_images.stack(_decoded(files, image_size), len(files), str(folder)),
        labels=np.array(labels, np.int32),
        index=np.arange(len(files), dtype=np.int64),
        class_names=names,
        name=folder.parent.name,
    )


def _decoded(files: list[pathlib.Path], image_size: int | None) -> Iterator[np.ndarray]:
    for file in files:
        try:
            yield _images.decode(file, channels=3, image_size=image_size)
        # Pillow's readers raise SyntaxError, too, at a damaged PNG.
        except (OSError, ValueError, SyntaxError) as error:
            raise _checks.InputError(
                f"`data_dir`: {file} cannot be read as an image; repair or remove it "
                f"({_images.reason(error)})."
            ) from error
