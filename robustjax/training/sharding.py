"""Data parallelism: one program, global view, one `data` axis over all devices."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from robustjax import _checks
from robustjax.types import PyTree


def data_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with the axis `data` over `devices`, by default all of them.

    Example:
      >>> data_mesh(jax.devices()[:1]).shape["data"]
      1
    """
    devices = jax.devices() if devices is None else devices
    # Auto, since under Explicit a `vmap` over restarts of a sharded batch raises.
    return jax.make_mesh(
        (len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def by_row(mesh: Mesh) -> NamedSharding:
    """Every device holds its share of the rows."""
    return NamedSharding(mesh, PartitionSpec("data"))


def check_divides(mesh: Mesh, **batch_sizes: int) -> None:
    """Raises unless every batch size is a multiple of the number of devices."""
    devices = mesh.shape["data"]
    for name, size in batch_sizes.items():
        if size % devices:
            raise _checks.InputError(
                f"`{name}` must be a multiple of the {devices} devices, got {size}. "
                f"The nearest is {max(devices, round(size / devices) * devices)}."
            )


def local_rows(mesh: Mesh, batch: PyTree) -> PyTree:
    """Global arrays from numpy rows of which each process holds its own share."""
    sharding = by_row(mesh)
    return jax.tree.map(
        lambda rows: jax.make_array_from_process_local_data(sharding, rows), batch
    )


def to_host(tree: PyTree) -> PyTree:
    """Whole numpy arrays from global ones; with several processes, all must ask."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def global_rows(mesh: Mesh, batch: PyTree) -> PyTree:
    """Global arrays from numpy rows that every process holds whole."""
    sharding = by_row(mesh)
    return jax.tree.map(
        lambda rows: jax.make_array_from_callback(
            np.shape(rows), sharding, lambda index: rows[index]
        ),
        batch,
    )
