"""States of test-time defenses on disk, beside the model that they were fitted to."""

import contextlib
import hashlib
import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from robustjax._checks import InputError
from robustjax.types import PyTree

_MODEL, _DTYPES = "model", "dtypes"  # names of leaves begin with "." or "["


def save_state(path: str | Path, state: PyTree, weights: PyTree) -> None:
    """Writes a state, whole or not at all.

    Args:
      path: An .npz file; its directory is made.
      state: What a defense's `fit` returned.
      weights: Of the model that it was fitted to, e.g. `models.model_fn(...)`: a digest
        of them is stored.

    Raises:
      InputError: the file cannot be written.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "state.npz"
      >>> save_state(path, {"a": np.arange(3)}, np.ones(2))
      >>> load_state(path, {"a": np.zeros(3, int)}, np.ones(2))["a"].tolist()
      [0, 1, 2]
    """
    path = Path(path)
    arrays: dict[str, Any] = {
        jax.tree_util.keystr(where): np.asarray(leaf)
        for where, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
    content = io.BytesIO()
    # Of bfloat16 and the like NumPy's format keeps the bits, but not the name.
    foreign = {name: str(a.dtype) for name, a in arrays.items() if a.dtype.kind == "V"}
    for name in foreign:
        arrays[name] = arrays[name].view(f"u{arrays[name].dtype.itemsize}")
    arrays[_MODEL] = np.asarray(digest(weights))
    arrays[_DTYPES] = np.asarray(json.dumps(foreign))
    np.savez(content, **arrays)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(content.getvalue())
        os.replace(unfinished, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise InputError(f"Cannot write {path}: {error.strerror}.") from error


def load_state(path: str | Path, like: PyTree, weights: PyTree) -> PyTree:
    """Reads a state.

    Args:
      path: What `save_state` wrote.
      like: A state of this structure, these shapes and dtypes: arrays, or what
        `jax.eval_shape(defense.fit, ...)` returns.
      weights: Of the model that it will be used with.

    Raises:
      InputError: there is no such file, it is damaged, of another model or of another
        defense.
    """
    path = Path(path)
    try:
        with np.load(path) as found:
            arrays = dict(found)
        model = str(arrays.pop(_MODEL))
        # Older files have none.
        for name, dtype in json.loads(str(arrays.pop(_DTYPES, "{}"))).items():
            arrays[name] = arrays[name].view(jax.numpy.dtype(dtype))
    except FileNotFoundError as error:
        raise InputError(f"There is no state {path}: fit the defense.") from error
    except (OSError, ValueError, TypeError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"The state {path} cannot be read: {error}.") from error
    if model != digest(weights):
        raise InputError(
            f"The state {path} belongs to another model: its weights are not those it "
            "was fitted to. Fit it again."
        )
    expected = {
        jax.tree_util.keystr(where): (leaf.shape, np.dtype(leaf.dtype))
        for where, leaf in jax.tree_util.tree_leaves_with_path(like)
    }
    if expected != {name: (a.shape, a.dtype) for name, a in arrays.items()}:
        raise InputError(
            f"The state {path} is of another defense, or of one with other options. "
            "Fit it again."
        )
    leaves = [jax.numpy.asarray(arrays[name]) for name in expected]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def digest(weights: PyTree) -> str:
    """A digest of arrays: of their paths, shapes, dtypes and bits.

    Example:
      >>> digest({"a": np.ones(2)}) == digest({"a": np.zeros(2)})
      False
    """
    found = hashlib.sha256()
    for where, leaf in jax.tree_util.tree_leaves_with_path(weights):
        array = np.ascontiguousarray(np.asarray(leaf))
        about = (jax.tree_util.keystr(where), array.shape, str(array.dtype))
        found.update(repr(about).encode())
        found.update(array.tobytes())
    return found.hexdigest()
