"""Files that outlive a process: whole or not at all, and those of the first process.

With several processes the first one reads and writes, and the others are told what it
found: all go on from one place, and need no disk in common. They must all ask, in the
same order.
"""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import jax
import numpy as np
from jax.experimental import multihost_utils

from robustjax._checks import InputError

_CHUNK = 2**28


def read(path: Path) -> bytes | None:
    """The content of a file; None if there is none, nothing if it cannot be read."""
    content = None
    if jax.process_index() == 0:
        content = b""
        with contextlib.suppress(OSError):
            content = path.read_bytes() if path.exists() else None
    return _from_first(content)


def write(path: Path, fill: Callable[[BinaryIO], object], name: str = "") -> None:
    """Writes a file so that a reader sees the old one or the whole new one.

    Args:
      path: Its directory is made if need be.
      fill: Writes the content.
      name: Of the argument that the path is from, for the message.

    Raises:
      InputError: it cannot be written.
    """
    if jax.process_index() != 0:
        return
    partial = partial_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            fill(file)
        partial.replace(path)
    except OSError as error:
        called = f"`{name}` " if name else ""
        raise InputError(f"Cannot write {called}{path}: {error.strerror}.") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def partial_of(path: Path) -> Path:
    """Where a file is written until it is whole; no other process writes there."""
    return path.with_name(f"{path.name}.{os.getpid()}.partial")


def remove(path: Path) -> None:
    """Removes a file, if it is there."""
    if jax.process_index() == 0:
        path.unlink(missing_ok=True)


def agreed(text: str) -> str:
    """The text of the first process, on all.

    Example:
      >>> agreed("mark")
      'mark'
    """
    return (_from_first(text.encode()) or b"").decode()


def _from_first(content: bytes | None) -> bytes | None:
    """What the first process has, on all."""
    if jax.process_count() == 1:
        return content
    given = content or b""
    size = -1 if content is None else len(given)
    high, low = multihost_utils.broadcast_one_to_all(
        np.array(divmod(size, _CHUNK), np.int32)
    )
    size = int(high) * _CHUNK + int(low)
    if size < 0:
        return None
    ours = np.zeros(size, np.uint8)
    if jax.process_index() == 0:
        ours = np.frombuffer(given, np.uint8)
    starts = range(0, size, _CHUNK)
    parts = (multihost_utils.broadcast_one_to_all(ours[i : i + _CHUNK]) for i in starts)
    return b"".join(np.asarray(part).tobytes() for part in parts)
