"""NAMID: training against frozen critics of natural and adversarial information.

See "Improving Adversarial Robustness via Mutual Information Estimation" (Zhou et al.,
2022). Minus the information of x and of n = x_adv - x in the logits of x and of x_adv:

    a = l_n(x; x),  b = l_n(x; x_adv),  c = l_a(n; x),  d = l_a(n; x_adv)

    L = L_adv + alpha * ( |1 - cos(a, b)| + |1 - cos(c, d)| + lambda * mean(b - d) )

over the examples that are right on x and wrong on x_adv.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from robustjax import _checks, information
from robustjax._checks import InputError
from robustjax.defenses import _information
from robustjax.defenses._common import Statistics, clean_and_adversarial
from robustjax.defenses._information import Logits, Predictor
from robustjax.information import Bound
from robustjax.types import (
    AdversarialLoss,
    Array,
    Batch,
    Key,
    LossAux,
    MIEstimator,
    Model,
    ModelOutput,
    PyTree,
)

_DV = information.dv()
# The released code's forward passes of a step: for the cross-entropy, the selection and
# the information, one after the other.
_RELEASED_ORDER = ("adv", "clean", "adv", "clean", "adv", "adv", "clean")


def namid(
    model: Model,
    base: AdversarialLoss,
    natural: MIEstimator,
    adversarial: MIEstimator,
    *,
    alpha: float = 5.0,
    information_weight: float = 0.1,
    natural_weight: float = 1.0,
    adversarial_weight: float = 1.0,
    bound: Bound = _DV,
    cosine: Literal["batch", "places"] = "batch",
    predictor: Predictor = "argmax",
    statistics: Literal["adversarial", "both", "released"] = "adversarial",
    block_size: int | None = None,
) -> AdversarialLoss:
    """The target's loss, eqs. (8) and (9); `params` hold "natural" and "adversarial".

    Both critics are used as they are, in eval mode; gradients reach the classifier
    through the logits of x and of x_adv. If nothing is selected, the loss is the base's
    terms alone. Two forward passes a step, whose `statistics` are this function's and
    not the base's.

    Where the paper and its released code differ: the paper has lambda = 0.1, the code 0
    (the term is commented out). The paper's cosine is per example, of scalars, whose
    gradient is 0; the code takes one of vectors over the batch, "batch", here the
    default; "places" is the other reading that works, a cosine of each example's
    estimates over places, and their mean. The paper predicts by argmax, the code by a
    softmax over the batch. The code makes seven forward passes in train mode, which
    moves BatchNorm's statistics seven times.

    Args:
      model: The classifier, the same as the base's.
      base: L_adv: `adversarial`, `trades` (NAMID_T) or `mart` (NAMID_M); it makes
        x_adv too.
      natural: The critic of x.
      adversarial: The critic of x_adv - x.
      alpha: Weight of all the terms beside L_adv.
      information_weight: lambda.
      natural_weight: Of the terms a and b; 0 for the ablation.
      adversarial_weight: Of the terms c and d.
      bound: Of the estimates.
      cosine: Of vectors over the batch or over places.
      predictor: How examples are selected.
      statistics: Which forward passes move BatchNorm's running statistics: that of
        x_adv, both, or those of the released code, in its order.
      block_size: See `information.estimates`.

    Returns:
      A loss with the metrics of the base, and `loss/information`, `share/fooled` and
      the four mean estimates `information/...`.

    Raises:
      InputError: an argument is out of range, or the base has no `terms`.

    Example:
      >>> from robustjax import attacks, defenses, models, threats
      >>> model = models.part(models.from_linen(models.small_cnn()), "model")
      >>> attack = attacks.pgd(threats.linf(0.1), step_size=0.025, num_steps=10)
      >>> critic = models.logits_critic(64)
      >>> loss_fn = namid(model, defenses.adversarial(model, attack), critic, critic)
    """
    _checks.non_negative(
        alpha=alpha,
        information_weight=information_weight,
        natural_weight=natural_weight,
        adversarial_weight=adversarial_weight,
    )
    _checks.one_of(("batch", "places"), cosine=cosine)
    _checks.one_of(("argmax", "batch_softmax"), predictor=predictor)
    _checks.one_of(("adversarial", "both", "released"), statistics=statistics)
    terms = base.terms
    if terms is None:
        raise InputError(
            "`base` must have `terms`: adversarial (not mixed), trades or mart."
        )
    places = cosine == "places"
    similarity = _information.place_cosine if places else _information.batch_cosine

    def objective(
        params: PyTree, model_state: PyTree, key: Key, batch: Batch, x_adv: Array
    ) -> tuple[Array, LossAux]:
        clean, adv = _forward(
            *(model, params, model_state, key, batch.x, x_adv),
            statistics=statistics,
            capture=_information.captured(natural, adversarial),
        )
        loss, metrics = terms(clean.logits, adv.logits, batch.y)
        logits = Logits(clean.logits, adv.logits)
        fooled = _information.select(logits, batch.y, predictor).fooled
        total = jnp.zeros_like(loss)
        samples = (
            ("natural", natural, batch.x, natural_weight, -1),
            ("adversarial", adversarial, x_adv - batch.x, adversarial_weight, 1),
        )
        for name, estimator, sample, weight, sign in samples:
            of_clean, of_adv, _ = _information.estimated(
                *(estimator, bound, jax.lax.stop_gradient(params[name])),
                *(model_state[name], sample, (clean, adv)),
                mode="eval",
                by_place=places,
                block_size=block_size,
            )
            apart = jnp.abs(1 - similarity(of_clean, of_adv, fooled))
            if places:
                of_clean, of_adv = of_clean.mean(axis=1), of_adv.mean(axis=1)
            # b - d: the natural estimate rises, the adversarial one falls.
            amount = sign * _information.masked_mean(of_adv, fooled)
            total += weight * (apart + information_weight * amount)
            metrics[f"information/{name}_clean"] = of_clean.mean()
            metrics[f"information/{name}_adv"] = of_adv.mean()
        total = jnp.where(fooled.any(), total, 0.0)
        metrics |= {"loss/information": total, "share/fooled": fooled.mean()}
        return loss + alpha * total, LossAux(adv.model_state, metrics)

    return AdversarialLoss(base.craft, objective)


def _forward(
    model: Model,
    params: PyTree,
    model_state: PyTree,
    key: Key,
    x: Array,
    x_adv: Array,
    *,
    statistics: str,
    capture: tuple[str, ...],
) -> tuple[ModelOutput, ModelOutput]:
    if statistics != "released":
        chosen: Statistics = "both" if statistics == "both" else "adversarial"
        return clean_and_adversarial(
            *(model, params, model_state, key, x, x_adv),
            statistics=chosen,
            capture=capture,
        )
    # Logits in train mode do not depend on the running statistics: repetitions are one
    # computation after compilation, and only the statistics move on.
    images = {"clean": x, "adv": x_adv}
    keys = dict(zip(images, jax.random.split(key), strict=True))
    outputs: dict[str, ModelOutput] = {}
    for name in _RELEASED_ORDER:
        out = model.apply(
            *(params, model_state, images[name]),
            mode="train",
            capture=capture,
            key=keys[name],
        )
        model_state = out.model_state
        outputs.setdefault(name, out)
    adv = outputs["adv"]._replace(model_state=model_state)
    return outputs["clean"], adv
