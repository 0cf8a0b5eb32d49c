"""The Jacobian saliency map attack (JSMA): few coordinates, changed a lot.

A step changes the pair of coordinates {i, j} by theta that has the largest

    saliency = -(a_i + a_j) (b_i + b_j)    with  a_i + a_j > 0 > b_i + b_j,
    a = theta's sign times the gradient of z_t,  b = the same of sum_{k != t} z_k,

so that both the target t gains and the other classes lose. See "The Limitations of
Deep Learning in Adversarial Settings" (Papernot et al., 2016), algorithms 2 and 3.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from robustjax import _checks
from robustjax._gradients import input_jacobian
from robustjax.attacks import _hyperplane, _outcome
from robustjax.attacks._targets import ranked_class
from robustjax.types import Array, Attack, IteratedAttack, Key, LogitsFn

_PAIRS_AT_ONCE = 2**18


class JsmaState(NamedTuple):
    """Between two steps.

    Attributes:
      x_adv: The current point, [B, ...]; it stays once it is what was asked for.
      towards: The class whose logit is raised, [B].
      done: Whether it is, where that has been seen, [B].
    """

    x_adv: Array
    towards: Array
    done: Array


def jsma(
    *,
    theta: float = 1.0,
    gamma: float = 0.1,
    pairs: bool = True,
    num_candidates: int | None = None,
    target: Array | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Attack:
    """Images with few coordinates changed, by the Jacobian saliency map attack.

    See "The Limitations of Deep Learning in Adversarial Settings" (Papernot et al.,
    2016), algorithms 2 and 3. An image takes floor(gamma n / 2) steps of two of its n
    coordinates (pixels times channels) each, or floor(gamma n) of one; it stops at
    the first point that is the target, or misclassified if there is none. Coordinates
    at the end of the box are left out; one that has not reached it may be chosen
    again. Failed images come back with their changes.

    A negative theta lowers coordinates, with the signs of the saliency turned. The
    gradients are those of the logits, not of the probabilities: there a = -b, and the
    other classes would have no say. Without `target`, t is the most likely wrong class
    of the clean image. A step takes two backward passes, since b is the gradient of
    the sum of all logits minus a.

    The search of pairs takes n^2 trials a step, in chunks, so that its memory is
    about 1 MB per image. For n beyond a few thousand let `num_candidates` bound it.

    Args:
      theta: Change of a chosen coordinate, not 0.
      gamma: Share of the coordinates that may change, in (0, 1].
      pairs: False chooses single coordinates by the saliency of one.
      num_candidates: Search only the pairs among the coordinates with the largest
        a / max |a| - b / max |b|; None searches all.
      target: Labels [B] to reach; None means any misclassification.
      bounds: (low, high) of a coordinate.

    Returns:
      An attack without a norm: at most the share `gamma` of the coordinates differ.

    Raises:
      InputError: an argument is out of range; at the call, if `gamma` is too small
        for a single step.

    Example:
      >>> weight = jnp.array([[1.0, 0.0], [-2.0, 1.0], [0.0, 1.0], [-1.0, 2.0]])
      >>> x, y = jnp.array([[1.0, 0.0, 0.25, 0.0]]), jnp.array([0])
      >>> attack = jsma(gamma=0.5)
      >>> attack(jax.random.key(0), lambda z: z @ weight, x, y).tolist()
      [[1.0, 1.0, 0.25, 1.0]]
    """
    _check(theta, gamma, num_candidates, bounds)
    at_once = 2 if pairs else 1

    def run(key: Key, logits_fn: LogitsFn, x: Array, y: Array) -> Array:
        size = x[0].size
        num_steps = int(gamma * size + 1e-9) // at_once
        if not num_steps:
            raise _checks.InputError(
                f"`gamma` must allow {at_once} of the {size} coordinates to change, at "
                f"least {at_once / size:.2g}, got {gamma}."
            )

        def choose(a: Array, b: Array) -> Array:
            if not pairs:
                return _best_single(a, b)
            return _best_pair(a, b, num_candidates)

        walk = _walk(choose, theta, target, bounds, num_steps)
        return walk(key, logits_fn, x, y)

    return run


def _check(theta, gamma, num_candidates, bounds) -> None:
    _checks.positive(gamma=gamma)
    _checks.fraction(gamma=gamma)
    if _checks.is_concrete(theta) and theta == 0:
        raise _checks.InputError("`theta` must not be 0, or nothing would change.")
    _checks.radius(abs(theta), bounds, largest=float("inf"))
    if num_candidates is not None:
        _checks.positive_int(num_candidates=num_candidates)
        if num_candidates < 2:
            raise _checks.InputError(
                f"`num_candidates` must be at least 2, a pair, got {num_candidates}."
            )


def _walk(
    choose: Callable[[Array, Array], Array],
    theta: float,
    target: Array | None,
    bounds: tuple[float, float],
    num_steps: int,
) -> IteratedAttack:
    low, high = bounds

    def init(key: Key, logits_fn: LogitsFn, x: Array, y: Array) -> JsmaState:
        del key
        _outcome.check_call(logits_fn, x, y, target=target)
        nothing_done = jnp.zeros(y.shape[:1], bool)
        if target is not None:
            return JsmaState(x, target, nothing_done)
        label = _outcome.label_of(y)
        logits = _hyperplane.averaged(logits_fn)(x)
        return JsmaState(x, ranked_class(logits, label, 2), nothing_done)

    def advance(state: JsmaState, logits_fn: LogitsFn, y: Array) -> JsmaState:
        done, a, b = _saliency(logits_fn, state, y, target)
        raised = jnp.sign(jnp.asarray(theta, a.dtype))
        flat = state.x_adv.reshape(a.shape)
        free = jnp.where(raised > 0, flat < high, flat > low)
        # Coordinates that cannot move make every sum with them negative.
        chosen = jax.vmap(choose)(jnp.where(free, raised * a, -jnp.inf), raised * b)
        moved = jnp.clip(flat + jnp.asarray(theta, flat.dtype), low, high)
        x_adv = jnp.where(chosen & ~done[:, None], moved, flat)
        return JsmaState(x_adv.reshape(state.x_adv.shape), state.towards, done)

    def step(state: JsmaState, logits_fn: LogitsFn, x: Array, y: Array) -> JsmaState:
        del x
        return jax.lax.cond(
            state.done.all(), lambda: state, lambda: advance(state, logits_fn, y)
        )

    def finish(state: JsmaState, logits_fn: LogitsFn, x: Array, y: Array) -> Array:
        del logits_fn, x, y
        return state.x_adv

    return IteratedAttack(init, step, finish, num_steps)


def _saliency(
    logits_fn: LogitsFn, state: JsmaState, y: Array, target: Array | None
) -> tuple[Array, Array, Array]:
    """Whether an image is done [B], and the gradients a and b, [B, n]."""
    f = _hyperplane.averaged(logits_fn)
    rows = state.towards[:, None]

    def sums(z: Array) -> Array:
        logits = f(z)
        gains = jnp.take_along_axis(logits, rows, axis=1)
        losses = logits.sum(axis=1, keepdims=True) - gains
        return jnp.concatenate([gains, losses, logits], axis=1)

    first_two = jnp.broadcast_to(jnp.arange(2)[None], (y.shape[0], 2))
    values, jacobian = input_jacobian(sums, state.x_adv, first_two)
    logits = values[:, 2:]
    wrong = _outcome.broken(logits, y if target is None else target)
    done = wrong if target is None else ~wrong
    wide = jnp.promote_types(jacobian.dtype, jnp.float32)
    flat = jacobian.reshape(*jacobian.shape[:2], -1).astype(wide)
    return done, flat[:, 0], flat[:, 1]


def _best_single(a: Array, b: Array) -> Array:
    """A mask of the coordinate with the largest saliency, empty if there is none."""
    score = _score(a, b)
    best = score.argmax()
    return (jnp.arange(a.size) == best) & (score[best] > 0)


def _best_pair(a: Array, b: Array, num_candidates: int | None) -> Array:
    """A mask of the pair with the largest saliency, empty if there is none, [n]."""
    if num_candidates is None or num_candidates >= a.size:
        i, j, found = _search(a, b)
    else:
        finite = jnp.where(jnp.isfinite(a), jnp.abs(a), 0.0)
        a_scale, b_scale = jnp.maximum(finite.max(), 1e-30), jnp.abs(b).max()
        merit = a / a_scale - b / jnp.maximum(b_scale, 1e-30)
        top = jax.lax.optimization_barrier(jax.lax.top_k(merit, num_candidates))[1]
        i, j, found = _search(a[top], b[top])
        i, j = top[i], top[j]
    index = jnp.arange(a.size)
    return ((index == i) | (index == j)) & found


def _search(a: Array, b: Array) -> tuple[Array, Array, Array]:
    """The best pair among all, and whether its saliency is positive."""
    size = a.size
    index = jnp.arange(size)

    def scores(i: Array) -> Array:
        """Of coordinate i with every other, [n]."""
        return jnp.where(index == i, -1.0, _score(a[i] + a, b[i] + b))

    # Chunks of rows at a time; only each row's maximum is kept, which a reduction
    # gives without storing the chunk.
    best = jax.lax.map(
        lambda i: scores(i).max(), index, batch_size=max(1, _PAIRS_AT_ONCE // size)
    )
    i = best.argmax()
    return i, scores(i).argmax(), best[i] > 0


def _score(a: Array, b: Array) -> Array:
    return jnp.where((a > 0) & (b < 0), -a * b, -1.0)
