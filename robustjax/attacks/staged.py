"""Attacks in sequence, each on the images that all before it left standing.

It runs on the host, since its shapes depend on its results: the survivors of a stage
are gathered into batches, the last of which is padded to a power of two or split in two
such, so that a stage compiles at most log2(batch size) + 1 times. Stages are compiled
whole.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import _checks, _random
from robustjax.attacks import _outcome
from robustjax.attacks._diagnosis import diagnose
from robustjax.attacks._progress import Progress, ProgressFile
from robustjax.types import Array, Attack, Key, LogitsFn, Threat, as_pytree

_WORTH_SPLITTING = 16  # smaller batches take as long as half of them
_SQUARE_GAIN = 0.002  # share of the images; more means that gradients were masked


class Stage(NamedTuple):
    """One attack of the sequence.

    Attributes:
      name: As in the report.
      attack: Number of the round (traced) to attack; a round is a restart or a target.
      rounds: How many; images broken in one round do not see the next.
    """

    name: str
    attack: Callable[[Array], Attack]
    rounds: int = 1


@dataclasses.dataclass(frozen=True)
class StageOutcome:
    """What a stage did.

    Attributes:
      name: The stage's.
      attacked: Images that it was run on.
      broken: Images that it broke.
      accuracy: Share of all images still classified correctly after it.
      seconds: Wall time, compilation included.
    """

    name: str
    attacked: int
    broken: int
    accuracy: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a sequence of attacks did.

    Attributes:
      x_adv: [N, ...], the misclassified point; x where there is none, or where x is
        misclassified itself.
      correct: Images that nothing broke, [N] bool.
      clean_correct: Images classified correctly before, [N] bool.
      stages: One outcome each, in order; those that found no survivors ran on 0 images.
      warnings: What makes the result doubtful, one line each.
    """

    x_adv: np.ndarray
    correct: np.ndarray
    clean_correct: np.ndarray
    stages: tuple[StageOutcome, ...]
    warnings: tuple[str, ...]


class Placement(NamedTuple):
    """Where batches go: by default to the one default device.

    Attributes:
      devices: Over how many devices `place` spreads the rows.
      place: A tree of host arrays to the devices, by row.
      fetch: A tree of device arrays to the host.
    """

    devices: int = 1
    place: Callable[[Any], Any] = jax.device_put
    fetch: Callable[[Any], Any] = jax.device_get


