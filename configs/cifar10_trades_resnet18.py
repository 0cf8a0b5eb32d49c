"""TRADES, ResNet-18 on CIFAR-10, L-infinity eps 8/255, beta 6.

    python train.py --config=configs/cifar10_trades_resnet18.py --workdir=runs/trades

Method: "Theoretically Principled Trade-off between Robustness and Accuracy" (Zhang et
al., 2019), eq. (5), attack of its CIFAR-10 script: 10 steps of 0.007 on the KL term,
start 0.001 x Gaussian. Schedule: see configs/cifar10.py.
"""

import ml_collections

from configs import cifar10, common


def get_config() -> ml_collections.ConfigDict:
    """The config."""
    config = cifar10.base()
    config.train = common.train_stage(
        loss=dict(
            name="trades",
            attack=common.pgd(
                common.EPS_255,
                step_size=0.007,
                num_steps=10,
                objective="kl",
                random_start=common.gaussian_start(),
            ),
            beta=6.0,
        ),
        optimizer=cifar10.papers_sgd(),
        num_epochs=100,
    )
    return config.lock()
