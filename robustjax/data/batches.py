"""Batches: an endless shuffled stream to train on, padded blocks to judge on.

Pixels stay as they are stored, a quarter of the bytes in uint8; `augment.as_float`
makes them float32 on the device.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from robustjax import _checks
from robustjax.data.dataset import Dataset
from robustjax.types import Batch, BatchStream


def shuffled_batches(
    dataset: Dataset,
    batch_size: int,
    *,
    seed: int,
    process_index: int | None = None,
    process_count: int | None = None,
) -> BatchStream:
    """Batches in a new random order every epoch, without end.

    Grain shuffles, shards and checkpoints indices; pixels are gathered a batch at a
    time in threads. Batch `n` has the same rows whatever the number of processes: each
    gets its block of them, in order. An iterator's state is `{"next_index": n}`, `n`
    the batches handed out, so a run may go on with another number of processes.

    Args:
      dataset: What is shuffled.
      batch_size: Images per step over all processes.
      seed: Another seed, another order.
      process_index: Which share; None is `jax.process_index()`.
      process_count: How many shares; None is `jax.process_count()`.

    Returns:
      A `BatchStream` of `Batch`es of NumPy arrays, [batch_size / process_count, ...]
      each. An epoch is `len(dataset) // batch_size` batches and has no image twice;
      the rest of its order is left out.

    Raises:
      InputError: `batch_size` does not divide among the processes, or exceeds the
        data set.

    Example:
      >>> images = np.zeros((10, 8, 8, 1), np.uint8)
      >>> labels = np.arange(10, dtype=np.int32)
      >>> digits = Dataset(images, labels, np.arange(10), tuple("0123456789"))
      >>> stream = shuffled_batches(digits, 5, seed=0)
      >>> batches = iter(stream)
      >>> epoch = [next(batches) for _ in range(stream.steps_per_epoch)]
      >>> np.sort(np.concatenate([batch.y for batch in epoch]))
      array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9], dtype=int32)
      >>> batches.get_state()
      {'next_index': 2}
    """
    _checks.positive_int(batch_size=batch_size)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise _checks.InputError(
            f"`seed` must be an integer in [0, 2**32), got {seed!r}."
        )
    index = jax.process_index() if process_index is None else process_index
    count = jax.process_count() if process_count is None else process_count
    _checks.positive_int(process_count=count)
    _checks.one_of(range(count), process_index=index)
    if batch_size % count:
        raise _checks.InputError(
            f"`batch_size` must be a multiple of the {count} processes, got "
            f"{batch_size}."
        )
    if batch_size > len(dataset):
        raise _checks.InputError(
            f"`batch_size` must be at most {len(dataset)}, the images of {dataset!r}, "
            f"got {batch_size}."
        )
    return _ShuffledBatches(dataset, batch_size, seed, index, count)


@dataclasses.dataclass(frozen=True)
class _ShuffledBatches:
    dataset: Dataset
    batch_size: int
    seed: int
    process_index: int
    process_count: int

    @property
    def steps_per_epoch(self) -> int:
        return len(self.dataset) // self.batch_size

    def __iter__(self) -> "_Batches":
        import grain  # half a second, which only training needs

        order = grain.MapDataset.range(len(self.dataset)).seed(self.seed).shuffle()
        # Repeated last: what is below is shuffled anew in each pass.
        batches = (
            order.batch(self.batch_size, drop_remainder=True).map(self._gather).repeat()
        )
        options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
        return _Batches(iter(batches.to_iter_dataset(options)))

    def _gather(self, rows: np.ndarray) -> Batch:
        share = self.batch_size // self.process_count
        rows = rows[self.process_index * share :][:share]
        x, y = self.dataset.images[rows], self.dataset.labels[rows]
        return Batch(x, y)  # pyright: ignore[reportArgumentType]  # the step puts them on devices


class _Batches:
    """A `BatchIterator`; prefetched batches do not count as handed out."""

    def __init__(self, iterator: Any):
        self._iterator = iterator

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return next(self._iterator)

    def get_state(self) -> dict[str, Any]:
        return {"next_index": int(self._iterator.get_state()["next_index"])}

    def set_state(self, state: dict[str, Any]) -> None:
        index = state.get("next_index")
        if not isinstance(index, int) or index < 0:
            raise _checks.InputError(
                f"`state` must be {{'next_index': n}} with n >= 0, got {state!r}."
            )
        self._iterator.set_state({"next_index": index})


class EvalBatch(NamedTuple):
    """A block of consecutive examples, padded to the static batch size B.

    Attributes:
      x: [B, H, W, C], uint8, or float32 in [0, 1].
      y: [B], int32 class index.
      index: [B], int64, position in the source's split, for keys per image.
      valid: [B], bool, False for padding.
    """

    x: np.ndarray
    y: np.ndarray
    index: np.ndarray
    valid: np.ndarray


def evaluation_batches(
    dataset: Dataset, batch_size: int, *, num_examples: int | None = None
) -> Iterator[EvalBatch]:
    """The first `num_examples` examples in order, in blocks of one shape.

    The last block is filled up with copies of its first row, `valid` False: real
    pixels, which no normalisation turns into NaN. For a set that is stored class by
    class, cut the subset with `stratified_subset` instead of `num_examples`.

    Args:
      dataset: What is judged.
      batch_size: Rows of each block, also of a single one.
      num_examples: None is all of them.

    Raises:
      InputError: At the call: a number is not positive, or `num_examples` exceeds
        the data set.

    Example:
      >>> images = np.zeros((10, 8, 8, 1), np.uint8)
      >>> labels = np.arange(10, dtype=np.int32)
      >>> digits = Dataset(images, labels, np.arange(10), tuple("0123456789"))
      >>> [int(batch.valid.sum()) for batch in evaluation_batches(digits, 4)]
      [4, 4, 2]
    """
    _checks.positive_int(batch_size=batch_size)
    count = len(dataset) if num_examples is None else num_examples
    _checks.positive_int(num_examples=count)
    if count > len(dataset):
        raise _checks.InputError(
            f"`num_examples` must be at most {len(dataset)}, the images of "
            f"{dataset!r}, got {count}."
        )

    def block(start: int) -> EvalBatch:
        rows = np.arange(start, start + batch_size)
        valid = rows < count
        part = dataset.take(np.where(valid, rows, start))
        return EvalBatch(part.images, part.labels, part.index, valid)

    return (block(start) for start in range(0, count, batch_size))
