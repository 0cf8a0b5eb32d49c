"""The two-way linear readout that leaves one point outside: an exact fit.

One point on one side, a cloud on the other: the hyperplane of largest margin is the one
across the shortest way from the point to the convex hull of the cloud. It is what
unregularised logistic regression tends to ("The Implicit Bias of Gradient Descent on
Separable Data", Soudry et al., 2018), without its slow end and with a certificate.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from robustjax.types import Array

_STEPS = 500  # between two exact computations of the slopes
_ROUNDS = 60
_TOLERANCE = 1e-3  # of the squared distance
# A hull that is nearer than this share of the cloud's reach is touched: in float32 no
# readout would keep a thousandth of that distance.
_TOUCHED = 1e-3


class Readout(NamedTuple):
    """score(f) = weights . (f - at) + offset, above 0 for the planted class.

    Attributes:
      weights: [D].
      at: Features of the boundary point, [D].
      offset: Scalar above 0, the score of the boundary point.
    """

    weights: Array
    at: Array
    offset: Array

    def __call__(self, features: Array) -> Array:
        """Features [B, D] to scores [B]."""
        # The difference first: scores near the boundary point must not be rounded away.
        difference = features.astype(self.at.dtype) - self.at[None]
        return difference @ self.weights + self.offset


class Fit(NamedTuple):
    """A readout, and how well the point stands apart.

    Attributes:
      readout: With scores of -1 at the nearest of the cloud, if it stood halfway.
      margin: Distance to the hull, as a share of the distance to the farthest of the
        cloud; 0 where the point lies in the hull, or features are not finite.
      separable: Whether every point of the cloud has a negative score.
    """

    readout: Readout
    margin: Array
    separable: Array


def fit_readout(inner: Array, boundary: Array, *, closeness: float) -> Fit:
    """The largest margin between features of inner points and of the boundary point.

    The decision boundary then moves from the middle towards the boundary point, until
    1 - closeness of the way is left.

    Args:
      inner: [N, D].
      boundary: [D].
      closeness: In [0, 1).

    Example:
      >>> inner = jnp.array([[0.0, 0.0], [0.0, 1.0]])
      >>> fit = fit_readout(inner, jnp.array([2.0, 0.5]), closeness=0.5)
      >>> fit.readout(jnp.array([[2.0, 0.5], [1.5, 0.5], [0.0, 9.0]])).tolist()
      [0.5, 0.0, -1.5]
    """
    wide = jnp.promote_types(inner.dtype, jnp.float32)
    offsets = inner.astype(wide) - boundary.astype(wide)[None]
    reach = jnp.linalg.norm(offsets, axis=1).max()
    finite = jnp.isfinite(reach) & (reach > 0)
    unit = jnp.where(finite, reach, 1.0)
    offsets = jnp.where(finite, offsets / unit, 0.0)
    shares = nearest_in_hull(offsets)
    way = -(shares @ offsets)
    # Of the certificate, not of the search: what separates, separates.
    gap = -(offsets @ way).max()
    length = jnp.sqrt(way @ way)
    margin = jnp.where(gap > 0, gap / jnp.where(length > 0, length, 1.0), 0.0)
    scale = 2 / jnp.where(gap > 0, gap, 1.0)
    offset = jnp.asarray(1 - closeness, wide)
    readout = Readout(way * scale / unit, boundary.astype(wide), offset)
    return Fit(readout, margin, margin > _TOUCHED)


def nearest_in_hull(points: Array) -> Array:
    """Shares [N] of `points` [N, D] in the point of their hull nearest to the origin.

    Weight moves between the two points that differ most in slope, each time by the
    exact minimum on the way (Mitchell, Demyanov and Malozemov, 1974), until no slope is
    further than 1e-3 of the squared distance from the optimum; or the hull is touched.

    Example:
      >>> nearest_in_hull(jnp.array([[1.0, 1.0], [1.0, -1.0], [9.0, 0.0]])).tolist()
      [0.5, 0.5, 0.0]
    """
    gram = points @ points.T
    squares = jnp.diagonal(gram)
    touched = _TOUCHED**2 * squares.max()

    def move(_, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        shares, slopes = carry
        to = slopes.argmin()
        away = jnp.where(shares > 0, slopes, -jnp.inf).argmax()
        curve = squares[to] + squares[away] - 2 * gram[to, away]
        best = (slopes[away] - slopes[to]) / jnp.where(curve > 0, curve, 1.0)
        step = jnp.where(curve > 0, jnp.minimum(best, shares[away]), 0.0)
        # All of it where it is all: a rounded rest would stay among the candidates.
        rest = jnp.where(step == shares[away], 0.0, shares[away] - step)
        shares = shares.at[away].set(rest).at[to].add(step)
        return shares, slopes + step * (gram[to] - gram[away])

    def unfinished(carry: tuple[Array, Array, Array]) -> Array:
        shares, slopes, turn = carry
        square = shares @ slopes
        short = square - slopes.min() > _TOLERANCE * square
        return short & (square > touched) & (turn < _ROUNDS)

    def round_of(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        shares, slopes, turn = carry
        shares, _ = jax.lax.fori_loop(0, _STEPS, move, (shares, slopes))
        shares = shares / shares.sum()
        return shares, gram @ shares, turn + 1

    first = squares.argmin()
    start = jnp.zeros(len(points), gram.dtype).at[first].set(1.0)
    return jax.lax.while_loop(unfinished, round_of, (start, gram[first], jnp.int32(0)))[
        0
    ]
