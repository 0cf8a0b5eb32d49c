"""What the NAMID configs share: networks, critics' stage, target's loss, variants.

A run has three stages: a reference classifier by adversarial training, two critics on
its logits, and a new classifier against the frozen critics. `adopt` names other runs
whose networks are taken over in place of training them, with `stages` shortened:

    --config.adopt.reference=DIR --config.adopt.natural=DIR \
        --config.adopt.adversarial=DIR --config.stages="('train',)"
"""

import ml_collections
from ml_collections import config_dict

from robustjax import InputError

VARIANTS = (
    "namid",
    "trades",
    "mart",
    "wmim",
    "no_natural",
    "no_adversarial",
    "no_amount",
    "no_information",
    "mim",
)


def split(variant: str) -> tuple[str, bool]:
    """The variant of `VARIANTS` and whether it is light: "trades,light", "light"."""
    light = variant == "light" or variant.endswith(",light")
    chosen = variant.removesuffix("light").removesuffix(",") if light else variant
    return chosen or "namid", light


def add(
    config: ml_collections.ConfigDict,
    variant: str,
    *,
    reference: dict,
    critics: dict,
    target: dict,
    attack: dict,
    critic_attack: dict,
    units: int,
    widths: tuple[int, ...] = (64, 128),
    model: dict | None = None,
    warmups: dict | None = None,
    alpha: float = 5.0,
) -> None:
    """Adds networks and stages to a config.

    Args:
      config: With data and model.
      variant: One of `VARIANTS`: combinations with TRADES and MART, the baseline WMIM,
        and what an ablation leaves out: one of the critics, lambda ("no_amount"), all
        of them (alpha 0); "mim" has critics of eq. (4).
      reference: The reference's stage; what it trains is added here.
      critics: The critics' stage without its loss.
      target: The target's stage without its loss.
      attack: The target's, on the cross-entropy.
      critic_attack: The one against the reference while critics are trained.
      units: U of the critics.
      widths: Of their local nets.
      model: The reference's network, by default like the target's.
      warmups: Stages that come before those of "reference" and "train", by their names.
      alpha: Weight of the terms beside the adversarial loss; the paper's is 5.

    Raises:
      InputError: there is no such variant.
    """
    if variant not in VARIANTS:
        raise InputError(
            f"`config` ends in :{', :'.join(VARIANTS)} or nothing, got :{variant}."
        )
    names = ("standard",) if variant == "wmim" else ("natural", "adversarial")
    critic = dict(name="logits_critic", units=units, widths=widths)
    config.networks = dict(reference=model or config.model.to_dict())
    config.networks.update({name: dict(critic) for name in names})
    config.adopt = {
        name: config_dict.placeholder(str) for name in ("reference", *names)
    }
    target = target | dict(loss=_target_loss(variant, attack, alpha))
    stages = dict(reference=reference, critics=critics, train=target)
    stages["critics"] |= dict(loss=_critics_loss(variant, critic_attack))
    trained = dict(reference=("reference",), critics=names, train=("model",))
    config.stages = ()
    for name, stage in stages.items():
        if name in (warmups or {}):
            config[f"{name}_warmup"] = warmups[name] | dict(trainable=trained[name])
            config.stages += (f"{name}_warmup",)
        config[name] = stage | dict(trainable=trained[name])
        config.stages += (name,)


def _critics_loss(variant: str, attack: dict) -> dict:
    """Dv bounds; eq. (5) as the code has it, or eq. (4)."""
    bound = dict(name="dv", diagonal="zeroed")
    if variant == "wmim":
        return dict(name="wmim_critic", attack=attack, bound=bound)
    objective = dict(name="separation_released")
    if variant == "mim":
        objective = dict(name="maximisation", selection="all")
    return dict(
        name="critics",
        attack=attack,
        bound=bound,
        objective=objective,
        predictor="argmax",
    )


def _target_loss(variant: str, attack: dict, alpha: float) -> dict:
    """Eqs. (8) and (9): lambda 0.1, cosines of vectors over the batch."""
    base = dict(name="adversarial", attack=attack, clean_weight=0.0)
    if variant == "trades":
        base = dict(name="trades", attack=attack | dict(objective="kl"), beta=6.0)
    elif variant == "mart":
        base = dict(name="mart", attack=attack, beta=6.0)
    bound = dict(name="dv", diagonal="zeroed")
    if variant == "wmim":
        return dict(name="wmim", base=base, bound=bound, weight=1.0)
    return dict(
        name="namid",
        base=base,
        bound=bound,
        alpha=0.0 if variant == "no_information" else alpha,
        information_weight=0.0 if variant == "no_amount" else 0.1,
        natural_weight=0.0 if variant == "no_natural" else 1.0,
        adversarial_weight=0.0 if variant == "no_adversarial" else 1.0,
        cosine="batch",
        predictor="argmax",
        statistics="adversarial",
    )


def critics_stage(
    *, num_epochs: int = 25, value: float = 1e-2, batch_size: int | None = None
) -> dict:
    """Adam, its learning rate divided by 10 after 2/5 and 4/5, as released."""
    stage = dict(
        optimizer=dict(
            name="adam",
            schedule=dict(name="piecewise", value=value, drops=(0.4, 0.8), factor=0.1),
        ),
        num_epochs=num_epochs,
        selection="last",
    )
    if batch_size is not None:
        stage["data"] = dict(name="shuffled", batch_size=batch_size)
    return stage
