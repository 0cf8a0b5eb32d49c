"""Adversarial training (Madry et al., 2018), optionally mixed with clean images."""

import functools

import jax.numpy as jnp

from robustjax import _checks
from robustjax.defenses._common import crafting, mixed_cross_entropy
from robustjax.types import (
    AdversarialLoss,
    Array,
    Attack,
    Batch,
    Key,
    LossAux,
    Mode,
    Model,
    PyTree,
)


def adversarial(
    model: Model,
    attack: Attack,
    *,
    clean_weight: float = 0.0,
    label_smoothing: float = 0.0,
    attack_mode: Mode = "eval",
) -> AdversarialLoss:
    """(1 - w) * cross-entropy(x_adv) + w * cross-entropy(x), batch means.

    See "Towards Deep Learning Models Resistant to Adversarial Attacks" (Madry et al.,
    2018), eq. (2.1). With w > 0 clean and adversarial rows go through the network in
    one batch of 2B, whose BatchNorm statistics they share (mixed-minibatch PGD of
    Kannan et al., 2018, at w = 1/2).

    Args:
      model: The classifier.
      attack: Makes x_adv from the current weights.
      clean_weight: w in [0, 1]; 0 trains on adversarial images only.
      label_smoothing: s of (1 - s) one-hot + s / K; the attack does not smooth.
      attack_mode: BatchNorm during the attack. "eval" keeps examples independent;
        the WNLL paper's code attacks in "batch" mode, dropout included.

    Returns:
      A loss with the metrics `accuracy/robust` and, if mixed, `accuracy/clean`.

    Raises:
      InputError: an argument is out of range.

    Example:
      >>> from robustjax import attacks, models, threats
      >>> model = models.from_linen(models.small_cnn())
      >>> attack = attacks.pgd(threats.linf(0.1), step_size=0.025, num_steps=10)
      >>> loss_fn = adversarial(model, attack)
    """
    _checks.fraction(clean_weight=clean_weight, label_smoothing=label_smoothing)
    mixed = clean_weight > 0
    terms = functools.partial(
        mixed_cross_entropy, clean_weight=clean_weight, label_smoothing=label_smoothing
    )

    def objective(
        params: PyTree, model_state: PyTree, key: Key, batch: Batch, x_adv: Array
    ) -> tuple[Array, LossAux]:
        rows = jnp.concatenate([x_adv, batch.x]) if mixed else x_adv
        out = model.apply(params, model_state, rows, mode="train", key=key)
        adv, clean = out.logits[: len(x_adv)], out.logits[-len(x_adv) :]
        loss, metrics = terms(clean, adv, batch.y)
        if not mixed:
            del metrics["accuracy/clean"]  # there was no forward pass of x
        return loss, LossAux(out.model_state, metrics)

    craft = crafting(model, attack, mode=attack_mode)
    # Mixed rows share their statistics: no function of two forward passes.
    return AdversarialLoss(craft, objective, None if mixed else terms)
