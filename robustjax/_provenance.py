"""Where numbers come from: code, versions, device, arithmetic."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax


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


def device() -> str:
    """How many devices of which kind."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def precision() -> str:
    """The precision of matrix products that JAX was told, else that of the device."""
    told: Any = getattr(jax.config, "jax_default_matmul_precision", None)
    if told is not None:
        return str(told)
    return "float32" if jax.default_backend() == "cpu" else "default of the device"
