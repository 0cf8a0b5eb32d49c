"""A data set block by block on the devices, and what compiled code is handed."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from robustjax import _checks
from robustjax.data import Dataset, EvalBatch, evaluation_batches
from robustjax.training import sharding
from robustjax.types import Array, Key, LogitsFn, is_transductive


def batches_of(
    predict: LogitsFn,
    dataset: Dataset,
    batch_size: int,
    num_examples: int | None,
    mesh: Mesh | None,
) -> Iterator[EvalBatch]:
    """Block after block, on the devices; one shape, a multiple of the devices."""
    mesh = mesh or sharding.data_mesh()
    total = len(dataset) if num_examples is None else num_examples
    batch_size = _whole(batch_size, total, mesh)
    if is_transductive(predict) and total % batch_size:
        raise _checks.InputError(
            f"`batch_size` must divide the {total} images of a transductive "
            f"classifier, or padding would be queries; got {batch_size}."
        )
    for batch in evaluation_batches(dataset, batch_size, num_examples=num_examples):
        index = batch.index.astype(np.uint32)  # what keys fold in
        yield sharding.global_rows(mesh, batch._replace(index=index))


def rows_of(
    arrays: tuple[np.ndarray, ...], batch_size: int, mesh: Mesh | None
) -> Iterator[tuple[Array, ...]]:
    """Arrays [N, ...] block after block, on the devices, as `batches_of` cuts them.

    The last block is filled up with copies of its first row.
    """
    mesh = mesh or sharding.data_mesh()
    total = len(arrays[0])
    batch_size = _whole(batch_size, total, mesh)
    for start in range(0, total, batch_size):
        rows = np.arange(start, start + batch_size)
        rows = np.where(rows < total, rows, start)
        yield sharding.global_rows(mesh, tuple(array[rows] for array in arrays))


def _whole(batch_size: int, total: int, mesh: Mesh) -> int:
    """No more than there are images, rounded up to a multiple of the devices."""
    devices = mesh.shape["data"]
    return devices * math.ceil(min(batch_size, max(total, 1)) / devices)


def block_size(
    functions: Sequence[Callable[..., Any]],
    batch_size: int,
    total: int,
    mesh: Mesh | None,
) -> int:
    """`batch_size`, or what leaves no padding where that would be queries."""
    if not any(map(is_transductive, functions)):
        return batch_size
    devices = (mesh or sharding.data_mesh()).shape["data"]
    sizes = [n for n in range(devices, batch_size + 1, devices) if total % n == 0]
    return max(sizes, default=batch_size)


def image_keys(key: Key, index: Array) -> Key:
    """One key for each image, [B], by its position in the split."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, index)
