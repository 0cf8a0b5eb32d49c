"""How far a long attack has come: plain arrays, in a file from which it can go on."""

import dataclasses
import functools
import io
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from robustjax import _files
from robustjax._checks import InputError
from robustjax._digest import digest

_SECONDS_BETWEEN_WRITES = 30.0
_UNREADABLE = (
    *(OSError, ValueError, KeyError, TypeError, EOFError),
    *(zipfile.BadZipFile, zlib.error),
)


@dataclasses.dataclass
class Progress:
    """Where a sequence of stages stands; the host loop writes into it.

    Attributes:
      x_adv: The misclassified points so far, else x, [N, ...].
      correct: Images that nothing has broken yet, [N] bool.
      pending: Images that the running round has still to attack, [N] bool.
      stage: Number of the running stage.
      round: Number of its running round; the number of rounds once it is over.
      attacked: Images that each stage was run on, [S].
      broken: Images that each stage broke, [S].
      seconds: Wall time of each stage, [S].
    """

    x_adv: np.ndarray
    correct: np.ndarray
    pending: np.ndarray
    stage: np.ndarray
    round: np.ndarray
    attacked: np.ndarray
    broken: np.ndarray
    seconds: np.ndarray

    @classmethod
    def start(cls, x: np.ndarray, correct: np.ndarray, num_stages: int) -> "Progress":
        """Nothing attacked yet."""
        counts = np.zeros(num_stages, np.int64)
        first = correct.copy()
        zero = np.zeros((), np.int64)
        return cls(
            *(x.copy(), first.copy(), first, zero, zero.copy()),
            *(counts, counts.copy(), np.zeros(num_stages)),
        )

    def record(
        self, rows: np.ndarray, broken: np.ndarray, x_adv: np.ndarray, seconds: float
    ) -> None:
        """Takes in what an attack did to some of the pending images."""
        stage = int(self.stage)
        if self.round == 0:
            self.attacked[stage] += len(rows)
        self.x_adv[rows[broken]] = x_adv[broken]
        self.correct[rows[broken]] = False
        self.pending[rows] = False
        self.broken[stage] += broken.sum()
        self.seconds[stage] += seconds

    def next_round(self, rounds: int) -> None:
        """Goes on to the next round of this stage, or to the next stage."""
        self.round += 1
        if self.round == rounds:
            self.stage += 1
            self.round = np.zeros((), np.int64)
        self.pending = self.correct.copy()


class ProgressFile:
    """A `Progress` on disk, written whole or not at all.

    Args:
      path: None keeps nothing.
      work: What identifies the run; another run's file is refused.
      probe: Logits of the first images: functions have no name to go by. They may
        differ by rounding.
    """

    def __init__(self, path: Path | None, *work: Any, probe: np.ndarray):
        self._path = None if path is None else Path(path)
        self._signature = "" if path is None else _files.agreed(digest(work))
        self._probe = probe
        self._written = time.monotonic()

    def load(self, fresh: Progress) -> Progress:
        """The progress on disk; `fresh` if there is none.

        Raises:
          InputError: the file belongs to another run or cannot be read.
        """
        there = None if self._path is None else _files.read(self._path)
        if there is None:
            return fresh
        try:
            with np.load(io.BytesIO(there)) as content:
                found = {name: content[name] for name in content.files}
            signature, probe = str(found.pop("signature")), found.pop("probe")
            progress = Progress(**found)
        except _UNREADABLE as error:
            raise InputError(
                f"`state_file` {self._path} cannot be read ({error}). Delete it to "
                "start again."
            ) from error
        if signature != self._signature or not self._answers(probe):
            raise InputError(
                f"`state_file` {self._path} belongs to another run: its attack, key, "
                "images or classifier differ. Delete it to start again."
            )
        return progress

    def save(self, progress: Progress, *, now: bool = False) -> None:
        """Writes the progress, unless it was written a moment ago."""
        due = now or time.monotonic() - self._written > _SECONDS_BETWEEN_WRITES
        if self._path is None or not due:
            return
        known = {"signature": self._signature, "probe": self._probe}
        fill = functools.partial(np.savez, **known, **vars(progress))
        _files.write(self._path, fill, "state_file")
        self._written = time.monotonic()

    def _answers(self, probe: np.ndarray) -> bool:
        rows = min(len(probe), len(self._probe))
        ours, theirs = self._probe[:rows], probe[:rows]
        scale = max(float(np.abs(theirs).max(initial=0.0)), 1e-30)
        return ours.shape == theirs.shape and np.allclose(
            ours, theirs, rtol=0, atol=1e-3 * scale, equal_nan=True
        )

    def remove(self) -> None:
        """Forgets a run that is over."""
        if self._path is not None:
            _files.remove(self._path)
