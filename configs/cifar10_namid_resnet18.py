"""NAMID, ResNet-18 on CIFAR-10, L-infinity eps 8/255, as the paper has it.

    python train.py --config=configs/cifar10_namid_resnet18.py --workdir=runs/namid
    python train.py --config=configs/cifar10_namid_resnet18.py:no_natural --workdir=DIR
    python eval.py --workdir=runs/namid --suite=namid_paper
    python eval.py --workdir=runs/namid --suite=namid_adaptive

Method: "Improving Adversarial Robustness via Mutual Information Estimation" (Zhou et
al., 2022): alpha 5, lambda 0.1, PGD-10 with steps of eps / 4; what the paper leaves
open is as in its code, of which `cifar10_namid_resnet18_released` has the rest. The
variants after the colon: configs/namid.py. Schedule: configs/cifar10.py.
"""

import ml_collections

from configs import cifar10, common, namid

EPS = common.EPS_255


def build(
    variant: str,
    *,
    threat: dict,
    attack: dict,
    critic_attack: dict,
    reference_attack: dict,
    **options,
) -> ml_collections.ConfigDict:
    """The config for these attacks; `options` are those of `namid.add`."""
    config = cifar10.base(threat["eps"])
    config.model.stem_padding = 0
    config.evaluation.threat = dict(threat)
    config.validation_attack.threat = dict(threat)
    stage = dict(optimizer=cifar10.papers_sgd(), num_epochs=100, selection="last")
    loss = dict(name="adversarial", network="reference", attack=reference_attack)
    namid.add(
        config,
        variant,
        reference=stage | dict(loss=loss),
        critics=namid.critics_stage(batch_size=400),
        target=dict(stage),
        attack=attack,
        critic_attack=critic_attack,
        units=2048,
        **options,
    )
    return config


def linf_attack(*, step_size: float = 2 / 255, num_steps: int = 10) -> dict:
    """PGD from 0.001 x Gaussian."""
    return common.pgd(
        EPS,
        step_size=step_size,
        num_steps=num_steps,
        random_start=common.gaussian_start(),
    )


def get_config(variant: str = "namid") -> ml_collections.ConfigDict:
    """The config; `variant` is one of `namid.VARIANTS`."""
    config = build(
        variant,
        threat=common.linf(EPS),
        attack=linf_attack(),
        critic_attack=linf_attack(step_size=0.007, num_steps=20),
        reference_attack=linf_attack(step_size=0.007),
    )
    return config.lock()
