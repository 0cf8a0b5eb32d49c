import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from robustjax import InputError
from robustjax.data import centred, load


def one_line(name, **arguments):
    """The message that `load` ends with."""
    with pytest.raises(InputError) as caught:
        load(name, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("`")
    return message


@pytest.fixture
def folder(tmp_path):
    """Three images of each of two classes to train on, one to test on."""
    for split, count in (("train", 3), ("test", 1)):
        for level, name in ((10, "cat"), (200, "ant")):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.full((8, 6, 3), level + i, np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{i}.png")
    return tmp_path


def test_digits_are_the_design_s_split():
    splits = load("digits")
    assert (len(splits.train), splits.validation, len(splits.test)) == (1200, None, 597)
    images, labels = load_digits(return_X_y=True)
    both = np.concatenate([splits.train.index, splits.test.index])
    np.testing.assert_array_equal(np.sort(both), np.arange(1797))
    np.testing.assert_array_equal(splits.test.labels, labels[splits.test.index])
    pixels = splits.test.images.reshape(597, 64)
    np.testing.assert_array_equal(pixels, images[splits.test.index] / 16)
    shares = np.bincount(splits.test.labels) / np.bincount(labels)
    np.testing.assert_allclose(shares, 597 / 1797, atol=0.004)


@pytest.mark.parametrize("validation", [0.25, 300, 300.0])
def test_validation_is_cut_from_train_and_leaves_the_test_alone(validation):
    plain, cut = load("digits"), load("digits", validation=validation, seed=5)
    assert (len(cut.train), len(cut.validation)) == (900, 300)
    both = np.concatenate([cut.train.index, cut.validation.index])
    np.testing.assert_array_equal(np.sort(both), plain.train.index)
    np.testing.assert_array_equal(cut.test.index, plain.test.index)
    other = load("digits", validation=validation, seed=6)
    assert set(cut.validation.index) != set(other.validation.index)


@pytest.mark.parametrize("validation", [-0.1, 1.0, 1200, 2.5, 3, True, float("nan")])
def test_a_validation_that_cannot_be_cut_is_refused(validation):
    assert "`validation`" in one_line("digits", validation=validation)


def test_image_folder(folder):
    splits = load("image_folder", data_dir=folder)
    assert splits.train.class_names == ("ant", "cat")
    np.testing.assert_array_equal(splits.train.labels, [0, 0, 0, 1, 1, 1])
    levels = splits.train.images[:, 0, 0, 0]
    np.testing.assert_array_equal(levels, [200, 201, 202, 10, 11, 12])
    assert splits.test.images.shape == (2, 8, 6, 3)
    small = load("image_folder", data_dir=str(folder), image_size=4)
    assert small.train.images.shape == (6, 4, 4, 3)
    np.testing.assert_array_equal(small.train.images[:, 0, 0, 0], levels)


def test_resizing_keeps_the_centre(folder):
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, 2:6] = 255
    Image.fromarray(pixels).save(folder / "test" / "ant" / "0.png")
    splits = load("image_folder", data_dir=folder, image_size=4)
    assert (splits.test.images[0] == 255).all()


def test_a_test_split_sorted_by_class_is_mixed_and_says_where_images_were(folder):
    for number in range(2, 40):
        for name, level in (("ant", 200), ("cat", 10)):
            pixels = np.full((8, 6, 3), level + number, np.uint8)
            Image.fromarray(pixels).save(folder / "test" / name / f"{number:02}.png")
    test = load("image_folder", data_dir=folder).test
    assert 10 < test.labels[:40].sum() < 30  # all the same if it were not mixed
    assert sorted(test.index) == list(range(len(test)))
    back = test.take(np.argsort(test.index))
    assert (np.diff(back.labels) >= 0).all()
    np.testing.assert_array_equal(back.images[-38:, 0, 0, 0], np.arange(12, 50))
    again = load("image_folder", data_dir=folder, validation=2, seed=3).test
    np.testing.assert_array_equal(again.index, test.index)


def test_image_folder_takes_validation_as_test_or_keeps_it_beside_one(folder):
    (folder / "test").rename(folder / "val")
    splits = load("image_folder", data_dir=folder)
    assert (len(splits.test), splits.validation) == (2, None)
    (folder / "train").rename(folder / "test")
    (folder / "val").rename(folder / "train")
    (folder / "validation").mkdir()
    (folder / "validation" / "cat").mkdir()
    Image.new("L", (6, 8)).save(folder / "validation" / "cat" / "grey.png")
    splits = load("image_folder", data_dir=folder)
    assert (len(splits.test), len(splits.validation)) == (6, 1)
    np.testing.assert_array_equal(splits.validation.labels, [1])


def test_image_folder_names_what_is_wrong(folder):
    assert "train" in one_line("image_folder", data_dir=folder / "nowhere")
    assert "`data_dir`" in one_line("image_folder")

    other = folder / "train" / "cat" / "wide.png"
    Image.new("RGB", (9, 8)).save(other)
    message = one_line("image_folder", data_dir=folder)
    assert "`image_size`" in message
    assert "8x9" in message

    other.write_bytes(other.read_bytes()[:40])
    assert str(other) in one_line("image_folder", data_dir=folder, image_size=4)
    other.unlink()

    deep = folder / "train" / "cat" / "deep.png"
    Image.fromarray(np.zeros((8, 6), np.uint16)).save(deep)
    assert "8 bits" in one_line("image_folder", data_dir=folder)
    deep.unlink()

    (folder / "test" / "dog").mkdir()
    assert "'dog'" in one_line("image_folder", data_dir=folder)


def test_image_folder_without_a_test_is_refused(folder):
    (folder / "test").rename(folder / "other")
    assert "test" in one_line("image_folder", data_dir=folder)


@pytest.mark.parametrize(
    ("name", "arguments", "word"),
    [
        ("digits", {"image_size": 16}, "`image_size`"),
        ("digits", {"image_size": 0}, "`image_size`"),
        ("../cifar10", {}, "`name`"),
        ("", {}, "`name`"),
    ],
)
def test_wrong_arguments_are_refused(name, arguments, word):
    assert word in one_line(name, **arguments)


def test_importing_stays_light():
    code = (
        "import sys, robustjax.data; "
        "print([m for m in ('tensorflow', 'tensorflow_datasets', 'sklearn') "
        "if m in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_the_test_is_the_centre_and_training_images_stay_larger():
    whole = load("digits", validation=100)
    cut = load("digits", validation=100, image_size=8, crop=5)
    np.testing.assert_array_equal(cut.train.images, whole.train.images)
    for name in ("validation", "test"):
        images = getattr(whole, name).images[:, 1:6, 1:6]
        np.testing.assert_array_equal(getattr(cut, name).images, images)
        np.testing.assert_array_equal(
            getattr(cut, name).index, getattr(whole, name).index
        )
    for wrong in (dict(image_size=8, crop=9), dict(crop=5), dict(image_size=8, crop=0)):
        with pytest.raises(InputError, match="`crop`") as error:
            load("digits", **wrong)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="at most the images' size, 8x8, got 9"):
        centred(whole.test, 9)
