"""Linear decision boundaries in a pixel box: which is nearest, and the way to it.

With h(q) = w . q - b the signed height of q over the hyperplane, the nearest point of
{u : w . u = b, low <= u <= high} moves coordinate i against the sign of w_i h by m_i:

  L-inf  m_i = min(t, room_i)          with  sum |w_i| m_i = |h|
  L2     m_i = min(t |w_i|, room_i)    with  sum |w_i| m_i = |h|
  L1     m_i = room_i in decreasing order of |w_i|, until |h| is used up

where room_i is the way from q_i to the box. See "Minimally distorted Adversarial
Examples with a Fast Adaptive Boundary Attack" (Croce and Hein, 2020), section 2. Its
authors sort the break points; here t comes from a few passes over the coordinates.
"""

import jax
import jax.numpy as jnp

from robustjax.types import Array, LogitsFn


def offset_to_plane(
    norm: str, q: Array, w: Array, height: Array, bounds: tuple[float, float]
) -> Array:
    """The shortest offset from q to the hyperplane inside the box, [B, ...].

    Where the box does not reach the hyperplane, the offset to the corner nearest to
    it (coordinates with w_i = 0 stay). Zero where `w` is zero or `height` is not
    finite. Only ratios of `w` and `height` matter, so their scale does not.

    Args:
      norm: What is short, `"linf"`, `"l2"` or `"l1"`.
      q: Points in the box, [B, ...].
      w: Normals, [B, ...].
      height: w . q - b, [B]: taken as it is, since callers know it without the
        cancellation in w . q - b.
      bounds: (low, high) of a coordinate.

    Returns:
      Of the shape of `q`, float32 or wider.

    Example:
      >>> q, w = jnp.array([[0.5, 0.5]]), jnp.array([[2.0, 1.0]])
      >>> offset_to_plane("linf", q, w, jnp.array([0.75]), (0.0, 1.0)).tolist()
      [[-0.25, -0.25]]
    """
    low, high = bounds
    wide = jnp.promote_types(q.dtype, jnp.float32)
    flat_q, flat_w = _rows(q.astype(wide)), _rows(w.astype(wide))
    height = height.astype(wide).reshape(-1, 1)
    scale = jnp.abs(flat_w).max(axis=1, keepdims=True)
    usable = (scale > 0) & jnp.isfinite(scale) & jnp.isfinite(height)
    unit = jnp.where(usable, flat_w / jnp.where(usable, scale, 1.0), 0.0)
    height = jnp.where(usable, height / jnp.where(usable, scale, 1.0), 0.0)
    # Of `w` itself: in `unit` the smallest coordinates may have become zero.
    sign = jnp.where(usable, -jnp.sign(flat_w) * jnp.sign(height), 0.0)
    room = jnp.where(sign > 0, high - flat_q, flat_q - low)
    room = jnp.where(sign == 0, 0.0, jnp.maximum(room, 0.0))
    size, height = jnp.abs(unit), jnp.abs(height)
    beyond = jnp.sum(size * room, axis=1, keepdims=True) <= height
    length = jnp.where(beyond, room, _LENGTHS[norm](size, room, height))
    return (sign * length).reshape(q.shape)


def dual_norm(norm: str, w: Array) -> Array:
    """The norm of `w` [B, ...] whose ratio |h| / ||w|| is the distance in `norm`, [B].

    Example:
      >>> dual_norm("linf", jnp.array([[3.0, -4.0]])).tolist()
      [7.0]
    """
    size = jnp.abs(_rows(w))
    if norm == "linf":
        return size.sum(axis=1)
    if norm == "l2":
        largest = size.max(axis=1, keepdims=True)  # before squaring tiny gradients
        unit = size / jnp.where(largest > 0, largest, 1.0)
        return largest[:, 0] * jnp.linalg.norm(unit, axis=1)
    return size.max(axis=1)


def nearest_boundary(
    norm: str, logits: Array, jacobian: Array, own: Array
) -> tuple[Array, Array]:
    """The linearised boundary to another class that is nearest, (height, normal).

    Minimises |z_k - z_own| / ||grad z_k - grad z_own||_dual over k != own, without a
    view to the box.

    Args:
      norm: What is near, `"linf"`, `"l2"` or `"l1"`.
      logits: [B, M], of any choice of classes.
      jacobian: Their input gradients, [B, M, ...].
      own: The position of the image's own class among them, [B].

    Returns:
      z_k - z_own [B] and its gradient [B, ...].
    """
    rows = own[:, None]
    heights = logits - jnp.take_along_axis(logits, rows, axis=1)
    normals = jacobian - _row(jacobian, own)[:, None]
    sizes = jax.vmap(lambda w: dual_norm(norm, w), 1, 1)(normals).astype(heights.dtype)
    limits = jnp.finfo(sizes.dtype)
    ratios = jnp.abs(heights) / jnp.maximum(sizes, limits.tiny)
    ratios = jnp.where(jnp.isfinite(ratios), ratios, limits.max)
    is_own = jnp.arange(logits.shape[1])[None] == rows
    nearest = jnp.argmin(jnp.where(is_own, jnp.inf, ratios), axis=1)
    height = jnp.take_along_axis(heights, nearest[:, None], axis=1)[:, 0]
    return height, _row(normals, nearest)


