"""One attack on one block of images, judged: what `evaluate` compiles."""

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import _checks
from robustjax.attacks import keep_path
from robustjax.data import as_float
from robustjax.evaluation._batching import image_keys
from robustjax.evaluation._judging import Verdict, judged
from robustjax.evaluation.results import AttackResult, Fooled, NamedAttack
from robustjax.types import Array, Attack, IteratedAttack, Key, LogitsFn

SHOWN = 8  # images whose x_adv is always kept, for the eye; and of those broken


class Answer(NamedTuple):
    """What a classifier says of B points.

    Attributes:
      verdict: Whether it is right.
      predicted: Its class, [B]; of a random one that of the mean probabilities. -1
        where a logit is NaN.
      confidence: The probability of that class, [B]; 0 where a logit is NaN.
      nan: Whether a logit is NaN, which counts as broken, [B].
    """

    verdict: Verdict
    predicted: Array
    confidence: Array
    nan: Array


class Clean(NamedTuple):
    """The clean images of a block.

    Attributes:
      answer: What the classifier says of them.
      nan: Whether a pixel is NaN, [B].
      probabilities: Whether the logits of the block look like probabilities, [B].
    """

    answer: Answer
    nan: Array
    probabilities: Array


class Found(NamedTuple):
    """What an attack did to a block; numbers [B].

    Attributes:
      answer: What the classifier says of x_adv.
      linf: Distance from x.
      l2: Distance from x.
      l1: Distance from x.
      lowest: Smallest pixel.
      highest: Largest pixel.
      above_one: Share of the mass above 1.
      shown: x_adv of the first images.
      fooled: The first of those that were moved and broken; the row of others is -1.
      x_adv: [B, H, W, C], or None.
      losses: The objective along the attack's path, [B, T], or None.
      broken_along: Whether it was broken by then, [B, T], or None.
    """

    answer: Answer
    linf: Array
    l2: Array
    l1: Array
    lowest: Array
    highest: Array
    above_one: Array
    shown: Array
    fooled: Fooled
    x_adv: Array | None
    losses: Array | None
    broken_along: Array | None


def answer(judges: tuple[LogitsFn, ...], x: Array, y: Array) -> Answer:
    """The worst of the judges' verdicts, and what the first of them sees."""
    logits = judges[0](x)
    verdict = judged((lambda _: logits, *judges[1:]), x, y)
    wide = logits.astype(jnp.float32)
    share = jax.nn.softmax(wide)
    if share.ndim == 3:
        share, wide = share.mean(axis=0), wide.mean(axis=0)
    nan = jnp.isnan(wide).any(axis=1)
    predicted = jnp.where(nan, -1, share.argmax(axis=1))
    return Answer(verdict, predicted, jnp.where(nan, 0, share.max(axis=1)), nan)


