"""Attention pairing alone, ResNet-18 on CIFAR-10: an ablation of AT+ALP.

    python train.py --config=configs/cifar10_attention_resnet18.py --workdir=DIR

Everything but the weights of the pairs as in configs/cifar10_at_alp_resnet18.py.
"""

import ml_collections

from configs import cifar10_at_alp_resnet18


def get_config() -> ml_collections.ConfigDict:
    """The config."""
    return cifar10_at_alp_resnet18.get_config("attention")
