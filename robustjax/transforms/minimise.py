"""Total-variation minimisation of a batch of images on the device.

The objective of each image x [H, W, C] with a mask of kept pixels is

    data + weight * TV,   data = ||mask * (z - x)||_2  or  1/2 ||mask * (z - x)||_2^2

See "Countering Adversarial Images using Input Transformations" (Guo et al., 2018); the
defense of "Adversarial Defense via Data Dependent Activation Function and Total
Variation Minimization" (Wang et al., 2018) builds on it.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from robustjax._checks import InputError
from robustjax.transforms import _primal_dual, _splitting
from robustjax.transforms._inputs import check_images, check_options
from robustjax.transforms._penalties import Differences, Penalty
from robustjax.transforms._primal_dual import FirstSteps
from robustjax.transforms._splitting import Certificate, DataTerm, Problem, State
from robustjax.types import Array

_FIRST_RELAXATION = 1.3
_SMALLEST = 0.05  # differences of a result are seldom below this share of the image's
_BLOCK = 4  # steps between two looks at the gap, which costs about one


class Duals(NamedTuple):
    """The solver's own variables, for a warm start.

    Attributes:
      down: Of vertical differences, [B, H, W, C].
      right: Of horizontal differences.
      data: Of the data term; None where it needs none.
      rho: The penalty of the differences, [B].
      sigma: The penalty of the data term, [B].
    """

    down: Array
    right: Array
    data: Array | None
    rho: Array
    sigma: Array


class Minimised(NamedTuple):
    """What was found for each image.

    Attributes:
      image: The minimiser, [B, H, W, C].
      objective: Its objective, [B].
      gap: Relative duality gap, [B]: (objective - bound) / objective with a proven
        lower bound of the minimum. The objective counts at least as much as one unit of
        rounding in every pixel, eps * H W C * (largest - smallest kept pixel).
      steps: How many were taken, [B] int32.
      duals: What `start` needs of it.
    """

    image: Array
    objective: Array
    gap: Array
    steps: Array
    duals: Duals


def minimise_total_variation(
    x: Array,
    *,
    mask: Array | None = None,
    weight: float | Array = 0.03,
    data_term: DataTerm = "norm",
    penalty: Penalty = "rows_columns",
    tolerance: float | Array = 1e-4,
    max_steps: int = 2000,
    start: Minimised | None = None,
) -> Minimised:
    """The images of least total variation near `x`, each to a proven accuracy.

    With d_v and d_h the differences of neighbours below and beside each other, TV sums
    over channels

        rows_columns  sum_i ||d_v[i, :]||_2 + sum_j ||d_h[:, j]||_2, TV_2 of the paper
        isotropic     sum_ij sqrt(d_v[i, j]^2 + d_h[i, j]^2)
        anisotropic   sum_ij |d_v[i, j]| + |d_h[i, j]|

    The defaults are the paper's equation. Its authors' code minimises the squared data
    term with the isotropic penalty instead, by 100 sweeps of split Bregman at most,
    stopped when pixels change by less than 0.01, with a smoothed shrinkage; that
    smoothing and the inexact stop are not rebuilt here.

    Solved by the alternating direction method with an exact inner solve, for squared
    data without a mask after some cheaper primal-dual steps, per image until its gap is
    small enough; an image that is done does not move any more and no
    image depends on the others. The lower bound is that of the dual restricted to the
    range of the kept pixels, [low, high]: a minimiser lies in it, since clipping
    lowers every term, and it keeps the bound finite where pixels are dropped.
    Minimisers are unique for the squared data term without a mask; else objectives
    are. Lets no gradient through: see `total_variation`.

    Args:
      x: [B, H, W, C], float32 or float64. Pixels need not lie in [0, 1].
      mask: True where a pixel is kept, bool [B, H, W, C]; None keeps all. An image
        with no kept pixel becomes constant, 1/2.
      weight: Of the total variation, at least 0; a scalar.
      data_term: "norm" or "squared".
      penalty: Which TV.
      tolerance: Of the relative gap. In float32 reached down to about 1e-5.
      max_steps: Then the best point so far is returned, or the last while steps are
        cheap, with its gap; in blocks of 4, or of 6 while they are.
      start: A former result for images of this shape, e.g. at a weight nearby.

    Returns:
      The minimisers, within the range of the kept pixels of each image.

    Raises:
      InputError: an argument is out of range, not finite or does not fit.

    Example:
      >>> x = jnp.zeros((1, 8, 8, 1)).at[:, :, 4:].set(1.0)
      >>> result = jax.jit(lambda x: minimise_total_variation(
      ...     x, weight=0.1, data_term="squared", penalty="anisotropic"))(x)
      >>> print(result.image[0, 0, :, 0].round(3))
      [0.025 0.025 0.025 0.025 0.975 0.975 0.975 0.975]
    """
    check_options(weight, data_term, penalty, tolerance, max_steps)
    check_images(x, mask)
    _check_start(start, x)
    x, weight = jax.lax.stop_gradient((x, weight))
    cheap = start is None and mask is None and data_term == "squared"
    if cheap and max_steps >= _primal_dual.BLOCK:
        return _cheap_steps_first(x, weight, penalty, tolerance, max_steps)
    given = make_problem(x, mask, weight, data_term, penalty)
    state = _splitting.initial(given)
    if start is not None:
        state = _resumed(given, start)
    return _result(*minimised(given, state, tolerance, max_steps))


def _cheap_steps_first(
    x: Array,
    weight: float | Array,
    penalty: Penalty,
    tolerance: float | Array,
    max_steps: int,
) -> Minimised:
    """Of squared data without a mask; alternating directions where they do not do."""
    weight = jnp.asarray(weight, x.dtype)

    def start(found: FirstSteps) -> tuple[Problem, _Found]:
        given = make_problem(x, None, weight, "squared", penalty)
        image, p = batch_last(found.image), Differences(*map(batch_last, found.p))
        smallest = _SMALLEST * _splitting.slopes(given)
        state = _splitting.resumed_at(given, image, p, smallest)
        best = Certificate(image, found.objective, found.gap * found.objective)
        return given, (best, state, found.gap, found.steps)

    def flat(found: Minimised) -> Minimised:
        # Else XLA lays the images of both branches out as one of them needs it.
        return found._replace(image=found.image.ravel())

    def enough() -> Minimised:
        return _result(*start(first)[1])

    def more() -> Minimised:
        # From x again: that costs little here, while handing on what the first block
        # left would cost much where that block is enough.
        count = _primal_dual.most_steps(max_steps)
        given, found = start(steps(count))
        if max_steps > count:
            found = minimised(given, found[1], tolerance, max_steps - count, found)

        def either(new: Array, old: Array) -> Array:
            return jnp.where(unfinished.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        return jax.tree.map(either, _result(*found), enough())

    steps = functools.partial(_primal_dual.first_steps, x, weight, penalty, tolerance)
    first = steps(_primal_dual.BLOCK)
    unfinished = first.gap > tolerance
    found = jax.lax.cond(unfinished.any(), lambda: flat(more()), lambda: flat(enough()))
    return found._replace(image=found.image.reshape(x.shape))


def _result(found: Certificate, state: State, gap: Array, count: Array) -> Minimised:
    return Minimised(
        image=batch_first(found.image),
        objective=found.objective,
        gap=gap,
        steps=count,
        duals=Duals(
            down=batch_first(state.t.down),
            right=batch_first(state.t.right),
            data=None if state.s is None else batch_first(state.s),
            rho=state.rho[0, 0, 0],
            sigma=state.sigma[0, 0, 0],
        ),
    )


_Found = tuple[Certificate, State, Array, Array]


class _Progress(NamedTuple):
    state: State
    best: Certificate
    gap: Array
    steps: Array
    blocks: Array


def minimised(
    given: Problem,
    state: State,
    tolerance: float | Array,
    max_steps: int,
    start: tuple[Certificate, State, Array, Array] | None = None,
) -> tuple[Certificate, State, Array, Array]:
    """The best points, the last state, relative gaps and steps taken, both [B].

    Images whose gap in `start`, a former result, is small enough stay as they are.
    """
    pixels = given.x.size // given.x.shape[-1]
    unit = float(jnp.finfo(given.x.dtype).eps) * pixels
    rounding = unit * (given.high - given.low)[0, 0, 0]
    smallest = _SMALLEST * _splitting.slopes(given)

    def relative(found: Certificate) -> Array:
        size = jnp.maximum(jnp.maximum(found.objective, rounding), 1e-30)
        return found.gap / size

    def unfinished(gap: Array) -> Array:
        return gap > tolerance  # False for NaN, which no step would mend

    def block(now: _Progress) -> _Progress:
        active = unfinished(now.gap)
        # The first block is far from the solution, where less pays.
        stride = jnp.where(now.blocks == 0, _FIRST_RELAXATION, _splitting.RELAXATION)
        relaxation = jnp.where(active, stride, 0.0)[None, None, None]
        relaxation = relaxation.astype(given.x.dtype)
        state, z = _splitting.steps(given, now.state, _BLOCK, relaxation)
        found = _splitting.certified(given, state, z)
        gap = relative(found)
        better = active & ~(gap >= now.gap)
        best = jax.tree.map(lambda a, b: jnp.where(better, a, b), found, now.best)
        blocks = now.blocks + 1
        # Ever more seldom, so that the method converges with a fixed rho in between.
        again = unfinished(gap) & active & ((blocks & (blocks - 1)) == 0)
        state = jax.lax.cond(
            again.any(),
            lambda: jax.tree.map(
                lambda a, b: jnp.where(again, a, b),
                *(_splitting.balanced(given, state, smallest), state),
            ),
            lambda: state,
        )
        return _Progress(
            *(state, best, jnp.where(better, gap, now.gap)),
            now.steps + _BLOCK * active,
            blocks,
        )

    if start is None:
        infinite = jnp.full_like(rounding, jnp.inf)  # one block is always taken
        best = Certificate(given.x, infinite, infinite)
        start = best, state, infinite, jnp.zeros(infinite.shape, jnp.int32)
    best, state, gap, count = start
    now = _Progress(state, best, gap, count, jnp.int32(0))
    now = jax.lax.while_loop(
        lambda now: unfinished(now.gap).any() & (now.blocks * _BLOCK < max_steps),
        block,
        now,
    )
    return now.best, now.state, now.gap, now.steps


def make_problem(
    x: Array,
    mask: Array | None,
    weight: float | Array,
    data_term: DataTerm,
    penalty: Penalty,
) -> Problem:
    """The problem of images [B, H, W, C]."""
    kept = None if mask is None else batch_last(mask)
    weight = jnp.asarray(weight, x.dtype)
    return _splitting.problem(batch_last(x), kept, weight, data_term, penalty)


def batch_last(x: Array) -> Array:
    """[B, H, W, C] to the solver's [H, W, C, B]."""
    return jnp.moveaxis(x, 0, -1)


def batch_first(z: Array) -> Array:
    """[H, W, C, B] to [B, H, W, C]."""
    return jnp.moveaxis(z, -1, 0)


def _check_start(start: Minimised | None, x: Array) -> None:
    if start is not None and start.image.shape != x.shape:
        raise InputError(
            f"`start` must be a result for images {x.shape}, the shape of `x`, got one "
            f"for {start.image.shape}."
        )


def _resumed(given: Problem, start: Minimised) -> State:
    """The state of a former result, which may be that of another kind of problem."""
    dtype = given.x.dtype
    start = jax.tree.map(lambda a: a.astype(dtype), jax.lax.stop_gradient(start))
    duals = start.duals
    t = Differences(batch_last(duals.down), batch_last(duals.right))
    rho, sigma = (part[None, None, None] for part in (duals.rho, duals.sigma))
    if given.strongly_convex:
        return State(t, None, rho, jnp.ones_like(rho))
    s = batch_last(start.image if duals.data is None else duals.data)
    return State(t, s, rho, sigma)
