"""Losses on clean images that make attacks' optimisation harder, not images safer.

From "Adversarial Logit Pairing" (Kannan et al., 2018), where they are steps on the way,
and shown to fail by Mosbach et al. (2018): targets for an evaluation, no defenses.
"""

from collections.abc import Callable
from typing import get_args

import jax
import jax.numpy as jnp

from robustjax import _checks, objectives, pairing
from robustjax._checks import InputError
from robustjax.defenses._common import accuracy
from robustjax.pairing import LogitDistance
from robustjax.types import Array, Batch, Key, LossAux, LossFn, Model, PyTree


def clean_logit_pairing(
    model: Model,
    *,
    weight: float = 0.5,
    kind: LogitDistance = "mse",
    noise: float = 0.0,
    label_smoothing: float = 0.0,
) -> LossFn:
    """cross-entropy(x) + weight * mean distance of the logits of B / 2 pairs.

    Pairs are images of any two classes: row i with row i + B / 2 of a shuffled batch.

    Args:
      model: The classifier.
      weight: Of the pairs.
      kind: See `pairing.logit_distance`.
      noise: Deviation of Gaussian noise on the images, clipped to [0, 1]; Kannan et
        al. augment by it (0.5 on MNIST).
      label_smoothing: s of (1 - s) one-hot + s / K.

    Returns:
      A loss with the metrics `accuracy/clean` (on noisy images) and `loss/logit`.

    Raises:
      InputError: an argument is out of range; from the loss, an odd batch.

    Example:
      >>> from robustjax import models
      >>> loss_fn = clean_logit_pairing(models.from_linen(models.small_cnn()))
    """
    _checks.one_of(get_args(LogitDistance), kind=kind)

    def paired(logits: Array) -> Array:
        count = len(logits)
        if count % 2:
            raise InputError(f"`batch` must have an even number of rows, got {count}.")
        halves = logits[: count // 2], logits[count // 2 :]
        return pairing.logit_distance(*halves, kind=kind).mean()

    return _with_term(model, paired, weight, noise, label_smoothing)


def logit_squeezing(
    model: Model,
    *,
    weight: float = 0.5,
    kind: LogitDistance = "l2",
    noise: float = 0.0,
    label_smoothing: float = 0.0,
) -> LossFn:
    """cross-entropy(x) + weight * mean size of the logits.

    Args:
      model: The classifier.
      weight: Of the sizes.
      kind: The size is the distance from zero logits, see `pairing.logit_distance`.
      noise: As in `clean_logit_pairing`.
      label_smoothing: As in `clean_logit_pairing`.

    Returns:
      A loss with the metrics `accuracy/clean` and `loss/logit`.

    Raises:
      InputError: an argument is out of range.

    Example:
      >>> from robustjax import models
      >>> loss_fn = logit_squeezing(models.from_linen(models.small_cnn()), noise=0.5)
    """
    _checks.one_of(get_args(LogitDistance), kind=kind)

    def size(logits: Array) -> Array:
        return pairing.logit_distance(jnp.zeros_like(logits), logits, kind=kind).mean()

    return _with_term(model, size, weight, noise, label_smoothing)


def _with_term(
    model: Model,
    term: Callable[[Array], Array],
    weight: float,
    noise: float,
    label_smoothing: float,
) -> LossFn:
    _checks.non_negative(weight=weight, noise=noise)
    _checks.fraction(label_smoothing=label_smoothing)

    def loss_fn(
        params: PyTree, model_state: PyTree, key: Key, batch: Batch
    ) -> tuple[Array, LossAux]:
        noise_key, dropout_key = jax.random.split(key)
        x = batch.x
        if noise:
            drawn = jax.random.normal(noise_key, x.shape, x.dtype)
            x = jnp.clip(x + noise * drawn, 0, 1)
        out = model.apply(params, model_state, x, mode="train", key=dropout_key)
        found = term(out.logits)
        each = objectives.cross_entropy(out.logits, batch.y, label_smoothing)
        loss = each.mean() + weight * found
        metrics = {
            "loss/logit": found,
            "accuracy/clean": accuracy(out.logits, batch.y),
        }
        return loss, LossAux(out.model_state, metrics)

    return loss_fn
