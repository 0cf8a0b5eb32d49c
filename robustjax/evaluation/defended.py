"""A test-time defense beside the model without it, on the same adversarial images."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from robustjax import _checks
from robustjax.attacks import broken
from robustjax.data import Dataset, as_float
from robustjax.evaluation._batching import block_size, rows_of
from robustjax.evaluation.results import Robustness, check_kept
from robustjax.training import sharding
from robustjax.types import Array, LogitsFn, as_pytree


def beside_bare(
    result: Robustness,
    dataset: Dataset,
    bare_logits_fn: LogitsFn,
    *,
    batch_size: int = 512,
    mesh: Mesh | None = None,
) -> dict[str, Any]:
    """What a defense adds to its model under each attack of an evaluation, JSON-able.

    The defense success rate (DSR) is the share, of the images that the bare model
    classifies correctly and the attack makes it misclassify, that the defended model
    classifies correctly. It says nothing of images that only the defense loses, nor of
    attacks that know the defense: read it beside both accuracies.

    Args:
      result: Of `evaluate` with `keep_adversarial=True`, of the defended model.
      dataset: What it was evaluated on.
      bare_logits_fn: The model without the defense.
      batch_size: Images at a time.
      mesh: Devices, by default all of them.

    Returns:
      `rows`: clean, each attack, and the worst case over those that count; each with
      `name`, the accuracies `bare` and `defended`, and, but for clean, `dsr` (None
      where nothing fell) with `fallen`, of how many images it is.

    Raises:
      InputError: x_adv was not kept, or the data set is another one.

    Example:
      >>> import jax.numpy as jnp
      >>> from robustjax import attacks, threats
      >>> from robustjax.evaluation import NamedAttack, evaluate
      >>> x = np.array([[[[0.3]]], [[[0.6]]]], np.float32)
      >>> dataset = Dataset(x, np.int32([0, 1]), np.arange(2), ("low", "high"))
      >>> def bare(z):
      ...     return jnp.concatenate([0.5 - z, z - 0.5], -1).reshape(-1, 2)
      >>> always_high = lambda z: jnp.ones((len(z), 1)) * jnp.array([[0.0, 1.0]])
      >>> fgsm = NamedAttack("fgsm", attacks.fgsm(threats.linf(0.15)), source=bare)
      >>> result = evaluate(always_high, dataset, [fgsm], key=jax.random.key(0),
      ...     keep_adversarial=True)
      >>> row = beside_bare(result, dataset, bare)["rows"][1]
      >>> row["bare"], row["defended"], row["dsr"]
      (0.5, 0.5, 1.0)
    """
    clean, *attacked = right_on_points(
        result, dataset, bare_logits_fn, batch_size=batch_size, mesh=mesh
    )
    rows: list[dict[str, Any]] = [_row("clean", clean, result.clean_correct)]
    worst = clean.copy()
    for attack, bare in zip(result.attacks, attacked, strict=True):
        worst &= bare if attack.counts else True
        rows.append(_row(attack.name, bare, attack.correct) | _dsr(clean, bare, attack))
    rows.append(_row("worst case", worst, result.worst_case_correct))
    return dict(num_examples=len(result.index), rows=rows)


def right(logits: Array, y: Array) -> Array:
    """Whether the prediction is the label, [B]."""
    return ~broken(logits, y)


def right_on_points(
    result: Robustness,
    dataset: Dataset,
    logits_fn: LogitsFn,
    *,
    judge: Callable[[Array, Array], Array] = right,
    batch_size: int = 512,
    mesh: Mesh | None = None,
) -> list[np.ndarray]:
    """Whether another classifier is right on the images and on each attack's points.

    Args:
      result: Of `evaluate` with `keep_adversarial=True`.
      dataset: What it was evaluated on.
      logits_fn: The other classifier.
      judge: `(its answers, labels [B]) -> [B] bool`.
      batch_size: Images at a time.
      mesh: Devices, by default all of them.

    Returns:
      [N] bool of the clean images, and then of every attack.

    Raises:
      InputError: x_adv was not kept, or the data set is another one.
    """
    _checks.positive_int(batch_size=batch_size)
    check_kept(result, dataset)
    predict, total = as_pytree(logits_fn), len(result.index)
    size = block_size((predict,), batch_size, total, mesh)

    def of(images: Any) -> np.ndarray:
        blocks = rows_of((images, dataset.labels[:total]), size, mesh)
        rows = [sharding.to_host(_judged(judge, predict, *block)) for block in blocks]
        return np.concatenate(rows)[:total]

    return [of(dataset.images[:total]), *(of(a.x_adv) for a in result.attacks)]


@functools.partial(jax.jit, static_argnums=0)
def _judged(judge: Any, predict: LogitsFn, x: Array, y: Array) -> Array:
    return judge(predict(as_float(x)), y)


def _row(name: str, bare: np.ndarray, defended: np.ndarray) -> dict[str, Any]:
    return dict(name=name, bare=float(bare.mean()), defended=float(defended.mean()))


def _dsr(clean: np.ndarray, bare: np.ndarray, attack: Any) -> dict[str, Any]:
    fallen = clean & ~bare
    share = float(attack.correct[fallen].mean()) if fallen.any() else None
    return dict(dsr=share, fallen=int(fallen.sum()))
