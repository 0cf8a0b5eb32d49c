import jax
import numpy as np
import pytest

from robustjax import InputError
from robustjax.data import shuffled_batches
from robustjax.training import data_mesh, sharding


def test_rows_are_spread_and_come_back():
    mesh, rows = data_mesh(), {"x": np.arange(16.0).reshape(16, 1)}
    for place in (sharding.local_rows, sharding.global_rows):
        placed = place(mesh, rows)["x"]
        assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 1)}
        np.testing.assert_array_equal(sharding.to_host(placed), rows["x"])
    whole = jax.device_put(rows["x"], sharding.replicated(mesh))
    assert whole.is_fully_replicated


def test_sizes_must_divide_the_devices():
    sharding.check_divides(data_mesh(), batch_size=24)
    with pytest.raises(InputError, match=r"`batch_size` .* 8 devices, got 20\. .* 16"):
        sharding.check_divides(data_mesh(), batch_size=20)
    with pytest.raises(InputError, match="nearest is 8"):
        sharding.check_divides(data_mesh(), batch_size=3)


def test_processes_hold_the_blocks_of_the_batch_in_order(toy):
    """Random starts depend on the row, so rows must not depend on the processes."""
    whole = iter(shuffled_batches(toy.dataset, 12, seed=0))
    shares = [
        iter(
            shuffled_batches(
                toy.dataset, 12, seed=0, process_index=index, process_count=3
            )
        )
        for index in range(3)
    ]
    for _ in range(5):
        parts = [next(share).x for share in shares]
        np.testing.assert_array_equal(np.concatenate(parts), next(whole).x)
