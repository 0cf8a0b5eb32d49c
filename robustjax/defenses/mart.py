"""MART: misclassification-aware adversarial training."""

import jax
import jax.numpy as jnp

from robustjax import _checks
from robustjax.defenses._common import (
    Statistics,
    accuracy,
    crafting,
    paired,
)
from robustjax.objectives import cross_entropy
from robustjax.types import (
    AdversarialLoss,
    Array,
    Attack,
    Mode,
    Model,
)

# The guards of the authors' code; they keep logarithms finite and weights positive.
_MARGIN_GUARD = 1.0001
_WEIGHT_GUARD = 1.0000001
_FLOOR = 1e-12


def mart(
    model: Model,
    attack: Attack,
    *,
    beta: float = 6.0,
    attack_mode: Mode = "eval",
    statistics: Statistics = "adversarial",
) -> AdversarialLoss:
    """Boosted cross-entropy at x_adv + beta * weighted KL, batch means.

    With p = softmax z(x), q = softmax z(x_adv) and k the most likely wrong class of q:

        CE(z(x_adv), y) - log(1.0001 - q_k + 1e-12)
          + beta * (1.0000001 - p_y) * sum_j p_j (log p_j - log(q_j + 1e-12))

    See "Improving Adversarial Robustness Requires Revisiting Misclassified Examples"
    (Wang et al., 2020), eq. (11); the small constants are those of the authors' code.
    Nothing is detached, the weight 1 - p_y included.

    Args:
      model: The classifier.
      attack: Makes x_adv; the authors' is PGD on cross-entropy, eps 8/255, 10 steps of
        0.007, start 0.001 x Gaussian.
      beta: Weight of the KL term; the function's default in the authors' code is 6,
        their ResNet script passes 5.
      attack_mode: BatchNorm during the attack.
      statistics: As in `trades`; the authors' code is "both".

    Returns:
      A loss with the metrics `loss/boosted`, `loss/kl`, `accuracy/clean` and
      `accuracy/robust`.

    Raises:
      InputError: an argument is out of range.

    Example:
      >>> from robustjax import attacks, models, threats
      >>> model = models.from_linen(models.small_cnn())
      >>> attack = attacks.pgd(
      ...     threats.linf(8 / 255), step_size=0.007, num_steps=10,
      ...     random_start=threats.gaussian_start(0.001))
      >>> loss_fn = mart(model, attack)
    """
    _checks.non_negative(beta=beta)
    _checks.one_of(("adversarial", "both"), statistics=statistics)

    def terms(clean: Array, adv: Array, y: Array) -> tuple[Array, dict[str, Array]]:
        boosted, divergence = (part.mean() for part in mart_terms(clean, adv, y))
        metrics = {
            "loss/boosted": boosted,
            "loss/kl": divergence,
            "accuracy/clean": accuracy(clean, y),
            "accuracy/robust": accuracy(adv, y),
        }
        return boosted + beta * divergence, metrics

    craft = crafting(model, attack, mode=attack_mode)
    return AdversarialLoss(craft, paired(model, terms, statistics=statistics), terms)


def mart_terms(clean: Array, adv: Array, y: Array) -> tuple[Array, Array]:
    """The boosted cross-entropy and the weighted KL of `mart`, per example.

    Args:
      clean: Logits of x, [B, K].
      adv: Logits of x_adv, [B, K].
      y: Labels [B].

    Returns:
      boosted [B] and weighted divergence [B].
    """
    probs = jax.nn.softmax(clean)
    adv_probs = jax.nn.softmax(adv)
    true = jax.nn.one_hot(y, clean.shape[-1], dtype=bool)
    wrong = jnp.where(true, -jnp.inf, adv_probs).max(axis=1)
    boosted = cross_entropy(adv, y) - jnp.log(_MARGIN_GUARD - wrong + _FLOOR)
    gap = jax.nn.log_softmax(clean) - jnp.log(adv_probs + _FLOOR)
    weight = _WEIGHT_GUARD - jnp.where(true, probs, 0.0).sum(axis=1)
    return boosted, weight * jnp.sum(probs * gap, axis=1)
