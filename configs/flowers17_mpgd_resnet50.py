"""Mixed-minibatch PGD, ResNet-50 on 17 Flowers at 224 x 224, L-infinity eps 0.25 or 0.5.

    python train.py --config=configs/flowers17_mpgd_resnet50.py --workdir=DIR --config.init_from=resnet50.pth
    python train.py --config=configs/flowers17_mpgd_resnet50.py:0.5 --workdir=DIR

The first starts from a torchvision state dict that you have, the second from nothing;
a directory of another run will do as well. At eps 0.5 one grey image is legal for all:
read docs/at_alp.md before the numbers. Sizes: configs/flowers17.py.
"""  # noqa: E501

import ml_collections

from configs import flowers17


def get_config(eps: str = "0.25") -> ml_collections.ConfigDict:
    """The config; `eps` is "0.25" or "0.5"."""
    return flowers17.resnet50("mpgd", eps)
