"""Runs attacks on a data set, sharded, one compilation each."""

import dataclasses
import functools
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from robustjax import _checks
from robustjax.attacks import Placement, StagedAttack
from robustjax.data import Dataset, EvalBatch, as_float
from robustjax.evaluation._batching import (
    batches_of,
    block_size,
    image_keys,
)
from robustjax.evaluation._judging import Verdict, judged, num_draws, worst_so_far
from robustjax.evaluation._running import answer, attacked, result_of
from robustjax.evaluation._running import clean as clean_pass
from robustjax.evaluation._running import found as found_of
from robustjax.evaluation.results import AttackResult, NamedAttack, Robustness
from robustjax.evaluation.unfinished import SUFFIX, Unfinished, forget
from robustjax.training import sharding
from robustjax.types import Array, Attack, Key, LogitsFn, as_pytree, is_transductive


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
        that a killed evaluation goes on; None keeps none.
      keep_state: Leaves that there at the end, from which the same call has its result
        at once, until somebody says `forget(state_dir)`.
      log: Called with one line after each stage of a staged attack.
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

    def batches(size: int) -> Iterator[EvalBatch]:
        return batches_of(predict, dataset, size, num_examples, mesh)

    total = len(dataset) if num_examples is None else num_examples

    kept_in = state_dir if jax.process_count() == 1 else None
    unfinished = Unfinished(None)

    def gather(
        run: Callable[[Any], NamedTuple],
        position: int,
        size: int = batch_size,
        *work: Any,
    ) -> tuple[Any, float]:
        blocks, done, mark = [], 0, unfinished.mark(size, *work)
        for number, batch in enumerate(batches(size)):
            found = unfinished.block(str(position), number, run, batch, mark)
            blocks.append(found)
            share = min(len(batch.y), total - done) / total
            done += len(batch.y)
            if advance:
                advance(position, share)
        rows, seconds = zip(*blocks, strict=True)
        joined = jax.tree.map(lambda *parts: np.concatenate(parts)[:total], *rows)
        return joined, sum(seconds)

    first = lambda b: clean_pass(predict, as_float(b.x), b.y)
    clean, clean_seconds = gather(first, -1)
    # Functions have no name to go by, but for what they answer.
    images = (dataset.images[:total], dataset.labels[:total], dataset.index[:total])
    unfinished = Unfinished(kept_in, key, predict, clean.answer.predicted, *images)
    draws = num_draws(predict, as_float(jnp.asarray(dataset.images[:1])))
    if clean.nan.any():
        row = int(dataset.index[:total][clean.nan][0])
        raise _checks.InputError(f"`dataset` must hold numbers, image {row} has NaN.")
    if total > 1 and clean.probabilities.all():
        warnings.warn(_checks.PROBABILITIES, stacklevel=2)
    results = []
    for position, named in enumerate(attacks):
        source = predict if named.source is None else as_pytree(named.source)
        judges = (predict, *map(as_pytree, named.judges))
        if isinstance(named.attack, StagedAttack):
            found = _staged(
                *(named, key, source, judges, dataset, batch_size, total, mesh),
                *(keep_adversarial, position, draws),
                state_dir=kept_in,
                log=log,
            )
            if advance:
                advance(position, 1.0)
        else:
            attack = as_pytree(named.attack)
            run = functools.partial(attacked, keep_adversarial, named.repeats)
            size = block_size((attack, source, *judges), batch_size, total, mesh)
            about = (dict(named.parameters), keep_adversarial, named.repeats)
            rows, seconds = gather(
                lambda b, a=attack, run=run, s=source, j=judges: run(a, key, s, j, b),
                *(position, size, about, attack, source, judges),
            )
            found = result_of(named, rows, seconds)
        results.append(found)
    if kept_in is not None and not keep_state:
        forget(kept_in)
    return Robustness(
        index=np.asarray(dataset.index[:total]),
        labels=np.asarray(dataset.labels[:total]),
        clean_correct=clean.answer.verdict.correct,
        clean_seen=clean.answer.verdict.seen,
        draws=draws,
        clean_seconds=clean_seconds,
        clean_predicted=clean.answer.predicted,
        clean_confidence=clean.answer.confidence,
        num_nan=int(clean.answer.nan.sum()),
        probabilities=bool(clean.probabilities.all()),
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

    @jax.jit
    def curve(key, climbed, predict, batch):
        x, keys = as_float(batch.x), image_keys(key, batch.index)

        def at(radius):
            x_adv = attack_at(radius)(keys, climbed, x, batch.y)
            return judged((predict,), x_adv, batch.y)

        return jax.tree.map(jnp.transpose, jax.vmap(at)(jnp.asarray(radii)))

    rows = [sharding.to_host(curve(key, climbed, predict, batch)) for batch in batches]
    correct, seen, _ = (
        np.concatenate(part)[:total].T for part in zip(*rows, strict=True)
    )
    draws = num_draws(predict, as_float(jnp.asarray(dataset.images[:1])))
    return worst_so_far(correct, seen, draws)


_answer = jax.jit(answer)

_STOPS_EARLY = (
    "The classifier is random, and the attack leaves an image alone once some draws "
    "are wrong: others may be right more often than after a plain gradient attack."
)


def _staged(
    named: NamedAttack,
    key: Key,
    source: LogitsFn,
    judges: tuple[LogitsFn, ...],
    dataset: Dataset,
    batch_size: int,
    total: int,
    mesh: Mesh | None,
    keep: bool,
    position: int,
    draws: int,
    *,
    state_dir: Path | None,
    log: Callable[[str], None] | None,
) -> AttackResult:
    """A staged attack on the whole set, sharded like the others, in one result."""
    if is_transductive(source):
        raise _checks.InputError(
            f"The attack {named.name!r} leaves broken images out of its batches, where "
            "they would be queries of a transductive classifier: take "
            "queries='single' (or a view with it)."
        )
    mesh = mesh or sharding.data_mesh()
    placement = Placement(
        mesh.shape["data"],
        functools.partial(sharding.global_rows, mesh),
        sharding.to_host,
    )
    # Every process knows the whole outcome; one of them keeps it on disk.
    # Two attacks may have one name, but not one position.
    name = "".join(c if c.isalnum() else "_" for c in f"{position} {named.name}")
    assert isinstance(named.attack, StagedAttack)
    x = np.asarray(as_float(jnp.asarray(dataset.images[:total])))
    start = time.monotonic()
    outcome = named.attack.run(
        key,
        source,
        x,
        dataset.labels[:total],
        index=dataset.index[:total],
        batch_size=batch_size,
        placement=placement,
        state_file=state_dir / f"{name}{SUFFIX}" if state_dir else None,
        log=log,
        keep_state=True,
    )
    # Of a run that goes on, what it had taken before counts.
    spent = sum(stage.seconds for stage in outcome.stages)
    seconds = max(time.monotonic() - start, spent)
    moved = dataclasses.replace(
        dataset.take(slice(total)), images=np.asarray(outcome.x_adv, np.float32)
    )
    blocks = batches_of(judges[0], moved, batch_size, None, mesh)
    parts = [sharding.to_host(_answer(judges, b.x, b.y)) for b in blocks]
    said = jax.tree.map(lambda *rows: np.concatenate(rows)[:total], *parts)
    if named.source is None and not named.judges and draws == 1:
        # What the attack saw itself counts, not another compilation's rounding.
        said = said._replace(verdict=Verdict(*map(jnp.asarray, (outcome.correct,) * 3)))
    points = jnp.asarray(outcome.x_adv)
    rows = jax.device_get(found_of(said, points, x, keep))
    doubts = outcome.warnings
    if draws > 1:
        doubts = (*doubts, _STOPS_EARLY)
    extra = dict(stages=outcome.stages, warnings=doubts)
    return result_of(named, rows, seconds, **extra)
