"""Where a run's weights come from, if not from their initialisers."""

import functools
import importlib.util
import inspect
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from robustjax import models, training
from robustjax._checks import InputError, one_of
from robustjax.config import names
from robustjax.config.blocks import Block, make
from robustjax.config.networks import MODEL, Networks
from robustjax.config.runs import Config, Loaded, load_checkpoint, read_config
from robustjax.types import PyTree

_FRESH = ("head", "buffer", "denoise")  # what fine-tuning may start anew
_FILES = (".pth", ".pt", ".npz")
_OWN = ("num_classes", "buffer", "denoise", "dtype", "dropout")  # a run's own choices


def initial_weights(
    config: Config, networks: Networks, mesh: Mesh, workdir: Path | None = None
) -> training.Adopt | None:
    """What replaces a run's first weights: `config.adopt` and `config.init_from`.

    `init_from` is the working directory of another run, or a file with a PyTorch state
    dict (.pth and .pt need torch; .npz has one array per entry). The model takes over
    everything; a head for other classes, a buffer and denoising blocks that the source
    has not start anew. Strides and normalisation are in no weight: `config.model` must
    be the source's but for these, `dtype` and `dropout`. A file does not say what its
    network was, so that `normalise` has to fit it, e.g. mean and deviation of ImageNet.

    Args:
      config: The run's.
      networks: Of the run.
      mesh: Devices.
      workdir: Where the run is kept: one that has begun goes on without its sources,
        which may be gone by then.

    Returns:
      A function of the first weights, or None where nothing replaces them. Of their
      shapes alone (`jax.eval_shape`) it says whether the sources fit.

    Raises:
      InputError: there is no such run or file, or its network is another.
    """
    if workdir is not None and _has_begun(workdir):
        return None
    adopt, source = _adopting(config, networks, mesh), config.get("init_from")
    if not source:
        return adopt
    given, path = str(source), Path(source)
    is_file = given.endswith(_FILES)
    if is_file:
        _check_file(path)
    theirs: Any = None if is_file else read_config(path)

    @functools.cache  # asked twice: whether it fits, and for the weights
    def source_weights() -> tuple[PyTree, PyTree]:
        if is_file:
            return _from_file(path, config)
        return load_checkpoint(theirs, path, "best", mesh).weights(MODEL)

    def start(params: PyTree, model_state: PyTree) -> tuple[PyTree, PyTree]:
        found = source_weights()
        if adopt is not None:
            params, model_state = adopt(params, model_state)
        own = networks.weights(params, model_state, MODEL)
        new = tuple(
            _merged(mine, other, given) for mine, other in zip(own, found, strict=True)
        )
        if theirs is not None:
            _check_same_function(config.model, theirs.model, given)
        if not networks.others:
            return new[0], new[1]
        return {**params, MODEL: new[0]}, {**model_state, MODEL: new[1]}

    return start


def _has_begun(workdir: Path) -> bool:
    saved = (workdir / "checkpoints").glob("*")
    return any(path.name.isdecimal() for path in saved)


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"`init_from` {path} does not exist.")
    if path.suffix != ".npz" and importlib.util.find_spec("torch") is None:
        raise InputError(
            f"`init_from` {path} needs torch to be read: install torch, or save the "
            "state dict's arrays by numpy.savez and give that file."
        )


def _from_file(path: Path, config: Config) -> tuple[PyTree, PyTree]:
    try:
        state_dict = _state_dict(path)
    except Exception as error:  # whatever zip, pickle and torch raise
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"`init_from` {path} cannot be read: {type(error).__name__}: {reason}"
        ) from error
    heads = [
        v for k, v in state_dict.items() if k.endswith(("fc.weight", "linear.weight"))
    ]
    block = {k: v for k, v in config.model.items() if k not in ("denoise", "buffer")}
    num_classes = int(heads[0].shape[0]) if heads else 10
    module: Any = make("model", names.MODELS, block, num_classes=num_classes)
    return models.from_pytorch(state_dict, module)


