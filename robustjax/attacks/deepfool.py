"""DeepFool: straight across the nearest linearised boundary, again and again.

    r <- r + (|h_k| / ||w_k||_dual + extra_step) * steepest(w_k)
    x_adv = clip(x + (1 + overshoot) r)

where h_k = z_k - z_y and w_k, its gradient, are taken at x_adv, and k is the class
whose boundary is nearest there. See "DeepFool: a simple and accurate method to fool
deep neural networks" (Moosavi-Dezfooli et al., 2016), algorithm 2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from robustjax import _checks
from robustjax._gradients import input_jacobian
from robustjax.attacks import _hyperplane, _outcome
from robustjax.attacks._outcome import Closest
from robustjax.types import Array, IteratedAttack, Key, LogitsFn, Threat


class DeepFoolState(NamedTuple):
    """Between two steps.

    Attributes:
      x_adv: The current point, [B, ...]; it stays once it is misclassified.
      total: The way so far without overshoot and box, the paper's r, [B, ...].
      found: The misclassified point, where there is one.
      classes: The label and the classes it is compared with, [B, M].
    """

    x_adv: Array
    total: Array
    found: Closest
    classes: Array


def deepfool(
    threat: Threat,
    *,
    num_steps: int = 50,
    overshoot: float = 0.02,
    num_candidates: int = 10,
    extra_step: float = 1e-4,
) -> IteratedAttack:
    """A misclassified point near x, found by a few linearisations.

    See "DeepFool: a simple and accurate method to fool deep neural networks"
    (Moosavi-Dezfooli et al., 2016), algorithm 2, and section 3.3 for L-inf. A step is
    one forward pass and `num_candidates` backward passes; an image stops at its first
    misclassified point, and the passes end when all images have stopped.

    As in the authors' code, and unlike algorithm 2, the overshoot is applied at every
    step, so that points lie beyond the boundary and not on it, and `extra_step` is
    added to every step's length. Points are also clipped to the pixel box, while the
    way `r` keeps adding up unclipped; steps do not otherwise know of the box, so that
    without `extra_step` clipped points can approach a boundary and never cross it.

    Args:
      threat: Norm (`"linf"` or `"l2"`) and box; `eps` is the largest distance that
        counts as found.
      num_steps: Linearisations at most.
      overshoot: How far beyond the boundary, relative to the way.
      num_candidates: Classes looked at, the label and the most likely others of the
        clean image; at least 2.
      extra_step: Added to the length of every step, in the threat's norm.

    Returns:
      An attack that returns x itself for images already misclassified and for those
      where nothing within `eps` was found.

    Raises:
      InputError: an argument is out of range.

    Example:
      >>> from robustjax import threats
      >>> x, y = jnp.array([[0.75, 0.25]]), jnp.array([0])
      >>> attack = deepfool(threats.linf(1.0), num_steps=2, extra_step=0.0)
      >>> attack(jax.random.key(0), lambda z: z, x, y).round(3).tolist()
      [[0.49..., 0.50...]]
    """
    _checks.one_of(("linf", "l2"), **{"threat.name": threat.name})
    _checks.positive_int(num_steps=num_steps, num_candidates=num_candidates)
    _checks.non_negative(overshoot=overshoot, extra_step=extra_step)
    if num_candidates < 2:
        raise _checks.InputError(
            f"`num_candidates` must be at least 2, the label and another class, got "
            f"{num_candidates}."
        )
    low, high = threat.bounds

    def init(key: Key, logits_fn: LogitsFn, x: Array, y: Array) -> DeepFoolState:
        del key
        _outcome.check_call(logits_fn, x, y)
        logits = _hyperplane.averaged(logits_fn)(x)
        classes = _candidates(logits, y, num_candidates)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        nothing = _outcome.nothing_found(x)
        return DeepFoolState(x, jnp.zeros(x.shape, wide), nothing, classes)

    def record(state: DeepFoolState, logits: Array, x: Array, y: Array) -> Closest:
        delta = state.x_adv.astype(state.total.dtype) - x.astype(state.total.dtype)
        is_broken = _outcome.broken(logits, y)
        return _outcome.keep_closer(
            state.found, state.x_adv, threat.norm(delta), is_broken
        )

    def advance(state: DeepFoolState, logits_fn: LogitsFn, x: Array, y: Array):
        f = _hyperplane.averaged(logits_fn)
        logits, jacobian = input_jacobian(f, state.x_adv, state.classes)
        found = record(state, logits, x, y)
        way = _to_boundary(threat, logits, jacobian, state.classes, extra_step)
        stopped = jnp.isfinite(found.distance)
        total = _outcome.where(stopped, state.total, state.total + way)
        moved = jnp.clip(x + (1 + overshoot) * total, low, high).astype(x.dtype)
        x_adv = _outcome.where(stopped, state.x_adv, moved)
        return DeepFoolState(x_adv, total, found, state.classes)

    def step(
        state: DeepFoolState, logits_fn: LogitsFn, x: Array, y: Array
    ) -> DeepFoolState:
        return jax.lax.cond(
            jnp.isfinite(state.found.distance).all(),
            lambda: state,
            lambda: advance(state, logits_fn, x, y),
        )

    def finish(state: DeepFoolState, logits_fn: LogitsFn, x: Array, y: Array) -> Array:
        logits = _hyperplane.averaged(logits_fn)(state.x_adv)
        return _outcome.within(threat, record(state, logits, x, y), x)

    return IteratedAttack(init, step, finish, num_steps)


def _candidates(logits: Array, y: Array, count: int) -> Array:
    """The label, then the other classes from the most likely on, [B, M]."""
    label = _outcome.label_of(y)
    first = jax.nn.one_hot(label, logits.shape[1], dtype=bool)
    # The last key decides first.
    order = jnp.lexsort((-logits, ~first), axis=1)
    return order[:, : min(count, logits.shape[1])]


def _to_boundary(
    threat: Threat, logits: Array, jacobian: Array, classes: Array, extra_step: float
) -> Array:
    """The offset to the nearest linearised boundary, [B, ...], float32 or wider."""
    chosen = jnp.take_along_axis(logits, classes, axis=1)
    own = jnp.zeros(classes.shape[:1], jnp.int32)
    wide = jnp.promote_types(jacobian.dtype, jnp.float32)
    height, normal = _hyperplane.nearest_boundary(
        threat.name, chosen.astype(wide), jacobian.astype(wide), own
    )
    size = _hyperplane.dual_norm(threat.name, normal)
    distance = jnp.abs(height) / jnp.where(size > 0, size, 1.0)
    distance = jnp.where((size > 0) & jnp.isfinite(distance), distance, 0.0)
    length = (distance + extra_step).reshape((-1,) + (1,) * (normal.ndim - 1))
    return length * threat.steepest(normal)
