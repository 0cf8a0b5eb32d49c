"""Checkpoints: asynchronous, atomic, the last few and the best by validation.

All knowledge of Orbax is here. A checkpoint holds the training state and `Progress`,
a small JSON record of where in the run it stands (stage, data iterator, metrics not
yet written, best so far).
"""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import tensorstore
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    BestN,
    LatestN,
)

from robustjax import _files
from robustjax._checks import InputError
from robustjax.training.state import TrainState
from robustjax.types import PyTree

_RECORDS = ("_CHECKPOINT_METADATA", "_METADATA", "_sharding", "metadata", "metrics")


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where in the run a checkpoint stands.

    Attributes:
      stage: Index of the stage.
      stage_step: Steps taken in it.
      data: State of its data iterator.
      pending: Metrics of steps since the last written row, as (step, metrics).
      best_step: Step of the stage's best checkpoint by validation; None before any.
      best_value: Its selection metric.
      complete: Whether the whole run is over.
    """

    stage: int = 0
    stage_step: int = 0
    data: dict[str, Any] | None = None
    pending: tuple[tuple[int, dict[str, float]], ...] = ()
    best_step: int | None = None
    best_value: float | None = None
    complete: bool = False


class Checkpoints:
    """The checkpoints of one working directory.

    Args:
      directory: Where they are; created unless `read_only`.
      keep_last: How many of the latest are kept, beside the best one.
      read_only: Whether nothing may be written or tidied up: another process may be
        saving at this very moment.

    Raises:
      InputError: the directory cannot be written, or a record in it is damaged.
    """

    def __init__(
        self, directory: str | Path, *, keep_last: int = 2, read_only: bool = False
    ):
        self.directory = Path(directory).absolute()
        # What goes wrong comes back as an exception; no pages of tracebacks as well.
        logging.getLogger("absl").setLevel(logging.CRITICAL + 1)
        if read_only:
            # Reads no records of checkpoints that nobody asked for.
            options = ocp.CheckpointManagerOptions(
                read_only=True, lightweight_initialize=True
            )
        else:
            self._check_records()
            options = _saving_options(keep_last)
        try:
            self._manager = ocp.CheckpointManager(
                self.directory,
                options=options,
                # Named here so that a fresh process can read their metadata.
                item_handlers={
                    "state": ocp.StandardCheckpointHandler(),
                    "progress": ocp.JsonCheckpointHandler(),
                },
            )
        except OSError as error:
            raise InputError(
                f"Cannot write checkpoints to {self.directory}: {error.strerror}."
            ) from error

    def steps(self) -> list[int]:
        """The steps that can be restored, ascending."""
        # From the names: what is being saved does not bear its own yet.
        names = [path.name for path in self.directory.glob("*")]
        return sorted(int(name) for name in names if name.isdecimal())

    def save(
        self, state: TrainState, progress: Progress, *, value: float | None = None
    ) -> None:
        """Starts saving; returns as soon as the state may change.

        Args:
          state: What to save.
          progress: Where in the run it stands.
          value: The selection metric, where validation has just been run.

        Raises:
          InputError: this or the previous save failed (disk full, no permission); the
            checkpoints before it are untouched.
        """
        step = int(state.step)
        metrics = None if value is None else {"stage": progress.stage, "value": value}
        # On CPU the saving thread would read buffers that the next step donates.
        snapshot = jax.tree.map(jnp.copy, state)
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(snapshot),  # pyright: ignore
                    progress=ocp.args.JsonSave(dataclasses.asdict(progress)),  # pyright: ignore
                ),
                metrics=metrics,
                force=True,
            )
        except Exception as error:
            raise self._failed(error) from error

    def wait(self) -> None:
        """Blocks until what was saved is on disk.

        Raises:
          InputError: saving failed.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failed(error) from error

    def progress(self, step: int) -> Progress:
        """The record of one checkpoint.

        Raises:
          InputError: there is no such checkpoint or it is damaged.
        """
        if step not in self.steps():
            raise InputError(
                f"No checkpoint of step {step} in {self.directory}; there are "
                f"{self.steps() or 'none'}."
            )
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(progress=ocp.args.JsonRestore()),  # pyright: ignore
            )
            fields = dict(restored["progress"])  # pyright: ignore
            fields["pending"] = tuple((s, m) for s, m in fields["pending"])
            return Progress(**fields)
        except Exception as error:
            raise self._damaged(step, error) from error

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state of one checkpoint.

        Args:
          step: Which.
          like: A state of the expected shapes, dtypes and shardings; `jax.eval_shape`
            results with shardings do.

        Raises:
          InputError: it is damaged, or holds another architecture.
        """
        directory = self.directory / str(step)
        try:
            _check_json(directory)
            _check_arrays(directory / "state")
        except (OSError, ValueError) as error:
            raise self._damaged(step, error) from error
        self._check_shapes(step, like)
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardRestore(like)),  # pyright: ignore
            )
            return restored["state"]  # pyright: ignore
        except Exception as error:
            raise self._damaged(step, error) from error

    def close(self) -> None:
        """Waits and lets go of the directory."""
        self._manager.close()

    def _check_records(self) -> None:
        """Raises if a record is damaged that is read as soon as saving may begin."""
        for step in self.steps():
            try:
                _check_json(self.directory / str(step))
            except (OSError, ValueError) as error:
                raise self._damaged(step, error) from error

    def _check_shapes(self, step: int, like: TrainState) -> None:
        try:
            item = self._manager.item_metadata(step)["state"]  # pyright: ignore
            saved = getattr(item, "tree", item)
        except Exception as error:
            raise self._damaged(step, error) from error
        if saved is None:
            raise self._damaged(step, FileNotFoundError("no state in it"))
        there, here = _shapes(saved), _shapes(like)
        for path in sorted(there.keys() | here.keys()):
            if there.get(path) != here.get(path):
                raise InputError(
                    f"The checkpoint of step {step} in {self.directory} is of another "
                    f"architecture: {path} is {there.get(path, 'absent')} there and "
                    f"{here.get(path, 'absent')} in this configuration."
                )

    def _damaged(self, step: int, error: Exception) -> InputError:
        others = [other for other in self.steps() if other != step]
        hint = (
            f"Step {others[-1]} is there too: remove {self.directory / str(step)} to "
            "go on from it."
            if others
            else f"Remove {self.directory} to begin anew."
        )
        return InputError(
            f"The checkpoint of step {step} in {self.directory} is damaged "
            f"({_first_line(error)}). {hint}"
        )

    def _failed(self, error: Exception) -> InputError:
        kept = self.steps()
        last = f"the last good one is step {kept[-1]}" if kept else "none was saved yet"
        return InputError(
            f"Could not save a checkpoint to {self.directory} ({_first_line(error)}); "
            f"{last}. Make room or give another --workdir, then run again."
        )


def _saving_options(keep_last: int) -> ocp.CheckpointManagerOptions:
    policy = AnyPreservationPolicy(
        [
            LatestN(keep_last),
            BestN(
                # Only compared: a later stage beats an earlier one.
                get_metric_fn=lambda m: (m["stage"], m["value"]),  # pyright: ignore
                n=1,
                keep_checkpoints_without_metrics=False,
            ),
        ]
    )
    return ocp.CheckpointManagerOptions(
        preservation_policy=policy,
        cleanup_tmp_directories=True,
        best_fn=lambda metrics: metrics["value"],
    )


def _check_json(directory: Path) -> None:
    """Raises `ValueError` if a record that is there is not JSON."""
    for path in directory.rglob("*"):
        record = path.name in _RECORDS or path.parent.name == "array_metadatas"
        if record and path.is_file():
            json.loads(path.read_bytes())


def _check_arrays(directory: Path) -> None:
    """Reads every byte once and raises at the first that is missing.

    Here, since Orbax reads in threads, whose failures fill the screen.
    """
    if not (directory / "manifest.ocdbt").is_file():
        raise FileNotFoundError("manifest.ocdbt is missing")
    store = tensorstore.KvStore.open(
        {"driver": "ocdbt", "base": {"driver": "file", "path": f"{directory}/"}}
    ).result()
    for name in store.list().result():
        store.read(name).result()


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    """Shapes of array leaves by path, keys (whose stored form differs) aside."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = "/".join(_plain(part) for part in path)
        if hasattr(leaf, "shape") and not name.startswith("key"):
            found[name] = tuple(leaf.shape)
    return found


def _plain(part: Any) -> str:
    """One part of a tree path; dictionaries, tuples and attributes look the same."""
    for attribute in ("key", "idx", "name"):
        if hasattr(part, attribute):
            return str(getattr(part, attribute))
    return str(part)


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__


def write_json(path: Path, content: Any) -> None:
    """Writes JSON so that a reader sees the old file or the whole new one.

    Raises:
      InputError: the file cannot be written.
    """
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    _files.write(path, lambda file: file.write(text.encode()))
