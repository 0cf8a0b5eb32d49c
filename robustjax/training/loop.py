"""The one loop: runs a list of stages and resumes exactly.

A run killed at any moment and started again ends bit for bit like one that was never
stopped; `stage.py` says how.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from jax.sharding import Mesh

from robustjax import _checks
from robustjax.training import sharding
from robustjax.training.checkpoint import Checkpoints, Progress
from robustjax.training.metrics import MetricsLog
from robustjax.training.stage import (
    Adopt,
    Init,
    LoopOptions,
    Run,
    StageRun,
    Validate,
    abstract_state,
)
from robustjax.training.state import TrainState
from robustjax.training.step import Prepare
from robustjax.types import Key, Stage


def train(
    stages: Sequence[Stage],
    init: Init,
    *,
    key: Key,
    workdir: str | Path,
    validate: Validate | Mapping[str, Validate] | None = None,
    prepare: Prepare | None = None,
    adopt: Adopt | None = None,
    options: LoopOptions | None = None,
    mesh: Mesh | None = None,
) -> TrainState:
    """Runs the stages from where the working directory stands to the end.

    Args:
      stages: What to run, in order.
      init: `key -> (params, model_state)`.
      key: A typed key; the whole run is a function of it and of the data.
      workdir: Holds `checkpoints/`, `metrics.jsonl` and `tensorboard/`.
      validate: `(params, model_state) -> metrics` ("validation/..."), run every
        `options.validate_every` epochs. `validation/robust_accuracy`, or the metric a
        stage selects by, decides which checkpoint is the best. Or one by each stage's
        name, for those that have one.
      prepare: `(key, images) -> x` on the device, see `make_train_step`.
      adopt: `(params, model_state) -> (params, model_state)` of the run's first state,
        outside of `jit`: puts trained networks in place of what `init` made.
      options: How the loop runs.
      mesh: Devices, by default all of them.

    Returns:
      The last state.

    Raises:
      InputError: the directory or a checkpoint in it cannot be used.
      StoppedBySignal: after saving; calling again goes on.
      Diverged: a metric is not finite.
    """
    if validate is None or callable(validate):
        validate = dict.fromkeys([s.name for s in stages], validate) if validate else {}
    _check_stages(stages, validate)
    options = options or LoopOptions()
    mesh = mesh or sharding.data_mesh()
    workdir = Path(workdir)
    checkpoints = Checkpoints(workdir / "checkpoints", keep_last=options.keep_last)
    with contextlib.closing(checkpoints), _signals() as stop:
        steps = checkpoints.steps()
        progress = checkpoints.progress(steps[-1]) if steps else Progress()
        log = MetricsLog(workdir, after=steps[-1] if steps else 0)
        run = Run(checkpoints, log, mesh, options, validate, prepare, adopt, stop)
        state = None
        with contextlib.closing(log):
            for index in range(progress.stage, len(stages)):
                stage_run = StageRun(run, stages[index], index, len(stages))
                if state is None and steps:
                    state = stage_run.restored(steps[-1], init)
                else:
                    state = stage_run.begun(state, init, key)
                    progress = Progress(stage=index)
                if not progress.complete:
                    state = stage_run.run(state, progress)
    return state  # pyright: ignore[reportReturnType]  # there is a stage


def _check_stages(stages: Sequence[Stage], validate: Mapping[str, Validate]) -> None:
    if not stages:
        raise _checks.InputError(f"`stages` must not be empty, got {stages!r}.")
    for stage in stages:
        _checks.positive_int(num_epochs=stage.num_epochs)
        if stage.selection != "last" and stage.name not in validate:
            raise _checks.InputError(
                f"`selection` of stage {stage.name!r} is {stage.selection!r}, which "
                "needs validation images: set data.validation."
            )


def load(
    stages: Sequence[Stage],
    init: Init,
    *,
    workdir: str | Path,
    checkpoint: str = "best",
    average: bool = False,
    mesh: Mesh | None = None,
) -> TrainState:
    """The state of a checkpoint, of the same stages as it was trained with.

    Args:
      stages: As given to `train`.
      init: As given to `train`.
      workdir: As given to `train`.
      checkpoint: `"best"` by validation in the last stage reached (the last one if
        nothing was validated), `"last"`, or a step.
      average: Whether the run carries a moving average of the parameters.
      mesh: Devices, by default all of them.

    Raises:
      InputError: there is no such checkpoint, or it cannot be used.
    """
    directory = Path(workdir) / "checkpoints"
    if checkpoint not in ("best", "last") and not checkpoint.isdecimal():
        raise _checks.InputError(
            f"`checkpoint` must be best, last or a step, got {checkpoint!r}."
        )
    if not directory.is_dir():
        raise _checks.InputError(f"`workdir` {workdir} holds no checkpoints.")
    with contextlib.closing(Checkpoints(directory, read_only=True)) as checkpoints:
        steps = checkpoints.steps()
        if not steps:
            raise _checks.InputError(f"`workdir` {workdir} holds no checkpoints.")
        step = int(checkpoint) if checkpoint.isdecimal() else steps[-1]
        progress = checkpoints.progress(step)
        if checkpoint == "best" and progress.best_step is not None:
            step = progress.best_step
        like = abstract_state(
            stages[progress.stage], init, mesh or sharding.data_mesh(), average=average
        )
        return checkpoints.restore(step, like)


@contextlib.contextmanager
def _signals() -> Iterator[threading.Event]:
    """SIGTERM and Ctrl-C set the event; a second one acts as usual."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}

    def handle(number: int, _: object) -> None:
        stop.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
