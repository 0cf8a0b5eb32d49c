"""What NAMID's losses share: four estimates, selections of examples, cosines."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from robustjax import information
from robustjax.information import Bound
from robustjax.types import Array, MIEstimator, Mode, ModelOutput, PyTree

Predictor = Literal["argmax", "batch_softmax"]
_FLOOR = 1e-8  # of a norm in a cosine, PyTorch's


class Information(NamedTuple):
    """Estimates of each example, [B] (or [B, L] by place).

    NAMID's losses are a, b, c, d = minus these.

    Attributes:
      natural_clean: What the logits of x say about x.
      natural_adv: What the logits of x_adv say about x.
      adversarial_clean: What the logits of x say about x_adv - x.
      adversarial_adv: What the logits of x_adv say about x_adv - x.
    """

    natural_clean: Array
    natural_adv: Array
    adversarial_clean: Array
    adversarial_adv: Array


class Logits(NamedTuple):
    """Of x and of x_adv, [B, K]."""

    clean: Array
    adv: Array


class Selection(NamedTuple):
    """Masks of the batch, [B] bool.

    Attributes:
      right: Right on x.
      fooled: Right on x, wrong on x_adv.
      survived: Right on both.
      wrong_adv: Wrong on x_adv, whatever is said of x.
    """

    right: Array
    fooled: Array
    survived: Array
    wrong_adv: Array


Outputs = tuple[ModelOutput, ModelOutput]
"""Of x and of x_adv."""


def captured(*estimators: MIEstimator) -> tuple[str, ...]:
    """The layers that critics see."""
    return tuple({e.layer: None for e in estimators if e.layer is not None})


def seen(estimator: MIEstimator, out: ModelOutput) -> Array:
    """The logits, or the layer, that a critic sees."""
    return out.logits if estimator.layer is None else out.features[estimator.layer]


def select(logits: Logits, y: Array, predictor: Predictor) -> Selection:
    """Which examples are right and stay so.

    "batch_softmax" predicts as the released code does where it selects: the largest of
    z_ic - log sum_i' exp z_i'c, a softmax over the batch.
    """
    right, survives = (_predicted(z, predictor) == y for z in logits)
    return Selection(right, right & ~survives, right & survives, ~survives)


def _predicted(logits: Array, predictor: Predictor) -> Array:
    if predictor == "batch_softmax":
        logits = jax.nn.log_softmax(logits, axis=0)
    return logits.argmax(axis=1)


def estimated(
    estimator: MIEstimator,
    bound: Bound,
    params: PyTree,
    state: PyTree,
    sample: Array,
    outputs: Outputs,
    *,
    mode: Mode,
    by_place: bool = False,
    block_size: int | None = None,
) -> tuple[Array, Array, PyTree]:
    """Of `sample` in what the critic sees of x and of x_adv, and the new state.

    The local features are computed once for both.
    """
    local, state = estimator.local_features(params, state, sample, mode=mode)
    estimate = information.estimates_by_place if by_place else information.estimates
    found = []
    for z in (seen(estimator, out) for out in outputs):
        features, state = estimator.global_features(params, state, z, mode=mode)
        found.append(estimate(bound, local, features, block_size=block_size))
    return found[0], found[1], state


def masked_sum(values: Array, mask: Array) -> Array:
    """Over the examples of a mask; 0 if there are none."""
    return jnp.where(mask, values, 0.0).sum()


def masked_mean(values: Array, mask: Array) -> Array:
    """Over the examples of a mask; 0 if there are none."""
    return masked_sum(values, mask) / jnp.maximum(mask.sum(), 1)


def batch_cosine(one: Array, other: Array, mask: Array) -> Array:
    """Of two vectors over the batch, [B], with 0 outside the mask; a scalar."""
    one, other = (jnp.where(mask, values, 0.0) for values in (one, other))
    return _cosine(one, other)


def place_cosine(one: Array, other: Array, mask: Array) -> Array:
    """The mean over a mask of the cosines of vectors over places, [B, L]."""
    return masked_mean(_cosine(one, other), mask)


def _cosine(one: Array, other: Array) -> Array:
    inner = jnp.sum(one * other, axis=-1)
    return inner / (_norm(one) * _norm(other))


def _norm(values: Array) -> Array:
    square = jnp.sum(values**2, axis=-1)
    positive = square > _FLOOR**2
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), _FLOOR)
