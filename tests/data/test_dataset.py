import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustjax import InputError
from robustjax.data import Dataset, stratified_subset


def arguments(**changes):
    return {
        "images": np.zeros((3, 4, 4, 1), np.uint8),
        "labels": np.int32([0, 1, 1]),
        "index": np.arange(3),
        "class_names": ("a", "b"),
        **changes,
    }


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"images": np.zeros((3, 4, 4), np.uint8)}, "`images`"),
        ({"images": np.zeros((3, 4, 4, 1), np.float64)}, "float64"),
        ({"images": np.full((3, 4, 4, 1), 255, np.float32)}, r"\[255, 255\]"),
        ({"images": np.full((3, 4, 4, 1), np.nan, np.float32)}, "`images`"),
        ({"labels": np.int64([0, 1, 1])}, "`labels`.*int64"),
        ({"labels": np.int32([0, 1])}, "`labels`"),
        ({"labels": np.int32([0, 1, 2])}, r"\[0, 1\].*got 2"),
        ({"labels": np.int32([0, -1, 1])}, "got -1"),
        ({"index": np.arange(4)}, "`index`"),
    ],
)
def test_wrong_arrays_are_refused(changes, word):
    with pytest.raises(InputError, match=word) as caught:
        Dataset(**arguments(**changes))
    assert "\n" not in str(caught.value)


def test_take_keeps_the_positions_in_the_source():
    part = Dataset(**arguments()).take([2, 0])
    assert (len(part), part.num_classes) == (2, 2)
    np.testing.assert_array_equal(part.index, [2, 0])
    np.testing.assert_array_equal(part.labels, [1, 0])


@settings(max_examples=15, deadline=None)
@given(count=st.integers(6, 54), seed=st.integers(0, 5))
def test_a_stratified_subset_has_the_shares_of_the_whole(make, count, seed):
    whole = make.numbered(60, num_classes=3)
    part = stratified_subset(whole, count, seed=seed)
    assert len(part) == count
    shares = np.bincount(part.labels, minlength=3)
    assert shares.max() - shares.min() <= 1
    assert (np.diff(part.index) > 0).all()
    again = stratified_subset(whole, count, seed=seed)
    np.testing.assert_array_equal(again.index, part.index)


def test_a_subset_of_everything_is_everything_and_of_too_little_an_error(make):
    whole = make.numbered(60, num_classes=3)
    assert stratified_subset(whole, 60) is whole
    with pytest.raises(InputError, match="`num_examples` = 2"):
        stratified_subset(whole, 2)
