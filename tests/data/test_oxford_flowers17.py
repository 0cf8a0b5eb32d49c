import importlib.util
import subprocess
import sys

import numpy as np
import pytest

from robustjax import InputError
from robustjax.data import load


@pytest.fixture(scope="module")
def builder():
    from robustjax.data import oxford_flowers17

    return oxford_flowers17


@pytest.fixture(scope="module")
def prepared(make, builder, tmp_path_factory):
    """A TFDS directory of the dummy archive's first two splits."""
    root = tmp_path_factory.mktemp("flowers")
    archives = make.write_flowers(root / "archives")
    builder.prepare(archives, data_dir=root, configs=("split1", "split2"))
    return root


def check(message):
    assert "\n" not in message
    assert message.startswith("`archive_dir`")
    return message


@pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is not None,
    reason="TensorFlow is installed, and TFDS imports what it finds",
)
def test_nothing_of_the_download_extra_is_needed(make, tmp_path):
    archives = make.write_flowers(tmp_path / "archives", per_class=2)
    code = f"""
import sys
from robustjax.data import load, oxford_flowers17
folder, = oxford_flowers17.prepare(
    {str(archives)!r}, data_dir={str(tmp_path)!r}, configs=["split3"]
)
print(folder, len(load("oxford_flowers17/split3", data_dir={str(tmp_path)!r}).train))
print({{"tensorflow", "importlib_resources"}} & set(sys.modules))
"""
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    folder = tmp_path / "oxford_flowers17" / "split3" / "1.0.0"
    assert out.splitlines()[-2:] == [f"{folder} 17", "set()"]


def test_load_reads_what_prepare_wrote(prepared, builder):
    splits = load("oxford_flowers17/split1", data_dir=prepared)
    assert [len(s) for s in (splits.train, splits.validation, splits.test)] == [
        *(34, 17, 17)
    ]
    assert splits.train.class_names == builder.CLASS_NAMES
    assert splits.train.images.shape == (34, 9, 7, 3)
    # Image n of the archive is filled with n and of class (n - 1) // 4.
    number = splits.train.images.mean((1, 2, 3)).round().astype(int)
    order = np.random.default_rng(1).permutation(68)[:34] + 1
    np.testing.assert_allclose(number, np.sort(order), atol=1)
    np.testing.assert_array_equal(splits.train.labels, (np.sort(order) - 1) // 4)


def test_configs_are_different_splits_and_the_first_is_the_default(prepared):
    first = load("oxford_flowers17/split1", data_dir=prepared).test
    second = load("oxford_flowers17/split2", data_dir=prepared).test
    default = load("oxford_flowers17", data_dir=prepared).test
    assert (first.labels != second.labels).any()
    np.testing.assert_array_equal(default.images, first.images)


def test_a_directory_without_config_comes_first(make, prepared, tmp_path):
    import shutil

    root = tmp_path / "tfds"
    shutil.copytree(prepared / "oxford_flowers17", root / "oxford_flowers17")
    shutil.copytree(
        root / "oxford_flowers17" / "split2" / "1.0.0",
        root / "oxford_flowers17" / "1.0.0",
    )
    second = load("oxford_flowers17/split2", data_dir=root).test
    plain = load("oxford_flowers17", data_dir=root).test
    np.testing.assert_array_equal(plain.images, second.images)


def test_tfds_knows_the_builder_by_name(prepared, builder):
    import tensorflow_datasets as tfds

    found = tfds.builder("oxford_flowers17/split2", data_dir=prepared)
    assert isinstance(found, builder.OxfordFlowers17)
    assert sorted(found.info.splits) == ["test", "train", "validation"]
    assert found.builder_configs.keys() == set(builder.CONFIGS)


def test_what_is_not_prepared_says_how(prepared):
    with pytest.raises(InputError) as caught:
        load("oxford_flowers17/split3", data_dir=prepared)
    assert "17flowers.tgz" in str(caught.value)
    assert "prepare(" in str(caught.value)


@pytest.mark.parametrize("name", ["17flowers.tgz", "datasplits.mat"])
@pytest.mark.parametrize("share", [None, 0, 0.5])
def test_a_missing_or_damaged_archive_is_named(make, builder, tmp_path, name, share):
    archives = make.write_flowers(tmp_path / "archives", per_class=1)
    file = archives / name
    content = file.read_bytes()
    file.unlink()
    if share is not None:
        file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError) as caught:
        builder.prepare(archives, data_dir=tmp_path / "out")
    assert name in check(str(caught.value))
    assert not list((tmp_path / "out").rglob("*.array_record*"))


def test_splits_that_do_not_share_out_the_images_are_refused(make, builder, tmp_path):
    archives = make.write_flowers(
        tmp_path / "archives", per_class=1, numbers=np.arange(1, 21)
    )
    with pytest.raises(InputError) as caught:
        builder.prepare(archives, data_dir=tmp_path / "out")
    message = check(str(caught.value))
    assert "17 images" in message
    assert "20 numbers" in message


def test_an_archive_with_a_gap_is_refused(make, builder, tmp_path):
    import io
    import tarfile

    path = tmp_path / "17flowers.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for number in range(2, 19):
            member = tarfile.TarInfo(f"jpg/image_{number:04d}.jpg")
            archive.addfile(member, io.BytesIO())
    with pytest.raises(InputError, match="1360"):
        builder.read_archive(path)


def test_an_unknown_split_is_refused(make, builder, tmp_path):
    archives = make.write_flowers(tmp_path / "archives", per_class=1)
    with pytest.raises(InputError, match="split4"):
        builder.prepare(archives, data_dir=tmp_path, configs=("split4",))
