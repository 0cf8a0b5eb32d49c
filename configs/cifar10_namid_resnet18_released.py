"""NAMID on CIFAR-10, L-infinity eps 8/255, as its released scripts run it.

    python train.py --config=configs/cifar10_namid_resnet18_released.py --workdir=DIR

What differs from the paper, see "Improving Adversarial Robustness via Mutual
Information Estimation" (Zhou et al., 2022): the target is a WideResNet-34-10 (the
reference is the ResNet-18), batches of 256, PGD-40 of 0.007, two epochs of plain
training first, lambda 0, predictions by a softmax over the batch, seven forward passes
a step, a reference and critics trained on L2 noise. Their checkpoint is the best mean
of clean accuracy and that under PGD-40 on the test set; here on the validation split.
"""

import ml_collections

from configs import cifar10, cifar10_namid_resnet18, common
from configs.cifar10_namid_resnet18_l2 import attack


def get_config(variant: str = "namid") -> ml_collections.ConfigDict:
    """The config; `variant` is one of `namid.VARIANTS`."""
    linf_attack = cifar10_namid_resnet18.linf_attack(step_size=0.007, num_steps=40)
    plain = cifar10.papers_sgd()
    plain["schedule"] = dict(name="constant", value=0.1)
    warmup = dict(
        loss=dict(name="standard"), optimizer=plain, num_epochs=2, selection="last"
    )
    config = cifar10_namid_resnet18.build(
        variant,
        threat=common.linf(common.EPS_255),
        attack=linf_attack,
        critic_attack=attack(step_size=0.05, num_steps=20),
        reference_attack=attack(step_size=0.1, num_steps=10),
        model=dict(name="resnet18", dtype="float32", stem_padding=0),
        warmups=dict(train=warmup),
    )
    config.data.batch_size = 256
    config.model = dict(name="wide_resnet34_10", dtype="float32")
    config.validation_attack = linf_attack
    config.train.selection = "validation/mean_accuracy"
    if variant != "wmim":
        config.critics.loss.predictor = "batch_softmax"
        config.train.loss.predictor = "batch_softmax"
        config.train.loss.statistics = "released"
        config.train.loss.information_weight = 0.0
    return config.lock()
