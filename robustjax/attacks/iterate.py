"""Other ways to run an `IteratedAttack` than its closed form."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import _checks
from robustjax.attacks import _outcome
from robustjax.objectives import cross_entropy
from robustjax.types import Array, Attack, IteratedAttack, Key, LogitsFn, Objective


def early_stop(attack: IteratedAttack, *, check_every: int = 1) -> Attack:
    """Runs an attack only until every image of the batch is misclassified.

    The first misclassified point that is seen is kept for its image, so that an
    image's result does not depend on how long its neighbours take. Attacks that know
    which images they have broken (`IteratedAttack.broken`) need no extra pass for it.

    Args:
      attack: Any iterated attack.
      check_every: Steps between two looks, each one forward pass for attacks that do
        not know.

    Raises:
      InputError: `check_every` is not a positive integer, or `attack` is not iterated.

    Example:
      >>> from robustjax import attacks, threats
      >>> attack = attacks.bim(threats.linf(0.5), step_size=0.125, num_steps=4)
      >>> x, y = jnp.array([[0.55, 0.45]]), jnp.array([0])
      >>> early_stop(attack)(jax.random.key(0), lambda z: z, x, y).round(3).tolist()
      [[0.425..., 0.575...]]
    """
    _check_iterated(attack)
    _checks.positive_int(check_every=check_every)
    knows = attack.broken

    def run(key: Key, logits_fn: LogitsFn, x: Array, y: Array) -> Array:
        def look(state, kept: Array, done: Array) -> tuple[Array, Array]:
            # Not the iterate, which for a minimum-norm attack may lie out of the ball.
            point = attack.finish(state, logits_fn, x, y)
            if knows is not None:
                now = knows(state)
            else:
                now = _outcome.broken(logits_fn(point), y)
            return _outcome.where(now & ~done, point, kept), done | now

        def step(carry):
            count, state, kept, done = carry
            state = attack.step(state, logits_fn, x, y)
            due = (count + 1) % check_every == 0
            kept, done = jax.lax.cond(
                due, look, lambda _, kept, done: (kept, done), state, kept, done
            )
            return count + 1, state, kept, done

        def unfinished(carry) -> Array:
            count, _, _, done = carry
            return (count < attack.num_steps) & ~done.all()

        state = attack.init(key, logits_fn, x, y)
        start = look(state, x, jnp.zeros(x.shape[:1], bool))
        _, state, kept, done = jax.lax.while_loop(
            unfinished, step, (jnp.int32(0), state, *start)
        )
        x_adv = _outcome.where(done, kept, attack.finish(state, logits_fn, x, y))
        return jax.lax.stop_gradient(x_adv)

    return run


class Trajectory(NamedTuple):
    """An attack seen at T of its steps.

    Attributes:
      steps: The step numbers, [T]; 0 is the start.
      x_adv: The iterates after them, [T, B, ...].
      value: The objective there, [T, B].
      broken: Whether the classifier is wrong there, [T, B].
    """

    steps: Array
    x_adv: Array
    value: Array
    broken: Array


def keep_trajectory(
    attack: IteratedAttack,
    steps: Sequence[int],
    *,
    objective: Objective = cross_entropy,
):
    """The attack's result together with its iterates and losses at chosen steps.

    One run gives the whole curve over steps. Iterates are kept as they stand between
    two steps, before `finish` chooses; memory grows with `len(steps)`.

    Args:
      attack: Any iterated attack.
      steps: Ascending step numbers in [0, num_steps].
      objective: What `value` is; the attack may climb another.

    Returns:
      `(key, logits_fn, x, y) -> (x_adv, Trajectory)`.

    Raises:
      InputError: `steps` is empty, not ascending or out of range, or `attack` is not
        iterated.

    Example:
      >>> from robustjax import attacks, threats
      >>> attack = attacks.bim(threats.linf(0.5), step_size=0.125, num_steps=4)
      >>> x, y = jnp.array([[0.75, 0.25]]), jnp.array([0])
      >>> _, seen = keep_trajectory(attack, (0, 1, 4))(
      ...     jax.random.key(0), lambda z: z, x, y)
      >>> seen.x_adv[:, 0, 0].tolist(), seen.broken[:, 0].tolist()
      ([0.75, 0.625, 0.25], [False, False, True])
    """
    _check_iterated(attack)
    chosen = np.asarray(steps)
    whole = chosen.ndim == 1 and np.issubdtype(chosen.dtype, np.integer)
    ascending = whole and chosen[0] >= 0 and (np.diff(chosen) > 0).all()
    if not ascending or chosen[-1] > attack.num_steps:
        raise _checks.InputError(
            f"`steps` must be ascending integers in [0, {attack.num_steps}], got "
            f"{list(steps)}."
        )
    last = len(chosen)
    slots = np.full(attack.num_steps + 1, last)  # one past the end: not kept
    slots[chosen] = np.arange(last)

    def run(key: Key, logits_fn: LogitsFn, x: Array, y: Array):
        def keep(kept: Array, slot: Array, state: Any) -> Array:
            return kept.at[slot].set(state.x_adv, mode="drop")

        def step(carry, slot):
            state, kept = carry
            state = attack.step(state, logits_fn, x, y)
            return (state, keep(kept, slot, state)), None

        state = attack.init(key, logits_fn, x, y)
        kept = keep(jnp.zeros((last, *x.shape), x.dtype), jnp.asarray(slots[0]), state)
        (state, kept), _ = jax.lax.scan(step, (state, kept), jnp.asarray(slots[1:]))
        value, is_broken = jax.lax.map(_outcome.climbed(objective, logits_fn, y), kept)
        seen = Trajectory(jnp.asarray(chosen), kept, value, is_broken)
        return jax.lax.stop_gradient((attack.finish(state, logits_fn, x, y), seen))

    return run


class LossPath(NamedTuple):
    """What an attack saw on its way, for one value per image and step.

    Attributes:
      value: The objective at the iterate that each step evaluated, [B, T].
      broken: Whether that or an earlier one was misclassified, [B, T].
    """

    value: Array
    broken: Array


def keep_path(
    attack: IteratedAttack,
) -> Callable[[Key, LogitsFn, Array, Array], tuple[Array, LossPath]]:
    """The attack's result together with the losses that it met anyway.

    No pass is added, and memory grows by two numbers per image and step.

    Args:
      attack: An iterated attack that says what it has `seen`.

    Returns:
      `(key, logits_fn, x, y) -> (x_adv, LossPath)`.

    Raises:
      InputError: `attack` is not iterated, or does not say.

    Example:
      >>> from robustjax import attacks, threats
      >>> attack = attacks.bim(threats.linf(0.5), step_size=0.125, num_steps=4)
      >>> x, y = jnp.array([[0.75, 0.25]]), jnp.array([0])
      >>> _, path = keep_path(attack)(jax.random.key(0), lambda z: z, x, y)
      >>> path.broken.tolist()
      [[False, False, False, True]]
    """
    _check_iterated(attack)
    seen = attack.seen
    if seen is None:
        raise _checks.InputError(
            "`attack` must say what it has `seen`, as pgd and apgd do: take "
            "keep_trajectory, which evaluates the iterates once more."
        )

    def run(
        key: Key, logits_fn: LogitsFn, x: Array, y: Array
    ) -> tuple[Array, LossPath]:
        def step(state: Any, _: None):
            state = attack.step(state, logits_fn, x, y)
            return state, seen(state)

        state = attack.init(key, logits_fn, x, y)
        state, (value, broken) = jax.lax.scan(step, state, length=attack.num_steps)
        path = LossPath(value.T, broken.T)
        return jax.lax.stop_gradient((attack.finish(state, logits_fn, x, y), path))

    return run


def _check_iterated(attack: Attack) -> None:
    if not isinstance(attack, IteratedAttack):
        raise _checks.InputError(
            "`attack` must be an `IteratedAttack`, such as `pgd` makes, got "
            f"{type(attack).__name__}: wrap the attack inside of a combinator instead."
        )
