"""PGD adversarial training of ResNet-20 with buffer block on CIFAR-10, eps 0.031.

    python train.py --config=configs/cifar10_pgd_resnet20.py --workdir=runs/pgd20

The linear branch of the WNLL papers' PGD-trained network, from the authors' code (Wang
et al., 2018, released scripts of 2019): 10 steps of 0.007 from a uniform start against
the network in training mode, batch 128, SGD momentum 0.9, weight decay 5e-4, 120
epochs, learning rate 0.1 divided by 10 at epochs 70, 90 and 110. Their script uses
ResNet-56 by default; their headline number is on ResNet-20.
"""

import ml_collections

from configs import cifar10, common

EPS = 0.031


def get_config() -> ml_collections.ConfigDict:
    """The config."""
    config = cifar10.base(EPS)
    config.data.batch_size = 128
    config.model = dict(name="resnet20", buffer=1, dtype="float32")
    config.train = common.train_stage(
        loss=dict(
            name="adversarial",
            attack=common.pgd(EPS, step_size=0.007, num_steps=10),
            clean_weight=0.0,
            attack_mode="batch",
        ),
        optimizer=dict(
            name="sgd",
            momentum=0.9,
            weight_decay=5e-4,
            schedule=dict(
                name="piecewise",
                value=0.1,
                drops=(70 / 120, 90 / 120, 110 / 120),
                factor=0.1,
            ),
        ),
        num_epochs=120,
    )
    return config.lock()
