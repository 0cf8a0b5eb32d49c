"""NAMID_M: NAMID with MART, beta 6, in place of adversarial training.

    python train.py --config=configs/cifar10_namid_resnet18_mart.py --workdir=DIR

ResNet-18 on CIFAR-10, L-infinity eps 8/255; all else as in cifar10_namid_resnet18.py.
"""

import ml_collections

from configs import cifar10_namid_resnet18


def get_config() -> ml_collections.ConfigDict:
    """The config."""
    return cifar10_namid_resnet18.get_config("mart")
