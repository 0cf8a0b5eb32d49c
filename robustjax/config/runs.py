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

from robustjax import data, evaluation, training
from robustjax._checks import InputError, one_of
from robustjax.config import names
from robustjax.config.attacks import build_attack
from robustjax.config.blocks import Block, call
from robustjax.config.classifiers import Classifier
from robustjax.config.critics import Critics
from robustjax.config.networks import MODEL, Networks, build_networks
from robustjax.config.stages import build_stages
from robustjax.config.test_time import is_test_time
from robustjax.types import (
    Array,
    Key,
    LogitsFn,
    Model,
    PyTree,
    Stage,
)

Config = Any  # an ml_collections.ConfigDict, whose type hides its fields


@dataclasses.dataclass(frozen=True)
class Run:
    """What a config describes, ready for the loop and for the evaluator.

    Attributes:
      splits: The data.
      networks: The classifier, and what losses need beside it.
      init: `key -> (params, model_state)`.
      key: The run's key.
      prepare: Conversion and augmentation of training images, on the device.
      validate: Metrics on the validation split, by stage; none for a stage that trains
        no classifier, or without the split.
      options: How the loop runs.
    """

    splits: data.Splits
    networks: Networks
    init: Callable[[Key], tuple[PyTree, PyTree]]
    key: Key
    prepare: Callable[[Key, Array], Array]
    validate: dict[str, training.Validate]
    options: training.LoopOptions


def run(config: Config, mesh: Mesh, *, progress_bar: bool = True) -> Run:
    """Everything in a config but its stages.

    Raises:
      InputError: a name, a keyword or a value in the config is wrong.
    """
    splits = load_data(config)
    first = _as_tested(dataclasses.replace(splits, train=splits.train.take(slice(1))))
    sample = data.as_float(jnp.asarray(first.images))
    networks = build_networks(config, num_classes=splits.train.num_classes)
    augment = build_augmentation(config.data.augment)
    options = call("loop", training.LoopOptions, config.loop, progress_bar=progress_bar)
    return Run(
        splits=splits,
        networks=networks,
        init=lambda key: networks.init(key, sample),
        key=jax.random.key(config.seed),
        prepare=lambda key, images: augment(key, data.as_float(images)),
        validate=_validation(config, splits, networks, mesh),
        options=options,
    )


def load_data(config: Config) -> data.Splits:
    """The splits that `config.data` names."""
    block = config.data
    crop = block.get("crop")
    if crop is not None and "random_resized_crop" not in block.augment:
        raise InputError(
            f"`data.crop` {crop} leaves training images larger than those of the test: "
            "add data.augment.random_resized_crop of this size."
        )
    return data.load(
        block.name,
        data_dir=block.data_dir,
        validation=block.validation,
        image_size=block.image_size,
        crop=crop,
    )


def _as_tested(splits: data.Splits) -> data.Dataset:
    """The training images, no larger than those of the test."""
    side, _ = splits.test.images.shape[1:3]
    if splits.train.images.shape[1:] == splits.test.images.shape[1:]:
        return splits.train
    return data.centred(splits.train, side)


