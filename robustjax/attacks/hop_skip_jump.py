"""HopSkipJump: gradient directions at the boundary from decisions alone.

Each step estimates the direction in which the class changes, jumps along it, and
returns to the boundary by bisection. See "HopSkipJumpAttack: A Query-Efficient
Decision-Based Attack" (Chen et al., 2020).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from robustjax import _checks, _random
from robustjax.attacks import _decision, _outcome
from robustjax.attacks._outcome import Closest
from robustjax.types import Array, IteratedAttack, Key, LogitsFn, Threat

_FIRST_RADIUS = 0.1
_NUM_HALVINGS = 30


class HopSkipJumpState(NamedTuple):
    """Between two steps.

    Attributes:
      x_adv: The current adversarial point near the boundary, [B, ...]; x if there is
        none.
      found: The nearest one so far.
      total: Sum of the estimated directions, earlier ones weighted less, [B, ...].
      keys: One per image, [B].
      index: Steps so far.
    """

    x_adv: Array
    found: Closest
    total: Array
    keys: Key
    index: Array


def hop_skip_jump(
    threat: Threat,
    *,
    num_steps: int = 64,
    initial_samples: int = 100,
    max_samples: int = 10_000,
    gamma: float = 1.0,
    momentum: float = 0.5,
    start: Array | None = None,
    num_start_draws: int = 1000,
    target: Array | None = None,
    chunk_size: int = 16,
) -> IteratedAttack:
    """The adversarial points of least L2 or L-inf norm found from decisions.

    In step t the direction is estimated at a point at distance d from x as

        v = mean of (phi(x_adv + delta u) - mean phi) u,    delta = gamma d / D,

    over B_t = min(initial_samples sqrt(t), max_samples) random unit vectors u, where
    phi is 1 for adversarial points and -1 for others, and D the number of pixels
    (delta is a tenth of the pixel range at t = 1). The jump has the length d / sqrt(t),
    halved until it ends at an adversarial point (30 times at most), in the direction
    v / ||v||_2, or sign(v) under L-inf. A bisection down to gamma D^(-3/2), or
    gamma D^-2 under L-inf, of the distance ends the step. With H its number of
    halvings, a step is B_t + H forward passes and one per try of the jump, for all
    images as many as the slowest needs.

    Deviations from the paper: the result is the nearest point seen, not the last; and
    v is B_t v_t + momentum B_(t-1) v_(t-1) + momentum^2 B_(t-2) v_(t-2) + ..., because
    the boundary turns little between steps and an estimate is mostly noise while B_t
    is below D. That costs no forward pass, brings the L-inf distance down by 8 % on
    MNIST and leaves the L2 distance as it is; momentum 0 is the paper's.

    Args:
      threat: L2 or L-inf; gives the box, and its `eps` is the largest distance that
        counts.
      num_steps: Steps.
      initial_samples: Points of the first estimate.
      max_samples: Points of an estimate at most.
      gamma: How far from the boundary a bisection may end; scales delta too.
      momentum: Weight of the directions of earlier steps, in [0, 1].
      start: Adversarial images [B, ...] to start from. None draws uniform noise until
        it is adversarial.
      num_start_draws: Draws of noise at most. An image without a start is given up.
      target: Labels [B]; adversarial then means classified as the target. Noise seldom
        is, so give a `start` too.
      chunk_size: Directions that are evaluated at once; memory grows with it.

    Returns:
      An attack: the nearest point found where it is within `eps`, else x.

    Raises:
      InputError: an argument is out of range.

    Example:
      >>> from robustjax import threats
      >>> x, y = jnp.array([[0.6, 0.5]]), jnp.array([0])
      >>> attack = hop_skip_jump(threats.l2(1.0), num_steps=3)
      >>> x_adv = attack(jax.random.key(0), lambda z: z, x, y)
      >>> x_adv.round(1).tolist()
      [[0.5..., 0.5...]]
    """
    _checks.one_of(("l2", "linf"), **{"threat.name": threat.name})
    _checks.positive_int(
        num_steps=num_steps,
        initial_samples=initial_samples,
        max_samples=max_samples,
        num_start_draws=num_start_draws,
        chunk_size=chunk_size,
    )
    _checks.positive(gamma=gamma)
    _checks.fraction(momentum=momentum)

    def search(decide: _decision.Decide, x: Array, x_adv: Array) -> Array:
        num_halvings = _halvings(threat.name, x[0].size, gamma)
        return _decision.to_boundary(decide, threat, x, x_adv, num_halvings)

    def init(key: Key, logits_fn: LogitsFn, x: Array, y: Array) -> HopSkipJumpState:
        _outcome.check_call(logits_fn, x, y, target)
        keys = _random.per_image_keys(key, x.shape[0])
        decide = _decision.decision(logits_fn, y, target)
        begun = _decision.first_start(
            decide,
            _random.fold_in(keys, 0),
            x,
            start=start,
            num_start_draws=num_start_draws,
            bounds=threat.bounds,
        )
        x_adv = search(decide, x, begun.x_adv)
        found = _outcome.keep_closer(
            _outcome.nothing_found(x), x_adv, threat.norm(x_adv - x), begun.found
        )
        return HopSkipJumpState(x_adv, found, jnp.zeros_like(x), keys, jnp.int32(0))

    def step(
        state: HopSkipJumpState, logits_fn: LogitsFn, x: Array, y: Array
    ) -> HopSkipJumpState:
        decide = _decision.decision(logits_fn, y, target)
        distance = threat.norm(state.x_adv - x).astype(x.dtype)
        turn = (state.index + 1).astype(x.dtype)
        low, high = threat.bounds
        radius = jnp.where(
            state.index == 0, _FIRST_RADIUS * (high - low), gamma * distance / x[0].size
        )
        num_samples = jnp.minimum(initial_samples * jnp.sqrt(turn), max_samples)
        total = momentum * state.total + _direction(
            decide,
            _random.fold_in(state.keys, state.index + 1),
            state.x_adv,
            radius,
            num_samples.astype(jnp.int32),
            threat,
            chunk_size,
        )
        toward = threat.steepest(total)
        jumped, landed = _jump(
            decide, state.x_adv, toward, distance / jnp.sqrt(turn), threat.bounds
        )
        # Where x is adversarial, or no start was found, the distance is 0 for good.
        landed &= distance > 0
        x_adv = _outcome.where(landed, search(decide, x, jumped), state.x_adv)
        found = _outcome.keep_closer(state.found, x_adv, threat.norm(x_adv - x), landed)
        return HopSkipJumpState(x_adv, found, total, state.keys, state.index + 1)

    def finish(
        state: HopSkipJumpState, logits_fn: LogitsFn, x: Array, y: Array
    ) -> Array:
        del logits_fn, y
        found = _outcome.moved_on(threat, state.found, x)
        return _outcome.within(threat, found, x)

    return IteratedAttack(init, step, finish, num_steps)


def _halvings(norm: str, num_pixels: int, gamma: float) -> int:
    """How many bisections shrink the interval to the paper's threshold."""
    power = 1.5 if norm == "l2" else 2.0
    return max(1, math.ceil(math.log2(num_pixels**power / gamma)))


