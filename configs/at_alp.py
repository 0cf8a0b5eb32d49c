"""What the configs of attention and logit pairing share: variants, losses, schedules.

Method: "Improving Adversarial Robustness via Attention and Adversarial Logit Pairing"
(Goodman et al., 2019), of which only the abstract could be read. What no source says
(layers, distance, weights, schedules) is ours: see `defenses.at_alp`. Variants after
the colon: `at_alp`, its ablations `alp`, `attention` and `mpgd` (mixed minibatches, no
pairing), and the baselines `at` (adversarial rows only), `trades`, `squeezing`,
`clean_pairing` and `undefended`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from configs import common
from robustjax import InputError

VARIANTS = (
    "at_alp",
    "alp",
    "attention",
    "mpgd",
    "at",
    "trades",
    "squeezing",
    "clean_pairing",
    "undefended",
)
SMOOTHING = 0.1


def loss(
    variant: str,
    attack: Mapping[str, Any],
    layers: Sequence[str],
    *,
    logit_weight: float = 0.5,
    attention_weight: float = 1.0,
) -> dict[str, Any]:
    """The loss of a variant; the same label smoothing everywhere but for TRADES.

    Args:
      variant: One of `VARIANTS`.
      attack: Of the training images.
      layers: Whose attention maps are paired.
      logit_weight: Of ALP.
      attention_weight: Of the attention term.

    Raises:
      InputError: there is no such variant.
    """
    attack, smoothing = dict(attack), dict(label_smoothing=SMOOTHING)
    pairs = dict(at_alp=(1, 1), alp=(1, 0), attention=(0, 1), mpgd=(0, 0))
    if variant in pairs:
        logit, attention = pairs[variant]
        return smoothing | dict(
            name="at_alp",
            attack=attack,
            logit_weight=logit * logit_weight,
            attention_weight=attention * attention_weight,
            layers=tuple(layers),
            logit_kind="mse",
            attention_kind="l2",
            map_kind="sum",
            power=2.0,
            floor=1e-12,
            layer_reduction="sum",
            clean_weight=0.5,
            detach_clean=False,
            joint_batch=True,
            attack_mode="eval",
        )
    others = dict(
        at=dict(name="adversarial", attack=attack, clean_weight=0.0) | smoothing,
        trades=dict(name="trades", attack=attack | dict(objective="kl"), beta=6.0),
        squeezing=dict(name="logit_squeezing", weight=0.5, noise=0.05) | smoothing,
        clean_pairing=dict(name="clean_logit_pairing", weight=0.5, noise=0.05)
        | smoothing,
        undefended=dict(name="standard") | smoothing,
    )
    if variant not in others:
        raise InputError(
            f"`config` ends in :{', :'.join(VARIANTS)} or nothing, got :{variant}."
        )
    return others[variant]


def fine_tuning(value: float = 0.01) -> dict[str, Any]:
    """SGD as the spec has it: weight decay as in ALP's code, the rest ours."""
    return dict(
        name="sgd",
        momentum=0.9,
        weight_decay=1e-4,
        schedule=dict(name="piecewise", value=value, drops=(0.5, 0.75), factor=0.1),
    )


def attack(eps: float, *, num_steps: int = 10) -> dict[str, Any]:
    """Training PGD: steps of eps / 8, the ratio of ALP's, from a uniform start."""
    return common.pgd(eps, step_size=eps / 8, num_steps=num_steps)
