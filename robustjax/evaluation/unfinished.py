"""How far an evaluation has come: every finished block of images, on disk.

A killed evaluation goes on at the block after the last one that it finished. Files are
written whole or not at all, and those of other work (other attacks, weights, images or
keys) are as good as none: they have other names, so that one evaluation leaves alone
what another has done so far.
"""

import contextlib
import io
import time
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from robustjax import _files
from robustjax._checks import InputError
from robustjax._digest import digest
from robustjax.evaluation import _climbs
from robustjax.evaluation.results import Robustness
from robustjax.training import sharding
from robustjax.types import Array, LogitsFn, as_pytree

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

    @property
    def state(self) -> str | None:
        """How the names of its files begin; None if it keeps nothing."""
        return None if self._directory is None else self._mark[:12]

    def path(self, name: str) -> Path | None:
        """The file of that name; None if it keeps nothing."""
        if self._directory is None:
            return None
        return self._directory / f"{self.state}-{name}{SUFFIX}"

    def forget(self) -> None:
        """Removes its files and no others."""
        if self._directory is not None:
            _remove(self._directory, f"{self.state}-")

    def mark(self, *work: Any) -> str:
        """What identifies a part of the evaluation, by what it is made of."""
        return "" if self._directory is None else _files.agreed(digest(work))

    def block(
        self, name: str, number: int, run: Callable[[Any], Any], batch: Any, mark: str
    ) -> tuple[Any, float]:
        """The result of a block, on the host, and the seconds that it took.

        What is there counts if it is of as many rows and of the shapes that `run` would
        return now: another number of devices cuts the images into other blocks.

        Args:
          name: Of what is run on the block.
          number: Of the block.
          run: Gives the result, a tree of arrays, if it is not there.
          batch: What it is given.
          mark: What identifies it beside the evaluation, name and number.

        Raises:
          InputError: the directory cannot be written.
        """
        path = self.path(f"{name}-{number:05d}")
        if path is None:
            return _timed(run, batch)
        rows = [str(np.shape(leaf)) for leaf in jax.tree.leaves(batch)]
        mark = digest((self._mark, name, number, mark, rows))
        known = _read(path, mark)
        if known is not None:
            *leaves, seconds = known
            expected, tree = jax.tree.flatten(jax.eval_shape(run, batch))
            if _kinds(leaves) == _kinds(expected):
                return jax.tree.unflatten(tree, leaves), float(seconds)
        found, seconds = _timed(run, batch)
        _write(path, mark, [*jax.tree.leaves(found), np.float64(seconds)])
        return found, seconds


def answers_of(fun: LogitsFn, x: Array, y: Array) -> list[str] | None:
    """What tells a function that holds no arrays from others, as `digest` cannot.

    Its logits at some images, and how large its gradient is there and how often 0,
    which a function that hides its gradient does not share; rounded, as not every
    device gives the same bits twice. None for what has arrays, and is known by them.
    """
    fun = as_pytree(fun)
    if jax.tree.leaves(fun):
        return None
    found = [_climbs.answers(fun, x)]
    with contextlib.suppress(ValueError, TypeError, NotImplementedError):  # no gradient
        health = _climbs.health(fun, x, y)
        found += [health.largest, health.zero_share]
    rows = [np.asarray(jax.device_get(part), np.float64).ravel() for part in found]
    return [f"{number:.3g}" for number in np.concatenate(rows)]


def digest_of(images: np.ndarray) -> str:
    """What identifies images, to 8 bits a pixel.

    By blocks, as a copy of the whole set may be more than there is room for.
    """

    def eight_bits(block: np.ndarray) -> np.ndarray:
        if block.dtype == np.uint8:
            return block
        return np.rint(np.clip(block, 0, 1) * 255).astype(np.uint8)

    starts = range(0, len(images), 1024)
    return digest([digest(eight_bits(images[i : i + 1024])) for i in starts])[:16]


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


def forget(directory: Path, result: Robustness | None = None) -> None:
    """Removes what evaluations have left in a `state_dir`, and nothing else.

    Args:
      directory: The `state_dir`.
      result: Of the evaluation whose files are meant; None is everybody's.

    Example:
      >>> forget(Path("nowhere"))
    """
    if result is None:
        _remove(directory, "")
    elif result.state is not None:
        _remove(directory, f"{result.state}-")


def _remove(directory: Path, start: str) -> None:
    for path in directory.glob(f"{start}*{SUFFIX}*"):
        _files.remove(path)


def _kinds(leaves: Sequence[Any]) -> list[tuple[tuple[int, ...], np.dtype]]:
    return [(leaf.shape, leaf.dtype) for leaf in leaves]


def _timed(run: Callable[[Any], Any], batch: Any) -> tuple[Any, float]:
    start = time.monotonic()
    return sharding.to_host(run(batch)), time.monotonic() - start


def _read(path: Path, mark: str) -> list[np.ndarray] | None:
    there = _files.read(path)
    if there is None:
        return None
    try:
        with np.load(io.BytesIO(there)) as content:
            if str(content["mark"]) != mark:
                return None
            return [content[f"arr_{i}"] for i in range(len(content.files) - 1)]
    except _UNREADABLE:  # half a file
        return None


def _write(path: Path, mark: str, arrays: list[Any]) -> None:
    _files.write(path, lambda file: np.savez(file, *arrays, mark=np.array(mark)))
