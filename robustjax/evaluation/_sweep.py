"""One classifier and one data set, gone through by one attack after another."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from robustjax import _checks
from robustjax.attacks import Placement, StagedAttack
from robustjax.data import Dataset, as_float
from robustjax.evaluation import _running
from robustjax.evaluation._batching import batches_of, block_size
from robustjax.evaluation._judging import Verdict, num_draws
from robustjax.evaluation.estimate import stage_cost
from robustjax.evaluation.results import AttackResult, NamedAttack
from robustjax.evaluation.unfinished import Unfinished
from robustjax.training import sharding
from robustjax.types import Array, Key, LogitsFn, as_pytree, is_transductive

_STOPS_EARLY = (
    "The classifier is random, and the attack leaves an image alone once some draws "
    "are wrong: others may be right more often than after a plain gradient attack."
)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What every attack of an evaluation is run on, and how.

    Attributes:
      predict: The classifier that judges.
      dataset: The images.
      total: How many of them.
      key: A typed key.
      batch_size: Images at a time over all devices.
      mesh: Devices, by default all of them.
      keep_adversarial: Whether results hold x_adv.
      log: Called with one line after each stage of a staged attack.
      advance: Called with the position of an attack and the share of it just done.
    """

    predict: LogitsFn
    dataset: Dataset
    total: int
    key: Key
    batch_size: int
    mesh: Mesh | None
    keep_adversarial: bool
    log: Callable[[str], None] | None = None
    advance: Callable[[int, float], None] | None = None

    @functools.cached_property
    def draws(self) -> int:
        """Of the classifier; 1 if it is not random."""
        first = as_float(jnp.asarray(self.dataset.images[:1]))
        return num_draws(self.predict, first)

    def clean(self) -> tuple[Any, float]:
        """The clean pass, a `_running.Clean` on the host, and its seconds."""
        run = lambda batch: _running.clean(self.predict, as_float(batch.x), batch.y)
        return self._gathered(run, -1, self.batch_size, Unfinished(None))

    def whole(
        self, named: NamedAttack, position: int, unfinished: Unfinished
    ) -> AttackResult:
        """An attack that is one compiled program, block by block."""
        attack, source, judges = as_pytree(named.attack), *self._looked_at(named)
        size = block_size(
            (attack, source, *judges), self.batch_size, self.total, self.mesh
        )

        def run(batch: Any) -> _running.Found:
            return _running.attacked(
                *(self.keep_adversarial, named.repeats, attack),
                *(self.key, source, judges, batch),
            )

        about = (named.name, dict(named.parameters))
        about = (*about, self.keep_adversarial, named.repeats)
        work = (about, attack, source, judges)
        try:
            rows, seconds = self._gathered(run, position, size, unfinished, *work)
        except jax.errors.JAXTypeError as error:
            raise _checks.InputError(
                f"`attack` {named.name!r}, with its source and judges, must be written "
                "in jax.numpy, got what looks at the values of its images: compiled "
                "code has none. Wrap that in jax.pure_callback."
            ) from error
        return _running.result_of(named, rows, seconds)

    def staged(
        self, named: NamedAttack, position: int, unfinished: Unfinished
    ) -> AttackResult:
        """An attack that leaves broken images out of its later stages, on the set."""
        source, judges = self._looked_at(named)
        if is_transductive(source):
            raise _checks.InputError(
                f"The attack {named.name!r} leaves broken images out of its batches, "
                "where they would be queries of a transductive classifier: take "
                "queries='single' (or a view with it)."
            )
        outcome, seconds = self._run_staged(named, source, position, unfinished)
        x_adv = np.asarray(outcome.x_adv, np.float32)
        rows = self._judged(judges, x_adv)
        rows = rows._replace(x_adv=x_adv if self.keep_adversarial else None)
        if named.source is None and not named.judges and self.draws == 1:
            # What the attack saw itself counts, not another compilation's rounding.
            verdict = Verdict(*map(jnp.asarray, (outcome.correct,) * 3))
            rows = rows._replace(answer=rows.answer._replace(verdict=verdict))
        doubts = outcome.warnings
        if self.draws > 1:
            doubts = (*doubts, _STOPS_EARLY)
        extra = dict(stages=outcome.stages, warnings=doubts)
        return _running.result_of(named, rows, seconds, **extra)

    def _looked_at(self, named: NamedAttack) -> tuple[LogitsFn, tuple[LogitsFn, ...]]:
        """What the attack climbs, and what judges it."""
        source = self.predict if named.source is None else as_pytree(named.source)
        return source, (self.predict, *map(as_pytree, named.judges))

    def _gathered(
        self,
        run: Callable[[Any], NamedTuple],
        position: int,
        size: int,
        unfinished: Unfinished,
        *work: Any,
    ) -> tuple[Any, float]:
        """The rows of all blocks, and the seconds that they took."""
        mark, seconds = unfinished.mark(*work), []
        batches = batches_of(self.predict, self.dataset, size, self.total, self.mesh)

        def blocks() -> Iterator[Any]:
            done = 0
            for number, batch in enumerate(batches):
                found = unfinished.block(str(position), number, run, batch, mark)
                seconds.append(found[1])
                share = min(len(batch.y), self.total - done) / self.total
                done += len(batch.y)
                if self.advance:
                    self.advance(position, share)
                yield found[0]

        return _running.joined(blocks(), self.total), sum(seconds)

    def _run_staged(
        self,
        named: NamedAttack,
        source: LogitsFn,
        position: int,
        unfinished: Unfinished,
    ) -> tuple[Any, float]:
        """What a staged attack came to, and its seconds, those before a kill too."""
        assert isinstance(named.attack, StagedAttack)
        mesh = self.mesh or sharding.data_mesh()
        placement = Placement(
            mesh.shape["data"],
            functools.partial(sharding.global_rows, mesh),
            sharding.to_host,
        )
        # Two attacks may have one name, but not one position.
        name = "".join(c if c.isalnum() else "_" for c in f"{position} {named.name}")
        dataset = self.dataset.take(slice(self.total))
        # Block by block on the devices, which need not hold the whole set.
        starts = range(0, self.total, self.batch_size)
        blocks = (dataset.images[i : i + self.batch_size] for i in starts)
        x = np.concatenate([np.asarray(as_float(jnp.asarray(part))) for part in blocks])
        start = time.monotonic()
        advance = self._by_stages(named.attack, position, x.shape[1:])
        outcome = named.attack.run(
            *(self.key, source, x, dataset.labels),
            index=dataset.index,
            batch_size=self.batch_size,
            placement=placement,
            state_file=unfinished.path(name),
            log=self.log,
            advance=advance,
            keep_state=True,
        )
        spent = sum(stage.seconds for stage in outcome.stages)
        return outcome, max(time.monotonic() - start, spent)

    def _by_stages(
        self, attack: StagedAttack, position: int, shape: tuple[int, ...]
    ) -> Callable[[int, float], None] | None:
        """Shares of stages as shares of the attack, by the passes that they make."""
        if self.advance is None:
            return None
        classes = len(self.dataset.class_names)
        stages = attack.stages(classes)
        # What asks nothing takes its time too.
        costs = np.array([1 + stage_cost(stage, shape, classes) for stage in stages])
        tell, weights = self.advance, costs / costs.sum()
        return lambda number, share: tell(position, float(weights[number]) * share)

    def _judged(
        self, judges: tuple[LogitsFn, ...], x_adv: np.ndarray
    ) -> _running.Found:
        """What the judges say of points."""
        before = self.dataset.take(slice(self.total))
        after = dataclasses.replace(before, images=x_adv)
        pairs = (
            batches_of(judges[0], rows, self.batch_size, None, self.mesh)
            for rows in (after, before)
        )
        parts = (
            sharding.to_host(_judged_points(judges, moved.x, clean.x, clean.y))
            for moved, clean in zip(*pairs, strict=True)
        )
        return _running.joined(parts, self.total)


@jax.jit
def _judged_points(judges: tuple[LogitsFn, ...], x_adv: Array, x: Array, y: Array):
    said = _running.answer(judges, x_adv, y)
    return _running.found(said, x_adv, as_float(x), False)