def averaged(logits_fn: LogitsFn) -> LogitsFn:
    """`logits_fn`, or the log of its mean probabilities if it gives samples [S, B, K].

    A randomised classifier has boundaries only on average: those of the prediction
    that also decides whether it is broken.
    """

    def single(x: Array) -> Array:
        logits = logits_fn(x)
        if logits.ndim == 2:
            return logits
        wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        total = jax.nn.logsumexp(jax.nn.log_softmax(wide), axis=0)
        return total - jnp.log(jnp.asarray(logits.shape[0], wide.dtype))

    return single


def _linf_lengths(size: Array, room: Array, height: Array) -> Array:
    level = _level(size, size * room, height)
    return jnp.minimum(level, room)


def _l2_lengths(size: Array, room: Array, height: Array) -> Array:
    level = _level(size**2, size * room, height)
    return jnp.minimum(level * size, room)


def _level(slope: Array, cap: Array, height: Array) -> Array:
    """The t >= 0 with sum_i min(t slope_i, cap_i) = height <= sum_i cap_i, [B, 1].

    Newton's method from 0: the sum is concave and piecewise linear in t, so the
    iterates grow towards the root and reach it when the linear piece no longer
    changes, after a handful of passes.
    """

    def body(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        level, _ = carry
        full = level * slope >= cap
        used = jnp.sum(jnp.where(full, cap, 0.0), axis=1, keepdims=True)
        free = jnp.sum(jnp.where(full, 0.0, slope), axis=1, keepdims=True)
        root = (height - used) / jnp.where(free > 0, free, 1.0)
        grown = jnp.where(free > 0, jnp.maximum(root, level), level)
        return grown, jnp.any(grown > level)

    start = (jnp.zeros_like(height), jnp.array(True))
    return jax.lax.while_loop(lambda carry: carry[1], body, start)[0]


def _l1_lengths(size: Array, room: Array, height: Array) -> Array:
    """`room` where |w_i| is above a threshold, and what is left at the threshold.

    The threshold is the smallest |w_i| above which the rooms do not use up `height`.
    Non-negative floats are ordered as their bits are, so a bisection of the bits finds
    it exactly. Coordinates tied there share what is left in proportion to their room.
    """
    integer = jnp.int64 if size.dtype == jnp.float64 else jnp.int32
    bits = jax.lax.bitcast_convert_type(size, integer)
    top = jax.lax.bitcast_convert_type(jnp.ones((), size.dtype), integer)
    cap = size * room

    def used_above(threshold: Array) -> Array:
        return jnp.sum(jnp.where(bits > threshold, cap, 0.0), axis=1, keepdims=True)

    def halve(_, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        below, above = carry
        middle = below + (above - below) // 2
        enough = used_above(middle) >= height
        return jnp.where(enough, middle, below), jnp.where(enough, above, middle)

    start = (jnp.full(height.shape, -1, integer), jnp.full_like(bits[:, :1], top))
    num_halvings = 62 if size.dtype == jnp.float64 else 30  # the bits of 1.0
    _, threshold = jax.lax.fori_loop(0, num_halvings, halve, start)
    tied = jnp.where(bits == threshold, cap, 0.0).sum(axis=1, keepdims=True)
    left = jnp.maximum(height - used_above(threshold), 0.0)
    share = jnp.minimum(left / jnp.where(tied > 0, tied, 1.0), 1.0)
    return jnp.where(
        bits > threshold, room, jnp.where(bits == threshold, share * room, 0.0)
    )


_LENGTHS = {"linf": _linf_lengths, "l2": _l2_lengths, "l1": _l1_lengths}


def _rows(x: Array) -> Array:
    return x.reshape(x.shape[0], -1)


def _row(x: Array, index: Array) -> Array:
    """x[b, index[b]] for each b, [B, ...]."""
    rows = index.reshape((-1, 1) + (1,) * (x.ndim - 2))
    return jnp.take_along_axis(x, rows, axis=1)[:, 0]
