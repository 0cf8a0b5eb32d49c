"""What `train.py` and `eval.py` share: flags, exit codes, several processes.

Exit codes: 0 done; 2 bad input (one clear line, no traceback); 75 stopped by a signal
after saving (run again to go on); 1 anything else.
"""

import importlib.metadata
import json
import logging
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_collections
from absl import app, flags

from robustjax._checks import InputError
from robustjax.training import Diverged, StoppedBySignal, write_json

BAD_INPUT, STOPPED = 2, 75

_MULTIHOST = flags.DEFINE_bool(
    "multihost", False, "Run on several hosts, one process each."
)
_ADDRESS = flags.DEFINE_string(
    "coordinator_address", None, "HOST:PORT; not on TPU VMs."
)
_COUNT = flags.DEFINE_integer(
    "num_processes", None, "How many processes; not on TPU VMs."
)
_INDEX = flags.DEFINE_integer("process_id", None, "Which one this is; not on TPU VMs.")


def run(main: Callable[[], None]) -> None:
    """Parses the flags, runs `main`, exits with the code that says what happened."""
    logging.getLogger("absl").setLevel(logging.ERROR)
    app.define_help_flags()
    try:
        _parse(sys.argv)
        if _MULTIHOST.value:
            jax.distributed.initialize(_ADDRESS.value, _COUNT.value, _INDEX.value)
        main()
    except InputError as error:
        _exit(error, BAD_INPUT)
    except StoppedBySignal as stopped:
        _exit(stopped, STOPPED)
    except Diverged as error:
        _exit(error, 1)


def read_config(workdir: Path) -> ml_collections.ConfigDict:
    """The resolved config of a working directory.

    Raises:
      InputError: there is none, or it cannot be read.
    """
    path = workdir / "config.json"
    try:
        return ml_collections.ConfigDict(json.loads(path.read_text()))
    except FileNotFoundError as error:
        raise InputError(
            f"`workdir` {workdir} has no config.json: no run was started there."
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}.") from error


def claim(workdir: Path, content: dict[str, Any]) -> None:
    """Writes config.json, or checks that the one there is the same.

    Raises:
      InputError: the directory holds a run of another config, or cannot be written.
    """
    path = workdir / "config.json"
    if path.exists():
        there = json.loads(read_config(workdir).to_json())
        different = _first_difference(there, content)
        if different:
            name, old, new = different
            raise InputError(
                f"`workdir` {workdir} holds a run of another config: {name} is {old!r} "
                f"there and {new!r} now. Give another --workdir, or the old config."
            )
    elif jax.process_index() == 0:
        write_json(path, content)


def commit() -> str:
    """The git commit of the code in use, "unknown" outside a checkout."""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def versions() -> dict[str, str]:
    """Versions of Python and of what the numbers depend on."""
    names = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "robustjax")
    found = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), **found}


def _parse(argv: list[str]) -> None:
    try:
        rest = flags.FLAGS(argv)
    except (flags.Error, InputError) as error:
        raise InputError(str(error).splitlines()[0]) from error
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        # ml_collections reports misspelt keys and values of another type so.
        text = " ".join(str(error).split())
        raise InputError(
            f"The config or one of its overrides is wrong: {text}"
        ) from error
    if len(rest) > 1:
        raise InputError(f"Unknown argument {rest[1]!r}: flags begin with --.")


def _first_difference(old: Any, new: Any, name: str = "config") -> tuple | None:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            found = _first_difference(old.get(key), new.get(key), f"{name}.{key}")
            if found:
                return found
        return None
    return None if old == new else (name, old, new)


def _exit(error: Exception, code: int) -> None:
    print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
    sys.exit(code)
