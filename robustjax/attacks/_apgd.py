"""The climb of APGD under L-inf and L2, and what its L1 variant shares with it.

    u       = P(x_t + step * steepest(gradient at x_t))
    x_{t+1} = P(x_t + momentum * (u - x_t) + (1 - momentum) * (x_t - x_{t-1}))

The step starts at 2 eps and is halved, per image, at checkpoints fixed in advance,
with a jump back to the best point so far. See "Reliable evaluation of adversarial
robustness with an ensemble of diverse parameter-free attacks" (Croce and Hein, 2020),
section 3 and algorithm 1.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import _random
from robustjax._gradients import input_gradient
from robustjax.attacks import _outcome
from robustjax.objectives import targeted
from robustjax.types import Array, Key, LogitsFn, Objective, Threat

Start = Callable[[Key, Array], Array]


class Point(NamedTuple):
    """An iterate with what one forward and backward pass tells about it.

    Attributes:
      x_adv: [B, ...].
      grad: Gradient of the objective, [B, ...].
      value: The objective, [B].
      broken: Whether the classifier is wrong there, [B].
    """

    x_adv: Array
    grad: Array
    value: Array
    broken: Array


class Record(NamedTuple):
    """What has been found so far.

    Attributes:
      best: The point of the largest objective.
      wrong: The last misclassified point, [B, ...].
      broken: Whether there is one, [B].
    """

    best: Point
    wrong: Array
    broken: Array


class Task(NamedTuple):
    """What is fixed during a climb.

    Attributes:
      target: The classes to move to, [B]; None for an untargeted objective.
      clean_broken: Whether x itself is misclassified, [B].
    """

    target: Array | None
    clean_broken: Array


class Climb(NamedTuple):
    """An attack whose task is settled from outside; states are as `ApgdState`.

    Attributes:
      draw: `(key, x) -> x'`, where the climb starts.
      start: `(x', logits_fn, x, y, task) -> state`.
      step: `(state, logits_fn, x, y) -> state`.
      num_steps: How often `step` runs.
    """

    draw: Start
    start: Callable[[Array, LogitsFn, Array, Array, Task], Any]
    step: Callable[[Any, LogitsFn, Array, Array], Any]
    num_steps: int


class ApgdState(NamedTuple):
    """Between two steps of APGD under L-inf or L2.

    Attributes:
      x_adv: The current iterate, [B, ...].
      grad: The gradient there.
      previous: The iterate before.
      record: What has been found so far.
      value: The objective at the last point evaluated, [B].
      step_size: [B].
      climbs: How many steps since the last checkpoint raised the objective, [B].
      halved: Whether the last checkpoint halved the step, [B].
      best_value: The largest objective at the last checkpoint, [B].
      index: Steps taken.
      task: What is fixed.
    """

    x_adv: Array
    grad: Array
    previous: Array
    record: Record
    value: Array
    step_size: Array
    climbs: Array
    halved: Array
    best_value: Array
    index: Array
    task: Task


def climb(
    threat: Threat,
    objective: Objective,
    *,
    num_steps: int,
    rho: float,
    momentum: float,
    random_start: Start | None,
) -> Climb:
    """APGD under L-inf or L2; see `apgd`."""
    limits = _limits(num_steps, rho)
    project = _scaled_then_clipped(threat) if threat.name == "l2" else threat.project

    def start(
        first: Array, logits_fn: LogitsFn, x: Array, y: Array, task: Task
    ) -> ApgdState:
        point = evaluate(objective, logits_fn, y, task, first)
        none = jnp.zeros(x.shape[:1], bool)
        return ApgdState(
            x_adv=point.x_adv,
            grad=point.grad,
            previous=point.x_adv,
            record=first_record(point),
            value=jnp.zeros_like(point.value),  # as the reference's empty history
            step_size=2 * radii(threat, x),
            climbs=jnp.zeros(x.shape[:1], jnp.int32),
            halved=~none,
            best_value=point.value,
            index=jnp.int32(0),
            task=task,
        )

    def step(state: ApgdState, logits_fn: LogitsFn, x: Array, y: Array) -> ApgdState:
        ascent = column(state.step_size, x) * threat.steepest(state.grad)
        aim = project(state.x_adv + ascent, x)
        weight = jnp.where(state.index > 0, momentum, 1.0).astype(x.dtype)
        moved = weight * (aim - state.x_adv)
        moved += (1 - weight) * (state.x_adv - state.previous)
        moved = project(state.x_adv + moved, x)
        point = evaluate(objective, logits_fn, y, state.task, moved)
        state = state._replace(
            x_adv=point.x_adv,
            grad=point.grad,
            previous=state.x_adv,
            record=keep(state.record, point),
            value=point.value,
            climbs=state.climbs + (point.value > state.value).astype(jnp.int32),
            index=state.index + 1,
        )
        return _checkpoint(state, jnp.asarray(limits)[state.index - 1])

    return Climb(projected_start(threat, random_start), start, step, num_steps)


def _checkpoint(state: ApgdState, limit: Array) -> ApgdState:
    """Halves the step where the climb is stuck; `limit` < 0 is no checkpoint."""
    due = limit >= 0
    best = state.record.best
    unchanged = ~state.halved & (state.best_value >= best.value)
    halve = due & ((state.climbs <= limit) | unchanged)
    x_adv, grad = jump_back(halve, state.x_adv, state.grad, best)
    return state._replace(
        x_adv=x_adv,
        grad=grad,
        step_size=jnp.where(halve, state.step_size / 2, state.step_size),
        climbs=jnp.where(due, 0, state.climbs),
        halved=jnp.where(due, halve, state.halved),
        best_value=jnp.where(due, best.value, state.best_value),
    )


def _limits(num_steps: int, rho: float) -> np.ndarray:
    """Per step the largest count of rises that halves it there; -1 is no checkpoint.

    The first window is 22% of the steps, each next one 3% shorter, down to 6%.
    """
    length = max(int(0.22 * num_steps), 1)
    shortest, shrink = max(int(0.06 * num_steps), 1), max(int(0.03 * num_steps), 1)
    limits = np.full(num_steps, -1, np.int32)
    last = length - 1
    while last < num_steps:
        limits[last] = int(rho * length)
        length = max(length - shrink, shortest)
        last += length
    return limits


def _scaled_then_clipped(threat: Threat) -> Callable[[Array, Array], Array]:
    """The reference's L2 step back: into the ball, then the box; not the nearest point.

    The nearest point of ball and box would use the room that clipping frees.
    """

    def project(x_adv: Array, x: Array) -> Array:
        offset = x_adv - x
        length = jnp.linalg.norm(offset.reshape(x.shape[0], -1), axis=1)
        scale = radii(threat, x) / jnp.where(length > 0, length, 1.0)
        scale = jnp.where(length > 0, jnp.minimum(scale, 1.0), 1.0)
        return jnp.clip(x + column(scale, x) * offset, *threat.bounds)

    return project


def reference_start(threat: Threat) -> Start:
    """Where the reference starts, `(key, x) -> x'`, before any projection.

    L-inf: uniform noise scaled until its largest entry is eps. L2: a Gaussian
    direction of length eps. L1: standard Gaussian noise.
    """

    def draw(key: Key, shape: tuple[int, ...], dtype: Any) -> Array:
        if threat.name == "linf":
            noise = jax.random.uniform(key, shape, dtype, -1.0, 1.0)
            size = jnp.abs(noise).max()
        else:
            noise = jax.random.normal(key, shape, dtype)
            size = jnp.linalg.norm(noise)
        return noise / jnp.where(size > 0, size, 1.0)

    def start(key: Key, x: Array) -> Array:
        if threat.name == "l1":
            return x + _random.draw(key, x, jax.random.normal)
        start = x + column(radii(threat, x), x) * _random.draw(key, x, draw)
        return jnp.clip(start, *threat.bounds)  # so that it is in the ball already

    return start


def projected_start(threat: Threat, random_start: Start | None) -> Start:
    """`random_start` in ball and box, in the dtype of x; x itself if it is None."""

    def draw(key: Key, x: Array) -> Array:
        if random_start is None:
            return x
        return threat.project(random_start(key, x), x).astype(x.dtype)

    return draw


def evaluate(
    objective: Objective, logits_fn: LogitsFn, y: Array, task: Task, x_adv: Array
) -> Point:
    """One forward and backward pass. Broken is any wrong class, whatever the target."""
    if task.target is not None:
        objective = targeted(objective, task.target)
    climbed = _outcome.climbed(objective, logits_fn, y)
    value, is_broken, grad = input_gradient(climbed, x_adv)
    return Point(x_adv, grad, value, is_broken)


def first_record(point: Point) -> Record:
    """What is known after the first point."""
    return Record(point, point.x_adv, point.broken)


def keep(record: Record, point: Point) -> Record:
    """`record` after another point: later misclassified points replace earlier ones."""
    better = point.value > record.best.value
    best = jax.tree.map(
        lambda new, old: _outcome.where(better, new, old), point, record.best
    )
    wrong = _outcome.where(point.broken, point.x_adv, record.wrong)
    return Record(best, wrong, record.broken | point.broken)


def jump_back(
    rows: Array, x_adv: Array, grad: Array, best: Point
) -> tuple[Array, Array]:
    """Iterate and gradient, of the best point for the images `rows`."""
    return (
        _outcome.where(rows, best.x_adv, x_adv),
        _outcome.where(rows, best.grad, grad),
    )


def result(state: Any, x: Array) -> Array:
    """A misclassified point where there is one, else the best, [B, ...]."""
    found = _outcome.where(
        state.record.broken, state.record.wrong, state.record.best.x_adv
    )
    only_x = state.task.clean_broken & ~state.record.broken
    return _outcome.where(only_x, x, found)


def radii(threat: Threat, x: Array) -> Array:
    """`threat.eps` per image, [B], in the dtype of x."""
    return jnp.broadcast_to(jnp.asarray(threat.eps, x.dtype), x.shape[:1])


def column(values: Array, x: Array) -> Array:
    """Values [B] in a shape that broadcasts against x."""
    return values.reshape(values.shape + (1,) * (x.ndim - 1))
