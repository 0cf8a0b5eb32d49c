"""Weights of the same networks trained in PyTorch: a state dict as our parameters.

Only the mapping from names to arrays is read, so torch itself is never imported: a
tensor is whatever has `detach`, `cpu` and `numpy`. Kernels [out, in, H, W] become
[H, W, in, out], matrices are transposed.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_flatten_with_path

from robustjax._checks import InputError
from robustjax.models.adapters import from_linen
from robustjax.models.trunk import ResNet
from robustjax.types import PyTree

_PREFIXES = ("module.", "model.")  # nn.DataParallel, and a wrapper that normalises
_MEANS = ("mu", "mean", "normalize.mean", "normalise.mean")
_STDS = ("sigma", "std", "normalize.std", "normalise.std")
_LEAVES = (
    ("kernel", "weight"),
    ("scale", "weight"),
    ("bias", "bias"),
    ("mean", "running_mean"),
    ("var", "running_var"),
)
# In the released Wide ResNets of TRADES and its heirs: built, stored, never called.
_NEVER_CALLED = "sub_block1."


class _Names(NamedTuple):
    """How a code base calls our layers; `{i}` is the stage, `{j}` the block from 0."""

    block: str
    shortcut: str
    shortcut_norm: str
    stem_norm: str
    norm: str
    head: str


_NARROW = _Names("layer{i}.{j}.", "shortcut.0", "shortcut.1", "bn1", "bn", "linear")
_WIDE = _Names("block{i}.layer.{j}.", "convShortcut", "", "", "bn1", "fc")


def from_pytorch(
    state_dict: Mapping[str, Any], module: ResNet
) -> tuple[PyTree, PyTree]:
    """The parameters and BatchNorm statistics of `module` from a PyTorch state dict.

    For `resnet18` and `preact_resnet18` (and the other ResNets) in the names of
    RobustBench, `layer1.0.conv1`, with `linear` as head, or of torchvision, with
    `downsample` and `fc`; for the Wide ResNets in the names of TRADES and RobustBench,
    `block1.layer.0.conv1`. Prefixes `module.` and `model.` are dropped. Every entry
    has to find its place, but for the counters `num_batches_tracked` and the block
    `sub_block1` of some Wide ResNets, which those networks never call.

    Buffers `mu` and `sigma` (or `mean` and `std`) are the normalisation of the pixels,
    which in our models is no weight: they are compared with `module.normalise`.
    RobustBench's PreAct-ResNet-18 is `preact_resnet18(final_norm=False,
    activated_shortcut=False)`, or one of the two, as its class says.

    Args:
      state_dict: Names to arrays or tensors: `torch.load(path, map_location="cpu")`,
        or its entry "state_dict".
      module: The same architecture, from a factory of `robustjax.models`.

    Returns:
      `(params, model_state)` in float32, for `from_linen(module)`.

    Raises:
      InputError: An entry is missing, is left over, or has another shape; the
        normalisation differs; or `module` has a buffer or denoising blocks, which
        PyTorch's do not.

    Example:
      >>> from robustjax import models
      >>> from_pytorch({"conv1.weight": np.zeros((64, 3, 3, 3))}, models.resnet18())
      Traceback (most recent call last):
      ...
      robustjax._checks.InputError: `state_dict` has no 'layer1.0.bn1.running_mean', ...
    """
    if not isinstance(module, ResNet):
        raise InputError(
            "`module` must be one of the residual networks of robustjax.models, got "
            f"{type(module).__name__}."
        )
    if module.buffer:
        raise InputError(
            f"`module` has buffer={module.buffer}, which PyTorch networks do not: "
            "load into buffer=0."
        )
    if module.denoise is not None:
        raise InputError(
            "`module` has denoising blocks, which PyTorch networks do not: load into "
            "the network without them."
        )
    entries = _entries(state_dict)
    _check_normalisation(entries, module)
    names = _names(entries)
    leaves, structure = tree_flatten_with_path(_expected(entries, module))
    loaded = [_take(entries, _name(path, names), leaf.shape) for path, leaf in leaves]
    if entries:
        raise InputError(
            f"`state_dict` holds {_listed(sorted(entries))}, for which the given "
            "`module` has no place. Is it this architecture?"
        )
    variables = jax.tree.unflatten(structure, loaded)
    return variables["params"], {"batch_stats": variables["batch_stats"]}


def _entries(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that mean something, by their names without prefixes."""
    if not isinstance(state_dict, Mapping):
        raise InputError(
            "`state_dict` must be a mapping from names to arrays, got "
            f"{type(state_dict).__name__}."
        )
    entries = {}
    for name, value in state_dict.items():
        if isinstance(value, Mapping):
            raise InputError(
                f"`state_dict` is a whole checkpoint: pass its entry {name!r} if the "
                "weights are there."
            )
        short = str(name)
        while short.startswith(_PREFIXES):
            short = short.split(".", 1)[1]
        if short.endswith("num_batches_tracked") or short.startswith(_NEVER_CALLED):
            continue
        if short in entries:
            raise InputError(
                f"`state_dict` holds {short!r} twice, with and without a prefix of "
                f"{_PREFIXES}: pass one network's entries."
            )
        entries[short] = value
    return entries


def _check_normalisation(entries: dict[str, Any], module: ResNet) -> None:
    """Takes the normalisation out of `entries`; it must be the module's."""
    mean = [name for name in _MEANS if name in entries]
    std = [name for name in _STDS if name in entries]
    if not mean and not std:
        return
    if len(mean) != 1 or len(std) != 1:
        raise InputError(
            f"`state_dict` must hold one mean and one std, got {mean + std}."
        )
    found = tuple(
        tuple(_array(entries.pop(name)).reshape(-1).tolist())
        for name in (mean[0], std[0])
    )
    own = module.normalise or ((0.0,) * len(found[0]), (1.0,) * len(found[0]))
    if np.shape(own) != np.shape(found) or not np.allclose(own, found, atol=1e-6):
        rounded = tuple(tuple(round(v, 6) for v in part) for part in found)
        raise InputError(
            f"`state_dict` normalises by {mean[0]!r}, {std[0]!r} = {rounded}, but "
            f"`module` by {module.normalise}: build it with normalise={rounded}."
        )


def _names(entries: Mapping[str, Any]) -> _Names:
    """What the code base that wrote the entries calls our layers."""
    if any(name.startswith("block1.layer.") for name in entries):
        return _WIDE
    names = _NARROW
    if "fc.weight" in entries:
        names = names._replace(head="fc")
    if any(".downsample." in name for name in entries):
        names = names._replace(shortcut="downsample.0", shortcut_norm="downsample.1")
    return names


def _expected(entries: Mapping[str, Any], module: ResNet) -> PyTree:
    """Shapes of the module's variables, for as many colours as the stem has."""
    stem = entries.get("conv1.weight")
    channels = 3 if stem is None or len(stem.shape) != 4 else int(stem.shape[1])
    x = jax.ShapeDtypeStruct((1, 32, 32, channels), jnp.float32)
    if module.normalise is not None and len(module.normalise[0]) != channels:
        raise InputError(
            f"`state_dict` has 'conv1.weight' for {channels} channels, but "
            f"`module` normalises {len(module.normalise[0])} channels."
        )
    key = jax.eval_shape(lambda: jax.random.key(0))
    params, model_state = jax.eval_shape(from_linen(module).init, key, x)
    return {"params": params, **model_state}


def _name(path: Sequence[Any], names: _Names) -> str:
    """PyTorch's name of one of our leaves."""
    _, *layers, leaf = [str(entry.key) for entry in path]
    if layers[0].startswith("stage"):
        stage, block, layer = layers
        place = names.block.format(i=stage[5:], j=int(block[5:]) - 1)
        if layer == "shortcut_norm":
            layer = names.shortcut_norm
        elif layer == "shortcut":
            layer = names.shortcut
        layer = place + layer.replace("norm", "bn")
    else:
        known = {
            "stem/conv": "conv1",
            "stem/norm": names.stem_norm,
            "norm": names.norm,
            "head": names.head,
        }
        layer = known["/".join(layers)]
    return f"{layer}.{dict(_LEAVES)[leaf]}"


def _take(entries: dict[str, Any], name: str, shape: tuple[int, ...]) -> jax.Array:
    """Moves one entry out, as an array of our layout."""
    if name not in entries:
        raise InputError(
            f"`state_dict` has no {name!r}, which `module` needs. Is it this "
            f"architecture? It holds {_listed(sorted(entries))}."
        )
    value = _array(entries.pop(name))
    ours = value.transpose((2, 3, 1, 0)) if value.ndim == 4 else value.T
    if ours.shape != shape:
        theirs = (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]
        raise InputError(
            f"`state_dict` has {name!r} of shape {value.shape}, but `module` needs "
            f"{theirs}."
        )
    return jnp.asarray(np.ascontiguousarray(ours))


def _array(value: Any) -> np.ndarray:
    """A tensor or array-like as float32; numpy has no bfloat16, so tensors go first."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().float().numpy()
    return np.asarray(value, np.float32)


def _listed(names: Sequence[str]) -> str:
    """A few names, and how many more."""
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (", ".join(repr(name) for name in names[:3]) or "nothing else") + rest
