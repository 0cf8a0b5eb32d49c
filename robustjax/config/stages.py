"""The blocks of a run's stages: data, loss, optimizer."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from robustjax import data, defenses
from robustjax._checks import InputError, one_of
from robustjax.config import names
from robustjax.config.attack_blocks import Another
from robustjax.config.attacks import build_attack
from robustjax.config.blocks import Block, call, lookup, make
from robustjax.config.heads import build_similarity
from robustjax.config.networks import MODEL, ROLES, Networks
from robustjax.defenses.weight_perturbation import Perturbed
from robustjax.training import sharding
from robustjax.types import (
    AdversarialLoss,
    Array,
    Attack,
    Batch,
    BatchStream,
    InputTransform,
    Key,
    LogitsFn,
    LossFn,
    PyTree,
    Stage,
)

SELECTIONS = (
    "last",
    "validation/clean_accuracy",
    "validation/robust_accuracy",
    "validation/mean_accuracy",
)

Config = Any  # an ml_collections.ConfigDict, whose type hides its fields


def build_stages(
    config: Config,
    splits: data.Splits,
    networks: Networks,
    mesh: Mesh,
    another: Another | None = None,
) -> list[Stage]:
    """The run's stages, `config.stages` naming their blocks in order.

    Without `another`, which finds the classifiers of other runs, the images of
    `config.data.union` are not computed but stand-ins, for those who need to know what
    a run is like without running it.
    """
    train = build_union(config, splits.train, another)
    sharding.check_divides(mesh, batch_size=config.data.batch_size)
    if not config.stages:
        raise InputError(
            f"`stages` must name at least one block, got {config.stages!r}."
        )
    stages = []
    for position, name in enumerate(config.stages):
        if name not in config:
            raise InputError(f"`stages` names {name!r}, but there is no config.{name}.")
        block = config[name]
        one_of(
            ("last",) if splits.validation is None else SELECTIONS,
            selection=block.get("selection", "last"),
        )
        given = block.get("data", dict(name="shuffled"))
        stream, shape = _stream(
            given, train, config, seed=1000 * config.seed + position
        )
        rows = sum(shape.values()) or given.get("batch_size", config.data.batch_size)
        sharding.check_divides(mesh, **{f"{name} batch": rows})
        total_steps = stream.steps_per_epoch * block.num_epochs
        trainable = block.get("trainable")
        if trainable is None and networks.others:
            raise InputError(
                f"`{name}.trainable` must say which of the `networks` the stage trains,"
                ' e.g. ("model",); the others stay as they are.'
            )
        apart = ("loss", "optimizer", "data", "trainable")
        stages.append(
            call(
                name,
                Stage,
                {k: block[k] for k in block if k not in apart},
                name=name,
                loss_fn=build_loss(block.loss, networks, another or _absent, **shape),
                optimizer=build_optimizer(block.optimizer, total_steps=total_steps),
                data=stream,
                trainable=None if trainable is None else _parts(tuple(trainable)),
            )
        )
    return stages


def build_union(
    config: Config, train: data.Dataset, another: Another | None
) -> data.Dataset:
    """The training images, and what `config.data.union` adds to them.

    Its blocks are transforms by name, and `adversarial`: examples of `attack` against
    the run in `workdir`, which `another` finds. All are computed once, with keys fixed
    by `config.seed`; without `another` the training images stand in for them.
    """
    parts = [train]
    for number, (name, block) in enumerate((config.data.get("union") or {}).items()):
        given = block.to_dict()
        if another is None:
            parts.append(train)
        elif name == "adversarial":
            source = another(given["workdir"])
            attack = build_attack(given["attack"]).attack
            parts.append(_mapped(config, number, train, _crafted(attack, source)))
        else:
            transform = make("union", names.TRANSFORMS, {"name": name, **given})
            fun = functools.partial(_applied, transform)
            parts.append(_mapped(config, number, train, fun))
    return train if len(parts) == 1 else data.joined(*parts)


def _mapped(config: Config, number: int, train: data.Dataset, fun: Any) -> data.Dataset:
    key = jax.random.fold_in(jax.random.key(config.seed), 1000 + number)
    return data.mapped(train, fun, key=key)


def _applied(transform: InputTransform, keys: Key, x: Array, y: Array) -> Array:
    del y
    return transform.apply((), keys, lambda z: z, x)  # none of them asks the model


def _crafted(attack: Attack, source: LogitsFn) -> Any:
    return lambda keys, x, y: attack(keys, source, x, y)


def _stream(
    block: Block, dataset: data.Dataset, config: Config, *, seed: int
) -> tuple[BatchStream, dict[str, int]]:
    """A stage's batches, and what of their shape its loss has to know."""
    shape = {k: block[k] for k in ("num_templates", "num_queries") if k in block}
    if block.get("name") == "shuffled":
        given = {"batch_size": config.data.batch_size, **block}
        stream = make("data", names.STREAMS, given, dataset=dataset, seed=seed)
        return stream, shape
    if config.loop.accumulate != 1:
        raise InputError(
            f"`loop.accumulate` must be 1 with batches of templates, got "
            f"{config.loop.accumulate}: a part of one has another number of them."
        )
    return make("data", names.STREAMS, block, dataset=dataset, seed=seed), shape


def _parts(trained: tuple[str, ...]) -> Callable[[PyTree], PyTree]:
    """What a stage trains, by the first names of the parameters' paths."""

    def trainable(params: PyTree) -> PyTree:
        for name in trained:
            one_of(params, trainable=name)
        return {name: name in trained for name in params}

    return trainable


