"""Points in the ball around an image: those inside, and those on its surface."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from robustjax.types import Array, Key, Threat

_BISECTIONS = 40
_FARTHEST = 1e3  # in radii; how far a ray goes to make up for what the box cuts off


def inside(threat: Threat, share: float) -> Callable[[Key, Array], Array]:
    """A sampler of points within `share` of the radius: `(keys [B], x [B, ...])`."""
    return threat.with_eps(share * threat.eps).sample


def on_surface(
    threat: Threat, *, corners: bool = False
) -> Callable[[Key, Array], Array]:
    """A sampler of points at exactly the radius and in the box of pixels.

    A direction is drawn uniformly from the sphere of the norm (under L-inf with
    `corners` from the signs), and followed, clipped to the box, to where the norm is
    the radius. Where the box ends before, so does the point.

    Example:
      >>> from robustjax import threats
      >>> x, threat = jnp.zeros((1, 2, 2, 1)), threats.l2(0.5)
      >>> z = on_surface(threat)(jax.random.split(jax.random.key(0), 1), x)
      >>> threat.norm(z - x).round(4).tolist(), bool((z >= 0).all())
      ([0.5], True)
    """
    low, high = threat.bounds
    draw = _signs if corners else _DIRECTIONS[threat.name]

    def sample(keys: Key, x: Array) -> Array:
        direction = jax.vmap(lambda key: draw(key, x.shape[1:], x.dtype))(keys)
        one = (-1,) + (1,) * (x.ndim - 1)
        direction = direction / threat.norm(direction).reshape(one)

        def at(length: Array) -> Array:
            return jnp.clip(x + length.reshape(one) * direction, low, high)

        def halve(_, ends: tuple[Array, Array]) -> tuple[Array, Array]:
            near, far = ends
            middle = near + 0.5 * (far - near)
            fits = threat.norm(at(middle) - x) <= threat.eps
            return jnp.where(fits, middle, near), jnp.where(fits, far, middle)

        radius = jnp.full(x.shape[:1], threat.eps, x.dtype)
        ends = (jnp.zeros_like(radius), _FARTHEST * radius)
        near, _ = jax.lax.fori_loop(0, _BISECTIONS, halve, ends)
        return at(near)

    return sample


def _signs(key: Key, shape: tuple[int, ...], dtype: Any) -> Array:
    return jax.random.rademacher(key, shape, dtype)


def _uniform(key: Key, shape: tuple[int, ...], dtype: Any) -> Array:
    return jax.random.uniform(key, shape, dtype, -1.0, 1.0)


_DIRECTIONS = {"linf": _uniform, "l2": jax.random.normal, "l1": jax.random.laplace}
