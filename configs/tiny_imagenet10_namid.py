"""NAMID, ResNet-18 on ten classes of Tiny-ImageNet (64x64), L-infinity eps 8/255.

    python train.py --config=configs/tiny_imagenet10_namid.py --workdir=runs/namid_tiny

As cifar10_namid_resnet18.py; 5,000 images, so batches of 128. The paper has all 200
classes and does not say how large its images are; here the local nets have 16x16
places.
"""

import ml_collections

from configs import cifar10_namid_resnet18


def get_config(variant: str = "namid") -> ml_collections.ConfigDict:
    """The config; `variant` is one of `namid.VARIANTS`."""
    config = cifar10_namid_resnet18.get_config(variant).unlock()
    config.data.name = "tiny_imagenet10"
    config.data.validation = 0.1
    config.data.batch_size = 128
    config.data.augment.random_crop.padding = 8
    config.critics.data.batch_size = 128
    return config.lock()
