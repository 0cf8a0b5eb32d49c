"""Accuracy under attack: per example, per attack, and the worst case over attacks."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from robustjax import _checks
from robustjax.attacks._outcome import broken
from robustjax.data import Dataset, EvalBatch, as_float, evaluation_batches
from robustjax.training import sharding
from robustjax.types import Array, Attack, Key, LogitsFn


@dataclasses.dataclass(frozen=True)
class NamedAttack:
    """An attack as the report names it.

    Attributes:
      name: Its name in tables and files.
      attack: The attack.
      parameters: All its parameters, JSON-able.
    """

    name: str
    attack: Attack
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class AttackResult:
    """What one attack did.

    Attributes:
      name: The attack's name.
      parameters: Its parameters.
      correct: Whether the classifier is right on x_adv, [N] bool.
      distance: Norms of x_adv - x by name ("linf", "l2", "l1"), each [N].
      lowest: Smallest pixel of all x_adv.
      highest: Largest pixel of all x_adv.
      seconds: Wall time, compilation included.
      x_adv: [N, H, W, C] if it was asked for.
    """

    name: str
    parameters: Mapping[str, Any]
    correct: np.ndarray
    distance: Mapping[str, np.ndarray]
    lowest: float
    highest: float
    seconds: float
    x_adv: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Robustness:
    """The outcome of an evaluation.

    Attributes:
      index: Position of each example in its split, [N].
      labels: [N].
      clean_correct: Whether the classifier is right on x, [N] bool.
      clean_seconds: Wall time of the clean pass.
      attacks: One result each, in the order run.
    """

    index: np.ndarray
    labels: np.ndarray
    clean_correct: np.ndarray
    clean_seconds: float
    attacks: tuple[AttackResult, ...]

    @property
    def worst_case_correct(self) -> np.ndarray:
        """Right on x and under every attack, [N]: the adversary picks per example."""
        return functools.reduce(
            np.logical_and, (a.correct for a in self.attacks), self.clean_correct
        )


def evaluate(
    logits_fn: LogitsFn,
    dataset: Dataset,
    attacks: Sequence[NamedAttack],
    *,
    key: Key,
    batch_size: int = 512,
    num_examples: int | None = None,
    mesh: Mesh | None = None,
    keep_adversarial: bool = False,
) -> Robustness:
    """Runs every attack on every example.

    Image `i` of the split draws from `fold_in(key, i)`: the results depend on neither
    batch size, padding nor device count. The last batch is padded, never recompiled.

    Args:
      logits_fn: The classifier; `models.logits_fn(...)` keeps weights out of the
        compiled code.
      dataset: What to evaluate on.
      attacks: What to run, in order.
      key: A typed key.
      batch_size: Images at a time over all devices; reduced to the data set's size,
        then rounded up to a multiple of the devices.
      num_examples: Only the first that many; None for all.
      mesh: Devices, by default all of them.
      keep_adversarial: Whether results hold x_adv.

    Raises:
      InputError: an argument is out of range, or an attack returned something that is
        not an image of the same shape.

    Example:
      >>> from robustjax import attacks, data, threats
      >>> from robustjax.data import Dataset
      >>> x = np.array([[[[0.3]]], [[[0.6]]]], np.float32)
      >>> dataset = Dataset(x, np.int32([0, 1]), np.arange(2), ("low", "high"))
      >>> def logits_fn(z):
      ...     return jnp.concatenate([0.5 - z, z - 0.5], -1).reshape(-1, 2)
      >>> fgsm = NamedAttack("fgsm", attacks.fgsm(threats.linf(0.15)))
      >>> result = evaluate(logits_fn, dataset, [fgsm], key=jax.random.key(0))
      >>> result.clean_correct.tolist(), result.worst_case_correct.tolist()
      ([True, True], [True, False])
    """
    _checks.positive_int(batch_size=batch_size)
    predict = _as_pytree(logits_fn)
    batches = functools.partial(
        _batches, dataset, batch_size, num_examples, mesh or sharding.data_mesh()
    )
    total = len(dataset) if num_examples is None else num_examples

    def gather(run: Callable[[Any], NamedTuple]) -> tuple[Any, float]:
        start = time.monotonic()
        rows = [sharding.to_host(run(batch)) for batch in batches()]
        joined = jax.tree.map(lambda *parts: np.concatenate(parts)[:total], *rows)
        return joined, time.monotonic() - start

    clean, clean_seconds = gather(lambda b: _clean(predict, as_float(b.x), b.y))
    results = []
    for named in attacks:
        run = functools.partial(_attacked, named.attack, keep_adversarial)
        found, seconds = gather(lambda b, run=run: run(key, predict, b))
        results.append(
            AttackResult(
                name=named.name,
                parameters=named.parameters,
                correct=found.correct,
                distance={n: getattr(found, n) for n in ("linf", "l2", "l1")},
                lowest=float(found.lowest.min()),
                highest=float(found.highest.max()),
                seconds=seconds,
                x_adv=found.x_adv,
            )
        )
    return Robustness(
        index=np.asarray(dataset.index[:total]),
        labels=np.asarray(dataset.labels[:total]),
        clean_correct=clean.correct,
        clean_seconds=clean_seconds,
        attacks=tuple(results),
    )


def robustness_curve(
    logits_fn: LogitsFn,
    dataset: Dataset,
    attack_at: Callable[[Array], Attack],
    eps: Sequence[float],
    *,
    key: Key,
    batch_size: int = 512,
    num_examples: int | None = None,
    mesh: Mesh | None = None,
) -> np.ndarray:
    """Whether each example resists an attack at each radius, [E, N], one compilation.

    The radii are a `vmap`ped argument. An example that a smaller radius breaks counts
    as broken at every larger one, since that point is still in the ball.

    Args:
      logits_fn: The classifier.
      dataset: What to evaluate on.
      attack_at: Radius (traced) to attack, e.g.
        `lambda eps: pgd(linf(eps), step_size=eps / 4, num_steps=20)`.
      eps: The radii, ascending.
      key: A typed key; used per image as in `evaluate`.
      batch_size: Images at a time; memory grows with `batch_size * len(eps)`.
      num_examples: Only the first that many; None for all.
      mesh: Devices, by default all of them.

    Raises:
      InputError: `eps` is empty, negative or not ascending.
    """
    radii = np.asarray(eps, np.float32)
    if radii.ndim != 1 or not radii.size or radii[0] < 0 or np.any(np.diff(radii) <= 0):
        raise _checks.InputError(f"`eps` must be ascending radii from 0, got {eps!r}.")
    predict = _as_pytree(logits_fn)
    batches = _batches(dataset, batch_size, num_examples, mesh or sharding.data_mesh())
    total = len(dataset) if num_examples is None else num_examples

    @jax.jit
    def curve(key, predict, batch):
        x, keys = as_float(batch.x), _image_keys(key, batch.index)

        def at(radius):
            x_adv = attack_at(radius)(keys, predict, x, batch.y)
            return ~broken(predict(x_adv), batch.y)

        return jax.vmap(at)(jnp.asarray(radii)).T

    rows = [sharding.to_host(curve(key, predict, batch)) for batch in batches]
    return np.logical_and.accumulate(np.concatenate(rows)[:total].T, axis=0)


def wilson_interval(
    successes: int, total: int, *, z: float = 1.959964
) -> tuple[float, float]:
    """Wilson's score interval of a proportion, 95% by default.

    See "Probable Inference, the Law of Succession, and Statistical Inference" (Wilson,
    1927).

    Example:
      >>> low, high = wilson_interval(90, 100)
      >>> round(low, 4), round(high, 4)
      (0.8256, 0.9448)
    """
    if total == 0:
        return 0.0, 1.0
    share = successes / total
    centre = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z * math.sqrt(share * (1 - share) / total + (z / (2 * total)) ** 2)
    half /= 1 + z**2 / total
    return max(0.0, centre - half), min(1.0, centre + half)


class _Correct(NamedTuple):
    correct: Array


class _Found(NamedTuple):
    correct: Array
    linf: Array
    l2: Array
    l1: Array
    lowest: Array
    highest: Array
    x_adv: Array | None


@jax.jit
def _clean(predict: LogitsFn, x: Array, y: Array) -> _Correct:
    return _Correct(~broken(predict(x), y))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _attacked(
    attack: Attack, keep: bool, key: Key, predict: LogitsFn, batch: Any
) -> _Found:
    x = as_float(batch.x)
    x_adv = attack(_image_keys(key, batch.index), predict, x, batch.y)
    _checks.same_shape(x_adv=x_adv, x=x)
    delta = (x_adv - x).reshape(x.shape[0], -1)
    flat = x_adv.reshape(x.shape[0], -1)
    return _Found(
        correct=~broken(predict(x_adv), batch.y),
        linf=jnp.abs(delta).max(axis=1),
        l2=jnp.linalg.norm(delta, axis=1),
        l1=jnp.abs(delta).sum(axis=1),
        lowest=flat.min(axis=1),
        highest=flat.max(axis=1),
        x_adv=x_adv if keep else None,
    )


def _batches(
    dataset: Dataset, batch_size: int, num_examples: int | None, mesh: Mesh
) -> Iterator[EvalBatch]:
    """Block after block, on the devices; one shape, a multiple of the devices."""
    devices = mesh.shape["data"]
    total = len(dataset) if num_examples is None else num_examples
    batch_size = devices * math.ceil(min(batch_size, max(total, 1)) / devices)
    for batch in evaluation_batches(dataset, batch_size, num_examples=num_examples):
        index = batch.index.astype(np.uint32)  # what keys fold in
        yield sharding.global_rows(mesh, batch._replace(index=index))


def _image_keys(key: Key, index: Array) -> Key:
    return jax.vmap(jax.random.fold_in, (None, 0))(key, index)


def _as_pytree(logits_fn: LogitsFn) -> jax.tree_util.Partial:
    """The classifier as an argument of `jit`: its arrays are data, its code static."""
    if isinstance(logits_fn, jax.tree_util.Partial):
        return logits_fn
    return jax.tree_util.Partial(logits_fn)
