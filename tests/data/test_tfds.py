import json
import os

import numpy as np
import pytest

from robustjax import InputError
from robustjax.data import load


def one_line(name, **arguments):
    """The message that `load` ends with."""
    with pytest.raises(InputError) as caught:
        load(name, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("`")
    return message


def examples(make, split, count, *, shape=(6, 6, 3)):
    """Image `i` is filled with `i`; the ids count without leading zeros."""
    return [
        {
            "id": f"{split}_{i}",
            "image": make.encoded(np.full(shape, i, np.uint8)),
            "label": i % 2,
        }
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def tiny(make, tmp_path_factory):
    """A TFDS directory with one small set; copy it before damaging it."""
    root = tmp_path_factory.mktemp("tfds")
    splits = {"train": examples(make, "train", 24), "test": examples(make, "test", 12)}
    make.write_tfds(root, "tiny", splits)
    return root


@pytest.fixture
def damaged(tiny, tmp_path):
    """A copy of the directory, to be damaged."""
    import shutil

    shutil.copytree(tiny, tmp_path / "tfds")
    return tmp_path / "tfds"


def test_a_prepared_directory_is_read_in_the_order_of_the_ids(tiny):
    splits = load("tiny", data_dir=tiny)
    for split, count in ((splits.train, 24), (splits.test, 12)):
        np.testing.assert_array_equal(split.images[:, 0, 0, 0], np.arange(count))
        np.testing.assert_array_equal(split.labels, np.arange(count) % 2)
        np.testing.assert_array_equal(split.index, np.arange(count))
        assert split.images.dtype == np.uint8
        assert split.name == "tiny/1.0.0"
    assert splits.validation is None


def test_a_directory_with_too_few_classes_is_reported(damaged):
    (damaged / "tiny" / "1.0.0" / "features.json").write_text(
        (damaged / "tiny" / "1.0.0" / "features.json").read_text().replace('"2"', '"0"')
    )
    assert "`labels`" in one_line("tiny", data_dir=damaged)


def test_the_directory_is_found_through_the_environment(tiny, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", os.fspath(tiny))
    splits = load("tiny", validation=4, image_size=3)
    assert splits.validation.images.shape == (4, 3, 3, 3)
    assert len(splits.train) == 20


def test_the_newest_version_is_read_unless_one_is_named(damaged):
    old, new = damaged / "tiny" / "1.0.0", damaged / "tiny" / "1.0.10"
    import shutil

    shutil.copytree(old, new)
    info = json.loads((new / "dataset_info.json").read_text())
    (new / "dataset_info.json").write_text(json.dumps({**info, "version": "1.0.10"}))
    shutil.copytree(old, damaged / "tiny" / "1.0.2")
    assert load("tiny", data_dir=damaged).train.name == "tiny/1.0.10"
    assert load("tiny:1.0.0", data_dir=damaged).train.name == "tiny/1.0.0"
    assert "tiny:3.0.0" in one_line("tiny:3.0.0", data_dir=damaged)


def test_validation_stands_in_for_a_test_or_beside_it(make, tmp_path):
    splits = {"train": examples(make, "a", 8), "validation": examples(make, "b", 4)}
    make.write_tfds(tmp_path, "two", splits)
    two = load("two", data_dir=tmp_path, validation=0.25)
    assert [len(s) for s in (two.train, two.validation, two.test)] == [6, 2, 4]
    make.write_tfds(tmp_path, "three", {**splits, "test": examples(make, "c", 6)})
    three = load("three", data_dir=tmp_path, validation=0.25)
    assert [len(s) for s in (three.train, three.validation, three.test)] == [8, 4, 6]
    make.write_tfds(tmp_path, "one", {"train": examples(make, "a", 8)})
    assert "got train" in one_line("one", data_dir=tmp_path)


def test_images_of_several_sizes_need_a_size(make, tmp_path):
    rows = examples(make, "a", 2) + examples(make, "b", 2, shape=(7, 9, 3))
    make.write_tfds(
        tmp_path, "mixed", {"train": rows, "test": rows}, shape=(None, None, 3)
    )
    message = one_line("mixed", data_dir=tmp_path)
    assert "`image_size`" in message
    assert "7x9" in message
    splits = load("mixed", data_dir=tmp_path, image_size=5)
    assert splits.train.images.shape == (4, 5, 5, 3)


def test_grey_images_without_ids_keep_the_order_of_the_records(make, tmp_path):
    import tensorflow_datasets as tfds

    features = {
        "image": tfds.features.Image(shape=(6, 6, 1), encoding_format="png"),
        "label": tfds.features.ClassLabel(names=["even", "odd"]),
    }
    rows = examples(make, "a", 8, shape=(6, 6, 1))
    rows = [{key: row[key] for key in features} for row in rows]
    folder = make.write_tfds(
        tmp_path, "grey", {"train": rows, "test": rows}, features=features
    )
    train = load("grey", data_dir=tmp_path).train
    assert train.class_names == ("even", "odd")
    records = tfds.builder_from_directory(folder).as_data_source("train")
    np.testing.assert_array_equal(train.images, [row["image"] for row in records])
    np.testing.assert_array_equal(train.labels, train.images[:, 0, 0, 0] % 2)


def test_other_kinds_of_data_are_refused(make, tmp_path):
    import tensorflow_datasets as tfds

    features = {"text": tfds.features.Text(), "label": tfds.features.Text()}
    rows = [{"text": "a", "label": "b"}]
    make.write_tfds(tmp_path, "prose", {"train": rows, "test": rows}, features=features)
    message = one_line("prose", data_dir=tmp_path)
    assert "image" in message
    assert "label, text" in message


def test_missing_sets_say_how_to_get_them(tmp_path):
    message = one_line("cifar100", data_dir=tmp_path)
    for words in ("TFDS_DATA_DIR", "robustjax[download]", "tfds build cifar100"):
        assert words in message
    message = one_line("cifar1000", data_dir=tmp_path)
    assert "TFDS_DATA_DIR" in message
    assert "knows" in message


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_file_is_reported(damaged, share):
    (file,) = (damaged / "tiny" / "1.0.0").glob("tiny-test*")
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    message = one_line("tiny", data_dir=damaged)
    assert "damaged" in message
    assert str(file.parent) in message


@pytest.mark.parametrize("content", [None, "{", "{}"])
@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_damaged_metadata_is_reported(damaged, name, content):
    file = damaged / "tiny" / "1.0.0" / name
    file.unlink() if content is None else file.write_text(content)
    message = one_line("tiny", data_dir=damaged)
    assert "damaged" in message
    assert str(file.parent) in message


def test_a_missing_file_is_reported(damaged):
    next((damaged / "tiny" / "1.0.0").glob("tiny-train*")).unlink()
    assert "damaged" in one_line("tiny", data_dir=damaged)


def test_an_image_that_cannot_be_decoded_is_reported(make, tmp_path):
    rows = examples(make, "a", 4)
    rows[2]["image"] = rows[2]["image"][:50]
    make.write_tfds(tmp_path, "torn", {"train": rows, "test": rows[:2]})
    assert "damaged" in one_line("torn", data_dir=tmp_path)


def test_another_file_format_is_named(damaged):
    file = damaged / "tiny" / "1.0.0" / "dataset_info.json"
    file.write_text(file.read_text().replace("array_record", "tfrecord"))
    assert "--file_format=array_record" in one_line("tiny", data_dir=damaged)


def test_labels_outside_the_classes_are_refused(tiny, make, monkeypatch):
    import tensorflow_datasets as tfds

    rows = examples(make, "test", 4)
    rows[1]["label"] = -1  # what TFDS has where labels are withheld

    class Rows(list):
        def __getitems__(self, keys):
            return [self[key] for key in keys]

    def source(self, split, **kwargs):
        return Rows(rows)

    # Not `tfds.testing.mock_data`, which turns builders of directories into nothing.
    monkeypatch.setattr(tfds.core.DatasetBuilder, "as_data_source", source)
    message = one_line("tiny", data_dir=tiny)
    assert "`labels`" in message
    assert "-1" in message


@pytest.mark.data
def test_the_first_cifar10_test_images_are_the_original_ones(real_data_dir):
    import tensorflow_datasets as tfds

    folder = real_data_dir("cifar10")
    test = load("cifar10", data_dir=folder).test
    assert test.images.shape == (10_000, 32, 32, 3)
    assert test.class_names[:3] == ("airplane", "automobile", "bird")
    # The labels of the original test batch begin so: cat, ship, ship, airplane, frog.
    np.testing.assert_array_equal(test.labels[:5], [3, 8, 8, 0, 6])
    source = tfds.data_source("cifar10", split="test", data_dir=folder, download=False)
    for example in (source[0], source[7]):
        row = int(example["id"].decode().removeprefix("test_"))
        np.testing.assert_array_equal(test.images[row], example["image"])
        assert test.labels[row] == example["label"]


@pytest.mark.data
def test_flowers_have_their_own_validation(real_data_dir):
    flowers = load("oxford_flowers17", data_dir=real_data_dir("oxford_flowers17"))
    assert flowers.train.num_classes == 17
    assert flowers.validation is not None
