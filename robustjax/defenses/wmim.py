"""WMIM: adversarial training that keeps the information of x_adv in its logits.

The baseline of NAMID's tables, after "Learning Adversarially Robust Representations via
Worst-Case Mutual Information Maximization" (Zhu et al., 2020): one critic, trained on
adversarial images of a reference classifier, then frozen.
"""

import jax

from robustjax import _checks, information
from robustjax._checks import InputError
from robustjax.defenses import _information
from robustjax.defenses._common import (
    Statistics,
    accuracy,
    clean_and_adversarial,
    crafting,
)
from robustjax.information import Bound
from robustjax.types import (
    AdversarialLoss,
    Array,
    Attack,
    Batch,
    Key,
    LossAux,
    LossFn,
    MIEstimator,
    Model,
    PyTree,
)

_DV = information.dv()


def wmim_critic(
    reference: Model,
    attack: Attack,
    standard: MIEstimator,
    *,
    bound: Bound = _DV,
    block_size: int | None = None,
) -> LossFn:
    """- mean information of x_adv in its own logits; `params` hold "standard".

    From a script in the history of NAMID's released code.

    Args:
      reference: The trained classifier, in eval mode and without gradient.
      attack: Makes x_adv against it.
      standard: The critic, in train mode.
      bound: Of the estimates.
      block_size: See `information.estimates`.

    Example:
      >>> from robustjax import attacks, models, threats
      >>> reference = models.part(models.from_linen(models.small_cnn()), "reference")
      >>> attack = attacks.pgd(threats.linf(0.1), step_size=0.025, num_steps=20)
      >>> critic = models.logits_critic(64)
      >>> loss_fn = wmim_critic(reference, attack, critic)
    """

    craft = crafting(reference, attack, mode="eval")

    def loss_fn(
        params: PyTree, model_state: PyTree, key: Key, batch: Batch
    ) -> tuple[Array, LossAux]:
        x_adv = craft(params, model_state, key, batch)
        out = reference.apply(
            *(jax.lax.stop_gradient(params), model_state, x_adv),
            capture=_information.captured(standard),
        )
        local, glob, state = standard.features(
            *(params["standard"], model_state["standard"]),
            *(x_adv, _information.seen(standard, out)),
            mode="train",
        )
        found = information.estimates(bound, local, glob, block_size=block_size).mean()
        metrics = {"information/standard": found}
        metrics["accuracy/robust"] = accuracy(out.logits, batch.y)
        return -found, LossAux({**model_state, "standard": state}, metrics)

    return loss_fn


def wmim(
    model: Model,
    base: AdversarialLoss,
    standard: MIEstimator,
    *,
    weight: float = 1.0,
    bound: Bound = _DV,
    statistics: Statistics = "adversarial",
    block_size: int | None = None,
) -> AdversarialLoss:
    """L_adv - weight * mean information of x_adv in its own logits.

    Neither the training code nor the weight was published; 1 is a reading.

    Args:
      model: The classifier, the same as the base's.
      base: L_adv: `adversarial`, `trades` or `mart`.
      standard: The critic "standard" of `params`, as it is, in eval mode.
      weight: At least 0.
      bound: Of the estimates.
      statistics: As of `trades`, in place of the base's.
      block_size: See `information.estimates`.

    Raises:
      InputError: an argument is out of range, or the base has no `terms`.

    Example:
      >>> from robustjax import attacks, defenses, models, threats
      >>> model = models.part(models.from_linen(models.small_cnn()), "model")
      >>> attack = attacks.pgd(threats.linf(0.1), step_size=0.025, num_steps=10)
      >>> critic = models.logits_critic(64)
      >>> loss_fn = wmim(model, defenses.adversarial(model, attack), critic)
    """
    _checks.non_negative(weight=weight)
    _checks.one_of(("adversarial", "both"), statistics=statistics)
    terms = base.terms
    if terms is None:
        raise InputError(
            "`base` must have `terms`: adversarial (not mixed), trades or mart."
        )

    def objective(
        params: PyTree, model_state: PyTree, key: Key, batch: Batch, x_adv: Array
    ) -> tuple[Array, LossAux]:
        clean, adv = clean_and_adversarial(
            *(model, params, model_state, key, batch.x, x_adv),
            statistics=statistics,
            capture=_information.captured(standard),
        )
        loss, metrics = terms(clean.logits, adv.logits, batch.y)
        local, glob, _ = standard.features(
            jax.lax.stop_gradient(params["standard"]),
            *(model_state["standard"], x_adv, _information.seen(standard, adv)),
        )
        found = information.estimates(bound, local, glob, block_size=block_size).mean()
        metrics["information/standard"] = found
        return loss - weight * found, LossAux(adv.model_state, metrics)

    return AdversarialLoss(base.craft, objective)
