"""Standard training of ResNet-18 on CIFAR-10: the undefended baseline.

    python train.py --config=configs/cifar10_standard_resnet18.py --workdir=DIR

Schedule: see configs/cifar10.py.
"""

import ml_collections

from configs import cifar10, common


def get_config() -> ml_collections.ConfigDict:
    """The config."""
    config = cifar10.base()
    config.train = common.train_stage(
        loss=dict(name="standard", label_smoothing=0.0),
        optimizer=cifar10.papers_sgd(),
        num_epochs=100,
    )
    return config.lock()
