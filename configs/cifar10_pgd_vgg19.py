"""PGD adversarial training of VGG-19 on CIFAR-10: the surrogate of NAMID's tables.

    python train.py --config=configs/cifar10_pgd_vgg19.py --workdir=runs/vgg19
    python eval.py --workdir=runs/namid --suite=namid_paper --set=evaluation.surrogate=runs/vgg19

As cifar10_pgd_resnet18.py with VGG-19 with BatchNorm.
"""  # noqa: E501

import ml_collections

from configs import cifar10_pgd_resnet18


def get_config(schedule: str = "paper") -> ml_collections.ConfigDict:
    """The config; `schedule` is "paper" or "one_cycle"."""
    config = cifar10_pgd_resnet18.get_config(schedule).unlock()
    config.model.name = "vgg19_bn"
    return config.lock()
