"""Square: random search over windows, with scores and no gradients.

Every query changes one window of the perturbation and keeps the change if the
objective rises. See "Square Attack: a query-efficient black-box adversarial attack via
random search" (Andriushchenko et al., 2020) and, for L1, "Mind the Box: l1-APGD for
Sparse Adversarial Attacks on Image Classifiers" (Croce and Hein, 2021).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import _checks, _random
from robustjax._interned import interned
from robustjax.attacks import _outcome, _square_windows
from robustjax.objectives import margin
from robustjax.types import Array, IteratedAttack, Key, LogitsFn, Objective, Threat

# The window's share of the image is halved once the iteration exceeds each of these.
_HALVED_AFTER = np.array([10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000])


class SquareState(NamedTuple):
    """Between two queries.

    Attributes:
      x_adv: The best point so far, [B, H, W, C]; the first misclassified one, for good.
      value: The objective there, [B].
      broken: Whether it is misclassified, [B].
      keys: One per image, [B].
      index: How many windows have been tried.
    """

    x_adv: Array
    value: Array
    broken: Array
    keys: Key
    index: Array


class _Moves(NamedTuple):
    """What differs between norms; both return points of the threat set.

    Attributes:
      start: `(keys, x) -> x'`.
      propose: `(keys, x, x_adv, stage) -> x'`; `stage` counts the halvings.
    """

    start: Callable[[Key, Array], Array]
    propose: Callable[[Key, Array, Array, Array], Array]


@interned
def square(
    threat: Threat,
    *,
    num_queries: int = 5000,
    initial_share: float = 0.8,
    rescale_schedule: bool = False,
    objective: Objective = margin,
) -> IteratedAttack:
    """Points found by random search over windows, under L-inf, L2 or L1.

    A window is a square of side s = round(sqrt(p H W)), where the share p is halved
    after 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000 queries. L-inf starts from
    vertical stripes of +-eps and sets a window to +-eps, one sign per channel. L2 and
    L1 start from a tiling of signed bumps and move the mass of one window to another;
    see `_square_windows`. A change is kept if the objective rises or the image becomes
    misclassified, and a misclassified image is left alone from then on. The defaults
    are AutoAttack's. Query i is one forward pass; two more look at x and at the start.

    Deviations from AutoAttack's code: windows and signs are each image's own (there the
    whole batch shares them); an image whose label ties with another class goes on until
    it is misclassified (there a margin of 0 ends it); s never exceeds the shorter side.

    Args:
      threat: Ball and box.
      num_queries: Windows tried.
      initial_share: Share p of the image that the first windows take, in (0, 1]; the
        paper's p_init.
      rescale_schedule: Stretch the schedule, made for 10,000 queries, to `num_queries`.
      objective: What is climbed.

    Returns:
      An attack on images [B, H, W, C] whose results lie in the threat set.

    Raises:
      InputError: an argument is out of range, or at the call, x is not [B, H, W, C].

    Example:
      >>> from robustjax import threats
      >>> attack = square(threats.linf(0.1), num_queries=20)
      >>> x, y = jnp.full((1, 4, 4, 1), 0.5), jnp.array([0])
      >>> f = lambda z: jnp.stack([z[:, 0, 0, 0], z[:, 3, 3, 0]], axis=1)
      >>> x_adv = attack(jax.random.key(0), f, x, y)
      >>> int(f(x_adv).argmax())
      1
    """
    _checks.positive_int(num_queries=num_queries)
    _checks.positive(initial_share=initial_share)
    _checks.fraction(initial_share=initial_share)
    _checks.one_of(("linf", "l2", "l1"), **{"threat.name": threat.name})
    _checks.finite(**{"threat.eps": threat.eps})
    stages = _stages(num_queries, rescale_schedule)
    moves = (_linf_moves if threat.name == "linf" else _mass_moves)(
        threat, initial_share
    )

    def init(key: Key, logits_fn: LogitsFn, x: Array, y: Array) -> SquareState:
        _outcome.check_call(logits_fn, x, y)
        _checks.image_axes(x=x)
        climbed = _outcome.scored(objective, logits_fn, y)
        keys = _random.per_image_keys(key, x.shape[0])
        started = moves.start(_random.fold_in(keys, 0), x).astype(x.dtype)
        at_x, at_start = climbed(x), climbed(started)
        # Images that are misclassified already have no use for a start.
        is_broken = at_x[1]
        return SquareState(
            _outcome.where(is_broken, x, started),
            jnp.where(is_broken, at_x[0], at_start[0]),
            is_broken | at_start[1],
            keys,
            jnp.int32(0),
        )

    def step(state: SquareState, logits_fn: LogitsFn, x: Array, y: Array):
        keys = _random.fold_in(state.keys, state.index + 1)
        stage = jnp.asarray(stages)[state.index]
        trial = moves.propose(keys, x, state.x_adv, stage).astype(x.dtype)
        value, is_broken = _outcome.scored(objective, logits_fn, y)(trial)
        better = ~state.broken & (is_broken | (value > state.value))
        return SquareState(
            _outcome.where(better, trial, state.x_adv),
            jnp.where(better, value, state.value),
            state.broken | is_broken,
            state.keys,
            state.index + 1,
        )

    def finish(state: SquareState, logits_fn: LogitsFn, x: Array, y: Array) -> Array:
        del logits_fn, x, y
        return state.x_adv

    return IteratedAttack(
        init, step, finish, num_queries, broken=lambda state: state.broken
    )


def _linf_moves(threat: Threat, initial_share: float) -> _Moves:
    """Stripes of +-eps, then windows of +-eps per channel.

    The reference adds +-2 eps and clips to the ball, which from any point of the ball
    ends at its face: the same as setting +-eps.
    """

    def face(x: Array, positive: Array) -> Array:
        eps = _square_windows.per_image(threat.eps, x)
        return jnp.clip(x + jnp.where(positive, eps, -eps), *threat.bounds)

    def start(keys: Key, x: Array) -> Array:
        _, _, width, channels = x.shape
        draw = lambda key: jax.random.bernoulli(key, shape=(1, width, channels))
        return face(x, jax.vmap(draw)(keys))

    def propose(keys: Key, x: Array, x_adv: Array, stage: Array) -> Array:
        _, height, width, channels = x.shape
        sides = _square_windows.sides(height, width, initial_share)
        side = jnp.asarray(sides)[stage]

        def draw(key: Key) -> tuple[Array, Array]:
            uniform = jax.random.uniform(key, (2 + channels,), jnp.float32)
            corner = _square_windows.corner(uniform[:2], (height, width), side)
            inside = _square_windows.window(corner, (height, width), side)
            return inside, (uniform[2:] < 0.5).reshape(1, 1, channels)

        inside, positive = jax.vmap(draw)(keys)
        return jnp.where(inside, face(x, positive), x_adv)

    return _Moves(start, propose)


def _mass_moves(threat: Threat, initial_share: float) -> _Moves:
    """Bumps whose mass moves between windows, for L2 and L1."""
    norm = _square_windows.NORMS[threat.name]

    def complete(x: Array, delta: Array) -> Array:
        if threat.name == "l1":
            # A little inside, as the reference: rounding must not leave the ball.
            return threat.with_eps(threat.eps * (1 - 1e-6)).project(x + delta, x)
        unit = delta / (norm.length(delta, axis=(1, 2, 3)) + _square_windows.FLOOR)
        eps = _square_windows.per_image(threat.eps, x)
        return jnp.clip(x + eps * unit, *threat.bounds)

    def start(keys: Key, x: Array) -> Array:
        draw = lambda key: _square_windows.tiling(key, x.shape[1:], x.dtype, norm)
        return complete(x, jax.vmap(draw)(keys))

    def propose(keys: Key, x: Array, x_adv: Array, stage: Array) -> Array:
        _, height, width, _ = x.shape
        sides = _square_windows.odd_sides(height, width, initial_share)
        patterns = jnp.asarray(_square_windows.patterns(sides, norm), x.dtype)
        eps = _square_windows.per_image(threat.eps, x).reshape(-1)
        moved = jax.vmap(
            lambda key, delta, eps: _square_windows.move_mass(
                key, delta, eps, jnp.asarray(sides)[stage], patterns[stage], norm
            )
        )(keys, x_adv - x, jnp.broadcast_to(eps, x.shape[:1]))
        return complete(x, moved)

    return _Moves(start, propose)


def _stages(num_queries: int, rescale_schedule: bool) -> np.ndarray:
    """How often the share has been halved at each query, [num_queries]."""
    index = np.arange(num_queries)
    if rescale_schedule:
        index = (index / num_queries * 10_000).astype(np.int32)
    return (index[:, None] > _HALVED_AFTER).sum(axis=1).astype(np.int32)
