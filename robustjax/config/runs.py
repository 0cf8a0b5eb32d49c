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

from robustjax import data, evaluation, models, training
from robustjax._checks import InputError, one_of
from robustjax.config import names
from robustjax.config.attacks import Another, build_attack
from robustjax.config.blocks import Block, call, make
from robustjax.config.classifiers import Classifier
from robustjax.config.stages import build_stages
from robustjax.types import (
    Array,
    Key,
    LogitsFn,
    Model,
    PyTree,
)

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
        build_stages(config, described.splits, described.model, mesh),
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


def another_run(mesh: Mesh) -> Another:
    """Finds the classifiers of other runs, for those who attack from them."""

    def another(workdir: str) -> LogitsFn:
        classifier = restore(Path(workdir), mesh).classifier
        return classifier.source or classifier.logits_fn

    return another


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