@dataclasses.dataclass(frozen=True)
class StagedAttack:
    """A sequence of attacks with survivors; an `Attack` that runs on the host.

    Attributes:
      name: What the report calls it.
      threat: What all stages are held to.
      stages: Number of classes to stages; the same number gives the same objects.
      attacked: What the stages climb, such as an `expectation`; None is the classifier
        that judges.
    """

    name: str
    threat: Threat
    stages: Callable[[int], tuple[Stage, ...]]
    attacked: LogitsFn | None = None

    def __call__(self, key: Key, logits_fn: LogitsFn, x: Array, y: Array) -> Array:
        """x_adv, [B, ...], x where nothing was found; see `run`."""
        return jnp.asarray(self.run(key, logits_fn, x, y).x_adv)

    def run(
        self,
        key: Key,
        logits_fn: LogitsFn,
        x: Any,
        y: Any,
        *,
        index: np.ndarray | None = None,
        batch_size: int = 256,
        placement: Placement | None = None,
        state_file: Path | None = None,
        log: Callable[[str], None] | None = None,
        advance: Callable[[int, float], None] | None = None,
        keep_state: bool = False,
    ) -> Outcome:
        """Attacks all images and says what each stage did.

        Image i draws from `fold_in(key, index[i])` in every stage and round, so that
        batch size, padding, order and devices do not change its result.

        Args:
          key: A single key, or one per image [N], which then replaces `index`.
          logits_fn: The classifier, which judges; `models.logits_fn(...)` keeps its
            weights out of the compiled code.
          x: [N, H, W, C] in [0, 1].
          y: Labels [N].
          index: Numbers of the images for their keys, [N]; their positions if None.
          batch_size: Images at a time over all devices; rounded up to a multiple of
            them.
          placement: Devices, by default the first.
          state_file: Where progress is kept, so that a killed run goes on; it is
            written every half minute and after each round, and removed at the end.
          log: Called with one line after each stage.
          advance: Called with the number of a stage and the share of it that has just
            been done, those of a killed run first; the shares of a stage sum to 1.
          keep_state: Leaves the file where it is at the end, from which another run
            has the outcome at once.

        Raises:
          InputError: an argument is out of range, `state_file` belongs to another run,
            or the call is inside of `jit`, `vmap` or `grad`.
        """
        _checks.positive_int(batch_size=batch_size)
        placement = placement or Placement()
        is_random = _check_call(self.name, self.threat, key, logits_fn, x, y)
        judge, rows = as_pytree(logits_fn), _rows(key, x, y, index)
        climbed = judge if self.attacked is None else as_pytree(self.attacked)
        count = len(rows.y)
        largest = _multiple(min(batch_size, count), placement.devices)
        take = functools.partial(_take, rows, placement, largest)
        blocks = functools.partial(_blocks, largest, placement.devices)

        clean = np.zeros(count, bool)
        for chosen in blocks(np.ones(count, bool)):
            right = placement.fetch(_correct(judge, take(chosen)))
            clean[chosen] = right[: len(chosen)]
        first = min(count, largest)
        batch = take(np.arange(first))
        found = diagnose(
            climbed,
            judge,
            batch.x,
            batch.y,
            count=first,
            is_random=is_random,
            bounds=self.threat.bounds,
            fetch=placement.fetch,
        )
        stages = self.stages(found.logits.shape[1])

        file = ProgressFile(
            *(state_file, self.name, [s.name for s in stages], tuple(self.threat[:3])),
            *(rows, judge, climbed, clean),
            probe=found.logits[: 0 if found.is_random else 8],
        )
        work = file.load(Progress.start(rows.x, clean, len(stages)))
        advance = advance or (lambda stage, share: None)
        for number in range(int(work.stage)):
            advance(number, 1.0)
        if work.round:
            advance(int(work.stage), int(work.round) / stages[int(work.stage)].rounds)
        while work.stage < len(stages):
            stage = stages[int(work.stage)]
            pending = int(work.pending.sum())
            for chosen in blocks(work.pending):
                start, size = time.monotonic(), len(chosen)
                position = (np.uint32(work.stage), np.uint32(work.round))
                static = (stage.attack, self.threat, str(jax.random.key_impl(key)))
                result = _attacked(*static, position, climbed, judge, take(chosen))
                is_broken, x_adv = placement.fetch(result)
                seconds = time.monotonic() - start
                work.record(chosen, is_broken[:size], x_adv[:size], seconds)
                file.save(work)
                advance(int(work.stage), size / pending / stage.rounds)
            if not pending:
                advance(int(work.stage), 1 / stage.rounds)
            if log and work.round == stage.rounds - 1:
                spent = work.seconds[int(work.stage)]
                log(f"{stage.name}: {work.correct.mean():.2%}, {spent:.0f} s")
            work.next_round(stage.rounds)
            file.save(work, now=True)
        if not keep_state:
            file.remove()
        return _outcome_of(work, clean, stages, found.warnings)


def _outcome_of(
    work: Progress, clean: np.ndarray, stages: Sequence[Stage], warnings: list[str]
) -> Outcome:
    total = max(len(clean), 1)
    left = clean.sum() - np.cumsum(work.broken)
    names = [stage.name for stage in stages]
    if "Square" in names[1:]:
        gain = work.broken[names.index("Square")]
        if gain > _SQUARE_GAIN * total:
            warnings = [
                *warnings,
                f"Square, which sees no gradients, broke {100 * gain / total:.1f} "
                "points after the gradient attacks (more than 0.2): gradients may "
                "be masked.",
            ]
    outcomes = tuple(
        StageOutcome(name, int(attacked), int(broken), float(rest) / total, float(s))
        for name, attacked, broken, rest, s in zip(
            names, work.attacked, work.broken, left, work.seconds, strict=True
        )
    )
    return Outcome(work.x_adv, work.correct, clean, outcomes, tuple(warnings))


