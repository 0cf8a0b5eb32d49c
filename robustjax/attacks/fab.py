"""The fast adaptive boundary attack (FAB): the nearest point across the boundary.

Every step linearises the boundary at the current point p, projects both p and x onto
it within the box (offsets d_p and d_x), and goes a little beyond a mix of the two:

    p <- clip((1 - a) (p + eta d_p) + a (x + eta d_x)),
    a = min(||d_p|| / (||d_p|| + ||d_x||), alpha_max)

From a misclassified p it goes back towards x, p <- x + beta (p - x). See "Minimally
distorted Adversarial Examples with a Fast Adaptive Boundary Attack" (Croce and Hein,
2020), algorithm 1.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from robustjax import _checks, _random
from robustjax._gradients import input_gradient, input_jacobian, loop_safe
from robustjax._interned import interned
from robustjax.attacks import _hyperplane, _outcome
from robustjax.attacks._outcome import Closest
from robustjax.attacks._targets import check_rank, ranked_class
from robustjax.types import Array, IteratedAttack, Key, LogitsFn, Threat

_NORMS = ("linf", "l2", "l1")
_SHORTEST = 1e-8  # of an offset, where two are compared


class FabState(NamedTuple):
    """Between two steps.

    Attributes:
      x_adv: The search point p, [B, ...].
      found: The closest misclassified point so far.
      logits: Of the clean images, [B, K]; they rank the classes.
      keys: One per image, [B].
      index: Steps done.
    """

    x_adv: Array
    found: Closest
    logits: Array
    keys: Key
    index: Array


# (logits_fn, p, label, class ranked) -> (height [B], normal [B, ...]) of the boundary.
_Linearise = Callable[[LogitsFn, Array, Array, Array], tuple[Array, Array]]


@interned
def fab(
    threat: Threat,
    *,
    num_steps: int = 100,
    num_restarts: int = 1,
    alpha_max: float = 0.1,
    overshoot: float = 1.05,
    backward: float = 0.9,
) -> IteratedAttack:
    """The closest misclassified point that FAB finds, untargeted.

    Each step takes the nearest of the linearised boundaries to all other classes: K
    backward passes, one forward pass with them and one at the new point. The gradients
    of a step take K times the memory of the images. See "Minimally distorted
    Adversarial Examples with a Fast Adaptive Boundary Attack" (Croce and Hein, 2020),
    algorithm 1.

    The first search starts at x. Later ones start from x plus noise (uniform under
    L-inf, Gaussian otherwise) of length r in the threat's norm, clipped to the box; r
    is half of the smallest of `eps`, the distance found so far, and the box's diagonal.
    The paper's final search on the boundary is left out, as in the authors' AutoAttack.

    Args:
      threat: Norm and box; `eps` is the largest distance that counts as found.
      num_steps: Steps of each search.
      num_restarts: Searches.
      alpha_max: Largest weight of the way from x, in [0, 1].
      overshoot: The paper's eta; 1 stops on the linearised boundary.
      backward: The paper's beta: the share of the way that is kept once p is
        misclassified, in [0, 1].

    Returns:
      An attack that returns x itself for images already misclassified and for those
      where nothing within `eps` was found.

    Raises:
      InputError: an argument is out of range.

    Example:
      >>> from robustjax import threats
      >>> x, y = jnp.array([[0.75, 0.25]]), jnp.array([0])
      >>> attack = fab(threats.linf(1.0), num_steps=5)
      >>> attack(jax.random.key(0), lambda z: z, x, y).round(2).tolist()
      [[0.5, 0.5]]
    """

    def linearise(logits_fn: LogitsFn, p: Array, label: Array, _: Array):
        logits, jacobian = input_jacobian(logits_fn, p)
        return _hyperplane.nearest_boundary(threat.name, logits, jacobian, label)

    return _searches(
        threat,
        linearise,
        first_rank=2,
        num_targets=1,
        num_steps=num_steps,
        num_restarts=num_restarts,
        alpha_max=alpha_max,
        overshoot=overshoot,
        backward=backward,
    )


@interned
def fab_targeted(
    threat: Threat,
    *,
    num_targets: int = 9,
    num_steps: int = 100,
    num_restarts: int = 1,
    alpha_max: float = 0.1,
    overshoot: float = 1.05,
    backward: float = 0.9,
) -> IteratedAttack:
    """FAB-T: searches towards the most likely wrong classes, one after another.

    A step needs one backward pass instead of `fab`'s K, as the boundary is that to one
    class: the 2nd, 3rd, ... most likely one of the clean image. Any misclassification
    counts. See "Reliable evaluation of adversarial robustness with an ensemble of
    diverse parameter-free attacks" (Croce and Hein, 2020), and `fab`, whose other
    arguments, starts and results it shares.

    Args:
      threat: Norm and box; `eps` is the largest distance that counts as found.
      num_targets: Classes to try; steps for classes that do not exist cost nothing.
      num_steps: Steps of each search.
      num_restarts: Searches for each class.
      alpha_max: As in `fab`.
      overshoot: As in `fab`.
      backward: As in `fab`.

    Raises:
      InputError: an argument is out of range.

    Example:
      >>> from robustjax import threats
      >>> x, y = jnp.array([[0.75, 0.25, 0.0]]), jnp.array([0])
      >>> attack = fab_targeted(threats.linf(1.0), num_targets=2, num_steps=5)
      >>> attack(jax.random.key(0), lambda z: z, x, y).round(2).tolist()
      [[0.5, 0.5, 0.0]]
    """
    _checks.positive_int(num_targets=num_targets)
    return _searches(
        threat,
        _towards,
        first_rank=2,
        num_targets=num_targets,
        num_steps=num_steps,
        num_restarts=num_restarts,
        alpha_max=alpha_max,
        overshoot=overshoot,
        backward=backward,
    )


@interned
def fab_target(
    threat: Threat,
    *,
    rank: int | Array,
    num_steps: int = 100,
    num_restarts: int = 1,
    alpha_max: float = 0.1,
    overshoot: float = 1.05,
    backward: float = 0.9,
) -> IteratedAttack:
    """FAB-T towards a single class, for callers that go through the ranks themselves.

    Args:
      threat: Norm and box; `eps` is the largest distance that counts as found.
      rank: 2 is the most likely wrong class of the clean image; may be traced, so that
        one compilation serves all ranks. Beyond the classes, x comes back.
      num_steps: Steps of each search.
      num_restarts: Searches.
      alpha_max: As in `fab`.
      overshoot: As in `fab`.
      backward: As in `fab`.

    Raises:
      InputError: an argument is out of range.

    Example:
      >>> from robustjax import threats
      >>> x, y = jnp.array([[0.75, 0.25, 0.0]]), jnp.array([0])
      >>> attack = fab_target(threats.linf(1.0), rank=3, num_steps=5)
      >>> attack(jax.random.key(0), lambda z: z, x, y).round(2).tolist()
      [[0.37..., 0.25, 0.37...]]
    """
    check_rank(rank)
    return _searches(
        threat,
        _towards,
        first_rank=rank,
        num_targets=1,
        num_steps=num_steps,
        num_restarts=num_restarts,
        alpha_max=alpha_max,
        overshoot=overshoot,
        backward=backward,
    )


def _towards(logits_fn: LogitsFn, p: Array, label: Array, target: Array):
    def height(z: Array) -> tuple[Array, tuple[()]]:
        logits = logits_fn(z)
        pair = jnp.stack([target, label], axis=1)
        ends = jnp.take_along_axis(logits, pair, axis=1)
        return ends[:, 0] - ends[:, 1], ()

    value, _, gradient = input_gradient(height, p)
    return value, gradient


def _searches(
    threat: Threat,
    linearise: _Linearise,
    *,
    first_rank: int | Array,
    num_targets: int,
    num_steps: int,
    num_restarts: int,
    alpha_max: float,
    overshoot: float,
    backward: float,
) -> IteratedAttack:
    """Target after target, restart after restart, as one loop of steps."""
    _checks.one_of(_NORMS, **{"threat.name": threat.name})
    _checks.positive_int(num_steps=num_steps, num_restarts=num_restarts)
    _checks.fraction(alpha_max=alpha_max, backward=backward)
    _checks.positive(overshoot=overshoot)

    def step(state: FabState, logits_fn: LogitsFn, x: Array, y: Array) -> FabState:
        search, within_search = jnp.divmod(state.index, num_steps)
        target_index, restart = jnp.divmod(search, num_restarts)
        rank = jnp.asarray(first_rank, jnp.int32) + target_index
        p = jax.lax.cond(
            within_search == 0,
            lambda: _start(threat, state, search, restart, x),
            lambda: state.x_adv,
        )
        # Nothing is left to improve, or no class has this rank.
        done = (state.found.distance == 0).all() | (rank > state.logits.shape[1])

        def advance() -> tuple[Array, Closest]:
            f = _hyperplane.averaged(logits_fn)
            label = _outcome.label_of(y)
            target = ranked_class(state.logits, label, rank)
            plane = linearise(f, p, label, target)
            moved = _mix(threat, p, x, *plane, alpha_max, overshoot)
            is_broken = _outcome.broken(loop_safe(f)(moved), y)
            wide = state.found.distance.dtype
            distance = threat.norm(moved.astype(wide) - x.astype(wide))
            found = _outcome.keep_closer(state.found, moved, distance, is_broken)
            nearer = x + backward * (moved - x)
            return _outcome.where(is_broken, nearer, moved), found

        x_adv, found = jax.lax.cond(done, lambda: (p, state.found), advance)
        return FabState(x_adv, found, state.logits, state.keys, state.index + 1)

    def finish(state: FabState, logits_fn: LogitsFn, x: Array, y: Array) -> Array:
        del logits_fn, y
        found = _outcome.moved_on(threat, state.found, x)
        return _outcome.within(threat, found, x)

    return IteratedAttack(
        _begin,
        step,
        finish,
        num_targets * num_restarts * num_steps,
        broken=lambda state: state.found.distance <= threat.eps,
    )


def _begin(key: Key, logits_fn: LogitsFn, x: Array, y: Array) -> FabState:
    _outcome.check_call(logits_fn, x, y)
    keys = _random.per_image_keys(key, x.shape[0])
    logits = _hyperplane.averaged(logits_fn)(x)
    nothing = _outcome.nothing_found(x)
    zero = jnp.zeros_like(nothing.distance)
    found = _outcome.keep_closer(nothing, x, zero, _outcome.broken(logits, y))
    return FabState(x, found, logits, keys, jnp.int32(0))


def _mix(
    threat: Threat,
    p: Array,
    x: Array,
    height: Array,
    normal: Array,
    alpha_max: float,
    overshoot: float,
) -> Array:
    """The next search point, from the boundary linearised at p."""
    low, high = threat.bounds
    wide = jnp.promote_types(p.dtype, jnp.float32)
    from_p, from_x, normal = p.astype(wide), x.astype(wide), normal.astype(wide)
    height = height.astype(wide)
    # The plane of p is at h(p) + w . (u - p), whose height at p is h(p) exactly.
    rise = jnp.sum((normal * (from_x - from_p)).reshape(x.shape[0], -1), axis=1)
    points, heights = jnp.stack([from_p, from_x]), jnp.stack([height, height + rise])
    offsets = jax.vmap(
        lambda q, h: _hyperplane.offset_to_plane(threat.name, q, normal, h, (low, high))
    )(points, heights)
    lengths = jnp.maximum(jax.vmap(threat.norm)(offsets), _SHORTEST)
    share = jnp.minimum(lengths[0] / lengths.sum(axis=0), alpha_max)
    share = share.reshape((-1,) + (1,) * (x.ndim - 1))
    ends = points + overshoot * offsets
    mixed = (1 - share) * ends[0] + share * ends[1]
    return jnp.clip(mixed, low, high).astype(x.dtype)


def _start(
    threat: Threat, state: FabState, search: Array, restart: Array, x: Array
) -> Array:
    """The point x for the first search of a target, later a random one around it."""
    low, high = threat.bounds
    sampler = jax.random.normal
    if threat.name == "linf":
        sampler = lambda k, s, t: jax.random.uniform(k, s, t, -1.0, 1.0)
    noise = _random.draw(_random.fold_in(state.keys, search), x, sampler)
    distance = state.found.distance
    diagonal = threat.norm(jnp.full_like(x, high - low)).astype(distance.dtype)
    eps = jnp.asarray(threat.eps, distance.dtype)
    radius = jnp.minimum(jnp.minimum(distance, eps), diagonal) / 2
    scale = radius.astype(x.dtype) / jnp.maximum(threat.norm(noise), _SHORTEST)
    scale = scale.reshape((-1,) + (1,) * (x.ndim - 1))
    return jnp.where(restart == 0, x, jnp.clip(x + scale * noise, low, high))
