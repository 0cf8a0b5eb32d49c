"""What `train.py` and `eval.py` share: flags, exit codes, several processes.

Exit codes: 0 done; 2 bad input (one clear line, no traceback); 75 stopped by a signal
after saving (run again to go on); 1 anything else.
"""

import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_collections
from absl import app, flags

from robustjax._checks import InputError
from robustjax._provenance import commit as commit
from robustjax._provenance import versions as versions
from robustjax.build import read_config
from robustjax.evaluation import InconsistentError
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
    _quieten()
    app.define_help_flags()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stop as on Ctrl-C
    try:
        _parse(sys.argv)
        if _MULTIHOST.value:
            _connect()
        main()
    except InputError as error:
        _exit(error, BAD_INPUT)
    except StoppedBySignal as stopped:
        _exit(stopped, STOPPED)
    except KeyboardInterrupt:
        _say("Stopped; what had been saved is kept. Run again to go on.")
        with contextlib.suppress(OSError):  # nobody reads any more
            sys.stdout.flush()
        # An orderly end would wait for the program that the device still runs: minutes.
        os._exit(STOPPED)
    except (Diverged, InconsistentError) as error:
        _exit(error, 1)


def given_config(config: ml_collections.ConfigDict | None) -> Any:
    """The config that `--config` names, locked.

    Raises:
      InputError: there is none.
    """
    if config is None:
        raise InputError("`--config` is missing, e.g. --config=configs/digits_pgd.py.")
    try:
        return config.lock()
    except (AttributeError, OSError) as error:
        # A file that cannot be read makes trouble only when it is looked into.
        raise InputError(
            f"`--config` must be a file whose get_config() returns a ConfigDict: "
            f"{str(error).splitlines()[-1].strip()}."
        ) from error


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


def _quieten() -> None:
    """Keeps pages of tracebacks off the screen: what fails comes back as an error."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)

    def hook(unraisable: Any) -> None:
        # TensorStore's threads report to a loop that Orbax closed when saving failed.
        if str(unraisable.exc_value) != "Event loop is closed":
            sys.__unraisablehook__(unraisable)

    sys.unraisablehook = hook


def _parse(argv: list[str]) -> None:
    try:
        rest = flags.FLAGS(argv)
    except SystemExit:  # --help has been printed
        sys.exit(0)
    except Exception as error:
        # A config is a program: anything may go wrong in it.
        raise InputError(_reason(error)) from error
    if len(rest) > 1:
        raise InputError(f"Unknown argument {rest[1]!r}: flags begin with --.")


def _reason(error: BaseException) -> str:
    """What is wrong with the flags or the config, in one line."""
    chain = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    ours = [cause for cause in chain if isinstance(cause, InputError)]
    if ours:
        return str(ours[-1])
    if "Traceback" in str(error):  # ml_collections quotes that of the config's error
        error = chain[-1]
    text = " ".join(str(error).split())
    if isinstance(error, flags.Error):
        return text
    name = text.strip("\"'")
    if isinstance(error, AttributeError | KeyError) and name.isidentifier():
        return f"The config has no {name!r} to override."
    return f"`--config` or one of its overrides: {type(error).__name__}: {text}"


def _connect() -> None:
    try:
        jax.distributed.initialize(_ADDRESS.value, _COUNT.value, _INDEX.value)
    except ValueError as error:
        raise InputError(
            f"`--multihost` needs --coordinator_address, --num_processes and "
            f"--process_id unless on a TPU VM: {error}"
        ) from error


def _first_difference(old: Any, new: Any, name: str = "config") -> tuple | None:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            found = _first_difference(old.get(key), new.get(key), f"{name}.{key}")
            if found:
                return found
        return None
    return None if old == new else (name, old, new)


def _exit(error: object, code: int) -> None:
    _say(error)
    sys.exit(code)


def _say(error: object) -> None:
    print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