@jax.jit
def clean(predict: LogitsFn, x: Array, y: Array) -> Clean:
    """The clean pass."""
    logits = predict(x)
    return Clean(
        answer=answer((lambda _: logits,), x, y),
        nan=jnp.isnan(x).reshape(x.shape[0], -1).any(axis=1),
        probabilities=jnp.broadcast_to(_checks.are_probabilities(logits), y.shape),
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def attacked(
    keep: bool,
    repeats: int,
    attack: Attack,
    key: Key,
    source: LogitsFn,
    judges: tuple[LogitsFn, ...],
    batch: Any,
) -> Found:
    """Runs an attack and judges it, `repeats` times, of which the worst counts."""
    x, keys = as_float(batch.x), image_keys(key, batch.index)

    def run(keys: Key) -> tuple[Array, Answer]:
        x_adv = attack(keys, source, x, batch.y)
        if not isinstance(x_adv, jax.Array):
            raise _checks.InputError(
                f"`attack` must return images [B, ...], got {type(x_adv).__name__}."
            )
        _checks.same_shape(x_adv=x_adv, x=x)
        return x_adv, answer(judges, x_adv, batch.y)

    if repeats == 1:
        iterated = getattr(attack, "func", attack)
        if isinstance(iterated, IteratedAttack) and iterated.seen is not None:
            x_adv, path = keep_path(iterated)(keys, source, x, batch.y)
            _checks.same_shape(x_adv=x_adv, x=x)
            return found(answer(judges, x_adv, batch.y), x_adv, x, keep, path)
        x_adv, said = run(keys)
        return found(said, x_adv, x, keep)

    def again(kept: tuple[Array, Answer], number: Array):
        new = run(jax.vmap(jax.random.fold_in, (0, None))(keys, number))
        before, own = kept[1].verdict.own, new[1].verdict.own
        take = (before > 0) & (own <= before)

        def pick(new: Array, old: Array) -> Array:
            return jnp.where(take.reshape((-1,) + (1,) * (old.ndim - 1)), new, old)

        return jax.tree.map(pick, new, kept), None

    # Of the right types; what is judged here is not computed.
    start = (x, jax.tree.map(jnp.ones_like, answer(judges, x, batch.y)))
    (x_adv, said), _ = jax.lax.scan(again, start, jnp.arange(repeats))
    return found(said, x_adv, x, keep)


def found(said: Answer, x_adv: Array, x: Any, keep: bool, path: Any = None) -> Found:
    """What there is to say about points."""
    delta = (x_adv - x).reshape(x.shape[0], -1)
    flat = x_adv.reshape(x.shape[0], -1)
    mass, above = flat.sum(axis=1), jnp.maximum(flat - 1, 0).sum(axis=1)
    return Found(
        answer=said,
        linf=jnp.abs(delta).max(axis=1),
        l2=jnp.linalg.norm(delta, axis=1),
        l1=jnp.abs(delta).sum(axis=1),
        lowest=flat.min(axis=1),
        highest=flat.max(axis=1),
        above_one=above / jnp.where(mass > 0, mass, 1),
        shown=x_adv[:SHOWN],
        fooled=_fooled(said.verdict.correct < 0.5, x_adv, x),
        x_adv=x_adv if keep else None,
        losses=None if path is None else path.value,
        broken_along=None if path is None else path.broken,
    )


def _fooled(broken: Array, x_adv: Array, x: Array) -> Fooled:
    broken = broken & (x_adv != x).reshape(x.shape[0], -1).any(axis=1)
    rows = jnp.argsort(~broken, stable=True)[:SHOWN]
    return Fooled(jnp.where(broken[rows], rows, -1), x[rows], x_adv[rows])


def joined(blocks: Iterable[Any], total: int) -> Any:
    """The rows of all blocks, without padding; the first few images for the eye."""
    parts, done, fooled = [], 0, 0
    for block in blocks:
        size = len(jax.tree.leaves(block)[0])
        if isinstance(block, Found):
            block = _without_late_images(block, done, fooled, total)
            fooled += len(block.fooled.rows)
        parts.append(block)
        done += size
    return jax.tree.map(lambda *rows: np.concatenate(rows)[:total], *parts)


def _without_late_images(block: Found, done: int, fooled: int, total: int) -> Found:
    # Here, since a result that held them would grow with the set.
    rows = np.asarray(block.fooled.rows)
    (kept,) = np.nonzero((rows >= 0) & (rows + done < total))
    few = jax.tree.map(lambda rows: rows[kept[: SHOWN - fooled]], block.fooled)
    return block._replace(
        shown=np.array(block.shown[: max(SHOWN - done, 0)]),
        fooled=few._replace(rows=few.rows + done),
    )


def result_of(
    named: NamedAttack, rows: Found, seconds: float, **rest: Any
) -> AttackResult:
    """The rows of all blocks as a result.

    Raises:
      InputError: pixels are not finite.
    """
    if not np.isfinite(rows.l1).all():
        raise _checks.InputError(
            f"The attack {named.name!r} returned pixels that are not finite."
        )
    kept = rows._asdict() | rows.answer._asdict()
    kept["shown"] = np.array(kept["shown"][:SHOWN])  # a view keeps the others alive
    same = ("x_adv", "shown", "losses", "broken_along", "predicted", "confidence")
    as_array = lambda value: None if value is None else np.asarray(value)
    return AttackResult(
        name=named.name,
        parameters=named.parameters,
        correct=np.asarray(rows.answer.verdict.correct),
        seen=np.asarray(rows.answer.verdict.seen),
        distance={n: np.asarray(kept[n]) for n in ("linf", "l2", "l1")},
        lowest=float(rows.lowest.min()),
        highest=float(rows.highest.max()),
        mass_above_one=float(rows.above_one.max()),
        num_nan=int(rows.answer.nan.sum()),
        seconds=seconds,
        counts=named.counts,
        norm=named.norm,
        radii=named.radii,
        own=named.source is None,
        fooled=rows.fooled,
        **{name: as_array(kept[name]) for name in same},
        **rest,
    )
