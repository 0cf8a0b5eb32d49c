"""One stage of a run: steps, rows of metrics, validation, checkpoints.

Nothing in a step waits for the device: metrics stay there until a row is due. What
the next step depends on is in the checkpoint, the metrics that are not yet written
included.
"""

import dataclasses
import functools
import math
import threading
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from robustjax import _checks
from robustjax.training import sharding
from robustjax.training.checkpoint import Checkpoints, Progress
from robustjax.training.metrics import MetricsLog, ProgressBar
from robustjax.training.optimizers import freeze
from robustjax.training.state import TrainState, create_state
from robustjax.training.step import Prepare, TrainStep, make_train_step
from robustjax.types import Batch, Key, LossFn, PyTree, Stage, as_pytree

Validate = Callable[[PyTree, PyTree], dict[str, float]]
Init = Callable[[Key], tuple[PyTree, PyTree]]
Adopt = Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]

_DEFAULT_METRIC = "validation/robust_accuracy"


class StoppedBySignal(Exception):
    """SIGTERM or Ctrl-C arrived; the state has been saved. Exit code 75."""


class Diverged(Exception):
    """A metric turned non-finite; names the step and the last good checkpoint."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopOptions:
    """How the loop runs, apart from what it computes.

    Attributes:
      log_every: Steps between two rows of training metrics.
      validate_every: Epochs between two validations, each with a checkpoint.
      keep_last: Checkpoints kept beside the best one.
      average_decay: Decay of the moving average of parameters; None for none.
      accumulate: Parts into which each batch is cut, see `make_train_step`.
      progress_bar: Whether to draw one.
    """

    log_every: int = 20
    validate_every: int = 1
    keep_last: int = 2
    average_decay: float | None = None
    accumulate: int = 1
    progress_bar: bool = True

    def __post_init__(self):
        _checks.positive_int(
            log_every=self.log_every,
            validate_every=self.validate_every,
            keep_last=self.keep_last,
            accumulate=self.accumulate,
        )


@dataclasses.dataclass(frozen=True)
class Run:
    """What all stages of a run share."""

    checkpoints: Checkpoints
    log: MetricsLog
    mesh: Mesh
    options: LoopOptions
    validate: Mapping[str, Validate]
    prepare: Prepare | None
    adopt: Adopt | None
    stop: threading.Event


class StageRun:
    """One stage of a run."""

    def __init__(self, run: Run, stage: Stage, index: int, num_stages: int):
        self._shared, self._stage, self._index = run, stage, index
        self._is_last = index == num_stages - 1
        self._total = stage.num_epochs * stage.data.steps_per_epoch
        self._bar: ProgressBar | None = None

    def begun(self, previous: TrainState | None, init: Init, key: Key) -> TrainState:
        """The stage's first state, from the one before it or from `init`."""
        jit = functools.partial(
            jax.jit, out_shardings=sharding.replicated(self._shared.mesh)
        )
        init_key, stage_key = jax.random.split(jax.random.fold_in(key, self._index))
        if previous is None:
            params, model_state = jit(init)(init_key)
            if self._shared.adopt is not None:
                params, model_state = self._shared.adopt(params, model_state)
            step = 0
        else:
            params, model_state = previous.evaluated_params, previous.model_state
            step = previous.step
        create = functools.partial(
            create_state,
            optimizer=_optimizer(self._stage, params)[0],
            average=self._shared.options.average_decay is not None,
        )
        return jit(create)(params, model_state, key=stage_key, step=step)

    def restored(self, step: int, init: Init) -> TrainState:
        """The state of a checkpoint of this stage."""
        average = self._shared.options.average_decay is not None
        like = abstract_state(self._stage, init, self._shared.mesh, average=average)
        return self._shared.checkpoints.restore(step, like)

    def run(self, state: TrainState, progress: Progress) -> TrainState:
        """Steps from `progress` to the end of the stage."""
        try:
            return self._selected(*self._stepped(state, progress))
        finally:
            if self._bar is not None:
                self._bar.close()

    def _stepped(
        self, state: TrainState, progress: Progress
    ) -> tuple[TrainState, Progress]:
        shared, stage = self._shared, self._stage
        replicated = sharding.replicated(shared.mesh)
        step_of = self._step_of(state.params)
        step = jax.jit(
            lambda loss_fn, state, batch: step_of(loss_fn)(state, batch),
            out_shardings=replicated,
            donate_argnums=1,
        )
        # Weights of static models are arguments: compiled in they are constants, whose
        # text grows with them.
        loss_fn = jax.device_put(as_pytree(stage.loss_fn), replicated)
        batches = iter(stage.data)
        if progress.data is not None:
            batches.set_state(progress.data)
        pending: list[tuple[int, dict[str, Any]]] = list(progress.pending)
        offset = int(state.step) - progress.stage_step
        # Overlapping steps on several virtual CPU devices can starve one another's
        # collectives until XLA aborts; real devices need no such care.
        lockstep = shared.mesh.size > 1 and jax.default_backend() == "cpu"
        bar = None
        for done in range(progress.stage_step + 1, self._total + 1):
            batch = next(batches)
            if bar is None:
                bar = self._bar = self._new_bar(batch, done - 1)
            rows = sharding.local_rows(shared.mesh, batch)
            state, metrics = step(loss_fn, state, rows)
            if lockstep:
                jax.block_until_ready(metrics)
            pending.append((offset + done, metrics))
            epoch, into_epoch = divmod(done, stage.data.steps_per_epoch)
            over = done == self._total
            due = into_epoch == 0 and epoch % shared.options.validate_every == 0
            if due or over or done % shared.options.log_every == 0:
                self._flush(pending, bar, done)
            position = dataclasses.replace(
                progress, stage_step=done, data=batches.get_state()
            )
            if due or over:
                progress = self._validated(state, position, bar)
            elif self._stopped(done):
                self._finite(pending)
                kept = tuple((s, _floats(m)) for s, m in pending)
                self._save(state, dataclasses.replace(position, pending=kept))
                self._halt(offset + done)
            if (due or over) and self._stopped(done, at_checkpoint=True) and not over:
                self._halt(offset + done)
            progress = dataclasses.replace(progress, pending=())
        return state, progress

    def _step_of(self, params: PyTree) -> Callable[[LossFn], TrainStep]:
        options = self._shared.options
        optimizer, trainable = _optimizer(self._stage, params)
        return lambda loss_fn: make_train_step(
            loss_fn,
            optimizer,
            prepare=self._shared.prepare,
            trainable=trainable,
            average_decay=options.average_decay,
            accumulate=options.accumulate,
        )

    def _new_bar(self, batch: Batch, done: int) -> ProgressBar:
        size = len(batch.y) * jax.process_count()
        sharding.check_divides(self._shared.mesh, batch_size=size)
        return ProgressBar(
            self._stage.name,
            total=self._total,
            done=done,
            batch_size=size,
            shown=self._shared.options.progress_bar and jax.process_index() == 0,
        )

    def _flush(self, pending: list, bar: ProgressBar, done: int) -> None:
        """Writes the mean of the pending metrics as one row and empties the list."""
        if not pending:
            return
        rows = self._finite(pending)
        step = pending[-1][0]
        mean = {name: float(np.mean([row[name] for row in rows])) for name in rows[-1]}
        self._shared.log.write(step, self._tags(done, "train"), mean)
        speed = bar.update(done, mean)
        self._shared.log.speed(step, {"time/images_per_second": speed})
        pending.clear()

    def _finite(self, pending: list) -> list[dict[str, float]]:
        """The pending metrics as floats; raises if one is not finite."""
        rows = [_floats(metrics) for _, metrics in jax.device_get(pending)]
        for (step, _), row in zip(pending, rows, strict=True):
            for name, value in row.items():
                if not math.isfinite(value):
                    self._shared.checkpoints.wait()
                    saved = self._shared.checkpoints.steps()
                    good = f"step {saved[-1]}" if saved else "none, it came too early"
                    raise Diverged(
                        f"{name} is {value} at step {step} of stage "
                        f"{self._stage.name!r}. Last good checkpoint: {good}. Lower "
                        "the learning rate or clip the gradient (clip_norm)."
                    )
        return rows

    def _validated(
        self, state: TrainState, progress: Progress, bar: ProgressBar
    ) -> Progress:
        """Validates, saves, and returns the progress as saved."""
        value, shared = None, self._shared
        validate = shared.validate.get(self._stage.name)
        if validate is not None:
            metrics = validate(state.evaluated_params, state.model_state)
            step = int(state.step)
            shared.log.write(
                step, self._tags(progress.stage_step, "validation"), metrics
            )
            bar.show(metrics)
            bar.skip_clock()
            value = self._metric(metrics)
            best = -math.inf if progress.best_value is None else progress.best_value
            if value is not None and value >= best:
                progress = dataclasses.replace(
                    progress, best_step=step, best_value=value
                )
        over = progress.stage_step == self._total
        progress = dataclasses.replace(
            progress, pending=(), complete=over and self._is_last
        )
        self._save(state, progress, value)
        return progress

    def _metric(self, metrics: dict[str, float]) -> float | None:
        selection = self._stage.selection
        if selection == "last":
            return metrics.get(_DEFAULT_METRIC)
        if selection not in metrics:
            raise _checks.InputError(
                f"`selection` must be 'last' or one of {sorted(metrics)}, got "
                f"{selection!r}."
            )
        return metrics[selection]

    def _save(self, state: TrainState, progress: Progress, value: float | None = None):
        self._shared.checkpoints.save(state, progress, value=value)

    def _selected(self, state: TrainState, progress: Progress) -> TrainState:
        """The state with which the run goes on after this stage."""
        self._shared.checkpoints.wait()
        best = progress.best_step
        if self._stage.selection == "last" or self._is_last or best is None:
            return state
        like = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state
        )
        chosen = self._shared.checkpoints.restore(best, like)
        return dataclasses.replace(chosen, step=state.step)

    def _stopped(self, done: int, *, at_checkpoint: bool = False) -> bool:
        """Whether a signal has arrived, on any process."""
        if jax.process_count() == 1:
            return self._shared.stop.is_set()
        if not at_checkpoint and done % self._shared.options.log_every:
            return False  # all processes must ask together, and asking waits
        flag = np.array(self._shared.stop.is_set())
        return bool(np.any(multihost_utils.process_allgather(flag)))

    def _halt(self, step: int) -> None:
        self._shared.checkpoints.wait()
        raise StoppedBySignal(f"Stopped at step {step}; saved. Run again to go on.")

    def _tags(self, done: int, split: str) -> dict[str, object]:
        epoch = done / self._stage.data.steps_per_epoch
        return {"stage": self._stage.name, "epoch": round(epoch, 4), "split": split}


def _optimizer(
    stage: Stage, params: PyTree
) -> tuple[optax.GradientTransformation, PyTree | None]:
    """The stage's optimizer on what it trains, and what that is (None: all)."""
    if stage.trainable is None:
        return stage.optimizer, None
    trainable = stage.trainable(params)
    return freeze(stage.optimizer, trainable), trainable


def abstract_state(
    stage: Stage, init: Init, mesh: Mesh, *, average: bool
) -> TrainState:
    """Shapes, dtypes and shardings of a state of the stage."""
    key = jax.eval_shape(jax.random.key, 0)
    params, model_state = jax.eval_shape(init, key)
    create = functools.partial(
        create_state, optimizer=_optimizer(stage, params)[0], average=average
    )
    replicated = sharding.replicated(mesh)
    return jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=replicated),
        jax.eval_shape(create, params, model_state, key=key),
    )


def _floats(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}
