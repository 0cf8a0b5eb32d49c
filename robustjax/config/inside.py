"""What attackers who look inside a network ask of it."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax.tree_util import Partial

from robustjax import attacks, data, pairing
from robustjax.config.blocks import Block, call
from robustjax.types import Array, Attack, Model, ModelFn, PyTree


@dataclasses.dataclass(frozen=True)
class Asked:
    """Features that a collision looks at.

    Attributes:
      layer: Whose.
      maps: Whether its attention map, or all of its outputs.
    """

    layer: str
    maps: bool = False


@dataclasses.dataclass(frozen=True)
class _Features:
    model: Model
    asked: Asked

    def __call__(self, params: PyTree, model_state: PyTree, x: Array) -> Array:
        layer = self.asked.layer
        found = self.model.apply(params, model_state, x, capture=(layer,))
        a = found.features[layer]
        return pairing.unit_map(a) if self.asked.maps else a.reshape(a.shape[0], -1)


def guides(
    asked: Asked, weights: tuple[Model, PyTree, PyTree], chosen: data.Dataset
) -> dict[str, Any]:
    """Arguments of `attacks.feature_collision`: features of images, and the images."""
    model, params, model_state = weights
    return dict(
        features_fn=Partial(_Features(model, asked), params, model_state),
        images=data.as_float(jnp.asarray(chosen.images)),
        labels=jnp.asarray(chosen.labels),
    )


def paired_layers(config: Any) -> tuple[str, ...]:
    """The layers whose maps a run pairs in its last stage, or that it is judged by."""
    stages = config.get("stages") or ()
    loss = (config.get(stages[-1]) or {}).get("loss") if stages else None
    layer = (config.get("evaluation") or {}).get("layer")
    return tuple((loss or {}).get("layers") or ((layer,) if layer else ()))


def with_pairing(
    attack: Attack, layers: tuple[str, ...], changes: Block, model_fn: ModelFn
) -> Attack:
    """The attack with an `attacks.PairingPenalty` beside its objective.

    Args:
      attack: One that climbs an `attacks.WithPenalty`.
      layers: Whose maps, where `changes` name none.
      changes: The penalty's weights.
      model_fn: The model.

    Raises:
      InputError: a keyword or value is wrong.
    """
    given = dict(layers=layers) | dict(changes)
    penalty = call("pairing", attacks.PairingPenalty, given)
    return attacks.penalised(attack, Partial(penalty, model_fn))
