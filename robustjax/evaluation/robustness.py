"""Runs attacks on a data set, sharded, one compilation each."""

import functools
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from robustjax import _checks
from robustjax.attacks import StagedAttack
from robustjax.data import Dataset, as_float
from robustjax.evaluation._batching import (
    batches_of,
    image_keys,
)
from robustjax.evaluation._judging import Verdict, judged, num_draws, worst_so_far
from robustjax.evaluation._sweep import Sweep
from robustjax.evaluation.results import NamedAttack, Robustness
from robustjax.evaluation.unfinished import Unfinished, answers_of, digest_of
from robustjax.training import sharding
from robustjax.types import Array, Attack, Key, LogitsFn, as_pytree


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
    state_dir: Path | None = None,
    keep_state: bool = False,
    log: Callable[[str], None] | None = None,
    advance: Callable[[int, float], None] | None = None,
) -> Robustness:
    """Runs every attack on every example.

    Image `i` of the split draws from `fold_in(key, i)`: the results depend on neither
    batch size, padding nor device count. The last batch is padded, never recompiled.

    A random classifier returns draws, [S, B, K] (see `attacks.expectation`). Its
    figures are shares of draws, the expected accuracy: an attack picks among its runs
    by S // 3 of them, the adversary among attacks by as many (or takes one attack for
    all images, if that does more), the others judge. Attacks should climb a `source`
    with another key, or they search the draws that judge.

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
      state_dir: Where finished blocks and the progress of staged attacks are kept, so
        that a killed evaluation goes on; None keeps none. Other evaluations may keep
        theirs in the same place. Attacks without `parameters` start again, since
        nothing tells them from others. Of several processes the first keeps it.
      keep_state: Leaves that there at the end, from which the same call has its result
        at once, until somebody says `forget(state_dir, result)`.
      log: Called with one line after each stage of a staged attack, and with one for
        what a `state_dir` does not keep.
      advance: Called with the position of an attack (-1 is the clean pass) and the
        share of it that has just been done.

    Raises:
      InputError: an argument is out of range, pixels are NaN, or an attack returned
        something that is not an image of the same shape.

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
    predict = as_pytree(logits_fn)
    total = len(dataset) if num_examples is None else num_examples
    given = (predict, dataset, total, key, batch_size, mesh, keep_adversarial)
    sweep = Sweep(*given, log=log, advance=advance)
    clean, clean_seconds = sweep.clean()
    if clean.nan.any():
        row = int(dataset.index[:total][clean.nan][0])
        raise _checks.InputError(f"`dataset` must hold numbers, image {row} has NaN.")
    if total > 1 and clean.probabilities.all():
        warnings.warn(_checks.PROBABILITIES, stacklevel=2)
    images = (dataset.images[:total], dataset.labels[:total], dataset.index[:total])
    known = [(named.name, dict(named.parameters)) for named in attacks]
    if state_dir is not None:  # functions have no name to go by
        others = [(named.source, *named.judges) for named in attacks]
        first = (as_float(jnp.asarray(images[0][:4])), jnp.asarray(images[1][:4]))
        tell = lambda fun: answers_of(fun, *first)
        known.append(jax.tree.map(tell, [predict, others], is_leaf=callable))
    unfinished = Unfinished(
        *(state_dir, key, predict, clean.answer.predicted, *images, known)
    )
    results = []
    for position, named in enumerate(attacks):
        kept = unfinished if named.parameters else Unfinished(None)
        if log and kept.state != unfinished.state:
            log(f"{named.name} has no `parameters`: if it is killed, it starts again.")
        staged = isinstance(named.attack, StagedAttack)
        results.append((sweep.staged if staged else sweep.whole)(named, position, kept))
    if not keep_state:
        unfinished.forget()
    return Robustness(
        index=np.asarray(dataset.index[:total]),
        labels=np.asarray(dataset.labels[:total]),
        clean_correct=clean.answer.verdict.correct,
        clean_seen=clean.answer.verdict.seen,
        draws=sweep.draws,
        clean_seconds=clean_seconds,
        clean_predicted=clean.answer.predicted,
        clean_confidence=clean.answer.confidence,
        num_nan=int(clean.answer.nan.sum()),
        probabilities=bool(clean.probabilities.all()),
        images=digest_of(dataset.images[:total]),
        attacks=tuple(results),
        state=unfinished.state if keep_state else None,
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
    source: LogitsFn | None = None,
) -> np.ndarray:
    """Whether each example resists an attack at each radius, [E, N], one compilation.

    Of a random classifier the share of draws that do, as `evaluate` judges; the curve
    may then rise by the noise of the draws. The radii are a `vmap`ped argument. An
    example that a smaller radius breaks counts as broken at every larger one, since
    that point is still in the ball.

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
      source: What the attack climbs in place of `logits_fn`, as of a `NamedAttack`.

    Raises:
      InputError: `eps` is empty, negative or not ascending.
    """
    radii = np.asarray(eps, np.float32)
    if radii.ndim != 1 or not radii.size or radii[0] < 0 or np.any(np.diff(radii) <= 0):
        raise _checks.InputError(f"`eps` must be ascending radii from 0, got {eps!r}.")
    predict = as_pytree(logits_fn)
    climbed = predict if source is None else as_pytree(source)
    batches = batches_of(predict, dataset, batch_size, num_examples, mesh)
    total = len(dataset) if num_examples is None else num_examples

    given = (attack_at, jnp.asarray(radii), key, climbed, predict)
    rows = [sharding.to_host(_at_radii(*given, batch)) for batch in batches]
    correct, seen, _ = (
        np.concatenate(part)[:total].T for part in zip(*rows, strict=True)
    )
    draws = num_draws(predict, as_float(jnp.asarray(dataset.images[:1])))
    return worst_so_far(correct, seen, draws)


@functools.partial(jax.jit, static_argnums=0)
def _at_radii(
    attack_at: Callable[[Array], Attack],
    radii: Array,
    key: Key,
    climbed: LogitsFn,
    predict: LogitsFn,
    batch: Any,  # an `EvalBatch`, on the devices
) -> Verdict:
    """Verdicts at each radius, [B, E]; the same `attack_at` compiles once."""
    x, keys = as_float(batch.x), image_keys(key, batch.index)

    def at(radius: Array) -> Verdict:
        x_adv = attack_at(radius)(keys, climbed, x, batch.y)
        return judged((predict,), x_adv, batch.y)

    return jax.tree.map(jnp.transpose, jax.vmap(at)(radii))
