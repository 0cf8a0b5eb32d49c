"""Parameters of attacks, which anybody may write: read where they can be."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robustjax.types import Threat

MODEL_FREE = ("grey", "uniform_noise", "sign_noise", "gaussian_noise")
QUERIES = (
    *("square", "spsa", "nes", "estimated_gradient", "boundary", "hop_skip_jump"),
    *("towards_other", "pixel", "single_pixel", "rotation_translation"),
)
_ELSEWHERE = ("view", "source", "sources", "access", "perturb_templates")
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def json_able(value: Any) -> Any:
    """A parameter as reports show it.

    Threats become their blocks, arrays lists; what JSON does not know is shown by
    `repr`, without addresses in memory, which no two runs share.

    Example:
      >>> json_able({"size": np.float32(0.5), "start": (1, None), "dtype": float})
      {'size': 0.5, 'start': [1, None], 'dtype': "<class 'float'>"}
    """
    if isinstance(value, Threat):
        block = dict(name=value.name, eps=value.eps, bounds=value.bounds)
        return json_able(block)
    if isinstance(value, Mapping):
        return {str(name): json_able(inside) for name, inside in value.items()}
    if isinstance(value, jax.Array) and not _is_key(value):
        value = np.asarray(value)
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [json_able(inside) for inside in value]
    if isinstance(value, (str, bool, int, float)) or value is None:
        return value
    return _ADDRESS.sub("", repr(value))


def threat_block(parameters: Mapping[str, Any]) -> dict[str, Any] | None:
    """The threat that parameters name, with `eps` a float; None: none that is known.

    Example:
      >>> threat_block({"threat": {"name": "l2", "eps": "inf"}})
      {'name': 'l2', 'eps': inf}
      >>> threat_block({"threat": "l2"})
    """
    threat: Any = parameters.get("threat")
    if isinstance(threat, Threat):
        threat = dict(name=threat.name, eps=threat.eps, bounds=threat.bounds)
    if not isinstance(threat, Mapping) or not {"name", "eps"} <= set(threat):
        return None
    try:
        return dict(threat) | dict(eps=float(threat["eps"]))
    except (TypeError, ValueError):
        return None


def common_threat(parameters: Mapping[str, Any]) -> dict[str, Any] | None:
    """The threat of an attack, or the one that all attacks inside it share.

    Example:
      >>> ball = {"name": "l2", "eps": 0.5}
      >>> common_threat({"attacks": [{"threat": ball}, {"attack": {"threat": ball}}]})
      {'name': 'l2', 'eps': 0.5}
      >>> common_threat({"attacks": [{"threat": ball}, {"threat": ball | {"eps": 1}}]})
    """
    if parameters.get("threat") is not None:
        return threat_block(parameters)
    found = [common_threat(one) for one in inside(parameters, "attack", "attacks")]
    return found[0] if found and all(one == found[0] for one in found) else None


def inside(parameters: Mapping[str, Any], *names: str) -> list[Mapping[str, Any]]:
    """The attacks inside an attack, under these names; only what is a block.

    Example:
      >>> inside({"attack": "pgd", "attacks": [{"name": "fgsm"}]}, "attack", "attacks")
      [{'name': 'fgsm'}]
    """
    found: list[Mapping[str, Any]] = []
    for name in names:
        value = parameters.get(name)
        listed = value if isinstance(value, (list, tuple)) else [value]
        found += [one for one in listed if isinstance(one, Mapping)]
    return found


def climbs_another(parameters: Mapping[str, Any]) -> bool:
    """Whether an attack climbs another function than the one that is judged.

    Example:
      >>> climbs_another({"name": "restarts", "attack": {"view": "bare"}})
      True
    """
    named = (parameters.get(name) for name in _ELSEWHERE)
    elsewhere = any(value is not None and value is not False for value in named)
    return elsewhere or any(
        map(climbs_another, inside(parameters, "attack", "attacks"))
    )


def _is_key(value: jax.Array) -> bool:
    return jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