def _state_dict(path: Path) -> Any:
    if path.suffix == ".npz":
        with np.load(path) as archive:
            return {name: archive[name] for name in archive.files}
    import torch  # pyright: ignore[reportMissingImports]

    content = torch.load(path, map_location="cpu", weights_only=True)
    return content.get("state_dict", content)


def _merged(mine: PyTree, theirs: PyTree, source: str) -> PyTree:
    """Their weights in my tree; what may start anew stays where it does not fit."""
    known = dict(jax.tree_util.tree_leaves_with_path(theirs))

    def pick(path: Any, leaf: Any) -> Any:
        other = known.pop(path, None)
        if other is not None and other.shape == leaf.shape:
            return other
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if any(part.startswith(_FRESH) for part in name.split("/")):
            return leaf
        what = "none" if other is None else f"one of shape {other.shape}"
        raise InputError(
            f"`init_from` {source} is another network: {name!r} of shape {leaf.shape} "
            f"has {what} there. Take the same config.model."
        )

    merged = jax.tree_util.tree_map_with_path(pick, mine)
    if known:
        name = jax.tree_util.keystr(next(iter(known)), simple=True, separator="/")
        raise InputError(
            f"`init_from` {source} is another network: {name!r} has no place here. "
            "Take the same config.model."
        )
    return merged


def _check_same_function(mine: Block, theirs: Block, source: str) -> None:
    """What shapes do not show: strides, normalisation."""
    here, there = _described(mine), _described(theirs)
    for name in here | there:
        if here.get(name) != there.get(name):
            raise InputError(
                f"`init_from` {source} is another network: its model.{name} is "
                f"{there.get(name)!r}, here {here.get(name)!r}. Take the same "
                "config.model."
            )


def _described(block: Block) -> dict[str, Any]:
    """A block `model` with its defaults, as JSON has it."""
    given = inspect.signature(names.MODELS[block["name"]]).parameters
    default = {k: p.default for k, p in given.items() if p.default is not p.empty}
    found = {k: v for k, v in (default | dict(block)).items() if k not in _OWN}
    return json.loads(json.dumps(found, default=str))


def _adopting(config: Config, networks: Networks, mesh: Mesh) -> training.Adopt | None:
    """Takes over the networks of other runs that `config.adopt` names by directory.

    "DIR:model" is a run's classifier, as is DIR of a run that has no other networks;
    else the one of the same name is taken.

    Raises:
      InputError: there is no such run, or its network is another.
    """
    given = {k: str(v) for k, v in (config.get("adopt") or {}).items() if v is not None}
    sources = {source.partition(":")[0] for source in given.values()}
    configs: dict[str, Any] = {source: read_config(Path(source)) for source in sources}
    for name in given:
        one_of(networks.others, adopt=name)
    if not given:
        return None

    @functools.cache
    def run(source: str) -> Loaded:
        return load_checkpoint(configs[source], Path(source), "best", mesh)

    def adopt(params: PyTree, model_state: PyTree) -> tuple[PyTree, PyTree]:
        params, model_state = dict(params), dict(model_state)
        for name, place in given.items():
            workdir, _, asked = place.partition(":")
            others = run(workdir).run.networks.others
            there = asked or (name if others else MODEL)
            one_of((MODEL, *others), **{f"adopt.{name}": there})
            found = run(workdir).weights(there)
            if _shapes(found) != _shapes((params[name], model_state[name])):
                block, theirs = f"networks.{there}", configs[workdir]
                if there == MODEL:
                    block, shown = MODEL, theirs.model.to_dict()
                else:
                    shown = theirs.networks[there].to_dict()
                raise InputError(
                    f"`adopt.{name}` is another network in {workdir}: its block "
                    f"{block} is {shown}."
                )
            params[name], model_state[name] = found
        return params, model_state

    return adopt


def _shapes(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda a: (a.shape, a.dtype), tree)
