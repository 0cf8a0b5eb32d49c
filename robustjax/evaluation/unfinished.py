"""How far an evaluation has come: every finished block of images, on disk.

A killed evaluation goes on at the block after the last one that it finished. Files are
written whole or not at all, and those of other work (other attacks, weights, images or
keys) are as good as none.
"""

import contextlib
import os
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from robustjax._checks import InputError
from robustjax._digest import digest
from robustjax.training import sharding

SUFFIX = ".unfinished.npz"
_UNREADABLE = (
    *(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error),
)


class Unfinished:
    """The blocks of one evaluation.

    Args:
      directory: Where they are kept; None keeps nothing.
      *work: What identifies the evaluation, a tree of names, numbers and arrays.
    """

    def __init__(self, directory: Path | None, *work: Any):
        self._directory = directory
        self._mark = self.mark(work)

    def mark(self, *work: Any) -> str:
        """What identifies a part of the evaluation, by what it is made of."""
        return "" if self._directory is None else digest(work)

    def block(
        self, name: str, number: int, run: Callable[[Any], Any], batch: Any, mark: str
    ) -> tuple[Any, float]:
        """The result of a block, on the host, and the seconds that it took.

        Args:
          name: Of what is run on the block.
          number: Of the block.
          run: Gives the result, a tree of arrays, if it is not there.
          batch: What it is given.
          mark: What identifies it beside the evaluation, name and number.

        Raises:
          InputError: the directory cannot be written.
        """
        if self._directory is None:
            return _timed(run, batch)
        path = self._directory / f"{name}-{number:05d}{SUFFIX}"
        mark = digest((self._mark, name, number, mark))
        known = _read(path, mark)
        if known is not None:
            *leaves, seconds = known
            shape = jax.tree.structure(jax.eval_shape(run, batch))
            if shape.num_leaves == len(leaves):
                return jax.tree.unflatten(shape, leaves), float(seconds)
        found, seconds = _timed(run, batch)
        _write(path, mark, [*jax.tree.leaves(found), np.float64(seconds)])
        return found, seconds


def begin(directory: Path) -> None:
    """Makes a `state_dir` before any work is done, so that it is not done in vain.

    Raises:
      InputError: it cannot be made.

    Example:
      >>> begin(Path("/dev/null/report"))
      Traceback (most recent call last):
      ...
      robustjax._checks.InputError: Cannot write to /dev/null: Not a directory.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"Cannot write to {directory.parent}: {error.strerror}."
        ) from error


def end_if_empty(directory: Path) -> None:
    """Removes a `state_dir` that holds nothing.

    Example:
      >>> end_if_empty(Path("nowhere"))
    """
    with contextlib.suppress(OSError):
        directory.rmdir()


def forget(directory: Path) -> None:
    """Removes what an evaluation has left in its `state_dir`, and nothing else.

    Example:
      >>> forget(Path("nowhere"))
    """
    for path in directory.glob(f"*{SUFFIX}*"):
        path.unlink(missing_ok=True)


def _timed(run: Callable[[Any], Any], batch: Any) -> tuple[Any, float]:
    start = time.monotonic()
    return sharding.to_host(run(batch)), time.monotonic() - start


def _read(path: Path, mark: str) -> list[np.ndarray] | None:
    try:
        with np.load(path) as content:
            if str(content["mark"]) != mark:
                return None
            return [content[f"arr_{i}"] for i in range(len(content.files) - 1)]
    except _UNREADABLE:  # half a file, or none
        return None


def _write(path: Path, mark: str, arrays: list[Any]) -> None:
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            np.savez(file, *arrays, mark=np.array(mark))
        os.replace(partial, path)
    except OSError as error:
        raise InputError(
            f"Cannot keep unfinished work in {path.parent}: {error.strerror}."
        ) from error
