"""Oxford's 17 Category Flower Dataset as a TFDS builder that needs no TensorFlow.

TFDS' catalogue does not have it. Importing this module makes the name known to
`tfds.builder`. See "A Visual Vocabulary for Flower Classification" (Nilsback and
Zisserman, 2006).
"""

import os
import pathlib
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds

from robustjax import _checks
from robustjax.data import _images

CLASS_NAMES = (
    *("daffodil", "snowdrop", "lily_of_the_valley", "bluebell", "crocus", "iris"),
    *("tigerlily", "tulip", "fritillary", "sunflower", "daisy", "coltsfoot"),
    *("dandelion", "cowslip", "buttercup", "windflower", "pansy"),
)
HOMEPAGE = "https://www.robots.ox.ac.uk/~vgg/data/flowers/17/"
ARCHIVE, SPLITS_FILE = "17flowers.tgz", "datasplits.mat"
CONFIGS = ("split1", "split2", "split3")


class OxfordFlowers17(tfds.core.GeneratorBasedBuilder):
    """17 flowers common in the UK, 80 photographs of each, three official splits."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "Initial release."}
    BUILDER_CONFIGS: ClassVar = [
        tfds.core.BuilderConfig(
            name=config, description=f"The authors' random split {config[-1]} of 3."
        )
        for config in CONFIGS
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        f"Put {ARCHIVE} and {SPLITS_FILE} from {HOMEPAGE} into manual_dir."
    )
    # Nothing is downloaded, so there are no checksums. Looking for a file of them is
    # the one step of TFDS here that imports importlib_resources.
    url_infos = None  # pyright: ignore[reportAssignmentType]

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=(
                "17 Category Flower Dataset: 17 flowers common in the UK, 80 "
                "photographs of each, with large variations of scale, pose and light. "
                "The authors' three random splits have 40 images per class to train, "
                "20 to validate and 20 to test. Some photographs occur twice, and a "
                "copy may be on another side of a split."
            ),
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(
                        shape=(None, None, 3), encoding_format="jpeg"
                    ),
                    "label": tfds.features.ClassLabel(names=list(CLASS_NAMES)),
                }
            ),
            supervised_keys=("image", "label"),
            homepage=HOMEPAGE,
            citation="""@inproceedings{Nilsback06,
              author = {Nilsback, Maria-Elena and Zisserman, Andrew},
              title = {A Visual Vocabulary for Flower Classification},
              booktitle = {IEEE Conference on Computer Vision and Pattern Recognition},
              volume = {2}, pages = {1447--1454}, year = {2006},
            }""",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        folder = pathlib.Path(dl_manager.manual_dir)
        images = read_archive(folder / ARCHIVE)
        config = self.builder_config.name  # pyright: ignore[reportOptionalMemberAccess]
        return {
            split: self._generate_examples(images, numbers)
            for split, numbers in read_split(
                folder / SPLITS_FILE, config, len(images)
            ).items()
        }

    def _generate_examples(
        self, images: Sequence[bytes], numbers: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for number in numbers.tolist():
            yield (
                number,
                {
                    "id": f"image_{number:04d}",
                    "image": images[number - 1],
                    # The photographs are numbered class by class, equally many each.
                    "label": (number - 1) * len(CLASS_NAMES) // len(images),
                },
            )


def prepare(
    archive_dir: str | pathlib.Path,
    *,
    data_dir: str | pathlib.Path | None = None,
    configs: Sequence[str] = CONFIGS,
) -> list[pathlib.Path]:
    """Writes the data set where `load("oxford_flowers17/split1")` finds it.

    Args:
      archive_dir: Where 17flowers.tgz and datasplits.mat of the official page are.
      data_dir: TFDS' directory; None is `$TFDS_DATA_DIR`, or else
        `~/tensorflow_datasets`.
      configs: Which of the official splits, each a copy of the images; those already
        there are left alone.

    Returns:
      The directories of the prepared data sets, in the order of `configs`.

    Raises:
      InputError: A file of the two is missing or damaged, or they disagree.
    """
    folder = pathlib.Path(archive_dir).expanduser()
    for name in (ARCHIVE, SPLITS_FILE):
        if not (folder / name).is_file():
            raise _checks.InputError(
                f"`archive_dir` must hold {ARCHIVE} and {SPLITS_FILE}, got "
                f"{str(folder)!r}, which has no {name}. Get it from {HOMEPAGE}."
            )
    prepared = []
    for config in configs:
        _checks.one_of(CONFIGS, configs=config)
        builder = OxfordFlowers17(
            config=config,
            data_dir=None if data_dir is None else os.path.expanduser(data_dir),
            file_format="array_record",
        )
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(manual_dir=folder)
        )
        prepared.append(pathlib.Path(builder.data_path))
    return prepared


def read_archive(path: pathlib.Path) -> list[bytes]:
    """The JPEG files image_0001.jpg, image_0002.jpg, ... of the archive, in order.

    Raises:
      InputError: It ends early, a number is missing, or the classes cannot be equally
        large.
    """
    images = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                match = re.fullmatch(r"(?:.*/)?image_(\d{4})\.jpg", member.name)
                if match and (file := archive.extractfile(member)):
                    images[int(match[1])] = file.read()
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise _checks.InputError(
            f"`archive_dir`: {path} is damaged; get it again from {HOMEPAGE} "
            f"({_images.reason(error)})."
        ) from error
    count = len(images)
    if not count or count % len(CLASS_NAMES) or max(images) != count or 0 in images:
        raise _checks.InputError(
            f"`archive_dir`: {path} must hold image_0001.jpg to image_1360.jpg, 80 of "
            f"each class, got {count} images. Get it again from {HOMEPAGE}."
        )
    return [images[number] for number in range(1, count + 1)]


def read_split(path: pathlib.Path, config: str, count: int) -> dict[str, np.ndarray]:
    """The image numbers (from 1) of train, validation and test, each [N].

    Raises:
      InputError: No MATLAB file of the nine splits, or they do not share out the
        `count` images of the archive.
    """
    import scipy.io

    try:
        arrays = scipy.io.loadmat(path)
        splits = {
            split: np.ravel(arrays[f"{short}{config[-1]}"]).astype(np.int64)
            for split, short in (
                ("train", "trn"),
                ("validation", "val"),
                ("test", "tst"),
            )
        }
    except Exception as error:  # scipy's reader fails in many ways on damaged files
        raise _checks.InputError(
            f"`archive_dir`: {path} is damaged; get it again from {HOMEPAGE} "
            f"({_images.reason(error)})."
        ) from error
    numbers = np.sort(np.concatenate(list(splits.values())))
    if not np.array_equal(numbers, np.arange(1, count + 1)):
        raise _checks.InputError(
            f"`archive_dir`: {path} must share out the archive's {count} images, got "
            f"{len(numbers)} numbers for {config}. Get both again from {HOMEPAGE}."
        )
    return splits
