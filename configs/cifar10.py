"""What the CIFAR-10 configs share: data, ResNet-18, the schedule of the papers.

100 epochs of SGD with momentum 0.9 and weight decay 2e-4, learning rate 0.1, divided by
10 after epochs 74 and 89, batch 1024, crops and flips, no input normalisation: what
"Improving Adversarial Robustness via Mutual Information Estimation" (Zhou et al., 2022)
trains its ResNet-18 baselines with (its code uses batches of 256).
"""

import ml_collections

from configs import common


def base(eps: float = common.EPS_255) -> ml_collections.ConfigDict:
    """Data and ResNet-18, no stage yet."""
    config = common.base(eps)
    config.data.name = "cifar10"
    config.data.validation = 1000.0
    config.data.batch_size = 1024
    config.data.augment = dict(random_crop=dict(padding=4), flip=dict())
    config.model = dict(name="resnet18", dtype="float32")
    return config


def papers_sgd() -> dict:
    """The papers' optimizer."""
    return dict(
        name="sgd",
        momentum=0.9,
        weight_decay=2e-4,
        schedule=dict(name="piecewise", value=0.1, drops=(0.74, 0.89), factor=0.1),
    )
