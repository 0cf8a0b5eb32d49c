import json
import time

import chex
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustjax import InputError
from robustjax.data import evaluation_batches, shuffled_batches


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def pixels(batches):
    return np.concatenate([batch.x[:, 0, 0, 0] for batch in batches])


def test_an_epoch_visits_each_image_once_and_the_next_in_a_new_order(make):
    stream = shuffled_batches(make.numbered(60), 20, seed=0)
    assert stream.steps_per_epoch == 3
    batches = iter(stream)
    epochs = [pixels(take(batches, 3)) for _ in range(4)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(60))
    assert len({epoch.tobytes() for epoch in epochs}) == 4


def test_the_rest_of_an_epoch_is_left_out_another_one_each_time(make):
    stream = shuffled_batches(make.numbered(50), 20, seed=0)
    assert stream.steps_per_epoch == 2
    batches = iter(stream)
    epochs = [set(pixels(take(batches, 2)).tolist()) for _ in range(8)]
    assert {len(epoch) for epoch in epochs} == {40}
    assert set.union(*epochs) == set(range(50))


def test_images_stay_uint8_with_their_labels(make):
    batch = next(iter(shuffled_batches(make.numbered(30, num_classes=3), 8, seed=1)))
    assert (batch.x.shape, batch.x.dtype) == ((8, 4, 4, 1), np.uint8)
    assert batch.y.dtype == np.int32
    np.testing.assert_array_equal(batch.y, batch.x[:, 0, 0, 0] % 3)


def test_iterating_twice_gives_the_same_batches_and_a_seed_another_order(make):
    stream = shuffled_batches(make.numbered(40), 10, seed=3)
    first = pixels(take(iter(stream), 6))
    np.testing.assert_array_equal(pixels(take(iter(stream), 6)), first)
    other = shuffled_batches(make.numbered(40), 10, seed=4)
    assert (pixels(take(iter(other), 6)) != first).any()


@settings(max_examples=10, deadline=None)
@given(
    count=st.integers(24, 70), hosts=st.sampled_from([2, 3, 4]), seed=st.integers(0, 9)
)
def test_shares_of_any_number_of_processes_make_up_the_same_batches(
    make, count, hosts, seed
):
    dataset, steps = make.numbered(count), 5
    whole = iter(shuffled_batches(dataset, 12, seed=seed))
    shares = [
        iter(
            shuffled_batches(
                dataset, 12, seed=seed, process_index=host, process_count=hosts
            )
        )
        for host in range(hosts)
    ]
    for _ in range(steps):
        parts = [next(share) for share in shares]
        assert {len(part.y) for part in parts} == {12 // hosts}
        np.testing.assert_array_equal(
            np.sort(pixels(parts)), np.sort(pixels([next(whole)]))
        )


def test_a_restored_iterator_continues_with_exactly_the_next_batch(make):
    stream = shuffled_batches(make.numbered(50), 10, seed=0)
    batches = iter(stream)
    take(batches, 7)
    time.sleep(0.2)  # the threads have fetched ahead by now
    state = json.loads(json.dumps(batches.get_state()))
    assert state == {"next_index": 7}
    expected = pixels(take(batches, 9))

    fresh = iter(stream)
    fresh.set_state(state)
    np.testing.assert_array_equal(pixels(take(fresh, 9)), expected)
    batches.set_state(state)  # one that is further already goes back
    np.testing.assert_array_equal(pixels(take(batches, 9)), expected)


def test_a_state_serves_another_number_of_processes(make):
    dataset = make.numbered(50)
    whole = iter(shuffled_batches(dataset, 10, seed=0))
    take(whole, 8)
    halves = []
    for host in range(2):
        stream = shuffled_batches(
            dataset, 10, seed=0, process_index=host, process_count=2
        )
        half = iter(stream)
        half.set_state(whole.get_state())
        halves.append(next(half))
    expected = np.sort(pixels([next(whole)]))
    np.testing.assert_array_equal(np.sort(pixels(halves)), expected)


@pytest.mark.parametrize("state", [{}, {"next_index": -1}, {"next_index": "3"}])
def test_a_wrong_state_is_refused(make, state):
    with pytest.raises(InputError, match="next_index"):
        iter(shuffled_batches(make.numbered(20), 10, seed=0)).set_state(state)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"batch_size": 0}, "`batch_size`"),
        ({"batch_size": 21}, "at most 20"),
        ({"batch_size": 10, "process_index": 0, "process_count": 3}, "3 processes"),
        ({"batch_size": 10, "process_index": 2, "process_count": 2}, "`process_index`"),
        ({"batch_size": 10, "seed": -1}, "`seed`"),
    ],
)
def test_wrong_arguments_are_refused_at_once(make, arguments, word):
    with pytest.raises(InputError, match=word):
        shuffled_batches(make.numbered(20), **{"seed": 0, **arguments})


def test_evaluation_blocks_are_ordered_padded_and_of_one_shape(make):
    dataset = make.numbered(12).take([11, 3, 5, 7, 2])
    blocks = list(evaluation_batches(dataset, 2))
    assert [block.x.shape for block in blocks] == [(2, 4, 4, 1)] * 3
    valid = np.concatenate([block.valid for block in blocks])
    np.testing.assert_array_equal(valid, [True] * 5 + [False])
    index = np.concatenate([block.index for block in blocks])
    np.testing.assert_array_equal(index, [11, 3, 5, 7, 2, 2])
    np.testing.assert_array_equal(pixels(blocks), index)
    np.testing.assert_array_equal(
        np.concatenate([block.y for block in blocks]), index % 2
    )


@settings(max_examples=20, deadline=None)
@given(batch_size=st.integers(1, 30), num_examples=st.integers(1, 20))
def test_evaluation_sees_the_first_examples_once(make, batch_size, num_examples):
    blocks = evaluation_batches(
        make.numbered(20), batch_size, num_examples=num_examples
    )
    seen = np.concatenate([block.index[block.valid] for block in blocks])
    np.testing.assert_array_equal(seen, np.arange(num_examples))


def test_evaluation_batches_compile_once(make):
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def total(batch):
        return (batch.x[:, 0, 0, 0] * batch.valid).sum()

    values = [int(total(b)) for b in evaluation_batches(make.numbered(10), 4)]
    assert values == [6, 22, 17]


@pytest.mark.parametrize("count", [0, 21, 2.5])
def test_evaluation_checks_at_the_call(make, count):
    with pytest.raises(InputError, match="`num_examples`"):
        evaluation_batches(make.numbered(20), 4, num_examples=count)
