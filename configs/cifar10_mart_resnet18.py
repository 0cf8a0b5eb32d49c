"""MART, ResNet-18 on CIFAR-10, L-infinity eps 8/255, beta 6.

    python train.py --config=configs/cifar10_mart_resnet18.py --workdir=runs/mart

Method: "Improving Adversarial Robustness Requires Revisiting Misclassified Examples"
(Wang et al., 2020), eq. (11), attack of its code: 10 steps of 0.007, start 0.001 x
Gaussian. Schedule: see configs/cifar10.py.
"""

import ml_collections

from configs import cifar10, common


def get_config() -> ml_collections.ConfigDict:
    """The config."""
    config = cifar10.base()
    config.train = common.train_stage(
        loss=dict(
            name="mart",
            attack=common.pgd(
                common.EPS_255,
                step_size=0.007,
                num_steps=10,
                random_start=common.gaussian_start(),
            ),
            beta=6.0,
        ),
        optimizer=cifar10.papers_sgd(),
        num_epochs=100,
    )
    return config.lock()
