"""Pairs of templates and queries: which, how often, and from where they go on."""

import collections

import numpy as np
import pytest

from robustjax import InputError
from robustjax.data import Dataset, joined, template_batches


def numbered(count=50):
    """Every image shows its own number."""
    images = np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1)
    labels = np.arange(count, dtype=np.int32) % 5
    return Dataset(images, labels, np.arange(count), tuple("abcde"))


SIZES = dict(num_templates=5, num_queries=10, share=0.2)


def epoch(stream, start=0):
    return [stream.batch(start + i).x.ravel() for i in range(stream.steps_per_epoch)]


def test_an_epoch_is_every_pair_of_one_split():
    stream = template_batches(numbered(), seed=1, **SIZES)
    assert stream.steps_per_epoch == 2 * 4
    batches = epoch(stream)
    templates = {tuple(sorted(batch[:5])) for batch in batches}
    queries = {tuple(sorted(batch[5:])) for batch in batches}
    assert (len(templates), len(queries)) == (2, 4)
    pairs = {(tuple(batch[:5]), tuple(batch[5:])) for batch in batches}
    assert len(pairs) == 8
    seen = [set().union(*parts) for parts in (templates, queries)]
    assert (len(seen[0]), len(seen[1]), len(seen[0] & seen[1])) == (10, 40, 0)


def test_every_epoch_splits_anew_and_seeds_differ():
    stream = template_batches(numbered(), seed=1, **SIZES)
    splits = [
        frozenset(np.concatenate([b[:5] for b in epoch(stream, 8 * e)]))
        for e in range(20)
    ]
    assert len(set(splits)) == 20
    counts = collections.Counter(number for split in splits for number in split)
    assert len(counts) > 40
    assert max(counts.values()) < 12
    other = template_batches(numbered(), seed=2, **SIZES)
    assert (stream.batch(0).x != other.batch(0).x).any()


def test_an_image_and_its_twins_are_on_one_side():
    twins = joined(numbered(), numbered())
    stream = template_batches(twins, seed=1, **SIZES)
    assert stream.steps_per_epoch == 4 * 8
    for start in (0, 32):
        batches = epoch(stream, start)
        templates = set(np.concatenate([batch[:5] for batch in batches]).tolist())
        queries = set(np.concatenate([batch[5:] for batch in batches]).tolist())
        assert (len(templates), len(queries), templates & queries) == (10, 40, set())


def test_it_goes_on_where_it_was():
    stream = template_batches(numbered(), seed=1, **SIZES)
    batches = iter(stream)
    for _ in range(11):
        next(batches)
    state = batches.get_state()
    assert state == {"next_index": 11}
    later = iter(stream)
    later.set_state(state)
    for _ in range(3):
        a, b = next(batches), next(later)
        np.testing.assert_array_equal(a.x, b.x)
        np.testing.assert_array_equal(a.y, b.x.ravel() % 5)
    with pytest.raises(InputError, match="`state`"):
        later.set_state({"next_index": -1})


def test_processes_hold_blocks_of_the_same_rows():
    whole = template_batches(numbered(), seed=1, **SIZES)
    parts = [
        template_batches(numbered(), seed=1, process_index=i, process_count=3, **SIZES)
        for i in range(3)
    ]
    joined = np.concatenate([part.batch(4).x for part in parts])
    np.testing.assert_array_equal(joined, whole.batch(4).x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(num_templates=0), "`num_templates`"),
        (dict(share=0.0), "`share`"),
        (dict(share=1.5), "`share`"),
        (dict(num_queries=41), r"`share` 0.2 .*10 templates and 40 queries.*41"),
        (dict(process_count=2, process_index=0), "multiple of the 2 processes, got 15"),
    ],
)
def test_bad_sizes_are_one_line(change, message):
    with pytest.raises(InputError, match=message) as caught:
        template_batches(numbered(), seed=0, **{**SIZES, **change})
    assert "\n" not in str(caught.value)
