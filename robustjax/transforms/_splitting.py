"""Alternating directions for total variation, with an exact inner solve and a gap.

The problem  min_z f(z) + weight * |D z|  is split at d = D z, and where f is more than
1/2 ||z - x||^2 also at v = z. The constraints are penalised by rho / 2 ||.||^2 and
sigma / 2 ||.||^2; the quadratic problem in z that is left has the matrix
(sigma / rho + D^T D), which cosine transforms diagonalise exactly: two small matrix
products per axis. Douglas-Rachford splitting of the dual, over-relaxed, is the same
iteration with t = d + u in place of both: d and u are the proximal point and the
projection of t. Each image has its own penalties, so that the batch is solved as if
each image were alone.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax.transforms import _penalties
from robustjax.transforms._penalties import Differences, Penalty
from robustjax.types import Array

DataTerm = Literal["norm", "squared"]
DATA_TERMS = ("norm", "squared")

RELAXATION = 1.8  # 1 to 2; fewer steps than 1 on every problem tried
_SHARES = (0.03, 3.0)  # the least and the most of sigma / rho
_PIXELS = (0, 1, 2)


class Problem(NamedTuple):
    """What is minimised, and how; arrays lie as [H, W, C, B].

    Attributes:
      x: The images.
      kept: Which pixels the data term sees; None for all of them.
      low: Smallest kept pixel of an image, [1, 1, 1, B].
      high: Largest kept pixel.
      weight: Scalar.
      data_term: Squared, or the norm itself.
      penalty: Which total variation.
    """

    x: Array
    kept: Array | None
    low: Array
    high: Array
    weight: Array
    data_term: DataTerm
    penalty: Penalty

    @property
    def strongly_convex(self) -> bool:
        """Whether the data term is 1/2 ||z - x||^2, which the inner solve takes in."""
        return self.kept is None and self.data_term == "squared"


class State(NamedTuple):
    """Where the iteration is.

    Attributes:
      t: d + u of the constraint d = D z.
      s: The same of v = z, [H, W, C, B]; None where there is no v.
      rho: Penalty of d = D z, [1, 1, 1, B].
      sigma: Penalty of v = z, [1, 1, 1, B]; 1 where there is no v.
    """

    t: Differences
    s: Array | None
    rho: Array
    sigma: Array


class Certificate(NamedTuple):
    """A point and how good it is.

    Attributes:
      image: [H, W, C, B].
      objective: [B].
      gap: Objective minus a lower bound of the minimum, [B].
    """

    image: Array
    objective: Array
    gap: Array


def problem(
    x: Array,
    kept: Array | None,
    weight: Array,
    data_term: DataTerm,
    penalty: Penalty,
) -> Problem:
    """The problem of images and mask in the layout [H, W, C, B]."""
    low = jnp.min(x, _PIXELS, keepdims=True, where=kept, initial=jnp.inf)
    high = jnp.max(x, _PIXELS, keepdims=True, where=kept, initial=-jnp.inf)
    nothing = low > high  # all constants are minimisers; take one
    low, high = (jnp.where(nothing, 0.5, bound) for bound in (low, high))
    return Problem(x, kept, low, high, weight, data_term, penalty)


def initial(given: Problem) -> State:
    """Kept pixels as they are, dropped ones half way between the extremes."""
    z = _filled(given)
    t = _penalties.differences(z)
    groups = _penalties.number_of_groups(z, given.penalty)
    # The norm of a dual that is active everywhere over that of what the differences
    # may become; `balanced` puts the solver's own numbers in their place.
    rho = given.weight * groups**0.5 / jnp.maximum(_norm(*t), _tiny(z))
    usable = (given.weight > 0) & (_norm(*t) > 0)
    rho = jnp.where(usable, jnp.maximum(rho, _tiny(z)), 1.0)
    if given.strongly_convex:
        return State(t, None, rho, jnp.ones_like(rho))
    return State(t, z, rho, rho)


def resumed_at(given: Problem, z: Array, p: Differences, smallest: Array) -> State:
    """The state of a point and a feasible dual, without a mask and for squared data.

    Rho makes both weigh the same, see `balanced`.
    """
    d = _penalties.differences(z)
    size = jnp.maximum(_norm(*d), smallest)
    rho = _norm(*p) / jnp.maximum(size, _tiny(z))
    usable = (_norm(*p) > 0) & (size > 0)
    rho = jnp.where(usable, jnp.maximum(rho, _tiny(z)), 1.0)
    t = Differences(*(d + p / rho for d, p in zip(d, p, strict=True)))
    return State(t, None, rho, jnp.ones_like(rho))


def step(
    given: Problem, state: State, relaxation: float | Array
) -> tuple[State, Array]:
    """One iteration, and its z."""
    u = _penalties.project(state.t, given.weight / state.rho, given.penalty)
    back = _penalties.adjoint(
        Differences(*(t - 2 * u for t, u in zip(state.t, u, strict=True)))
    )
    share = state.sigma / state.rho
    if state.s is None:
        z = _solve(share * given.x + back, share)
        s = None
    else:
        v = _nearest(given, state)
        z = _solve(share * (2 * v - state.s) + back, share)
        s = state.s + relaxation * (z - v)
    slope = _penalties.differences(z)
    t = Differences(
        *(
            t + relaxation * (slope - t + u)
            for t, slope, u in zip(state.t, slope, u, strict=True)
        )
    )
    return State(t, s, state.rho, state.sigma), z


def steps(
    given: Problem, state: State, count: int, relaxation: float | Array = RELAXATION
) -> tuple[State, Array]:
    """`count` iterations, and the point reached."""

    def body(carry: tuple[State, Array], _) -> tuple[tuple[State, Array], None]:
        return step(given, carry[0], relaxation), None

    (state, z), _ = jax.lax.scan(body, (state, given.x), length=count)
    if state.s is not None:
        z = _nearest(given, state)  # kept pixels are exact here that are not in z
    return state, z


def balanced(given: Problem, state: State, smallest: Array) -> State:
    """The same point with penalties at which points and their duals weigh the same.

    The distances from the start to the solution, (d, p) and (v - x, y) on the kept
    pixels, bound the number of iterations by rho ||d||^2 + ||p||^2 / rho and the same
    with sigma; the present ones stand for them.

    Args:
      given: The problem.
      state: The present one.
      smallest: What ||d|| counts at least, [1, 1, 1, B]; it is 0 in flat images.
    """
    u = _penalties.project(state.t, given.weight / state.rho, given.penalty)
    d = Differences(*(t - u for t, u in zip(state.t, u, strict=True)))
    tiny = _tiny(given.x)
    target = state.rho * _norm(*u) / jnp.maximum(jnp.maximum(_norm(*d), smallest), tiny)
    usable = (given.weight > 0) & (smallest > 0)
    rho = jnp.where(usable, jnp.clip(target, state.rho / 10, state.rho * 10), state.rho)
    t = Differences(
        *(d + (state.rho / rho) * u for d, u in zip(d, u, strict=True)),
    )
    if state.s is None:
        return State(t, None, rho, state.sigma)
    v = _nearest(given, state)
    error = jnp.where(_kept(given), v - given.x, 0.0)
    target = state.sigma * _norm(state.s - v) / jnp.maximum(_norm(error), tiny)
    sigma = jnp.clip(target, _SHARES[0] * rho, _SHARES[1] * rho)
    return State(t, v + (state.sigma / sigma) * (state.s - v), rho, sigma)


def certified(given: Problem, state: State, z: Array) -> Certificate:
    """Z within the range of kept pixels, and its duality gap with the state's dual.

    For p in the dual ball and q = D^T p the minimum is at least that of f(z) + <q, z>
    over all z in [low, high], which contains a minimiser: clipping to the range of the
    kept pixels raises neither a difference nor a distance to them. That keeps the
    bound finite where pixels are dropped. For the norm ||e|| >= <y, e> with
    y = -q min(1, 1 / ||q||) on the kept pixels makes the rest a sum over pixels. All
    terms of the gap are at least 0 and are added up as such.
    """
    u = _penalties.project(state.t, given.weight / state.rho, given.penalty)
    p = Differences(*(state.rho * u for u in u))
    z = jnp.clip(z, given.low, given.high)
    d = _penalties.differences(z)
    terms = _penalties.excess(d, p, given.weight, given.penalty)
    penalty, gap = (
        sum(jnp.sum(part, _PIXELS) for part in parts)
        for parts in zip(*terms, strict=True)
    )
    q = _penalties.adjoint(p)
    # <q, z> over its minimum in the box: all there is at dropped pixels.
    linear = jnp.maximum(q * (z - given.low), q * (z - given.high))
    kept = _kept(given)
    error = jnp.where(kept, z - given.x, 0.0)
    if given.data_term == "squared":
        best = jnp.clip(given.x - q, given.low, given.high)
        loss = (z - best) * ((z + best) / 2 - given.x + q)
        loss = jnp.where(kept, jnp.maximum(loss, 0.0), linear)
        objective = jnp.sum(error**2, _PIXELS) / 2 + penalty
        return Certificate(z, objective, gap + jnp.sum(loss, _PIXELS))
    q = jnp.where(kept, q, 0.0)
    share = 1 / jnp.maximum(_norm(q), 1.0)
    distance = _norm(error)[0, 0, 0]
    inner = jnp.sum(share * q * error, _PIXELS)
    loss = jnp.sum(jnp.where(kept, (1 - share) * linear, linear), _PIXELS)
    gap = gap + jnp.maximum(distance + inner, 0.0) + loss
    return Certificate(z, distance + penalty, gap)


def slopes(given: Problem) -> Array:
    """||D z|| of each image before the first step, [1, 1, 1, B]."""
    return _norm(*_penalties.differences(_filled(given)))


def _filled(given: Problem) -> Array:
    if given.kept is None:
        return given.x
    return jnp.where(given.kept, given.x, (given.low + given.high) / 2)


def _nearest(given: Problem, state: State) -> Array:
    """v: the proximal point of the data term at s."""
    assert state.s is not None
    sigma = state.sigma
    if given.data_term == "squared":
        v = (given.x + sigma * state.s) / (1 + sigma)
        return jnp.where(_kept(given), v, state.s)
    error = jnp.where(_kept(given), state.s - given.x, 0.0)
    square = jnp.sum(error**2, _PIXELS, keepdims=True)
    outside = square > sigma**-2
    scale = 1 / (sigma * jnp.sqrt(jnp.where(outside, square, 1.0)))
    return state.s - jnp.where(outside, scale, 1.0) * error


def _kept(given: Problem) -> Array:
    return jnp.ones((), bool) if given.kept is None else given.kept


def _solve(right: Array, share: Array) -> Array:
    """(share + D^T D)^-1 right."""
    down, down_values = _cosines(right.shape[0])
    along, along_values = _cosines(right.shape[1])
    values = (down_values[:, None] + along_values)[:, :, None, None]
    f = _along(along, _down(down, right)) / (share + values.astype(right.dtype))
    return _down(down.T, _along(along.T, f))


def _down(matrix: np.ndarray, z: Array) -> Array:
    """The matrix applied to columns."""
    # Accelerators would round the factors to bfloat16, and with them the solution.
    flat = z.reshape(z.shape[0], -1)
    product = jnp.matmul(jnp.asarray(matrix, z.dtype), flat, precision="highest")
    return product.reshape(z.shape)


def _along(matrix: np.ndarray, z: Array) -> Array:
    """The matrix applied to rows, by a product for each: XLA would transpose twice."""
    flat = z.reshape(*z.shape[:2], -1)
    each = jnp.broadcast_to(jnp.asarray(matrix, z.dtype), (z.shape[0], *matrix.shape))
    return jnp.matmul(each, flat, precision="highest").reshape(z.shape)


def _cosines(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvectors, in rows, and eigenvalues of D^T D along one axis."""
    k = np.arange(size)
    rows = np.sqrt(2 / size) * np.cos(np.pi * (k + 0.5) * k[:, None] / size)
    rows[0] /= np.sqrt(2)
    return rows, 2 - 2 * np.cos(np.pi * k / size)


def _norm(*parts: Array) -> Array:
    """Of each image, [1, 1, 1, B]; its derivative at 0 is 0."""
    square = sum(jnp.sum(part**2, _PIXELS, keepdims=True) for part in parts)
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)


def _tiny(z: Array) -> float:
    return float(jnp.finfo(z.dtype).tiny) ** 0.5
