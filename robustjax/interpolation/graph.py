"""Similarity graphs over features: nearest neighbours, bandwidths, weights.

Each point x lists its nearest points, itself first, and likes what it lists:

    w(x, y) = kernel(||x - y||^2 / s(x)^2)

where s(x) is the distance to a neighbour of a chosen rank (self-tuned) or one global
number. W is not symmetric; what is built on it symmetrises. See "Deep Neural Nets with
Interpolating Function as Output Activation" (Wang et al., 2018).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import _checks
from robustjax._checks import InputError
from robustjax.interpolation import _select
from robustjax.types import Array

Kernel = Callable[[Array], Array]
"""Squared distance over squared bandwidth, >= 0, to a weight in [0, 1], 1 at 0."""

# Entries of a block of distances. Small ones stay in the caches of a CPU and need no
# fresh pages.
_BLOCK, _CPU_BLOCK = 2**25, 2**20
_FEW = 128


class Neighbors(NamedTuple):
    """For each of R points the nearest of N, nearest first.

    Attributes:
      index: Their positions, [R, k] int32; -1 where there are fewer than k.
      square_distance: [R, k]; inf where there are fewer than k.
    """

    index: Array
    square_distance: Array


def gaussian(ratio: Array) -> Array:
    """exp(-r), the kernel of the papers; r is the squared distance in bandwidths.

    Example:
      >>> gaussian(jnp.array([0.0, 1.0])).round(3).tolist()
      [1.0, 0.368...]
    """
    return jnp.exp(-ratio)


def quartic(ratio: Array) -> Array:
    """exp(-r^2), what the released code computes: it squares squared distances.

    Example:
      >>> quartic(jnp.array([0.0, 2.0])).round(3).tolist()
      [1.0, 0.018...]
    """
    return jnp.exp(-(ratio**2))


def nearest(
    rows: Array,
    points: Array,
    num_neighbors: int,
    *,
    own: Array | None = None,
    include_self: bool = True,
    valid: Array | None = None,
    within: Array | None = None,
    recall: float | None = None,
) -> Neighbors:
    """The nearest `points` of each row, by Euclidean distance.

    Candidates are found in blocks of rows through one matrix product each, a few more
    than asked, and ordered by their distances from the differences, so that coincident
    points are at a distance of exactly 0. Of equally near points the earlier comes
    first. Lets no gradient through: see `square_distances`.

    Args:
      rows: [R, D].
      points: [N, D].
      num_neighbors: k, how many; places that no valid point fills hold -1.
      own: The position of each row among the points, [R], -1 if it is none of them.
        A row comes first in its own list, whatever coincides with it.
      include_self: Whether rows are in their own lists; needs `own` if not.
      valid: Which points exist, [N]; all if None.
      within: Squared distances, [R], from which on points need not be found (some
        are); makes the search cheaper.
      recall: None searches exactly; else the recall that `lax.approx_min_k` aims at,
        in (0, 1], much faster on TPU.

    Raises:
      InputError: an argument is out of range or does not fit.

    Example:
      >>> points = jnp.array([[0.0], [1.0], [3.0]])
      >>> nearest(points, points, 2, own=jnp.arange(3)).index.tolist()
      [[0, 1], [1, 0], [2, 1]]
    """
    _checks.positive_int(num_neighbors=num_neighbors)
    features(rows=rows, points=points)
    if recall is not None:
        _checks.positive(recall=recall)
        _checks.fraction(recall=recall)
    rows, points = jax.lax.stop_gradient((jnp.asarray(rows), jnp.asarray(points)))
    return _nearest(
        num_neighbors, include_self, recall, rows, points, own, valid, within
    )


# One program for eager callers too, to whom every operation would be one of its own.
@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _nearest(
    num_neighbors: int,
    include_self: bool,
    recall: float | None,
    rows: Array,
    points: Array,
    own: Array | None,
    valid: Array | None,
    within: Array | None,
) -> Neighbors:
    if own is None:
        own = jnp.full(rows.shape[0], -1, jnp.int32)
    candidates = _search(points, num_neighbors, include_self, valid, recall)
    count = min(num_neighbors, points.shape[0])

    def block(part: tuple[Array, Array, Array | None]) -> Neighbors:
        some, own, within = part
        index = candidates(some, own, within)
        distance = square_distances(some, points, index)
        distance = jnp.where(index < 0, jnp.inf, distance)
        first = jnp.where((index == own[:, None]) & (index >= 0), -1.0, distance)
        _, order = jax.lax.top_k(-first, count)
        take = functools.partial(jnp.take_along_axis, indices=order, axis=1)
        return Neighbors(take(index), take(distance))

    index, distance = _in_blocks(block, (rows, own, within), points.shape[0])
    missing = ((0, 0), (0, num_neighbors - count))
    return Neighbors(
        jnp.pad(index, missing, constant_values=-1),
        jnp.pad(distance, missing, constant_values=jnp.inf),
    )


def _search(
    points: Array,
    num_neighbors: int,
    include_self: bool,
    valid: Array | None,
    recall: float | None,
) -> Callable[[Array, Array, Array | None], Array]:
    """(rows, own, within) to the positions of the nearest points and some more."""
    count = min(num_neighbors, points.shape[0])
    # Around their centre, where cancellation in |a|^2 - 2 ab + |b|^2 is least.
    centre = points.mean(axis=0, keepdims=True)
    missing = -points.shape[0] % _select.WORD
    centred = jnp.pad(points - centre, ((0, missing), (0, 0)))
    lengths = jnp.sum(centred**2, axis=1)
    exists = jnp.ones(points.shape[0], bool) if valid is None else valid
    lengths = jnp.where(jnp.pad(exists, (0, missing)), lengths, jnp.inf)
    # What rounding may add to a distance, generously.
    slack = 8 * jnp.finfo(points.dtype).eps
    longest = jnp.max(jnp.where(lengths < jnp.inf, lengths, 0.0))

    def candidates(rows: Array, own: Array, within: Array | None) -> Array:
        rows = rows - centre
        squares = jnp.sum(rows**2, axis=1)
        products = jnp.matmul(centred, rows.T, precision=jax.lax.Precision.HIGHEST)
        distance = lengths[:, None] + squares[None] - 2 * products
        itself = -1.0 if include_self else jnp.inf
        place = jnp.arange(lengths.shape[0])[:, None]
        distance = jnp.maximum(distance, 0.0)
        distance = jnp.where(place == own[None], itself, distance)
        if recall is None:
            slacks = slack * (squares + longest)
            return _select.smallest(distance, count, slacks, within)
        least, index = jax.lax.approx_min_k(distance.T, count, recall_target=recall)
        return jnp.where(least < jnp.inf, index, -1).astype(jnp.int32)

    return candidates


def square_distances(rows: Array, points: Array, index: Array) -> Array:
    """||rows_i - points_j||^2 for j = index[i, :], [R, k]; differentiable.

    Entries whose index is -1 are those to the last point: mask them.

    Args:
      rows: [R, D].
      points: [N, D].
      index: [R, k].
    """
    return jnp.sum((rows[:, None] - points[index]) ** 2, axis=-1)


def weights(
    square_distance: Array, square_bandwidth: Array, kernel: Kernel = gaussian
) -> Array:
    """kernel(||x - y||^2 / s^2), [R, k].

    Coincident points weigh 1 whatever the bandwidth, and where the bandwidth is 0
    nothing else does.

    Args:
      square_distance: [R, k]; inf weighs 0.
      square_bandwidth: s^2, [R, 1] or a scalar.
      kernel: Its shape.

    Example:
      >>> weights(jnp.array([[0.0, 1.0, jnp.inf]]), jnp.float32(1)).round(3).tolist()
      [[1.0, 0.368..., 0.0]]
    """
    apart = (square_distance > 0) & (square_distance < jnp.inf)
    near = apart & (square_bandwidth > 0)
    ratio = jnp.where(near, square_distance, 0.0) / jnp.where(
        near, square_bandwidth, 1.0
    )
    return jnp.where(
        near, kernel(ratio), jnp.where(square_distance == 0, 1.0, 0.0)
    ).astype(square_distance.dtype)


def features(**arguments: Array) -> None:
    """Raises unless every keyword argument is finite floats [rows, D], of one D."""
    widths = set()
    for name, value in arguments.items():
        if value.ndim != 2 or not jnp.issubdtype(value.dtype, jnp.floating):
            raise InputError(
                f"`{name}` must be floats [rows, D], got {value.dtype} {value.shape}."
            )
        if value.dtype in (jnp.float16, jnp.bfloat16):
            raise InputError(
                f"`{name}` must be float32 or float64, got {value.dtype}: distances "
                "of nearby points drown in its rounding. Cast it by astype."
            )
        # NumPy, so that an outer trace records nothing.
        if _checks.is_concrete(value) and not np.isfinite(np.asarray(value)).all():
            raise InputError(f"`{name}` must be finite, got NaN or infinity.")
        widths.add(value.shape[1])
    if len(widths) > 1:
        shapes = ", ".join(f"`{k}` {v.shape}" for k, v in arguments.items())
        raise InputError(f"Features must have one width, got {shapes}.")


def _in_blocks(block: Callable, parts: Any, num_points: int) -> Any:
    """`block` over some rows at a time, in sequence."""
    count = jax.tree.leaves(parts)[0].shape[0]
    entries = _CPU_BLOCK if jax.default_backend() == "cpu" else _BLOCK
    # Products of few rows read all the points for little.
    size = max(entries // num_points, min(_FEW, _BLOCK // num_points), 1)
    if count <= size:
        return block(parts)
    num_blocks = -(-count // size)
    size = -(-count // num_blocks)
    missing = num_blocks * size - count

    def split(part: Array) -> Array:
        padded = jnp.pad(part, [(0, missing)] + [(0, 0)] * (part.ndim - 1))
        return padded.reshape((num_blocks, size, *part.shape[1:]))

    results = jax.lax.map(block, jax.tree.map(split, parts))
    return jax.tree.map(
        lambda part: part.reshape((-1, *part.shape[2:]))[:count], results
    )