def build_classifier(
    config: Config,
    splits: data.Splits,
    model: Model,
    params: PyTree,
    model_state: PyTree,
    **options: Any,
) -> Classifier:
    """What these weights make with the config's `head` and `transform`.

    Args:
      config: The run's.
      splits: Its data.
      model: The model.
      params: Its parameters.
      model_state: Its BatchNorm statistics.
      **options: As of a `Classifier`.
    """
    augment = build_augmentation(config.data.augment)
    return Classifier(
        config, _as_tested(splits), augment, model, params, model_state, **options
    )


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
      another: Another classifier of the run, by its name.
    """

    run: Run
    step: int
    classifier: Classifier
    another: Callable[[str], Classifier]

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
    network: str = MODEL,
) -> Restored:
    """The classifier of a checkpoint, with the run that it belongs to.

    Args:
      workdir: Of a run of train.py.
      mesh: Devices.
      config: The run's config if something in it has changed since, such as where the
        data are; by default the one in `workdir`.
      checkpoint: "best", "last" or a step.
      network: Which of the run's classifiers, such as "reference".

    Raises:
      InputError: there is no such run, checkpoint or classifier, or it is not trained.
    """
    chosen: Any = read_config(workdir) if config is None else config
    found = load_checkpoint(chosen, workdir, checkpoint, mesh)
    splits, networks = found.run.splits, found.run.networks
    params, model_state = found.state.evaluated_params, found.state.model_state
    critics = None
    if trained := {k: v for k, v in networks.others.items() if found.has_trained(k)}:
        known = dataclasses.replace(networks, others=trained)
        attack = build_attack(chosen.validation_attack).attack
        critics = functools.partial(
            *(Critics, chosen, splits.train, known, params, model_state),
            attack=attack,
        )

    def classifier(name: str) -> Classifier:
        model = networks.classifier(name)
        found.check_trained(name)
        weights = networks.weights(params, model_state, name)
        kept = dict(critics=critics, directory=workdir / "defenses")
        return build_classifier(chosen, splits, model, *weights, **kept)

    step = int(found.state.step)
    return Restored(found.run, step, classifier(network), classifier)


class Loaded(NamedTuple):
    """A checkpoint with what it takes to read it."""

    config: Config
    workdir: Path
    run: Run
    stages: list[Stage]
    state: training.TrainState

    def weights(self, network: str) -> tuple[PyTree, PyTree]:
        """The params and the state of one network.

        Raises:
          InputError: it is not trained.
        """
        self.check_trained(network)
        params, model_state = self.state.evaluated_params, self.state.model_state
        return self.run.networks.weights(params, model_state, network)

    def has_trained(self, network: str) -> bool:
        """Whether the run has trained a network by now, or taken it over."""
        if (self.config.get("adopt") or {}).get(network):
            return True
        begins = 0
        for stage in self.stages:
            if self.run.networks.trains(self.config[stage.name], network):
                return not begins or int(self.state.step) > begins
            begins += stage.num_epochs * stage.data.steps_per_epoch
        return False

    def check_trained(self, network: str) -> None:
        """Raises unless it has."""
        if not self.has_trained(network):
            raise InputError(
                f"The run in {self.workdir} has not trained {network!r} at step "
                f"{int(self.state.step)}: train on, or take a later `checkpoint`."
            )


def load_checkpoint(
    config: Config, workdir: Path, checkpoint: str, mesh: Mesh
) -> Loaded:
    """A checkpoint of a run, and what it takes to read it."""
    described = run(config, mesh)
    stages = build_stages(config, described.splits, described.networks, mesh)
    state = training.load(
        stages,
        described.init,
        workdir=workdir,
        checkpoint=checkpoint,
        average=described.options.average_decay is not None,
        mesh=mesh,
    )
    return Loaded(config, workdir, described, stages, state)


def resolved(config: Config) -> dict[str, Any]:
    """A config as plain JSON values."""
    return json.loads(config.to_json())


def _validation(
    config: Config, splits: data.Splits, networks: Networks, mesh: Mesh
) -> dict[str, training.Validate]:
    if splits.validation is None:
        return {}
    attack = build_attack(config.validation_attack)
    judge = functools.partial(
        evaluation.evaluate,
        dataset=splits.validation,
        key=jax.random.key(0),
        batch_size=config.evaluation.batch_size,
        mesh=mesh,
    )

    bare = config.copy_and_resolve_references()
    if is_test_time(config.get("transform") or {}):
        with bare.unlocked():  # fitted to weights that do not change any more
            del bare.transform

    def validate(name: str, params: PyTree, model_state: PyTree) -> dict[str, float]:
        weights = networks.weights(params, model_state, name)
        built = build_classifier(bare, splits, networks.classifier(name), *weights)
        attacks = [dataclasses.replace(attack, source=built.source)]
        result = judge(built.logits_fn, attacks=attacks)
        clean = float(result.clean_correct.mean())
        robust = float(result.worst_case_correct.mean())
        return {
            "validation/clean_accuracy": clean,
            "validation/robust_accuracy": robust,
            "validation/mean_accuracy": (clean + robust) / 2,
        }

    trained = {
        stage: networks.trained_classifier(config[stage])
        for stage in config.stages
        if stage in config
    }
    return {
        stage: functools.partial(validate, name)
        for stage, name in trained.items()
        if name is not None
    }
