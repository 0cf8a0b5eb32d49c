"""First steps of total-variation minimisation: cheap ones, without an inner solve.

For 1/2 ||z - x||^2 and no mask a step of the accelerated primal-dual method is
element-wise, a few times cheaper than one of alternating directions, and as good while
the gap is large. What is left over is the other method's. See "A First-Order
Primal-Dual Algorithm for Convex Problems with Applications to Imaging" (Chambolle and
Pock, 2011), algorithm 2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax.transforms import _penalties
from robustjax.transforms._penalties import Differences, Penalty
from robustjax.types import Array

MAX_STEPS = 30  # at most what it takes the other method to the same gap, in time
BLOCK = 6  # steps between two looks at the gap, which costs about two
# Of the first block: lengths of the dual steps, shares of the primal ones, momenta.
# Fitted to the worst objective after it, isotropic at weight 1 / 5, on 48 crops of two
# photographs and 48 images of uniform noise; other seeds than those of the benchmark.
_FITTED = (
    (0.436, 0.570, 0.928, 1.313, 0.931, 0.810),
    (0.246, 0.220, 0.278, 0.187, 0.176, 0.154),
    (0.759, 0.854, 1.068, 1.125, 0.915, 0.700),
)
# Of the differences, D. Theirs is below 8; the method allows steps up to 4 / 3 longer
# ("On the Improved Conditions for Some Primal-Dual Algorithms", Li and Yan, 2022),
# without acceleration at least, and the gap is proven whatever the steps are.
_SQUARE_NORM = 6.0
# Images are solved by so many values at a time on CPU: they stay in the cache, and the
# loops are too short to be worth another thread.
_VALUES_AT_A_TIME = 12288


class FirstSteps(NamedTuple):
    """What they reached.

    Attributes:
      image: The point reached, [B, H, W, C].
      objective: Its objective, [B].
      gap: Relative duality gap, [B].
      steps: How many were taken, [B] int32.
      p: Its dual, feasible.
    """

    image: Array
    objective: Array
    gap: Array
    steps: Array
    p: Differences


class _Point(NamedTuple):
    """Where the iteration is; the dual is p = share * t."""

    t: Differences
    shares: tuple[Array, ...]
    z: Array
    ahead: Array


class _Progress(NamedTuple):
    point: _Point
    objective: Array
    gap: Array
    steps: Array
    number: Array


def first_steps(
    x: Array, weight: Array, penalty: Penalty, tolerance: float | Array, count: int
) -> FirstSteps:
    """Up to `count` steps from `x` [B, H, W, C], until the gap is small enough."""
    batch, height, width, channels = x.shape
    # Rows hold all channels, as they lie, unless norms of theirs are needed.
    apart = penalty == "rows_columns"
    planes, beside = (channels, 1) if apart else (1, channels)

    def flat(x: Array) -> Array:
        x = jnp.moveaxis(x, -1, 1) if apart else x
        return x.reshape(-1, height, width * beside)

    def images(z: Array) -> Array:
        if apart:
            return jnp.moveaxis(z.reshape(-1, planes, height, width), 1, -1)
        return z.reshape(-1, height, width, channels)

    def solve(x: Array) -> FirstSteps:
        return _solve(x, planes, beside, weight, penalty, tolerance, count)

    def in_groups(x: Array) -> FirstSteps:
        most = max(1, _VALUES_AT_A_TIME // (x.size // batch))
        group = max(n for n in range(1, most + 1) if batch % n == 0)
        found = jax.lax.map(solve, x.reshape(-1, group * planes, *x.shape[1:]))
        return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), found)

    found = jax.lax.platform_dependent(flat(x), cpu=in_groups, default=solve)
    p = Differences(*(images(part) for part in found.p))
    return found._replace(image=images(found.image), p=p)


def most_steps(max_steps: int) -> int:
    """How many of `max_steps` are taken here at most, in blocks of 6."""
    return min(max_steps, MAX_STEPS) // BLOCK * BLOCK


def _solve(
    x: Array,
    planes: int,
    beside: int,
    weight: Array,
    penalty: Penalty,
    tolerance: float | Array,
    count: int,
) -> FirstSteps:
    """Images of so many planes each, [B * planes, H, W * beside], in one loop."""

    def of_image(values: Array) -> Array:
        return values.reshape(len(x) // planes, -1)

    def of_plane(values: Array) -> Array:
        return jnp.repeat(values, planes)[:, None, None]

    low, high = (f(of_image(x), 1) for f in (jnp.min, jnp.max))
    rounding = float(jnp.finfo(x.dtype).eps) * of_image(x).shape[1] * (high - low)
    low, high = of_plane(low), of_plane(high)
    schedule = jnp.asarray(_schedule(MAX_STEPS), x.dtype)

    differences = jax.vmap(lambda z: _penalties.differences(z, beside))
    adjoint = jax.vmap(lambda p: _penalties.adjoint(p, beside))
    shares = jax.vmap(lambda t: _penalties.shares(t, weight, penalty))
    excess = jax.vmap(lambda d, p: _penalties.excess(d, p, weight, penalty))

    def total(*parts: Array) -> Array:
        # By matrix products: a loop that makes values and adds them up is slow on CPU.
        found = jnp.zeros((), x.dtype)
        for part in map(of_image, parts):
            ones = jnp.ones(part.shape[1], x.dtype)
            found = found + jnp.matmul(part, ones, precision="highest")
        return found

    def block(now: _Progress) -> _Progress:
        active = now.gap > tolerance
        moving = of_plane(active.astype(x.dtype))

        def step(point: _Point, number: Array) -> tuple[_Point, None]:
            t, share, z, ahead = point
            sigma, stride, back = schedule[number]
            p, slope = _penalties.scaled(t, share), differences(ahead)
            t = (p + moving * sigma * s for p, s in zip(p, slope, strict=True))
            t = Differences(*t)
            share = shares(t)
            q = adjoint(_penalties.scaled(t, share))
            # In this form a constant image stays what it is, and XLA copies no z. The
            # range is a constraint that the minimiser keeps to.
            ahead = z + moving * stride * (x - q - z)
            z = jnp.clip(z + back * (ahead - z), low, high)
            return _Point(t, share, z, ahead), None

        point, _ = jax.lax.scan(step, now.point, now.number + jnp.arange(BLOCK))
        z = point.z
        p = _penalties.scaled(point.t, point.shares)
        norms, above = zip(*excess(differences(z), p), strict=True)
        objective = total((z - x) ** 2 / 2, *norms)
        size = jnp.maximum(jnp.maximum(objective, rounding), 1e-30)
        # By Fenchel: all terms are at least 0.
        gap = total((z - x + adjoint(p)) ** 2 / 2, *above) / size
        objective = jnp.where(active, objective, now.objective)
        gap = jnp.where(active, gap, now.gap)
        steps = now.steps + BLOCK * active
        return _Progress(point, objective, gap, steps, now.number + BLOCK)

    nothing = Differences(jnp.zeros_like(x), jnp.zeros_like(x))
    point = _Point(nothing, jax.tree.map(jnp.ones_like, shares(nothing)), x, x)
    infinite = jnp.full(len(of_image(x)), jnp.inf, x.dtype)
    none = jnp.zeros(infinite.shape, jnp.int32)
    now = jax.lax.while_loop(
        lambda now: (now.gap > tolerance).any() & (now.number < count),
        block,
        _Progress(point, infinite, infinite, none, jnp.int32(0)),
    )
    p = _penalties.scaled(now.point.t, now.point.shares)
    return FirstSteps(now.point.z, now.objective, now.gap, now.steps, p)


def _schedule(count: int) -> np.ndarray:
    """Rows (sigma, (1 + momentum) * tau / (1 + tau), 1 / (1 + momentum)).

    Those of the strongly convex case, from where the fitted ones end.
    """
    rows = list(zip(*_FITTED, strict=True))
    tau = rows[-1][1] / (1 - rows[-1][1])
    while len(rows) < count:
        tau = tau / np.sqrt(1 + 2 * tau)
        momentum = 1 / np.sqrt(1 + 2 * tau)
        rows.append((1 / (_SQUARE_NORM * tau), tau / (1 + tau), momentum))
    sigma, share, momentum = np.array(rows).T
    return np.stack([sigma, (1 + momentum) * share, 1 / (1 + momentum)], 1)
