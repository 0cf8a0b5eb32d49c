"""The training of NAMID's critics on the logits of a frozen classifier.

See "Improving Adversarial Robustness via Mutual Information Estimation" (Zhou et al.,
2022), eqs. (4) and (5). With a, b, c, d as in `namid.py`, minus estimates, and W the
examples that x_adv fools, S those that survive it, R both (right on x):

    eq. (4):  a over clean images, d over adversarial ones
    eq. (5):  mean_W(a - b) and mean_W(d - c)

    as released:  T_W + T_S / 2 for each critic,
      natural:      T_W = 5 |cos(a, b)| + sum_W a / |R|
                    T_S = 5 |1 - cos(a, b)| + sum_S a / |R|
      adversarial:  T_W = 5 |cos(d, c)| + sum_W d / |W|
                    T_S = 8 |1 - cos(c, d)| - 0.1 sum_S d / |S|
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from robustjax import _checks, information
from robustjax.defenses import _information
from robustjax.defenses._common import accuracy, crafting
from robustjax.defenses._information import (
    Information,
    Logits,
    Predictor,
    Selection,
    batch_cosine,
    masked_mean,
    masked_sum,
)
from robustjax.information import Bound
from robustjax.types import (
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

CriticObjective = Callable[[Information, Selection], tuple[Array, Array]]
"""Estimates and masks to the losses of the natural and the adversarial critic."""

_DV = information.dv()


def separation_released(
    *,
    cosine_fooled: float = 5.0,
    cosine_survived: tuple[float, float] = (5.0, 8.0),
    survived: float = 0.5,
    survived_information: float = 0.1,
) -> CriticObjective:
    """What stands for eq. (5) in the released code, whose subtraction is not there.

    A mask that selects nothing is a term of 0; if no example is right on x at all, the
    losses are the plain means of a and d. The last term lowers estimates of surviving
    examples without end: where hardly any example is fooled, nothing holds it.

    Args:
      cosine_fooled: Weight of the cosines in T_W.
      cosine_survived: Of those in T_S, natural and adversarial.
      survived: Of T_S.
      survived_information: Of the sum in the adversarial T_S.

    Raises:
      InputError: a weight is below 0.
    """
    of_natural, of_adversarial = cosine_survived
    _checks.non_negative(
        cosine_fooled=cosine_fooled,
        survived=survived,
        survived_information=survived_information,
    )
    _checks.non_negative(**{"cosine_survived[0]": of_natural})
    _checks.non_negative(**{"cosine_survived[1]": of_adversarial})

    def objective(known: Information, on: Selection) -> tuple[Array, Array]:
        a, b, c, d = (-values for values in known)
        right = jnp.maximum(on.right.sum(), 1)
        natural = _both(
            on,
            cosine_fooled * jnp.abs(batch_cosine(a, b, on.fooled))
            + masked_sum(a, on.fooled) / right,
            of_natural * jnp.abs(1 - batch_cosine(a, b, on.survived))
            + masked_sum(a, on.survived) / right,
            survived,
        )
        adversarial = _both(
            on,
            cosine_fooled * jnp.abs(batch_cosine(d, c, on.fooled))
            + masked_mean(d, on.fooled),
            of_adversarial * jnp.abs(1 - batch_cosine(c, d, on.survived))
            - survived_information * masked_mean(d, on.survived),
            survived,
        )
        some = on.right.any()
        return (
            jnp.where(some, natural, a.mean()),
            jnp.where(some, adversarial, d.mean()),
        )

    return objective


def _both(on: Selection, fooled: Array, survived: Array, weight: float) -> Array:
    """The terms of those that there are."""
    fooled = jnp.where(on.fooled.any(), fooled, 0.0)
    return fooled + weight * jnp.where(on.survived.any(), survived, 0.0)


def separation() -> CriticObjective:
    """Eq. (5) as the paper writes it."""

    def objective(known: Information, on: Selection) -> tuple[Array, Array]:
        return (
            masked_mean(known.natural_adv - known.natural_clean, on.fooled),
            masked_mean(known.adversarial_clean - known.adversarial_adv, on.fooled),
        )

    return objective


def maximisation(*, selection: Literal["all", "released"] = "all") -> CriticObjective:
    """Eq. (4), "MIM".

    Args:
      selection: The paper's "all" images, or as released: a over those right on x, d
        over those wrong on x_adv, all of them where there are none.

    Raises:
      InputError: the argument is another.
    """
    _checks.one_of(("all", "released"), selection=selection)

    def over(values: Array, mask: Array) -> Array:
        if selection == "all":
            return -values.mean()
        return -jnp.where(mask.any(), masked_mean(values, mask), values.mean())

    def objective(known: Information, on: Selection) -> tuple[Array, Array]:
        return (
            over(known.natural_clean, on.right),
            over(known.adversarial_adv, on.wrong_adv),
        )

    return objective


_RELEASED = separation_released()


def critics(
    reference: Model,
    attack: Attack,
    natural: MIEstimator,
    adversarial: MIEstimator,
    *,
    objective: CriticObjective = _RELEASED,
    bound: Bound = _DV,
    predictor: Predictor = "argmax",
    block_size: int | None = None,
) -> LossFn:
    """The sum of both critics' losses; `params` hold "natural" and "adversarial".

    The classifier is used in eval mode and gets no gradient; critics are in train mode.
    Their parameters are disjoint, so one step on the sum is one on each, as the code
    does it.

    Args:
      reference: The trained classifier.
      attack: Makes x_adv against it.
      natural: The critic of x.
      adversarial: The critic of x_adv - x.
      objective: `separation_released()`, `separation()`, `maximisation()` or one's own.
      bound: Of the estimates.
      predictor: How examples are selected.
      block_size: See `information.estimates`.

    Returns:
      A loss with the metrics `loss/natural`, `loss/adversarial`, `share/fooled`,
      `accuracy/robust` and the four mean estimates `information/...`.

    Raises:
      InputError: an argument is out of range.

    Example:
      >>> from robustjax import attacks, models, threats
      >>> reference = models.part(models.from_linen(models.small_cnn()), "reference")
      >>> attack = attacks.pgd(threats.linf(0.1), step_size=0.025, num_steps=20)
      >>> critic = models.logits_critic(64)
      >>> loss_fn = critics(reference, attack, critic, critic)
    """
    _checks.one_of(("argmax", "batch_softmax"), predictor=predictor)
    estimators = {"natural": natural, "adversarial": adversarial}

    craft = crafting(reference, attack, mode="eval")

    def loss_fn(
        params: PyTree, model_state: PyTree, key: Key, batch: Batch
    ) -> tuple[Array, LossAux]:
        x_adv = craft(params, model_state, key, batch)
        clean, adv = (
            reference.apply(
                *(jax.lax.stop_gradient(params), model_state, images),
                capture=_information.captured(natural, adversarial),
            )
            for images in (batch.x, x_adv)
        )
        logits = Logits(clean.logits, adv.logits)
        samples = {"natural": batch.x, "adversarial": x_adv - batch.x}
        found, new = {}, dict(model_state)
        for name, estimator in estimators.items():
            *found[name], new[name] = _information.estimated(
                *(estimator, bound, params[name], model_state[name]),
                *(samples[name], (clean, adv)),
                mode="train",
                block_size=block_size,
            )
        known = Information(*found["natural"], *found["adversarial"])
        selection = _information.select(logits, batch.y, predictor)
        losses = objective(known, selection)
        metrics = {f"loss/{n}": v for n, v in zip(estimators, losses, strict=True)}
        metrics |= {f"information/{n}": v.mean() for n, v in known._asdict().items()}
        metrics["share/fooled"] = selection.fooled.mean()
        metrics["accuracy/robust"] = accuracy(logits.adv, batch.y)
        return sum(losses, jnp.zeros(())), LossAux(new, metrics)

    return loss_fn