def _direction(
    decide: _decision.Decide,
    keys: Key,
    x_adv: Array,
    radius: Array,
    num_samples: Array,
    threat: Threat,
    chunk_size: int,
) -> Array:
    """Where adversarial points lie around x_adv: the estimate times B_t, [B, ...].

    Chunks of directions are added up, so that memory does not grow with their number,
    which may be a tracer.
    """
    axes = tuple(range(1, x_adv.ndim))
    reach = _spread(radius, x_adv)
    symmetric = lambda k, s, t: jax.random.uniform(k, s, t, -1.0, 1.0)
    sampler = jax.random.normal if threat.name == "l2" else symmetric

    def one(sample: Array) -> tuple[Array, Array, Array]:
        noise = _random.draw(_random.fold_in(keys, sample), x_adv, sampler)
        size = jnp.sqrt(jnp.sum(noise**2, axis=axes, keepdims=True))
        near = jnp.clip(x_adv + reach * noise / size, *threat.bounds)
        # The box changes the direction; a radius of 0 leaves none.
        along = (near - x_adv) / jnp.where(reach > 0, reach, jnp.ones_like(reach))
        counts = (sample < num_samples).astype(x_adv.dtype)
        sign = counts * jnp.where(decide(near), 1, -1).astype(x_adv.dtype)
        return _spread(sign, x_adv) * along, counts * along, sign

    def add(chunk: Array, sums: tuple[Array, Array, Array]):
        samples = chunk * chunk_size + jnp.arange(chunk_size, dtype=jnp.int32)
        new = jax.vmap(one)(samples)
        return jax.tree.map(lambda total, part: total + part.sum(axis=0), sums, new)

    zero = jnp.zeros_like(x_adv)
    signed, plain, signs = jax.lax.fori_loop(
        0,
        (num_samples + chunk_size - 1) // chunk_size,
        add,
        (zero, zero, jnp.zeros_like(x_adv, shape=x_adv.shape[:1])),
    )
    mean = _spread(signs / num_samples.astype(x_adv.dtype), x_adv)
    # Decisions that all agree say which side it is, and nothing is left to subtract.
    baseline = jnp.where(jnp.abs(mean) >= 1, jnp.zeros_like(mean), mean)
    return signed - baseline * plain


def _jump(
    decide: _decision.Decide,
    x_adv: Array,
    toward: Array,
    length: Array,
    bounds: tuple[float, float],
) -> tuple[Array, Array]:
    """The first adversarial point at length, length / 2, ... and whether there is one.

    Runs until all images have one; those that do stay.
    """

    def attempt(carry):
        jumped, landed, length, turn = carry
        trial = jnp.clip(x_adv + _spread(length, x_adv) * toward, *bounds)
        wins = decide(trial) & ~landed
        return _outcome.where(wins, trial, jumped), landed | wins, length / 2, turn + 1

    def searching(carry) -> Array:
        return ~carry[1].all() & (carry[3] <= _NUM_HALVINGS)

    nowhere = jnp.zeros(x_adv.shape[:1], bool)
    start = (x_adv, nowhere, length, jnp.int32(0))
    jumped, landed, _, _ = jax.lax.while_loop(searching, attempt, start)
    return jumped, landed


def _spread(values: Array, x: Array) -> Array:
    """[B] against images."""
    return values.reshape(-1, *(1,) * (x.ndim - 1))
