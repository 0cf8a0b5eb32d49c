"""The climb of APGD under L1: steps as sparse as the perturbation found so far.

    x_{t+1} = P(x_t + step * s / ||s||_1),   s = sign of the largest gradient entries

At checkpoints their number becomes that of the best perturbation, over 1.5. Where it
has become sparser by more than 5%, the step returns to eps and the iterate to the
best point; elsewhere the step shrinks by 1.5, down to eps / 10. See "Mind the Box:
l1-APGD for Sparse Adversarial Attacks on Image Classifiers" (Croce and Hein, 2021).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax._checks import InputError
from robustjax.attacks._apgd import (
    Climb,
    Record,
    Start,
    Task,
    column,
    evaluate,
    first_record,
    jump_back,
    keep,
    projected_start,
    radii,
)
from robustjax.types import Array, LogitsFn, Objective, Threat

_FIRST_SHARE = 0.2


class ApgdL1State(NamedTuple):
    """Between two steps of APGD under L1.

    Attributes:
      x_adv: The current iterate, [B, ...].
      grad: The gradient there.
      record: What has been found so far in this phase.
      step_size: [B].
      count: How many entries the next step moves, [B].
      sparsity: Entries that the best perturbation changed at the last checkpoint, [B].
      index: Steps taken.
      task: What is fixed.
    """

    x_adv: Array
    grad: Array
    record: Record
    step_size: Array
    count: Array
    sparsity: Array
    index: Array
    task: Task


class _Schedule(NamedTuple):
    """Per step, [N]: the radius in eps, whether a phase begins, whether it is checked.

    A phase begins with a step of its own, which moves nothing but the best point into
    the smaller ball.
    """

    radius: np.ndarray
    restart: np.ndarray
    check: np.ndarray


def climb(
    threat: Threat,
    objective: Objective,
    *,
    num_steps: int,
    large_eps_phases: bool,
    random_start: Start | None,
) -> Climb:
    """APGD under L1; see `apgd`."""
    schedule = _schedule(num_steps, large_eps_phases)
    widest = threat.with_eps(float(schedule.radius[0]) * threat.eps)

    def start(
        first: Array, logits_fn: LogitsFn, x: Array, y: Array, task: Task
    ) -> ApgdL1State:
        point = evaluate(objective, logits_fn, y, task, first)
        size = x[0].size
        sparsity = jnp.full(x.shape[:1], size, jnp.int32)
        count = jnp.full(x.shape[:1], size - int((1 - _FIRST_SHARE) * size), jnp.int32)
        if large_eps_phases:  # phases take both from the point where they begin
            sparsity = _changed(point.x_adv, x)
            count = _next_count(sparsity)
        return ApgdL1State(
            x_adv=point.x_adv,
            grad=point.grad,
            record=first_record(point),
            step_size=radii(widest, x),
            count=count,
            sparsity=sparsity,
            index=jnp.int32(0),
            task=task,
        )

    def step(
        state: ApgdL1State, logits_fn: LogitsFn, x: Array, y: Array
    ) -> ApgdL1State:
        radius, restart, check = (jnp.asarray(row)[state.index] for row in schedule)
        ball = threat.with_eps(radius.astype(x.dtype) * radii(threat, x))
        ascent = column(state.step_size, x) * _sparse_direction(state.grad, state.count)
        moved = state.x_adv + ascent
        if large_eps_phases:
            moved = jnp.where(restart, state.record.best.x_adv, moved)
        point = evaluate(objective, logits_fn, y, state.task, ball.project(moved, x))
        kept = keep(state.record, point)
        new = state._replace(
            x_adv=point.x_adv, grad=point.grad, record=kept, index=state.index + 1
        )
        new = _checkpoint(new, x, radii(ball, x), check)
        if not large_eps_phases:
            return new
        sparsity = _changed(point.x_adv, x)
        fresh = new._replace(
            record=first_record(point),
            step_size=radii(ball, x),
            count=_next_count(sparsity),
            sparsity=sparsity,
        )
        return jax.tree.map(lambda a, b: jnp.where(restart, a, b), fresh, new)

    draw = projected_start(widest, random_start)
    return Climb(draw, start, step, len(schedule.radius))


def _checkpoint(state: ApgdL1State, x: Array, eps: Array, due: Array) -> ApgdL1State:
    """Fits count and step to the best perturbation, if `due`."""
    best = state.record.best
    changed = _changed(best.x_adv, x)
    sparser = due & (20 * changed < 19 * state.sparsity)
    shrunk = jnp.maximum(state.step_size / 1.5, eps / 10)
    step_size = jnp.where(sparser, eps, shrunk)
    x_adv, grad = jump_back(sparser, state.x_adv, state.grad, best)
    return state._replace(
        x_adv=x_adv,
        grad=grad,
        step_size=jnp.where(due, step_size, state.step_size),
        count=jnp.where(due, _next_count(changed), state.count),
        sparsity=jnp.where(due, changed, state.sparsity),
    )


def _schedule(num_steps: int, large_eps_phases: bool) -> _Schedule:
    lengths, multiples = [num_steps], [1.0]
    if large_eps_phases:
        early = math.ceil(0.3 * num_steps)
        lengths, multiples = [early, early, num_steps - 2 * early], [3.0, 2.0, 1.0]
        if lengths[-1] < 1:
            raise InputError(
                "`num_steps` must leave a step for each of three phases, got "
                f"{num_steps}. Use at least 5, or `large_eps_phases=False`."
            )
    radius, restart, check = [], [], []
    for number, (length, multiple) in enumerate(zip(lengths, multiples, strict=True)):
        entry = [True] if number else []
        window = max(int(0.04 * length), 1)
        radius += [multiple] * (len(entry) + length)
        restart += entry + [False] * length
        check += [False] * len(entry)
        check += [(i + 1) % window == 0 for i in range(length)]
    return _Schedule(
        np.array(radius, np.float32), np.array(restart), np.array(check, bool)
    )


def _sparse_direction(grad: Array, count: Array) -> Array:
    """Signs of the `count` [B] largest entries and of those tied, of unit L1 norm."""
    flat = grad.reshape(grad.shape[0], -1)
    magnitude = jnp.abs(flat)
    least = _largest(magnitude, count)[:, None]
    signs = jnp.where(magnitude >= least, jnp.sign(flat), 0.0)
    moved = jnp.abs(signs).sum(axis=1, keepdims=True)
    return (signs / jnp.maximum(moved, 1.0)).reshape(grad.shape)


def _largest(values: Array, rank: Array) -> Array:
    """The `rank`-th largest [B] of non-negative values [B, n], exactly.

    Non-negative floats order as their bits do, so the answer is found bit by bit from
    the top: a pass per bit instead of a sort, and `rank` may differ per image.
    """
    width = 8 * values.dtype.itemsize
    unsigned = jnp.dtype(f"uint{width}")
    bits = jax.lax.bitcast_convert_type(values, unsigned)

    def body(i: Array, found: Array) -> Array:
        bit = jnp.asarray(1, unsigned) << (width - 2 - i).astype(unsigned)
        trial = found | bit
        enough = jnp.sum(bits >= trial[:, None], axis=1, dtype=jnp.int32) >= rank
        return jnp.where(enough, trial, found)

    found = jax.lax.fori_loop(0, width - 1, body, jnp.zeros(values.shape[:1], unsigned))
    return jax.lax.bitcast_convert_type(found, values.dtype)


def _changed(x_adv: Array, x: Array) -> Array:
    """How many entries differ by more than rounding, [B].

    Equal steps make entries end at the projection's threshold exactly; whether rounding
    leaves 0 or 1e-8 there must not decide how the attack goes on.
    """
    least = 16 * jnp.finfo(x.dtype).eps
    moved = jnp.abs(x_adv - x) > least * jnp.maximum(jnp.abs(x), 1.0)
    return jnp.sum(moved.reshape(x.shape[0], -1), axis=1, dtype=jnp.int32)


def _next_count(changed: Array) -> Array:
    """The changed entries over 1.5, rounded up, at least 1; exact, in integers."""
    return jnp.maximum((2 * changed + 2) // 3, 1)
