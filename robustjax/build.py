"""Config to objects: the only code that knows a name as a string.

A block `dict(name="pgd", step_size=0.01, ...)` is looked up by its name in a literal
table and called with the rest, so a factory's keywords *are* the schema of its block.
"""

import dataclasses
import functools
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from robustjax import (
    attacks,
    data,
    defenses,
    evaluation,
    models,
    objectives,
    threats,
    training,
)
from robustjax._checks import InputError, one_of
from robustjax.evaluation import NamedAttack
from robustjax.training import sharding
from robustjax.types import (
    Array,
    Attack,
    Key,
    LossFn,
    Model,
    Objective,
    PyTree,
    Stage,
    Threat,
)

THREATS = {"linf": threats.linf, "l2": threats.l2, "l1": threats.l1}
OBJECTIVES: dict[str, Objective] = {
    "cross_entropy": objectives.cross_entropy,
    "margin": objectives.margin,
    "dlr": objectives.dlr,
    "kl": objectives.kl,
}
ATTACKS = {
    "fgsm": attacks.fgsm,
    "bim": attacks.bim,
    "pgd": attacks.pgd,
    "mi_fgsm": attacks.mi_fgsm,
    "restarts": attacks.restarts,
}
STARTS = ("none", "uniform", "gaussian")
MODELS = {
    "small_cnn": models.small_cnn,
    "wnll_mnist_cnn": models.wnll_mnist_cnn,
    "resnet20": models.resnet20,
    "resnet32": models.resnet32,
    "resnet44": models.resnet44,
    "resnet56": models.resnet56,
    "resnet110": models.resnet110,
    "resnet18": models.resnet18,
    "preact_resnet18": models.preact_resnet18,
    "resnet50": models.resnet50,
    "wide_resnet28_10": models.wide_resnet28_10,
    "wide_resnet34_10": models.wide_resnet34_10,
    "vgg19_bn": models.vgg19_bn,
}
# Applied in this order.
AUGMENTATIONS = {
    "random_resized_crop": data.random_resized_crop,
    "random_crop": data.random_crop,
    "flip": data.flip,
}
LOSSES = {
    "standard": defenses.standard,
    "adversarial": defenses.adversarial,
    "trades": defenses.trades,
    "mart": defenses.mart,
    "awp": defenses.awp,
}
OPTIMIZERS = {"sgd": training.sgd, "adam": training.adam, "adamw": training.adamw}
SCHEDULES = {
    "constant": training.constant,
    "piecewise": training.piecewise,
    "cosine": training.cosine,
    "one_cycle": training.one_cycle,
}
SELECTIONS = ("last", "validation/clean_accuracy", "validation/robust_accuracy")

Block = Mapping[str, Any]
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
    options = _call(
        "loop", training.LoopOptions, config.loop, progress_bar=progress_bar
    )
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
    config: Config, splits: data.Splits, model: Model, mesh: Mesh
) -> list[Stage]:
    """The run's stages, `config.stages` naming their blocks in order."""
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
        stream = data.shuffled_batches(
            splits.train, config.data.batch_size, seed=1000 * config.seed + position
        )
        total_steps = stream.steps_per_epoch * block.num_epochs
        stages.append(
            _call(
                name,
                Stage,
                {k: block[k] for k in block if k not in ("loss", "optimizer")},
                name=name,
                loss_fn=build_loss(block.loss, model),
                optimizer=build_optimizer(block.optimizer, total_steps=total_steps),
                data=stream,
            )
        )
    return stages


def build_model(block: Block, *, num_classes: int) -> Model:
    """The classifier of a `model` block, for a data set's number of classes."""
    return models.from_linen(_make("model", MODELS, block, num_classes=num_classes))


def build_augmentation(block: Block) -> data.Augmentation:
    """The augmentations of a block `{name: keywords}`, in the order of the table."""
    for name in block:
        one_of(AUGMENTATIONS, augment=name)
    chosen = [
        _call(name, factory, block[name])
        for name, factory in AUGMENTATIONS.items()
        if name in block
    ]
    return data.chain(*chosen)


def build_threat(block: Block) -> Threat:
    """The threat of a block such as `dict(name="linf", eps=8 / 255)`."""
    return _make("threat", THREATS, block)


def build_attack(block: Block) -> NamedAttack:
    """The attack of a block, with all its parameters, defaults included."""
    given = dict(block)
    label = given.pop("label", None)
    attack, parameters = _attack(given)
    return NamedAttack(label or parameters["name"], attack, parameters)


def build_loss(block: Block, model: Model) -> LossFn:
    """The loss of a block; `awp` wraps the loss in its own block `loss`."""
    given = dict(block)
    if given.get("name") == "awp":
        return defenses.awp(
            build_loss(given["loss"], model),
            **{k: v for k, v in given.items() if k not in ("name", "loss")},
        )
    fixed: dict[str, Any] = {"model": model}
    if "attack" in given:
        fixed["attack"] = build_attack(given.pop("attack")).attack
    return _make("loss", LOSSES, given, **fixed)


def build_optimizer(block: Block, *, total_steps: int):
    """The optimizer of a block, its schedule stretched over `total_steps`."""
    given = dict(block)
    schedule = dict(given.pop("schedule", {}))
    if schedule.get("name") != "constant":
        schedule["total_steps"] = total_steps
    return _make(
        "optimizer",
        OPTIMIZERS,
        given,
        schedule=_make("schedule", SCHEDULES, schedule),
    )


