import io
import os
import pathlib
import tarfile

import numpy as np
import pytest
import scipy.io
from PIL import Image

from robustjax import data


def encoded(pixels, file_format="PNG"):
    """The bytes of an image file."""
    out = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(out, file_format)
    return out.getvalue()


def write_tfds(root, name, examples, *, shape=(6, 6, 3), num_classes=2, features=None):
    """A TFDS directory of `examples = {split: [example, ...]}`, as TFDS writes it."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import registered

    features = features or {
        "id": tfds.features.Text(),
        "image": tfds.features.Image(shape=shape, encoding_format="png"),
        "label": tfds.features.ClassLabel(num_classes=num_classes),
    }

    def info(self):
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    members = {
        "name": name,
        "VERSION": tfds.core.Version("1.0.0"),
        "url_infos": None,
        "__module__": __name__,
        "_info": info,
        "_split_generators": lambda self, manager: {
            split: iter(enumerate(rows)) for split, rows in examples.items()
        },
        "_generate_examples": None,
    }
    base = tfds.core.GeneratorBasedBuilder
    with registered.skip_registration():
        builder_class = type(base)(name.title(), (base,), members)
    builder_class(data_dir=root, file_format="array_record").download_and_prepare()
    return pathlib.Path(root) / name / "1.0.0"


def write_flowers(folder, *, per_class=4, numbers=None, size=(9, 7)):
    """A small archive in the form of the official one; image n has mean n."""
    folder.mkdir(parents=True, exist_ok=True)
    count = 17 * per_class
    with tarfile.open(folder / "17flowers.tgz", "w:gz") as archive:
        for number in range(1, count + 1):
            content = encoded(np.full((*size, 3), number, np.uint8), "JPEG")
            member = tarfile.TarInfo(f"jpg/image_{number:04d}.jpg")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    arrays = {}
    for split in (1, 2, 3):
        order = np.random.default_rng(split).permutation(count) + 1
        if numbers is not None:
            order = numbers
        half = len(order) // 2
        arrays[f"trn{split}"] = order[None, :half]
        arrays[f"val{split}"] = order[None, half : 3 * half // 2]
        arrays[f"tst{split}"] = order[None, 3 * half // 2 :]
    scipy.io.savemat(folder / "datasplits.mat", arrays)
    return folder


def numbered(count, *, num_classes=2, size=4):
    """A data set whose image at row `i` is filled with `i`."""
    images = np.arange(count, dtype=np.uint8)[:, None, None, None]
    return data.Dataset(
        images=np.tile(images, (1, size, size, 1)),
        labels=np.arange(count, dtype=np.int32) % num_classes,
        index=np.arange(count, dtype=np.int64),
        class_names=tuple(str(label) for label in range(num_classes)),
        name="numbered",
    )


@pytest.fixture(scope="session")
def make():
    """The builders of files above, without an import between test modules."""

    class Make:
        pass

    make = Make()
    make.encoded, make.write_tfds = encoded, write_tfds
    make.write_flowers, make.numbered = write_flowers, numbered
    return make


@pytest.fixture
def real_data_dir():
    """Where real data sets lie, or a skipped test."""
    folder = os.environ.get("TFDS_DATA_DIR")
    if not folder:
        pytest.skip("set TFDS_DATA_DIR to a TFDS directory with real data sets")

    def directory(name):
        if not (pathlib.Path(folder) / name).is_dir():
            pytest.skip(f"no {name} in TFDS_DATA_DIR")
        return folder

    return directory
