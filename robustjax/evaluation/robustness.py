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
from robustjax.evaluation.results import AttackResult, NamedAttack, Robustness
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
    log: Callable[[str], None] | None = None,
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
      state_dir: Where staged attacks keep their progress, so that a killed evaluation
        goes on; None keeps none.
      log: Called with one line after each stage of a staged attack.

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

    def gather(
        run: Callable[[Any], NamedTuple], size: int = batch_size
    ) -> tuple[Any, float]:
        start = time.monotonic()
        rows = [sharding.to_host(run(batch)) for batch in batches(size)]
        joined = jax.tree.map(lambda *parts: np.concatenate(parts)[:total], *rows)
        return joined, time.monotonic() - start

    clean, clean_seconds = gather(lambda b: _clean(predict, as_float(b.x), b.y))
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
                state_dir=state_dir,
                log=log,
            )
        else:
            attack = as_pytree(named.attack)
            run = functools.partial(_attacked, keep_adversarial, named.repeats)
            rows, seconds = gather(
                lambda b, a=attack, run=run, s=source, j=judges: run(a, key, s, j, b),
                block_size((attack, source, *judges), batch_size, total, mesh),
            )
            found = _result(named, rows, seconds)
        results.append(found)
    return Robustness(
        index=np.asarray(dataset.index[:total]),
        labels=np.asarray(dataset.labels[:total]),
        clean_correct=clean.verdict.correct,
        clean_seen=clean.verdict.seen,
        draws=draws,
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


_STOPS_EARLY = (
    "The classifier is random, and the attack leaves an image alone once some draws "
    "are wrong: others may be right more often than after a plain gradient attack."
)


class _Clean(NamedTuple):
    verdict: Verdict
    nan: Array
    probabilities: Array


class _Found(NamedTuple):
    verdict: Verdict
    linf: Array
    l2: Array
    l1: Array
    lowest: Array
    highest: Array
    above_one: Array
    x_adv: Array | None


@jax.jit
def _clean(predict: LogitsFn, x: Array, y: Array) -> _Clean:
    logits = predict(x)
    return _Clean(
        verdict=judged((lambda _: logits,), x, y),
        nan=jnp.isnan(x).reshape(x.shape[0], -1).any(axis=1),
        probabilities=jnp.broadcast_to(_checks.are_probabilities(logits), y.shape),
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _attacked(
    keep: bool,
    repeats: int,
    attack: Attack,
    key: Key,
    source: LogitsFn,
    judges: tuple[LogitsFn, ...],
    batch: Any,
) -> _Found:
    x, keys = as_float(batch.x), image_keys(key, batch.index)

    def run(keys: Key) -> tuple[Array, Verdict]:
        x_adv = attack(keys, source, x, batch.y)
        _checks.same_shape(x_adv=x_adv, x=x)
        return x_adv, judged(judges, x_adv, batch.y)

    if repeats == 1:
        x_adv, verdict = run(keys)
        return _found(verdict, x_adv, x, keep)

    def again(kept: tuple[Array, Verdict], number: Array):
        found = run(jax.vmap(jax.random.fold_in, (0, None))(keys, number))
        before, own = kept[1].own, found[1].own
        take = (before > 0) & (own <= before)

        def pick(new: Array, old: Array) -> Array:
            return jnp.where(take.reshape((-1,) + (1,) * (old.ndim - 1)), new, old)

        return jax.tree.map(pick, found, kept), None

    # Of the right types; what is judged here is not computed.
    start = (x, jax.tree.map(jnp.ones_like, judged(judges, x, batch.y)))
    (x_adv, verdict), _ = jax.lax.scan(again, start, jnp.arange(repeats))
    return _found(verdict, x_adv, x, keep)


def _found(verdict: Verdict, x_adv: Array, x: Any, keep: bool) -> _Found:
    delta = (x_adv - x).reshape(x.shape[0], -1)
    flat = x_adv.reshape(x.shape[0], -1)
    mass, above = flat.sum(axis=1), jnp.maximum(flat - 1, 0).sum(axis=1)
    return _Found(
        verdict=verdict,
        linf=jnp.abs(delta).max(axis=1),
        l2=jnp.linalg.norm(delta, axis=1),
        l1=jnp.abs(delta).sum(axis=1),
        lowest=flat.min(axis=1),
        highest=flat.max(axis=1),
        above_one=above / jnp.where(mass > 0, mass, 1),
        x_adv=x_adv if keep else None,
    )


def _result(
    named: NamedAttack, found: _Found, seconds: float, **rest: Any
) -> AttackResult:
    if not np.isfinite(found.l1).all():
        raise _checks.InputError(
            f"The attack {named.name!r} returned pixels that are not finite."
        )
    return AttackResult(
        name=named.name,
        parameters=named.parameters,
        correct=np.asarray(found.verdict.correct),
        seen=np.asarray(found.verdict.seen),
        distance={n: np.asarray(getattr(found, n)) for n in ("linf", "l2", "l1")},
        lowest=float(found.lowest.min()),
        highest=float(found.highest.max()),
        mass_above_one=float(found.above_one.max()),
        seconds=seconds,
        x_adv=None if found.x_adv is None else np.asarray(found.x_adv),
        counts=named.counts,
        norm=named.norm,
        radii=named.radii,
        **rest,
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
    kept = state_dir is not None and jax.process_count() == 1
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
        state_file=state_dir / f"{name}.unfinished.npz" if kept and state_dir else None,
        log=log,
    )
    seconds = time.monotonic() - start
    verdict = Verdict(*map(jnp.asarray, (outcome.correct,) * 3))
    if named.source is not None or named.judges or draws > 1:
        moved = dataclasses.replace(
            dataset.take(slice(total)), images=np.asarray(outcome.x_adv, np.float32)
        )
        rows = batches_of(judges[0], moved, batch_size, None, mesh)
        judge = jax.jit(judged)
        parts = [sharding.to_host(judge(judges, b.x, b.y)) for b in rows]
        verdict = jax.tree.map(lambda *rows: np.concatenate(rows)[:total], *parts)
    points = jnp.asarray(outcome.x_adv)
    found = jax.device_get(_found(verdict, points, x, keep))
    doubts = outcome.warnings
    if draws > 1:
        doubts = (*doubts, _STOPS_EARLY)
    extra = dict(stages=outcome.stages, warnings=doubts)
    return _result(named, found, seconds, **extra)
