"""Feature denoising of ResNet-20 on CIFAR-10, L-infinity eps 8/255, with AT+ALP.

    python train.py --config=configs/cifar10_denoise_resnet20.py --workdir=DIR
    python train.py --config=configs/cifar10_denoise_resnet20.py:mean --workdir=DIR

As configs/cifar10_at_alp_resnet20.py, with a denoising block after each stage, behind
which the paired maps are taken. After the colon another operation.
"""

import ml_collections

from configs import cifar10_at_alp_resnet20


def get_config(op: str = "gaussian") -> ml_collections.ConfigDict:
    """The config; `op` is an operation of `models.DenoisingBlock`."""
    config = cifar10_at_alp_resnet20.get_config().unlock()
    config.model.denoise = dict(op=op, after="stages")
    return config.lock()
