"""The networks of a run: its classifier, and those that its losses need beside it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from robustjax import models
from robustjax._checks import InputError
from robustjax.config import names
from robustjax.config.blocks import Block, call, make
from robustjax.types import Array, Key, MIEstimator, Model, PyTree

Network = Model | MIEstimator
MODEL = "model"
ROLES = ("reference", "natural", "adversarial", "standard")
"""What losses call the networks beside the model."""


@dataclasses.dataclass(frozen=True)
class Networks:
    """All of them, and how their weights are kept.

    A model alone has `params` of its own. With others beside it every network is an
    entry of `params` and of the state, by its name; the model's is "model".

    Attributes:
      model: The classifier that the run is for.
      others: Reference classifiers, critics.
    """

    model: Model
    others: Mapping[str, Network] = dataclasses.field(default_factory=dict)

    def init(self, key: Key, x: Array) -> tuple[PyTree, PyTree]:
        """Weights and state of all, of an example batch."""
        if not self.others:
            return self.model.init(key, x)
        params, states = {}, {}
        for number, (name, network) in enumerate(self._all().items()):
            own = jax.random.fold_in(key, number)
            if isinstance(network, Model):
                params[name], states[name] = network.init(own, x)
                continue
            capture = () if network.layer is None else (network.layer,)
            weights = params[MODEL], states[MODEL]
            out = self.model.apply(*weights, x, capture=capture)
            z = out.logits if network.layer is None else out.features[network.layer]
            params[name], states[name] = network.init(own, x, z)
        return params, states

    def of_losses(self) -> dict[str, Network]:
        """The networks as losses take them: classifiers of all weights."""
        if not self.others:
            return {MODEL: self.model}
        return {
            name: models.part(network, name) if isinstance(network, Model) else network
            for name, network in self._all().items()
        }

    def classifier(self, name: str) -> Model:
        """One that has logits.

        Raises:
          InputError: there is none of that name.
        """
        network = self._all().get(name)
        if not isinstance(network, Model):
            known = [n for n, m in self._all().items() if isinstance(m, Model)]
            raise InputError(
                f"`network` must be one of {', '.join(known)}, got {name!r}."
            )
        return network

    def weights(
        self, params: PyTree, model_state: PyTree, name: str
    ) -> tuple[PyTree, PyTree]:
        """The params and the state of one network."""
        if not self.others:
            return params, model_state
        return params[name], model_state[name]

    def trains(self, stage: Block, name: str) -> bool:
        """Whether a stage trains a network."""
        return name in stage.get("trainable", ()) if self.others else name == MODEL

    def trained_classifier(self, stage: Block) -> str | None:
        """The name of the classifier that a stage trains; None if it trains none."""
        classifiers = [n for n, m in self._all().items() if isinstance(m, Model)]
        return next((name for name in classifiers if self.trains(stage, name)), None)

    def _all(self) -> dict[str, Network]:
        return {MODEL: self.model, **self.others}


def build_networks(config: Any, *, num_classes: int) -> Networks:
    """The block `model`, and those in `networks` by name.

    Raises:
      InputError: a name, a keyword or a value is wrong.
    """
    others = {}
    for name, block in (config.get("networks") or {}).items():
        if name == MODEL:
            raise InputError(
                "`networks` must not name a 'model': that is config.model."
            )
        if block.get("name") in names.ESTIMATORS:
            others[name] = make("estimator", names.ESTIMATORS, block)
        else:
            others[name] = build_model(block, num_classes=num_classes)
    return Networks(build_model(config.model, num_classes=num_classes), others)


def build_model(block: Block, *, num_classes: int) -> Model:
    """The classifier of a `model` block, for a data set's number of classes.

    Its block `denoise` holds the keywords of `models.denoised`.
    """
    given = dict(block)
    denoise = given.pop("denoise", None)
    module = make("model", names.MODELS, given, num_classes=num_classes)
    if denoise is not None:
        module = call("denoise", models.denoised, denoise, module=module)
    return models.from_linen(module)
