"""WMIM, the baseline of NAMID's tables: one critic of x_adv in its own logits.

    python train.py --config=configs/cifar10_namid_resnet18_wmim.py --workdir=DIR

ResNet-18 on CIFAR-10, L-infinity eps 8/255; all else as in cifar10_namid_resnet18.py.
"""

import ml_collections

from configs import cifar10_namid_resnet18


def get_config() -> ml_collections.ConfigDict:
    """The config."""
    return cifar10_namid_resnet18.get_config("wmim")
