"""Spatially transformed adversarial examples: pixels move instead of changing.

    minimise  max(z_y - max_{k != y} z_k, -confidence) + smoothness * L_flow(f)

over a flow f, two numbers per pixel, where x' is x read bilinearly at p + f(p).
See "Spatially Transformed Adversarial Examples" (Xiao et al., 2018).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from robustjax import _checks
from robustjax._gradients import input_gradient
from robustjax.attacks import _outcome, _warp
from robustjax.attacks._outcome import Closest
from robustjax.objectives import margin
from robustjax.types import Array, IteratedAttack, Key, LogitsFn

# In the square root of the flow's differences, whose slope at 0 is infinite.
_FLOOR = 1e-8


class FlowState(NamedTuple):
    """Between two steps.

    Attributes:
      x_adv: The image under the current flow, [B, H, W, C].
      flow: Rows and columns to read further down and right, in pixels, [B, H, W, 2].
      optimizer: Its state.
      found: The adversarial image of the smallest flow so far.
    """

    x_adv: Array
    flow: Array
    optimizer: Any
    found: Closest


def stadv(
    *,
    num_steps: int = 100,
    step_size: float = 0.02,
    smoothness: float | Array = 0.05,
    confidence: float = 0.0,
    max_flow: float | Array = float("inf"),
    optimizer: optax.GradientTransformation | None = None,
    target: Array | None = None,
) -> IteratedAttack:
    """The image under the smallest flow found that fools the classifier, else x.

    Each step is one forward and one backward pass. The start is no flow, which is x
    exactly; what lies beyond the edge is black. Among the flows met on the way the
    smallest in L2 that is misclassified, by at least `confidence`, is kept, per image.
    Deviation from the paper: Adam, not L-BFGS with a line search.

    Args:
      num_steps: Steps of the optimizer.
      step_size: Adam's learning rate, in pixels.
      smoothness: The weight of L_flow, the sum over pixels and their (up to four)
        neighbours of the distance between the two flows; the paper's tau.
      confidence: By how much the wrong logit must lead, the kappa of C&W.
      max_flow: The farthest that a pixel may be read from in each direction, in pixels.
      optimizer: Used instead of Adam; it must treat images independently, as
        elementwise rules do.
      target: Labels [B] to move to; None to move away from y.

    Returns:
      An attack on images [B, H, W, C] in the box. No norm of x' - x is bounded.

    Raises:
      InputError: an argument is out of range.

    Example:
      >>> x = jnp.zeros((1, 3, 3, 1)).at[0, 1, 1, 0].set(1.0)
      >>> centre = lambda z: jnp.stack([z[:, 1, 1, 0], 0.8 + 0 * z[:, 1, 1, 0]], 1)
      >>> attack = stadv(num_steps=20, step_size=0.1)
      >>> x_adv = attack(jax.random.key(0), centre, x, jnp.array([0]))
      >>> bool(x_adv[0, 1, 1, 0] < 0.8)
      True
    """
    _checks.positive_int(num_steps=num_steps)
    _checks.positive(step_size=step_size, max_flow=max_flow)
    _checks.non_negative(smoothness=smoothness, confidence=confidence)
    rule = optax.adam(step_size) if optimizer is None else optimizer

    def evaluate(logits_fn: LogitsFn, x: Array, y: Array, flow: Array):
        """What is climbed in the flow, [B]; images; and whether they are kept."""
        x_adv = _read(x, flow)
        value, is_broken = _outcome.climbed(margin, logits_fn, y, target)(x_adv)
        value = jnp.minimum(value, confidence)
        weight = jnp.asarray(smoothness, value.dtype)
        climbed = value - weight * _roughness(flow).astype(value.dtype)
        return climbed, (x_adv, is_broken & (value >= confidence))

    def init(key: Key, logits_fn: LogitsFn, x: Array, y: Array) -> FlowState:
        del key  # nothing is drawn
        _outcome.check_call(logits_fn, x, y, target=target)
        _checks.image_axes(x=x)
        flow = jnp.zeros((*x.shape[:3], 2), x.dtype)
        found = _outcome.nothing_found(x)
        return FlowState(x, flow, rule.init(flow), found)

    def step(state: FlowState, logits_fn: LogitsFn, x: Array, y: Array) -> FlowState:
        _, (x_adv, is_kept), grad = input_gradient(
            lambda flow: evaluate(logits_fn, x, y, flow), state.flow
        )
        found = _outcome.keep_closer(state.found, x_adv, _length(state.flow), is_kept)
        with jax.numpy_dtype_promotion("standard"):  # optax counts in integers
            descent, memory = rule.update(-grad, state.optimizer, state.flow)
        flow = state.flow + jnp.asarray(descent).astype(x.dtype)
        limit = jnp.asarray(max_flow, x.dtype)
        flow = jnp.clip(flow, -limit, limit)
        return FlowState(_read(x, flow), flow, memory, found)

    def finish(state: FlowState, logits_fn: LogitsFn, x: Array, y: Array) -> Array:
        _, (x_adv, is_kept) = evaluate(logits_fn, x, y, state.flow)
        found = _outcome.keep_closer(state.found, x_adv, _length(state.flow), is_kept)
        return found.x_adv

    return IteratedAttack(init, step, finish, num_steps)


def _read(x: Array, flow: Array) -> Array:
    """X at p + f(p), [B, H, W, C]."""
    rows, columns = _warp.identity(x)
    return _warp.sample(x, rows[None] + flow[..., 0], columns[None] + flow[..., 1])


def _roughness(flow: Array) -> Array:
    """The sum over pixels and their neighbours of the distance of their flows, [B]."""

    def along(axis: int) -> Array:
        squares = jnp.sum(jnp.diff(flow, axis=axis) ** 2, axis=-1)
        # Without the floor's own root, no flow costs nothing.
        distance = jnp.sqrt(squares + _FLOOR) - _FLOOR**0.5
        return 2 * distance.sum(axis=(1, 2))  # each pair is met from both ends

    return along(1) + along(2)


def _length(flow: Array) -> Array:
    return jnp.sqrt(jnp.sum(flow**2, axis=(1, 2, 3)))