def _check_call(
    name: str, threat: Threat, key: Key, logits_fn: LogitsFn, x: Any, y: Any
) -> bool:
    """Whether two calls differ; refuses tracers and what `check_call` refuses."""
    is_random = False
    concrete = all(map(_checks.is_concrete, (key, x, y, threat.eps)))
    if concrete:
        x, y = np.asarray(x), np.asarray(y)
        _outcome.check_call(logits_fn, x, y)  # pyright: ignore[reportArgumentType]
        if not len(x):
            raise _checks.InputError("`x` must hold at least one image, got none.")
        logits = logits_fn(x[:1])  # pyright: ignore[reportArgumentType]
        concrete = _checks.is_concrete(logits)
        if logits.ndim != 2:
            raise _checks.InputError(
                f"`logits_fn` must return [B, K] to judge, got shape {logits.shape}. "
                "Give `expectation` another `average`."
            )
        if concrete:
            again = logits_fn(x[:1])  # pyright: ignore[reportArgumentType]
            is_random = not np.array_equal(logits, again, equal_nan=True)
    if not concrete:
        raise _checks.InputError(
            f"`{name}` runs on the host and compiles its own stages: call it outside "
            "of jit, vmap and grad."
        )
    if not isinstance(threat.eps, (int, float)):
        raise _checks.InputError(
            f"`threat.eps` must be a Python number for `{name}`, got "
            f"{type(threat.eps).__name__}."
        )
    return is_random


class _Rows(NamedTuple):
    x: Any
    y: Any
    key_data: Any


def _rows(key: Key, x: Any, y: Any, index: np.ndarray | None) -> _Rows:
    """Everything that belongs to an image, on the host."""
    images, labels = np.asarray(x), np.asarray(y)
    _checks.same_batch(x=images, y=labels)  # pyright: ignore[reportArgumentType]
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise _checks.InputError(
            f"`y` must be integer labels [N], got {labels.dtype} {labels.shape}."
        )
    _checks.keys(key)
    if key.ndim == 0:
        numbers = np.arange(len(images)) if index is None else np.asarray(index)
        key = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers.astype(np.uint32))
    else:
        key = _random.per_image_keys(key, len(images))
    return _Rows(images, labels.astype(np.int32), np.asarray(jax.random.key_data(key)))


def _take(rows: _Rows, placement: Placement, largest: int, chosen: np.ndarray) -> _Rows:
    """The chosen images on the devices, filled up with the first of them."""
    missing = min(largest, _bucket(len(chosen), placement.devices)) - len(chosen)
    padded = np.concatenate([chosen, np.repeat(chosen[:1], missing)])
    return placement.place(jax.tree.map(lambda part: part[padded], rows))


def _multiple(count: int, devices: int) -> int:
    return devices * math.ceil(count / devices)


def _blocks(size: int, devices: int, wanted: np.ndarray) -> Iterator[np.ndarray]:
    """Positions of the wanted images, at most `size` at a time."""
    chosen = np.flatnonzero(wanted)
    for start in range(0, len(chosen), size):
        block = chosen[start : start + size]
        bucket = _bucket(len(block), devices)
        wasteful = len(block) <= 0.75 * min(size, bucket)
        if wasteful and bucket >= _WORTH_SPLITTING * devices:
            yield block[: bucket // 2]  # 33 are 32 and 1, rather than 64
            block = block[bucket // 2 :]
        yield block


def _bucket(count: int, devices: int) -> int:
    """The smallest power of two, times the devices, that holds `count` images."""
    return devices * 2 ** max(0, math.ceil(math.log2(max(count, 1) / devices)))


@jax.jit
def _correct(judge: LogitsFn, batch: _Rows) -> Array:
    return ~_outcome.broken(judge(batch.x), batch.y)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _attacked(
    attack_of: Callable[[Array], Attack],
    threat: Threat,
    key_impl: str,
    position: tuple[Array, Array],
    climbed: LogitsFn,
    judge: LogitsFn,
    batch: _Rows,
) -> tuple[Array, Array]:
    """Whether each image was broken, and its point, held to the threat."""
    stage, turn = position
    keys = jax.random.wrap_key_data(batch.key_data, impl=key_impl)
    keys = _random.fold_in(_random.fold_in(keys, stage), turn)
    x_adv = attack_of(turn)(keys, climbed, batch.x, batch.y)
    inside = threat.norm(x_adv - batch.x) <= threat.eps * (1 + 1e-5) + 1e-6
    low, high = threat.bounds
    in_box = (x_adv >= low - 1e-6) & (x_adv <= high + 1e-6)
    inside &= in_box.reshape(len(inside), -1).all(axis=1)
    return _outcome.broken(judge(x_adv), batch.y) & inside, x_adv
