"""Threat models: norm balls inside the pixel box, per example, any radius traced.

Projections are Euclidean and onto ball and box *together*. In each case the
solution moves every coordinate of `x` towards `v = x_adv` by an amount that depends
on one number per image, found by a search that ends in finitely many steps:

  L-inf  z = clip(v, max(x - eps, low), min(x + eps, high))
  L2     |z_i - x_i| = min(t |d_i|, c_i)              with  sum of squares = eps^2
  L1     |z_i - x_i| = clip(|d_i| - lam, 0, c_i)      with  sum = eps

where d = v - x and c_i is the room between x_i and the box in the direction of d_i.
See "Mind the Box: l1-APGD for Sparse Adversarial Attacks on Image Classifiers"
(Croce and Hein, 2021), section 2.2 and appendix A.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from robustjax import _checks, _random
from robustjax._interned import interned
from robustjax.types import Array, Key, Threat


@interned
def linf(eps: float | Array, *, bounds: tuple[float, float] = (0.0, 1.0)) -> Threat:
    """The L-infinity ball: every pixel moves by at most `eps`.

    Args:
      eps: Radius on the pixel scale, scalar or one per image [B], in
        [0, high - low]; may be traced.
      bounds: (low, high) of a pixel.

    Raises:
      InputError: a concrete `eps` is out of range.

    Example:
      >>> threat = linf(8 / 255)
      >>> x = jnp.full((1, 2, 2, 1), 0.5)
      >>> bool(jnp.allclose(threat.project(x + 1.0, x), x + 8 / 255))
      True
    """
    low, high = bounds
    _checks.radius(eps, bounds, largest=high - low)

    def project(x_adv: Array, x: Array) -> Array:
        _check_pair(x_adv, x)
        room = _per_image(eps, x)
        return jnp.clip(x_adv, jnp.maximum(x - room, low), jnp.minimum(x + room, high))

    def sample(key: Key, x: Array) -> Array:
        noise = _random.draw(
            key, x, lambda k, s, t: jax.random.uniform(k, s, t, -1.0, 1.0)
        )
        return project(x + _per_image(eps, x) * noise, x)

    return Threat(
        name="linf",
        eps=eps,
        bounds=bounds,
        norm=lambda delta: jnp.abs(_flat(delta)).max(axis=1),
        sample=sample,
        steepest=jnp.sign,
        project=project,
        with_eps=lambda new: linf(new, bounds=bounds),
    )


@interned
def l2(eps: float | Array, *, bounds: tuple[float, float] = (0.0, 1.0)) -> Threat:
    """The Euclidean ball of radius `eps`, per image, in the pixel box.

    `sample` is uniform in the ball: a Gaussian direction with a length eps * U^(1/n).

    Args:
      eps: Radius on the pixel scale, scalar or one per image [B]; may be traced.
      bounds: (low, high) of a pixel.

    Raises:
      InputError: a concrete `eps` is negative or not a number.

    Example:
      >>> x = jnp.full((1, 2, 2, 1), 0.5)
      >>> z = l2(0.5).project(x + jnp.array([3.0, 0, 0, 0]).reshape(x.shape), x)
      >>> float(z[0, 0, 0, 0])
      1.0
    """
    low, high = bounds
    _checks.radius(eps, bounds, largest=float("inf"))

    def sample(key: Key, x: Array) -> Array:
        def draw(key, shape, dtype):
            direction_key, length_key = jax.random.split(key)
            direction = jax.random.normal(direction_key, shape, dtype)
            length = jax.random.uniform(length_key, (), dtype) ** (1 / direction.size)
            return length * direction / jnp.linalg.norm(direction)

        # Clipping only shortens the offset of an x inside the box.
        return jnp.clip(x + _per_image(eps, x) * _random.draw(key, x, draw), low, high)

    def project(x_adv: Array, x: Array) -> Array:
        _check_pair(x_adv, x)
        size, room, rebuild = _offsets(x_adv, x, bounds)
        return rebuild(_l2_lengths(size, room, _per_image(eps, size)))

    return Threat(
        name="l2",
        eps=eps,
        bounds=bounds,
        norm=lambda delta: jnp.linalg.norm(_flat(delta), axis=1),
        sample=sample,
        steepest=_l2_direction,
        project=project,
        with_eps=lambda new: l2(new, bounds=bounds),
    )


@interned
def l1(
    eps: float | Array,
    *,
    sparsity: int | float = 1,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Threat:
    """The L1 ball of radius `eps`, per image, in the pixel box.

    The steepest ascent direction of the L1 norm is any convex combination of the
    signed axes with the largest |gradient|; `sparsity` says how many share it, since
    one coordinate at a time makes slow progress (the SLIDE attack of Tramer and Boneh,
    2019, moves the top share). `sample` is uniform in the ball.

    Args:
      eps: Radius on the pixel scale, scalar or one per image [B]; may be traced.
      sparsity: The `k` of the k-sparse direction: an int is a number of coordinates, a
        float in (0, 1] a share of them.
      bounds: (low, high) of a pixel.

    Raises:
      InputError: `eps` or `sparsity` is out of range.

    Example:
      >>> direction = l1(1.0, sparsity=2).steepest(jnp.array([[3.0, -2.0, 1.0]]))
      >>> direction.tolist()
      [[0.5, -0.5, 0.0]]
    """
    low, high = bounds
    _checks.radius(eps, bounds, largest=float("inf"))
    if isinstance(sparsity, int):
        _checks.positive_int(sparsity=sparsity)
    else:
        _checks.positive(sparsity=sparsity)
        _checks.fraction(sparsity=sparsity)

    def sample(key: Key, x: Array) -> Array:
        def draw(key, shape, dtype):
            # The first n of n + 1 exponentials over their sum: uniform in the simplex
            # of volume |z|_1 <= 1; random signs make it the ball.
            sizes_key, signs_key = jax.random.split(key)
            count = 1
            for side in shape:
                count *= side
            sizes = jax.random.exponential(sizes_key, (count + 1,), dtype)
            signs = jax.random.rademacher(signs_key, shape, dtype)
            return signs * (sizes[:-1] / sizes.sum()).reshape(shape)

        return jnp.clip(x + _per_image(eps, x) * _random.draw(key, x, draw), low, high)

    def project(x_adv: Array, x: Array) -> Array:
        _check_pair(x_adv, x)
        size, room, rebuild = _offsets(x_adv, x, bounds)
        return rebuild(_l1_lengths(size, room, _per_image(eps, size)))

    return Threat(
        name="l1",
        eps=eps,
        bounds=bounds,
        norm=lambda delta: jnp.abs(_flat(delta)).sum(axis=1),
        sample=sample,
        steepest=lambda grad: _sparse_direction(grad, sparsity),
        project=project,
        with_eps=lambda new: l1(new, sparsity=sparsity, bounds=bounds),
    )


def gaussian_start(scale: float) -> Callable[[Key, Array], Array]:
    """A start at x + scale * N(0, 1), unprojected, as TRADES, MART and NAMID use.

    Args:
      scale: Standard deviation on the pixel scale; those papers' code uses 0.001.

    Returns:
      `(key, x) -> x'`, of the shape of `x`; `key` is one key or one per image.

    Raises:
      InputError: `scale` is negative.

    Example:
      >>> start = gaussian_start(0.001)
      >>> start(jax.random.key(0), jnp.zeros((2, 8, 8, 1))).shape
      (2, 8, 8, 1)
    """
    _checks.non_negative(scale=scale)
    return lambda key, x: x + scale * _random.draw(key, x, jax.random.normal)


def sometimes_clean(
    start: Callable[[Key, Array], Array], share: float = 0.2
) -> Callable[[Key, Array], Array]:
    """A start at x itself for a share of the images, elsewhere `start`.

    See the official code of "Feature Denoising for Improving Adversarial Robustness"
    (Xie et al., 2019), which draws once for a batch; here every image draws for itself.

    Args:
      start: `(key, x) -> x'`, such as `threat.sample`.
      share: Of images that start clean, in [0, 1]; 0.2 in that code.

    Raises:
      InputError: `share` is out of range.

    Example:
      >>> start = sometimes_clean(linf(0.25).sample, 0.5)
      >>> x = jnp.full((8, 2), 0.5)
      >>> moved = (start(jax.random.key(0), x) != x).any(axis=1)
      >>> bool(moved.any() and not moved.all())
      True
    """
    _checks.fraction(share=share)

    def begin(key: Key, x: Array) -> Array:
        keys = _random.per_image_keys(key, x.shape[0])
        draws = jax.vmap(jax.random.uniform)(_random.fold_in(keys, 1))
        clean = (draws < share).reshape((-1,) + (1,) * (x.ndim - 1))
        return jnp.where(clean, x, start(_random.fold_in(keys, 0), x))

    return begin


def _l2_lengths(size: Array, room: Array, eps: Array) -> Array:
    """min(t size, room), where t solves sum_i min(t size_i, room_i)^2 = eps^2; [B, n].

    With S the coordinates that have used up their room, t solves
    t^2 sum_{not S} size^2 = eps^2 - sum_S room^2. Starting from an empty S, each
    solution is at most the root and can only let S grow, so the search ends, exactly,
    as soon as S stops growing (Croce and Hein sort the break points instead; this
    takes a handful of passes and no sort).
    """
    inside = jnp.minimum(size, room)
    fits = jnp.sum(inside**2, axis=1, keepdims=True) <= eps**2
    # Only ratios matter where the ball binds: huge sizes must not overflow squared.
    size = size / jnp.maximum(size.max(axis=1, keepdims=True), 1.0)

    def solve(full: Array) -> Array:
        used = jnp.sum(jnp.where(full, room, 0.0) ** 2, axis=1, keepdims=True)
        free = jnp.sum(jnp.where(full, 0.0, size) ** 2, axis=1, keepdims=True)
        left = jnp.maximum(eps**2 - used, 0.0)
        return jnp.sqrt(left / jnp.where(free > 0, free, 1.0))

    def body(carry):
        share, full, _ = carry
        grown = full | (share * size >= room)
        return solve(grown), grown, jnp.any((grown != full) & ~fits)

    none = jnp.zeros(size.shape, bool)
    start = (solve(none), none, jnp.array(True))
    share, _, _ = jax.lax.while_loop(lambda carry: carry[2], body, start)
    length = jnp.minimum(share * size, room)
    # Rounding, or squares that underflow beside huge ones, may end a little outside.
    total = jnp.linalg.norm(length, axis=1, keepdims=True)
    length = length * jnp.minimum(eps / jnp.where(total > 0, total, 1.0), 1.0)
    return jnp.where(fits, inside, length)


def _l1_lengths(size: Array, room: Array, eps: Array) -> Array:
    """clip(size - lam, 0, room), where lam >= 0 makes their sum eps; [B, n].

    The sum falls with lam, linearly between break points. Newton steps inside a
    shrinking bracket, every other one a bisection, end when a step lands on the linear
    piece from which it was computed: there the answer is exact. For offsets so large
    that no float `lam` is close enough, the neighbour below is taken, whose sum is too
    large, and the lengths are scaled down to the ball.
    """
    fits = jnp.sum(jnp.minimum(size, room), axis=1, keepdims=True) <= eps

    def piece(lam: Array) -> tuple[Array, Array]:
        # Coordinates at zero and at their room; both sets are nested in lam, so equal
        # counts mean equal sets.
        gone = jnp.sum(size <= lam, axis=1, keepdims=True)
        full = jnp.sum(size - room >= lam, axis=1, keepdims=True)
        return gone, full

    def body(carry):
        low, high, trial, done, turn = carry
        excess = jnp.sum(jnp.clip(size - trial, 0.0, room), 1, keepdims=True) - eps
        gone, full = piece(trial)
        slope = (size.shape[1] - gone - full).astype(size.dtype)
        root = jnp.where(slope > 0, trial + excess / jnp.maximum(slope, 1), jnp.inf)
        root = jnp.where(excess == 0, trial, root)
        root_gone, root_full = piece(root)
        exact = (root_gone == gone) & (root_full == full)
        low = jnp.where(excess > 0, trial, low)
        high = jnp.where(excess > 0, high, trial)  # on NaN too: the search must end
        middle = low + 0.5 * (high - low)
        newton = (turn % 2 == 0) & (root > low) & (root < high)
        neighbours = (middle <= low) | (middle >= high)  # in floating point
        proposal = jnp.where(neighbours, low, jnp.where(newton, root, middle))
        trial = jnp.where(done, trial, jnp.where(exact, root, proposal))
        return low, high, trial, done | exact | neighbours, turn + 1

    zero = jnp.zeros_like(eps * size[:, :1])
    top = size.max(axis=1, keepdims=True) + zero
    start = (zero, top, zero, jnp.broadcast_to(fits, zero.shape), jnp.int32(0))
    threshold = jax.lax.while_loop(lambda carry: ~carry[3].all(), body, start)[2]
    length = jnp.clip(size - jnp.where(fits, 0.0, threshold), 0.0, room)
    total = jnp.sum(length, axis=1, keepdims=True)
    return length * jnp.minimum(eps / jnp.where(total > 0, total, 1.0), 1.0)


def _offsets(
    x_adv: Array, x: Array, bounds: tuple[float, float]
) -> tuple[Array, Array, Callable[[Array], Array]]:
    """|x_adv - x| and the room to the box in that direction, both [B, n].

    The third value turns lengths [B, n] back into images in the box.
    """
    low, high = bounds
    delta = _flat(x_adv - x)
    room = jnp.maximum(jnp.where(delta > 0, high - _flat(x), _flat(x) - low), 0.0)

    def rebuild(length: Array) -> Array:
        return jnp.clip(x + (jnp.sign(delta) * length).reshape(x.shape), low, high)

    largest = jnp.finfo(delta.dtype).max ** 0.5  # infinite offsets have a direction too
    return jnp.minimum(jnp.abs(delta), largest), room, rebuild


def _l2_direction(grad: Array) -> Array:
    # Dividing by the largest entry first keeps tiny gradients from underflowing when
    # they are squared.
    axes = tuple(range(1, grad.ndim))
    largest = jnp.abs(grad).max(axis=axes, keepdims=True)
    scaled = grad / jnp.where(largest > 0, largest, 1.0)
    length = jnp.sqrt(jnp.sum(scaled**2, axis=axes, keepdims=True))
    return scaled / jnp.where(length > 0, length, 1.0)


def _sparse_direction(grad: Array, sparsity: int | float) -> Array:
    flat = _flat(grad)
    size = flat.shape[1]
    count = sparsity if isinstance(sparsity, int) else max(1, round(sparsity * size))
    magnitude = jnp.abs(flat)
    # The barrier keeps XLA on CPU from merging the slice into a sort of everything. A
    # mask, since scattering k values takes longer than finding them: coordinates tied
    # with the k-th are as steep as it and share the step.
    top = jax.lax.optimization_barrier(jax.lax.top_k(magnitude, min(count, size)))
    signs = jnp.where(magnitude >= top[0][:, -1:], jnp.sign(flat), 0.0)
    share = signs / jnp.maximum(jnp.abs(signs).sum(axis=1, keepdims=True), 1.0)
    return share.reshape(grad.shape)


def _per_image(eps: float | Array, x: Array) -> Array:
    """`eps` (scalar or [B]) in the dtype of `x`, broadcastable against it."""
    value = jnp.asarray(eps, x.dtype)
    return value.reshape(value.shape + (1,) * (x.ndim - value.ndim))


def _flat(x: Array) -> Array:
    return x.reshape(x.shape[0], -1)


def _check_pair(x_adv: Array, x: Array) -> None:
    _checks.images(x=x)
    _checks.same_shape(x_adv=x_adv, x=x)
