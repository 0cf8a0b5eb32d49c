"""Configs to runs: data, model, stages, and the classifier that a run left behind."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from robustjax import data, defenses, evaluation, models, training
from robustjax._checks import InputError, one_of
from robustjax.config import names
from robustjax.config.attacks import build_attack
from robustjax.config.blocks import Block, call, make
from robustjax.config.classifiers import Classifier, build_similarity
from robustjax.training import sharding
from robustjax.types import (
    Array,
    Attack,
    BatchStream,
    InputTransform,
    Key,
    LogitsFn,
    LossFn,
    Model,
    PyTree,
    Stage,
)

SELECTIONS = ("last", "validation/clean_accuracy", "validation/robust_accuracy")

Config = Any  # an ml_collections.ConfigDict, whose type hides its fields


@dataclasses.dataclass(frozen=True)
class Run:
    """What a config describes, ready for the loop and for the evaluator.

    Attributes:
      splits: The data.
      model: The classifier.
      init: `key -> (params, model_state)`.
      key: The run's key.
      prepare: Conversion and augmentation of training images, on the device.
      validate: Metrics on the validation split; None if there is none.
      options: How the loop runs.
    """

    splits: data.Splits
    model: Model
    init: Callable[[Key], tuple[PyTree, PyTree]]
    key: Key
    prepare: Callable[[Key, Array], Array]
    validate: Callable[[PyTree, PyTree], dict[str, float]] | None
    options: training.LoopOptions


def run(config: Config, mesh: Mesh, *, progress_bar: bool = True) -> Run:
    """Everything in a config but its stages.

    Raises:
      InputError: a name, a keyword or a value in the config is wrong.
    """
    splits = load_data(config)
    sample = data.as_float(jnp.asarray(splits.train.images[:1]))
    model = build_model(config.model, num_classes=splits.train.num_classes)
    augment = build_augmentation(config.data.augment)
    options = call("loop", training.LoopOptions, config.loop, progress_bar=progress_bar)
    return Run(
        splits=splits,
        model=model,
        init=lambda key: model.init(key, sample),
        key=jax.random.key(config.seed),
        prepare=lambda key, images: augment(key, data.as_float(images)),
        validate=_validation(config, splits, model, mesh),
        options=options,
    )


def load_data(config: Config) -> data.Splits:
    """The splits that `config.data` names."""
    block = config.data
    return data.load(
        block.name,
        data_dir=block.data_dir,
        validation=block.validation,
        image_size=block.image_size,
    )


def build_stages(
    config: Config,
    splits: data.Splits,
    model: Model,
    mesh: Mesh,
    *,
    compute: bool = True,
) -> list[Stage]:
    """The run's stages, `config.stages` naming their blocks in order.

    Without `compute` the images of `config.data.union` are not computed but stand-ins,
    for those who need to know what a run is like without running it.
    """
    train = build_union(config, splits.train, mesh, compute=compute)
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
        rows = sum(shape.values()) or config.data.batch_size
        sharding.check_divides(mesh, **{f"{name} batch": rows})
        total_steps = stream.steps_per_epoch * block.num_epochs
        trainable = block.get("trainable")
        apart = ("loss", "optimizer", "data", "trainable")
        stages.append(
            call(
                name,
                Stage,
                {k: block[k] for k in block if k not in apart},
                name=name,
                loss_fn=build_loss(block.loss, model, **shape),
                optimizer=build_optimizer(block.optimizer, total_steps=total_steps),
                data=stream,
                trainable=None if trainable is None else _parts(tuple(trainable)),
            )
        )
    return stages


def build_union(
    config: Config, train: data.Dataset, mesh: Mesh, *, compute: bool = True
) -> data.Dataset:
    """The training images, and what `config.data.union` adds to them.

    Its blocks are transforms by name, and `adversarial`: examples of `attack` against
    the run in `workdir`. All are computed once, with keys fixed by `config.seed`.
    """
    parts = [train]
    for number, (name, block) in enumerate((config.data.get("union") or {}).items()):
        given = block.to_dict()
        if not compute:
            parts.append(train)
        elif name == "adversarial":
            source = restore(Path(given["workdir"]), mesh).logits_fn
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
        return make(
            "data",
            names.STREAMS,
            block,
            dataset=dataset,
            batch_size=config.data.batch_size,
            seed=seed,
        ), shape
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


def build_model(block: Block, *, num_classes: int) -> Model:
    """The classifier of a `model` block, for a data set's number of classes."""
    return models.from_linen(
        make("model", names.MODELS, block, num_classes=num_classes)
    )


