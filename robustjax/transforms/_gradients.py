"""Derivatives of the minimiser: through a fixed number of steps, or its fixed point."""

import functools

import jax
import jax.numpy as jnp

from robustjax.transforms import _splitting
from robustjax.transforms._penalties import Differences, Penalty
from robustjax.transforms._splitting import DataTerm, State
from robustjax.transforms.minimise import (
    batch_first,
    batch_last,
    make_problem,
    minimised,
)
from robustjax.types import Array

_PIXELS = (0, 1, 2)


def unrolled(
    x: Array,
    mask: Array | None,
    weight: float | Array,
    data_term: DataTerm,
    penalty: Penalty,
    count: int,
) -> Array:
    """The image after `count` steps from `x`, differentiable in `x` and `weight`."""
    given = make_problem(x, mask, weight, data_term, penalty)
    _, z = _splitting.steps(given, _splitting.initial(given), count)
    return batch_first(jnp.clip(z, given.low, given.high))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def implicit(
    x: Array, weight: Array, penalty: Penalty, tolerance: float, max_steps: int
) -> Array:
    """The minimiser for the squared data term and no mask, with its own derivative.

    It is the proximal point of the total variation, hence the gradient of a convex
    function of `x`: its Jacobian J is symmetric. J g is the fixed point of the
    linearised iteration fed with g in place of x. With z = x - weight * s for a
    subgradient s, dz/dweight = J (z - x) / weight.
    """
    return _implicit_forward(x, weight, penalty, tolerance, max_steps)[0]


def _implicit_forward(x, weight, penalty, tolerance, max_steps):
    given = make_problem(x, None, weight, "squared", penalty)
    found, state, _, _ = minimised(
        given, _splitting.initial(given), tolerance, max_steps
    )
    image = batch_first(found.image)
    return image, (x, weight, image, state)


def _implicit_backward(penalty, tolerance, max_steps, residuals, cotangent):
    x, weight, image, state = residuals
    given = make_problem(x, None, weight, "squared", penalty)
    fed = batch_first(
        _adjoint(given, state, batch_last(cotangent), tolerance, max_steps)
    )
    positive = weight > 0
    along = jnp.sum(fed * (image - x)) / jnp.where(positive, weight, 1.0)
    return fed, jnp.where(positive, along, 0.0)


implicit.defvjp(_implicit_forward, _implicit_backward)


def _adjoint(given, state: State, right: Array, tolerance: float, max_steps: int):
    """The fixed point of the linearised step, per image until it hardly moves."""

    def once(t: Differences, x: Array) -> tuple[Differences, Array]:
        now = state._replace(t=t)
        new, z = _splitting.step(given._replace(x=x), now, _splitting.RELAXATION)
        return new.t, z

    _, push = jax.linearize(once, state.t, given.x)
    size = _square(right)

    def body(carry):
        t, z, moving, count = carry
        new_t, new_z = push(t, right)
        new_t, new_z = jax.tree.map(
            lambda new, old: jnp.where(moving, new, old), (new_t, new_z), (t, z)
        )
        # A hundredth: steps get shorter slowly where the error is many of them.
        moved = _square(new_z - z) > (tolerance / 100) ** 2 * size
        return new_t, new_z, moving & moved, count + 1

    def unfinished(carry):
        return carry[2].any() & (carry[3] < max_steps)

    still = jnp.zeros_like(right)
    start = (Differences(still, still), still, size > 0, jnp.int32(0))
    return jax.lax.while_loop(unfinished, body, start)[1]


def _square(z: Array) -> Array:
    return jnp.sum(z**2, _PIXELS, keepdims=True)