def quick_suite(block: Block) -> list[NamedAttack]:
    """PGD-40, and the worst of `num_restarts` restarts keeping the best iterate.

    `block` is `config.evaluation`: threat, step_size, num_steps, num_restarts.
    """
    pgd = dict(
        name="pgd",
        threat=block["threat"],
        step_size=block["step_size"],
        num_steps=block["num_steps"],
    )
    steps, count = block["num_steps"], block["num_restarts"]
    return [
        build_attack({**pgd, "label": f"PGD-{steps}"}),
        build_attack(
            dict(
                name="restarts",
                attack={**pgd, "iterate": "best"},
                num_restarts=count,
                label=f"PGD-{steps} x {count} restarts",
            )
        ),
    ]


SUITES = {"quick": quick_suite}


def build_suite(name: str, block: Block) -> list[NamedAttack]:
    """The attacks of a suite by name, from `config.evaluation`."""
    one_of(SUITES, suite=name)
    return SUITES[name](block)


def curve_attack(block: Block) -> Callable[[Array], Attack]:
    """Radius (traced) to the PGD attack of `config.evaluation`, steps in proportion."""
    threat = build_threat(block["threat"])
    if threat.eps == 0:
        raise InputError("`--curve` needs `eps` above 0, to which the steps relate.")
    share = block["step_size"] / threat.eps

    def attack_at(eps: Array) -> Attack:
        return attacks.pgd(
            threat.with_eps(eps), step_size=eps * share, num_steps=block["num_steps"]
        )

    return attack_at


def resolved(config: Config) -> dict[str, Any]:
    """A config as plain JSON values."""
    return json.loads(config.to_json())


def _attack(given: dict[str, Any]) -> tuple[Attack, dict[str, Any]]:
    given = dict(given)
    name = given.pop("name", None)
    factory = _lookup("attack", ATTACKS, name)
    arguments, shown = dict(given), dict(given)
    if "attack" in given:
        arguments["attack"], shown["attack"] = _attack(dict(given["attack"]))
    if "threat" in given:
        arguments["threat"] = build_threat(given["threat"])
        shown["threat"] = _described(THREATS[given["threat"]["name"]], given["threat"])
    if "objective" in given:
        arguments["objective"] = _lookup("objective", OBJECTIVES, given["objective"])
    if "random_start" in given:
        start = given["random_start"]
        start = {"name": start} if isinstance(start, str) else dict(start)
        shown["random_start"] = start
        arguments["random_start"] = _start(start, arguments.get("threat"))
    attack = _call(f"attack {name}", factory, arguments)
    return attack, {"name": name, **_described(factory, shown)}


def _start(block: dict[str, Any], threat: Threat | None):
    name = block.get("name")
    one_of(STARTS, random_start=name)
    if name == "none":
        return None
    if name == "gaussian":
        return _call("random_start", threats.gaussian_start, _rest(block))
    if threat is None:
        raise InputError("`random_start` 'uniform' needs a `threat` in the same block.")
    return threat.sample


def _described(factory: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters of a call in JSON-able form, defaults filled in."""
    known: dict[Any, str] = {v: k for k, v in OBJECTIVES.items()}
    described = dict(given)
    for name, parameter in inspect.signature(factory).parameters.items():
        if name not in described and parameter.default is not inspect.Parameter.empty:
            value = parameter.default
            if callable(value):
                value = known.get(value, "uniform")  # the only other default function
            described[name] = list(value) if isinstance(value, tuple) else value
    return described


def _validation(config: Config, splits: data.Splits, model: Model, mesh: Mesh):
    if splits.validation is None:
        return None
    attack = build_attack(config.validation_attack)
    judge = functools.partial(
        evaluation.evaluate,
        dataset=splits.validation,
        attacks=[attack],
        key=jax.random.key(0),
        batch_size=config.evaluation.batch_size,
        mesh=mesh,
    )

    def validate(params: PyTree, model_state: PyTree) -> dict[str, float]:
        result = judge(models.logits_fn(model, params, model_state))
        return {
            "validation/clean_accuracy": float(result.clean_correct.mean()),
            "validation/robust_accuracy": float(result.worst_case_correct.mean()),
        }

    return validate


def _make(kind: str, table: Mapping[str, Callable], block: Block, **fixed: Any) -> Any:
    return _call(kind, _lookup(kind, table, block.get("name")), _rest(block), **fixed)


def _lookup(kind: str, table: Mapping[str, Any], name: object) -> Any:
    one_of(table, **{f"{kind} name": name})
    return table[name]  # pyright: ignore[reportArgumentType]


def _rest(block: Block) -> dict[str, Any]:
    return {k: v for k, v in dict(block).items() if k != "name"}


def _call(kind: str, factory: Callable[..., Any], given: Block, **fixed: Any) -> Any:
    """The factory's result; a keyword that it does not have is the user's mistake."""
    arguments = {**dict(given), **fixed}
    signature = inspect.signature(factory)
    try:
        signature.bind(**arguments)
    except TypeError as error:
        accepted = ", ".join(name for name in signature.parameters if name not in fixed)
        raise InputError(
            f"The block of {kind} does not fit: {error}. It takes: {accepted}."
        ) from error
    return factory(**arguments)