def build_classifier(
    config: Config,
    splits: data.Splits,
    model: Model,
    params: PyTree,
    model_state: PyTree,
) -> Classifier:
    """What these weights make with the config's `head` and `transform`."""
    augment = build_augmentation(config.data.augment)
    return Classifier(config, splits.train, augment, model, params, model_state)


def build_augmentation(block: Block) -> data.Augmentation:
    """The augmentations of a block `{name: keywords}`, in the order of the table."""
    plain = {name: dict(block[name]) for name in block}
    return _augmentation(json.dumps(plain, sort_keys=True))


@functools.cache
def _augmentation(text: str) -> data.Augmentation:
    """One object per block, so that code compiled for it is found again."""
    block = json.loads(text)
    for name in block:
        one_of(names.AUGMENTATIONS, augment=name)
    chosen = [
        call(name, factory, block[name])
        for name, factory in names.AUGMENTATIONS.items()
        if name in block
    ]
    return data.chain(*chosen)


def build_loss(block: Block, model: Model, **shape: int) -> LossFn:
    """The loss of a block; `awp` wraps the loss in its own block `loss`.

    `shape` is what the stage's data block says about its batches.
    """
    given = dict(block)
    if given.get("name") == "awp":
        return defenses.awp(
            build_loss(given["loss"], model, **shape),
            **{k: v for k, v in given.items() if k not in ("name", "loss")},
        )
    fixed: dict[str, Any] = {"model": model, **shape}
    if "similarity" in given:
        fixed["similarity"] = build_similarity(given.pop("similarity"))
    if "attack" in given:
        fixed["attack"] = build_attack(given.pop("attack")).attack
    return make("loss", names.LOSSES, given, **fixed)


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


class Restored(NamedTuple):
    """What a run left in its working directory.

    Attributes:
      run: Its data, model and options.
      step: The step of the checkpoint.
      classifier: The classifier, and the views that attacks take of it.
    """

    run: Run
    step: int
    classifier: Classifier

    @property
    def logits_fn(self) -> LogitsFn:
        """The classifier, a pytree of its weights."""
        return self.classifier.logits_fn


def restore(
    workdir: Path,
    mesh: Mesh,
    *,
    config: Config | None = None,
    checkpoint: str = "best",
) -> Restored:
    """The classifier of a checkpoint, with the run that it belongs to.

    Args:
      workdir: Of a run of train.py.
      mesh: Devices.
      config: The run's config if something in it has changed since, such as where the
        data are; by default the one in `workdir`.
      checkpoint: "best", "last" or a step.

    Raises:
      InputError: there is no such run or checkpoint.
    """
    config = read_config(workdir) if config is None else config
    described = run(config, mesh)
    state = training.load(
        build_stages(config, described.splits, described.model, mesh, compute=False),
        described.init,
        workdir=workdir,
        checkpoint=checkpoint,
        average=described.options.average_decay is not None,
        mesh=mesh,
    )
    classifier = build_classifier(
        config,
        described.splits,
        described.model,
        state.evaluated_params,
        state.model_state,
    )
    return Restored(described, int(state.step), classifier)


def resolved(config: Config) -> dict[str, Any]:
    """A config as plain JSON values."""
    return json.loads(config.to_json())


def _validation(config: Config, splits: data.Splits, model: Model, mesh: Mesh):
    if splits.validation is None:
        return None
    attack = build_attack(config.validation_attack)
    judge = functools.partial(
        evaluation.evaluate,
        dataset=splits.validation,
        key=jax.random.key(0),
        batch_size=config.evaluation.batch_size,
        mesh=mesh,
    )

    def validate(params: PyTree, model_state: PyTree) -> dict[str, float]:
        built = build_classifier(config, splits, model, params, model_state)
        attacks = [dataclasses.replace(attack, source=built.source)]
        result = judge(built.logits_fn, attacks=attacks)
        return {
            "validation/clean_accuracy": float(result.clean_correct.mean()),
            "validation/robust_accuracy": float(result.worst_case_correct.mean()),
        }

    return validate
