"""Where metrics go: metrics.jsonl, TensorBoard events, the progress bar.

`metrics.jsonl` holds only what the computation determines, so a run that was killed
and resumed ends with the same bytes as one that never was. Speeds go to TensorBoard
and to the bar.
"""

import contextlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

import jax
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore
from tqdm import tqdm

from robustjax._checks import InputError


class MetricsLog:
    """Writes rows of metrics; only the first process of a run writes anything.

    Args:
      workdir: The run's directory.
      after: Rows of later steps than this are dropped first: they come from work that
        was done after the checkpoint which is being resumed.

    Raises:
      InputError: the directory cannot be written.
    """

    def __init__(self, workdir: Path, *, after: int):
        self._path = workdir / "metrics.jsonl"
        self._events = None
        if jax.process_index() > 0:
            return
        kept = [row for row in _rows(self._path) if row["step"] <= after]
        partial = self._path.with_suffix(".partial")
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            partial.write_text("".join(json.dumps(row) + "\n" for row in kept))
            partial.replace(self._path)
            self._events = _Events(workdir / "tensorboard", first_step=after + 1)
        except OSError as error:
            raise InputError(f"Cannot write to {workdir}: {error.strerror}.") from error

    def write(self, step: int, tags: Mapping[str, object], values: Mapping[str, float]):
        """Appends a row `{"step", **tags, **values}` and mirrors it to TensorBoard."""
        if self._events is None:
            return
        row = {"step": step, **tags, **{k: values[k] for k in sorted(values)}}
        try:
            with self._path.open("a") as file:
                file.write(json.dumps(row) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(f"Cannot write {self._path}: {error.strerror}.") from error
        self.speed(step, values)

    def speed(self, step: int, values: Mapping[str, float]):
        """TensorBoard only: what differs from run to run."""
        if self._events is None:
            return
        try:
            self._events.write(step, values)
        except OSError as error:
            raise InputError(
                f"Cannot write TensorBoard events beside {self._path}: "
                f"{error.strerror}."
            ) from error

    def close(self):
        """Closes the event file."""
        if self._events is not None:
            self._events.close()


class _Events:
    """A TensorBoard event file, written in this thread.

    The thread of `tensorboardX.SummaryWriter` dies where the disk is full, and the next
    scalars wait for it for ever.
    """

    def __init__(self, directory: Path, *, first_step: int):
        directory.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(directory / "events"))
        # What an earlier start of the run wrote from this step on is void.
        self._add(first_step, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, values: Mapping[str, float]):
        for name, value in values.items():
            self._add(step, summary=summary.scalar(name, value))
        self._writer.flush()

    def close(self):
        with contextlib.suppress(OSError):  # every row is in metrics.jsonl
            self._writer.close()

    def _add(self, step: int, **content: object):
        self._writer.write_event(Event(wall_time=time.time(), step=step, **content))


class ProgressBar:
    """Loss, clean and robust accuracy, images per second and time left of one stage.

    Args:
      name: The stage.
      total: Its steps.
      done: Those taken before a resume.
      batch_size: Images per step.
      shown: False prints nothing.
    """

    def __init__(
        self, name: str, *, total: int, done: int, batch_size: int, shown: bool
    ):
        self._bar = tqdm(
            total=total, initial=done, desc=name, unit="step", disable=not shown
        )
        self._batch_size = batch_size
        self._shown: dict[str, str] = {}
        self._clock, self._counted = time.monotonic(), done

    def update(self, done: int, metrics: Mapping[str, float]) -> float:
        """Moves to `done` steps; returns the images per second since the last call."""
        now = time.monotonic()
        speed = self._batch_size * (done - self._counted) / max(now - self._clock, 1e-9)
        self._clock, self._counted = now, done
        self.show(metrics)
        self._shown["img/s"] = f"{speed:.0f}"
        self._bar.n = done
        self._bar.set_postfix(self._shown, refresh=True)
        return speed

    def show(self, metrics: Mapping[str, float]):
        """Takes over the figures that the bar has room for."""
        for name, label in (
            ("loss/total", "loss"),
            ("accuracy/clean", "clean"),
            ("accuracy/robust", "robust"),
            ("validation/clean_accuracy", "val clean"),
            ("validation/robust_accuracy", "val robust"),
        ):
            if name in metrics:
                self._shown[label] = f"{metrics[name]:.3f}"

    def skip_clock(self):
        """Restarts the clock, so that validation does not count as training time."""
        self._clock = time.monotonic()

    def close(self):
        """Leaves the bar as it stands."""
        self._bar.close()


def _rows(path: Path) -> list[dict]:
    """The whole rows of a metrics file, without a line that a kill cut off."""
    rows = []
    if path.exists():
        for line in path.read_text(errors="replace").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict) and "step" in row]
