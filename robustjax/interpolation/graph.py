"""Similarity graphs over features: nearest neighbours, bandwidths, weights.

Each point x lists its nearest points, itself first, and likes what it lists:

    w(x, y) = kernel(||x - y||^2 / s(x)^2)

where s(x) is the distance to a neighbour of a chosen rank (self-tuned) or one global
number. W is not symmetric; what is built on it symmetrises. See "Deep Neural Nets with
Interpolating Function as Output Activation" (Wang et al., 2018).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import _checks
from robustjax._checks import InputError
from robustjax.types import Array

Kernel = Callable[[Array], Array]
"""Squared distance over squared bandwidth, >= 0, to a weight in [0, 1], 1 at 0."""

_BLOCK = 2**25  # entries of a block of distances, 128 MiB in float32


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
    recall: float | None = None,
) -> Neighbors:
    """The nearest `points` of each row, by Euclidean distance.

    Distances are found in blocks of rows through one matrix product each, and those of
    the chosen points once more from the differences, so that coincident points are at
    a distance of exactly 0. Of equally near points the earlier comes first. Lets no
    gradient through: see `square_distances`.

    Args:
      rows: [R, D].
      points: [N, D].
      num_neighbors: k, how many; places that no valid point fills hold -1.
      own: The position of each row among the points, [R], -1 if it is none of them.
        A row comes first in its own list, whatever coincides with it.
      include_self: Whether rows are in their own lists; needs `own` if not.
      valid: Which points exist, [N]; all if None.
      recall: None searches exactly; else the recall that `lax.approx_max_k` aims at,
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
    if own is None:
        own = jnp.full(rows.shape[0], -1, jnp.int32)
    rows, points = jax.lax.stop_gradient((rows, points))
    # Around their centre, where cancellation in |a|^2 - 2 ab + |b|^2 is least.
    centre = points.mean(axis=0, keepdims=True)
    centred = points - centre
    squares = jnp.sum(centred**2, axis=1)
    if valid is not None:
        squares = jnp.where(valid, squares, jnp.inf)
    count = min(num_neighbors, points.shape[0])

    def block(part: tuple[Array, Array]) -> tuple[Array, Array]:
        some, own = part
        some = some - centre
        products = jnp.matmul(some, centred.T, precision=jax.lax.Precision.HIGHEST)
        closeness = 2 * products - squares[None]  # up to |row|^2, equal in a row
        columns = jnp.arange(points.shape[0])[None]
        itself = jnp.inf if include_self else -jnp.inf
        closeness = jnp.where(columns == own[:, None], itself, closeness)
        if recall is None:
            return jax.lax.top_k(closeness, count)
        return jax.lax.approx_max_k(closeness, count, recall_target=recall)

    size = max(1, _BLOCK // max(1, points.shape[0]))
    if rows.shape[0] <= size:
        closeness, index = block((rows, own))
    else:
        closeness, index = _in_blocks(block, (rows, own), size)
    found = closeness > -jnp.inf
    index = jnp.where(found, index, -1).astype(jnp.int32)
    distance = jnp.where(found, square_distances(rows, points, index), jnp.inf)
    missing = ((0, 0), (0, num_neighbors - count))
    return Neighbors(
        jnp.pad(index, missing, constant_values=-1),
        jnp.pad(distance, missing, constant_values=jnp.inf),
    )


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


def _in_blocks(block: Callable, parts: tuple[Array, ...], size: int):
    """`block` over `size` rows at a time, in sequence."""
    count = parts[0].shape[0]
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