def _absent(source: str) -> LogitsFn:
    """Stands in for another run where a loss is described and never computed."""

    def logits_fn(x: Array) -> Array:
        raise InputError(f"The run {source} is not loaded: only train.py trains.")

    return logits_fn


def build_loss(
    block: Block, networks: Networks, another: Another = _absent, **shape: int
) -> LossFn:
    """The loss of a block.

    A loss is given the run's networks that its parameters are named after (`model`,
    `reference`, `natural`, ...); `network` in the block is another name for `model`.
    `awp` wraps the loss in its own block `loss`; `base` is a loss that another adds to.
    `another` finds the static models of a `drawn_source`, `shape` is what the stage's
    data block says about its batches.
    """
    given = dict(block)
    if given.get("name") == "awp":
        return defenses.awp(
            build_loss(given["loss"], networks, another, **shape),
            **{k: v for k, v in given.items() if k not in ("name", "loss")},
        )
    factory = lookup("loss", names.LOSSES, given.pop("name", None))
    fixed: dict[str, Any] = _networks_of(factory, given, networks) | shape
    if "similarity" in given:
        fixed["similarity"] = build_similarity(given.pop("similarity"))
    if "attack" in given:
        fixed["attack"] = build_attack(given.pop("attack"), another).attack
    if "base" in given:
        fixed["base"] = build_loss(given.pop("base"), networks, another)
    if "bound" in given:
        fixed["bound"] = make("bound", names.BOUNDS, given.pop("bound"))
    if "objective" in given:
        own = given.pop("objective")
        fixed["objective"] = make("objective", names.CRITIC_OBJECTIVES, own)
    return call("loss", factory, given, **fixed)


def check_losses(
    config: Config,
    stages: Sequence[Stage],
    init: Callable[[Key], tuple[PyTree, PyTree]],
    prepare: Callable[[Key, Array], Array],
    images: np.ndarray,
) -> None:
    """Says before a step what losses cannot compute, or not to any purpose.

    Objectives of adversarial examples are traced for shapes alone, and not the attacks,
    which cost more.

    Args:
      config: The run's.
      stages: From `build_stages`.
      init: As given to `training.train`.
      prepare: Likewise.
      images: Some training images, of which only the shape counts.

    Raises:
      InputError: a layer does not exist, or whatever else a loss says of it; or it
        reads a network that no stage before it trains and nothing takes over.
    """
    _check_reads(config)
    key = jax.random.key(0)
    rows = config.data.batch_size
    for stage in stages:
        loss_fn = stage.loss_fn
        while isinstance(loss_fn, Perturbed):
            loss_fn = loss_fn.loss_fn
        kind = (config[stage.name].get("data") or {}).get("name", "shuffled")
        if kind != "shuffled" or not isinstance(loss_fn, AdversarialLoss):
            continue
        raw = jax.ShapeDtypeStruct((rows, *images.shape[1:]), images.dtype)
        x = jax.eval_shape(prepare, key, raw)
        batch = Batch(x, jax.ShapeDtypeStruct((rows,), jnp.int32))  # pyright: ignore[reportArgumentType]
        weights = jax.eval_shape(init, key)
        jax.eval_shape(loss_fn.objective, *weights, key, batch, x)


def _check_reads(config: Config) -> None:
    adopted = config.get("adopt") or {}
    ready = {MODEL, *(name for name, run in adopted.items() if run)}
    for stage in config.stages:
        ready |= set(config[stage].get("trainable") or ())
        for name in sorted(_reads(config[stage].loss) - ready):
            raise InputError(
                f"`{stage}.loss` reads the network {name!r}, which has its first "
                f"weights: name a stage before {stage!r} in `stages` that trains it, "
                f"or give --config.adopt.{name}=DIR of a run that did."
            )


def _reads(block: Block) -> set[str]:
    """The networks of which a loss makes use; not those whose terms weigh nothing."""
    inner = [block[key] for key in ("loss", "base") if key in block]
    found = set().union(*map(_reads, inner))
    if block["name"] == "awp":
        return found
    parameters = inspect.signature(names.LOSSES[block["name"]]).parameters
    if MODEL in parameters:
        found.add(block.get("network", MODEL))
    for role in ROLES:
        weights = (block.get(key) for key in ("alpha", "weight", f"{role}_weight"))
        if role in parameters and 0 not in weights:
            found.add(role)
    return found


def _networks_of(
    factory: Callable[..., LossFn], given: dict[str, Any], networks: Networks
) -> dict[str, Any]:
    """The networks among a loss's arguments; takes `network` out of its block."""
    known = networks.of_losses()
    chosen = given.pop("network", MODEL)
    networks.classifier(chosen)
    known[MODEL] = known[chosen]
    found = {}
    for name in inspect.signature(factory).parameters:
        if name in known:
            found[name] = known[name]
        elif name in (*ROLES, MODEL):
            raise InputError(
                f"The loss {factory.__name__} needs the network {name!r}: add "
                f"config.networks.{name}."
            )
    return found


def build_optimizer(block: Block, *, total_steps: int):
    """The optimizer of a block, its schedule stretched over `total_steps`."""
    given = dict(block)
    schedule = dict(given.pop("schedule", {}))
    if schedule.get("name") != "constant":
        schedule["total_steps"] = total_steps
    return make(
        "optimizer",
        names.OPTIMIZERS,
        given,
        schedule=make("schedule", names.SCHEDULES, schedule),
    )
