"""TRADES: trade clean accuracy against agreement of clean and adversarial outputs."""

import jax

from robustjax import _checks
from robustjax.defenses._common import (
    Statistics,
    accuracy,
    crafting,
    paired,
)
from robustjax.objectives import cross_entropy, kl
from robustjax.types import (
    AdversarialLoss,
    Array,
    Attack,
    Mode,
    Model,
)


def trades(
    model: Model,
    attack: Attack,
    *,
    beta: float = 6.0,
    attack_mode: Mode = "eval",
    statistics: Statistics = "adversarial",
) -> AdversarialLoss:
    """cross-entropy(x) + beta * KL(softmax z(x) || softmax z(x_adv)), batch means.

    See "Theoretically Principled Trade-off between Robustness and Accuracy" (Zhang et
    al., 2019), eq. (5). Both terms differentiate into both branches.

    The attack is handed y = softmax(clean logits), so it should climb `kl`, as in
    `pgd(threat, objective=kl, random_start=gaussian_start(0.001), step_size=0.007,
    num_steps=10)`, the settings of the authors' CIFAR-10 script.

    Args:
      model: The classifier.
      attack: Makes x_adv from a distribution over classes.
      beta: Weight of the KL term; 6 is the paper's for CIFAR-10 (1/lambda there).
      attack_mode: BatchNorm during the attack.
      statistics: Which forward passes move BatchNorm's running statistics: the
        adversarial one, or the clean one and then the adversarial one, as the authors'
        code does. Loss and gradients are the same.

    Returns:
      A loss with the metrics `loss/clean`, `loss/kl`, `accuracy/clean` and
      `accuracy/robust`.

    Raises:
      InputError: an argument is out of range.

    Example:
      >>> from robustjax import attacks, models, objectives, threats
      >>> model = models.from_linen(models.small_cnn())
      >>> attack = attacks.pgd(
      ...     threats.linf(8 / 255), step_size=0.007, num_steps=10,
      ...     objective=objectives.kl, random_start=threats.gaussian_start(0.001))
      >>> loss_fn = trades(model, attack, beta=6.0)
    """
    _checks.non_negative(beta=beta)
    _checks.one_of(("adversarial", "both"), statistics=statistics)

    def terms(clean: Array, adv: Array, y: Array) -> tuple[Array, dict[str, Array]]:
        natural = cross_entropy(clean, y).mean()
        divergence = kl(adv, jax.nn.softmax(clean)).mean()
        metrics = {
            "loss/clean": natural,
            "loss/kl": divergence,
            "accuracy/clean": accuracy(clean, y),
            "accuracy/robust": accuracy(adv, y),
        }
        return natural + beta * divergence, metrics

    craft = crafting(model, attack, mode=attack_mode, own_answers=True)
    objective = paired(model, terms, statistics=statistics)
    return AdversarialLoss(craft, objective, terms)
