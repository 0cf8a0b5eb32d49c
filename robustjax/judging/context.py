"""What a reader of a report needs beside its numbers."""

from typing import Any

import jax

from robustjax import _provenance as provenance
from robustjax.types import Key


def context_of(key: Key, **about: Any) -> dict[str, Any]:
    """Where numbers come from: code, versions, device, arithmetic, and `about`.

    Args:
      key: The typed key of the attacks.
      **about: What is known of this evaluation.
    """
    return about | dict(
        key=f"{jax.random.key_impl(key)} {jax.random.key_data(key).tolist()}",
        device=provenance.device(),
        precision=provenance.precision(),
        commit=provenance.commit(),
        versions=provenance.versions(),
    )
