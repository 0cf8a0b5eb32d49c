"""What an attack has done after so many of its steps."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from robustjax import _checks
from robustjax.attacks import keep_trajectory
from robustjax.data import Dataset, as_float
from robustjax.evaluation._batching import batches_of, image_keys
from robustjax.training import sharding
from robustjax.types import Array, IteratedAttack, Key, LogitsFn, as_pytree


def step_curves(
    logits_fn: LogitsFn,
    dataset: Dataset,
    attack_at: Callable[[Array], IteratedAttack],
    step_sizes: Sequence[float],
    steps: Sequence[int],
    *,
    key: Key,
    num_restarts: int = 1,
    batch_size: int = 512,
    num_examples: int | None = None,
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """Accuracy and mean cross-entropy after so many steps, by step size, JSON-able.

    One run per step size and restart, looked at on its way: nothing recompiles, and a
    curve costs little more than its longest attack. Restarts count per image: an
    iterate is as bad as the worst of those after as many steps, until it is broken at
    every look.

    Args:
      logits_fn: The classifier.
      dataset: What to evaluate on.
      attack_at: Step size (traced) to an iterated attack of at least `max(steps)`, e.g.
        `lambda s: pgd(threat, step_size=s, num_steps=200)`.
      step_sizes: On the pixel scale.
      steps: Ascending.
      key: A typed key; used per image as in `evaluate`.
      num_restarts: Of each, one after another. An image that is broken at every look
        needs no more: those that are left do not run once all of a batch are, and do
        not count for it where they do.
      batch_size: Images at a time; memory grows with `batch_size * len(steps)`.
      num_examples: Only the first that many; None for all.
      mesh: Devices, by default all of them.

    Returns:
      `steps`, `step_sizes`, `num_examples`, `num_restarts`, and lists [S][T]:
      `accuracy` at the iterates after t steps, `worst` over those up to there, and
      `loss`, the mean over images of the largest.

    Raises:
      InputError: an argument is out of range.
    """
    _checks.positive(step_sizes=np.asarray(step_sizes))
    _checks.positive_int(num_restarts=num_restarts)
    predict = as_pytree(logits_fn)
    total = len(dataset) if num_examples is None else num_examples

    run = functools.partial(_along, attack_at, tuple(steps))
    again = [jax.random.fold_in(key, n) for n in range(1, num_restarts)]

    def worst_run(batch, step_size) -> tuple[np.ndarray, np.ndarray]:
        """Broken and value, [B, T], over the restarts."""
        broken, value = sharding.to_host(run(key, predict, batch, step_size))
        for restart in again:
            # One that is broken at every look stays as it is: how many restarts there
            # are for the rest of its batch must not matter to it.
            stands = ~broken.all(axis=1, keepdims=True)
            if not stands.any():
                break
            new, loss = sharding.to_host(run(restart, predict, batch, step_size))
            broken = np.logical_or(broken, new)
            value = np.where(stands, np.maximum(value, loss), value)
        return broken, value

    found = dict(accuracy=[], worst=[], loss=[])
    for step_size in step_sizes:
        blocks = batches_of(predict, dataset, batch_size, num_examples, mesh)
        size = jnp.float32(step_size)
        rows = [worst_run(block, size) for block in blocks]
        broken, value = (
            np.concatenate(part)[:total] for part in zip(*rows, strict=True)
        )
        ever = np.logical_or.accumulate(broken, axis=1)
        found["accuracy"].append((1 - broken.mean(axis=0)).tolist())
        found["worst"].append((1 - ever.mean(axis=0)).tolist())
        found["loss"].append(value.mean(axis=0).tolist())
    numbers = dict(steps=list(map(int, steps)), step_sizes=list(map(float, step_sizes)))
    numbers |= dict(num_examples=total, num_restarts=num_restarts)
    return numbers | found


@functools.partial(jax.jit, static_argnums=(0, 1))
def _along(
    attack_at: Callable[[Array], IteratedAttack],
    steps: tuple[int, ...],
    key: Key,
    predict: LogitsFn,
    batch: Any,  # an `EvalBatch`, on the devices
    step_size: Array,
) -> tuple[Array, Array]:
    """Broken and value after so many steps, [B, T]; one `attack_at` compiles once."""
    attack = keep_trajectory(attack_at(step_size), steps)
    x, keys = as_float(batch.x), image_keys(key, batch.index)
    seen = attack(keys, predict, x, batch.y)[1]
    return seen.broken.T, seen.value.T
