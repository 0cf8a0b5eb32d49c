"""What tells one piece of work from another, for files that outlive a process."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def digest(work: Any) -> str:
    """A hash of the names, numbers and arrays in a tree, and of where they stand.

    Functions do not count, whatever they close over: what holds nothing else has no
    digest of its own.

    Example:
      >>> digest({"steps": 20}) == digest({"steps": 20}), digest("pgd")[:4]
      (True, '...')
      >>> digest({"steps": 20}) == digest({"restarts": 20})
      False
    """
    found = hashlib.sha256()
    leaves = jax.tree.leaves_with_path(work, is_leaf=lambda leaf: leaf is None)
    for path, leaf in leaves:
        where = jax.tree_util.keystr(path)
        if leaf is None or isinstance(leaf, (str, int, float)):
            found.update(f"{where} {type(leaf).__name__} {leaf!r}\0".encode())
        elif hasattr(leaf, "dtype"):
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                leaf = jax.random.key_data(leaf)
            array = np.ascontiguousarray(jax.device_get(leaf))
            found.update(f"{where} {array.dtype} {array.shape}\0".encode())
            found.update(array.tobytes())
    return found.hexdigest()
