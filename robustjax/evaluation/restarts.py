"""Accuracy under PGD after one start, two, and so on: whether more would matter."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from robustjax import _checks
from robustjax.data import Dataset
from robustjax.evaluation import _probes
from robustjax.evaluation.indicators import OWN
from robustjax.evaluation.limits import limit_at
from robustjax.types import Key, LogitsFn, Threat, as_pytree


def restart_curve(
    logits_fn: LogitsFn,
    dataset: Dataset,
    threat: Threat,
    *,
    key: Key,
    step_size: float,
    num_steps: int,
    num_restarts: int = 10,
    subset: int = 128,
    source: LogitsFn | None = None,
    batch_size: int = 512,
    mesh: Mesh | None = None,
) -> dict[str, Any] | None:
    """Accuracy under plain PGD after 1 to R random starts, each image at its worst.

    The walks are those of `indicators` with the same key and numbers: the same program,
    compiled once, and the first five starts. An image of the subset costs
    `num_restarts * num_steps` gradients.

    Args:
      logits_fn: The classifier that is judged. Random ones return draws, [S, B, K]: of
        these the start of the least mean accuracy so far counts.
      dataset: Images; `take` those that were evaluated.
      threat: Ball and box.
      key: A typed key, as for `indicators`.
      step_size: Of PGD, on the pixel scale.
      num_steps: Of PGD.
      num_restarts: R, at least 1.
      subset: Images that are looked at, spread over the set.
      source: What PGD climbs if it is not `logits_fn`.
      batch_size: Images at a time over all devices.
      mesh: Devices, by default all of them.

    Returns:
      What `compose` takes as `restarts`: `restarts`, the counts 1 to R, `accuracy`
      after as many, which never rises, `num_examples`, and `limit` as `limit_at`. None
      where nothing can walk: the radius is 0 or infinite, or the classifier has no
      gradient.

    Raises:
      InputError: an argument is out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> from robustjax import threats
      >>> x = np.linspace(0.3, 0.7, 40, dtype=np.float32).reshape(-1, 1, 1, 1)
      >>> y = (x > 0.5).astype(np.int32).ravel()
      >>> dataset = Dataset(x, y, np.arange(40), ("low", "high"))
      >>> linear = lambda z: jnp.concatenate([0.5 - z, z - 0.5], -1)[:, 0, 0]
      >>> restart_curve(linear, dataset, threats.linf(0.1), key=jax.random.key(0),
      ...     step_size=0.05, num_steps=4, num_restarts=2)
      {'restarts': [1, 2], 'accuracy': [0.5, 0.5], 'num_examples': 40, 'limit': None}
    """
    _checks.positive_int(num_steps=num_steps, num_restarts=num_restarts, subset=subset)
    _checks.positive_int(batch_size=batch_size)
    _checks.non_negative(step_size=step_size)
    _checks.keys(key)
    judge, rows = as_pytree(logits_fn), _probes.subset_rows(len(dataset), subset)
    of = _probes.subject(
        judge,
        judge if source is None else as_pytree(source),
        threat,
        dataset,
        rows,
        batch_size=batch_size,
        mesh=mesh,
        key=jax.random.fold_in(key, OWN),
        step_size=float(step_size),
        num_steps=num_steps,
    )
    if not 0 < of.radius < float("inf") or _probes.useless_gradients(of) is None:
        return None
    exact = _probes.has_draws(of)[0] == 1
    walks = (_probes.path(of, number) for number in range(num_restarts))
    right = [_probes.right(of, walk, exact) for walk in walks]
    left = [_probes.worst(right[: count + 1], exact) for count in range(num_restarts)]
    return dict(
        restarts=list(range(1, num_restarts + 1)),
        accuracy=[float(np.mean(row)) for row in left],
        num_examples=len(of.x),
        limit=limit_at(threat, of.radius, dataset.labels[rows]),
    )
