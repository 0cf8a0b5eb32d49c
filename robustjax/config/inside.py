"""What attackers who look inside a network ask of it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax.tree_util import Partial

from robustjax import attacks, data, pairing
from robustjax.attacks.penalty import Penalty
from robustjax.config.blocks import Block, call
from robustjax.types import Array, Model, ModelFn, PyTree

_COMPARED = ("attention_kind", "map_kind", "power", "floor", "layer_reduction")


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


def paired(config: Any) -> dict[str, Any]:
    """What a run pairs in its last stage, as keywords of `attacks.PairingPenalty`.

    Its layers, or that by which it is judged, and how it compares their maps; a loss
    inside of another (`awp`, `base`) counts.
    """
    stages = config.get("stages") or ()
    loss = (config.get(stages[-1]) or {}).get("loss") if stages else None
    while loss and not loss.get("layers"):
        inner = loss.get("loss") or loss.get("base")
        loss = inner if hasattr(inner, "get") else None  # WNLL's is a word
    if loss:
        found = {name: loss[name] for name in _COMPARED if name in loss}
        return found | dict(layers=tuple(loss["layers"]))
    layer = (config.get("evaluation") or {}).get("layer")
    return dict(layers=(layer,) if layer else ())


def pairing_penalty(
    run: Mapping[str, Any], changes: Block, model_fn: ModelFn
) -> Penalty:
    """An `attacks.PairingPenalty` of a model.

    Args:
      run: From `paired`.
      changes: The penalty's weights, and what else is not as in the run.
      model_fn: The model.

    Raises:
      InputError: a keyword or value is wrong.
    """
    penalty = call("pairing", attacks.PairingPenalty, dict(run) | dict(changes))
    return Partial(penalty, model_fn)


@dataclasses.dataclass(frozen=True)
class _Joint:
    """Features of several models, one after the other."""

    def __call__(self, features_fns: tuple[Any, ...], x: Array) -> Array:
        found = [features_fn(x) for features_fn in features_fns]
        return jnp.concatenate([a.reshape(len(a), -1) for a in found], axis=1)


def joint_guides(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a collision with the features of several models needs.

    Args:
      found: From `guides`, of each; the images are those of the first.
    """
    features = tuple(each["features_fn"] for each in found)
    return found[0] | dict(features_fn=Partial(_Joint(), features))
