"""The boundary attack: a random walk along the decision boundary towards the image.

Needs the predicted class alone. Each step goes a little along the sphere around x on
which the current adversarial point lies, then a little towards x, and is kept if the
point is still adversarial. See "Decision-Based Adversarial Attacks: Reliable Attacks
Against Black-Box Machine Learning Models" (Brendel et al., 2018).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from robustjax import _checks, _random
from robustjax.attacks import _decision, _outcome
from robustjax.attacks._outcome import Closest
from robustjax.types import Array, IteratedAttack, Key, LogitsFn, Threat

_START_HALVINGS = 10
_SIDE_WINDOW = 10
_STEP_WINDOW = 5
_CONVERGED = 1e-7


class Rate(NamedTuple):
    """How often proposals of one kind were adversarial since the last decision.

    Attributes:
      tried: [B].
      passed: [B].
    """

    tried: Array
    passed: Array


class BoundaryState(NamedTuple):
    """Between two steps.

    Attributes:
      x_adv: The nearest adversarial point so far, [B, ...]; x if none was found.
      distance: Its L2 distance from x, [B]; inf if none was found.
      side_step: Length of the step along the sphere, relative to the distance, [B].
      source_step: Length of the step towards x, relative to the distance, [B].
      side_rate: Of points on the sphere.
      step_rate: Of whole steps.
      keys: One per image, [B].
      index: Steps so far.
    """

    x_adv: Array
    distance: Array
    side_step: Array
    source_step: Array
    side_rate: Rate
    step_rate: Rate
    keys: Key
    index: Array


def boundary(
    threat: Threat,
    *,
    num_steps: int = 25_000,
    side_step: float = 0.01,
    source_step: float = 0.01,
    step_adaptation: float = 1.5,
    check_every: int = 5,
    start: Array | None = None,
    num_start_draws: int = 1000,
    target: Array | None = None,
) -> IteratedAttack:
    """The adversarial points of least L2 norm that a random walk finds.

    Step lengths follow the share of adversarial proposals, per image: both grow by
    `step_adaptation` if more than half of 10 points on the sphere are adversarial and
    shrink below a fifth; the step towards x alone grows above a quarter of 5 whole
    steps and shrinks below a tenth. A step is one forward pass, every `check_every`-th
    two; the start takes num_start_draws + 11 at most.

    Step lengths and limits are those of Foolbox 3. Deviations: the rates are taken over
    successive windows of 10 and 5 checks, every fifth step, not over sliding ones of
    100 and 30, every tenth, which leave the lengths alone for the first 300 steps (the
    median distance on MNIST after 1,100 passes is 4.5 instead of 8.7, after 6,000 it is
    2.5 instead of 3.5); each image has its own random directions; the walk begins at
    the boundary, where a bisection between x and the start ends, not at the start.

    Args:
      threat: L2; gives the box, and its `eps` is the largest distance that counts.
      num_steps: Proposals.
      side_step: First length of the step along the sphere, relative to the distance.
      source_step: First length of the step towards x, relative to the distance.
      step_adaptation: Factor by which lengths change, above 1.
      check_every: How often, in steps, the rates are looked at.
      start: Adversarial images [B, ...] to start from. None draws uniform noise until
        it is adversarial.
      num_start_draws: Draws of noise at most. An image without a start is given up.
      target: Labels [B]; adversarial then means classified as the target. Noise seldom
        is, so give a `start` too.

    Returns:
      An attack: the nearest point found where it is within `eps`, else x.

    Raises:
      InputError: an argument is out of range.

    Example:
      >>> from robustjax import threats
      >>> x, y = jnp.array([[0.6, 0.5]]), jnp.array([0])
      >>> attack = boundary(threats.l2(1.0), num_steps=200, side_step=0.1)
      >>> x_adv = attack(jax.random.key(0), lambda z: z, x, y)
      >>> x_adv.round(2).tolist()
      [[0.5..., 0.5...]]
    """
    _checks.one_of(("l2",), **{"threat.name": threat.name})
    _checks.positive_int(
        num_steps=num_steps, check_every=check_every, num_start_draws=num_start_draws
    )
    _checks.positive(side_step=side_step, source_step=source_step)
    if not step_adaptation > 1:
        raise _checks.InputError(
            f"`step_adaptation` must be above 1, got {step_adaptation!r}."
        )

    def init(key: Key, logits_fn: LogitsFn, x: Array, y: Array) -> BoundaryState:
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
        x_adv = _decision.to_boundary(decide, threat, x, begun.x_adv, _START_HALVINGS)
        found = _outcome.keep_closer(
            _outcome.nothing_found(x), x_adv, threat.norm(x_adv - x), begun.found
        )
        like = jnp.zeros_like(found.distance)
        none = jnp.zeros(x.shape[:1], jnp.int32)
        return BoundaryState(
            *found,
            like + side_step,
            like + source_step,
            Rate(none, none),
            Rate(none, none),
            keys,
            jnp.int32(0),
        )

    def step(
        state: BoundaryState, logits_fn: LogitsFn, x: Array, y: Array
    ) -> BoundaryState:
        decide = _decision.decision(logits_fn, y, target)
        keys = _random.fold_in(state.keys, state.index + 1)
        on_sphere, proposal = _propose(keys, state, x, threat.bounds)
        is_adv = decide(proposal)
        walking = state.source_step >= _CONVERGED
        distance = threat.norm(proposal - x)
        found = _outcome.keep_closer(
            Closest(state.x_adv, state.distance), proposal, distance, is_adv & walking
        )
        moved = state._replace(
            x_adv=found.x_adv, distance=found.distance, index=state.index + 1
        )
        # The counter is the same for all images, and under `vmap`: a real branch.
        return jax.lax.cond(
            moved.index % check_every == 0,
            lambda s: _adapted(s, decide(on_sphere), is_adv, step_adaptation),
            lambda s: s,
            moved,
        )

    def finish(state: BoundaryState, logits_fn: LogitsFn, x: Array, y: Array) -> Array:
        del logits_fn, y
        return _outcome.within(threat, Closest(state.x_adv, state.distance), x)

    return IteratedAttack(init, step, finish, num_steps)


def _propose(
    keys: Key, state: BoundaryState, x: Array, bounds: tuple[float, float]
) -> tuple[Array, Array]:
    """A point on the sphere through x_adv around x, and one a little closer to x."""

    def one(key, x, x_adv, side_step, source_step):
        to_source = x - x_adv
        distance = jnp.linalg.norm(to_source.ravel())
        unit = to_source / _nonzero(distance)
        noise = jax.random.normal(key, x.shape, x.dtype)
        across = noise - jnp.sum(noise * unit) * unit
        across *= side_step * distance / _nonzero(jnp.linalg.norm(across.ravel()))
        # Pythagoras: the step across lengthens the offset by sqrt(1 + side_step^2).
        offset = (across - to_source) / jnp.sqrt(1 + side_step**2)
        on_sphere = jnp.clip(x + offset, *bounds)
        back = x - on_sphere
        away = jnp.linalg.norm(back.ravel())
        # What clipping did to the distance counts as part of the step.
        length = jnp.maximum(source_step * distance + away - distance, 0.0)
        closer = on_sphere + length / _nonzero(away) * back
        return on_sphere, jnp.clip(closer, *bounds)

    lengths = (v.astype(x.dtype) for v in (state.side_step, state.source_step))
    return jax.vmap(one)(keys, x, state.x_adv, *lengths)


def _adapted(
    state: BoundaryState, side_passed: Array, step_passed: Array, factor: float
) -> BoundaryState:
    """New step lengths for images with a full window, which then starts anew."""
    side, up, down = _count(state.side_rate, side_passed, _SIDE_WINDOW, 0.2, 0.5)
    scale = jnp.where(up, factor, jnp.where(down, 1 / factor, 1.0))
    scale = scale.astype(state.side_step.dtype)
    step, longer, shorter = _count(
        state.step_rate, step_passed, _STEP_WINDOW, 0.1, 0.25
    )
    stretch = jnp.where(longer, factor, jnp.where(shorter, 1 / factor, 1.0))
    return state._replace(
        side_step=state.side_step * scale,
        source_step=state.source_step * scale * stretch.astype(scale.dtype),
        side_rate=side,
        step_rate=step,
    )


def _count(
    rate: Rate, passed: Array, window: int, low: float, high: float
) -> tuple[Rate, Array, Array]:
    tried, passes = rate.tried + 1, rate.passed + passed.astype(jnp.int32)
    share = passes.astype(jnp.float32) / window
    full = tried >= window
    rate = Rate(jnp.where(full, 0, tried), jnp.where(full, 0, passes))
    return rate, full & (share > high), full & (share < low)


def _nonzero(length: Array) -> Array:
    return jnp.where(length > 0, length, jnp.ones_like(length))
