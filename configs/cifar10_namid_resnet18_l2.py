"""NAMID, ResNet-18 on CIFAR-10, L2 eps 0.5.

    python train.py --config=configs/cifar10_namid_resnet18_l2.py --workdir=DIR
    python eval.py --workdir=DIR --suite=namid_paper

As cifar10_namid_resnet18.py, with PGD-10 of steps eps / 4 and critics trained on L2
noise, 20 steps of 0.05.
"""

import ml_collections

from configs import cifar10_namid_resnet18, common

EPS = 0.5


def attack(*, step_size: float, num_steps: int) -> dict:
    """L2 PGD from 0.001 x Gaussian."""
    return dict(
        name="pgd",
        threat=dict(name="l2", eps=EPS),
        step_size=step_size,
        num_steps=num_steps,
        random_start=common.gaussian_start(),
    )


def get_config(variant: str = "namid") -> ml_collections.ConfigDict:
    """The config; `variant` is one of `namid.VARIANTS`."""
    config = cifar10_namid_resnet18.build(
        variant,
        threat=dict(name="l2", eps=EPS),
        attack=attack(step_size=EPS / 4, num_steps=10),
        critic_attack=attack(step_size=0.05, num_steps=20),
        reference_attack=attack(step_size=EPS / 4, num_steps=10),
    )
    return config.lock()
