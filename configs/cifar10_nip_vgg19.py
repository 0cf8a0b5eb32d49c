"""NIP on CIFAR-10 with VGG-19 with BatchNorm, the scripts' model, at 8/255.

    python train.py --config=configs/cifar10_nip_vgg19.py --workdir=runs/nip_vgg19
    python eval.py --workdir=runs/nip_vgg19 --suite=nip_adaptive
    python eval.py --workdir=runs/vgg19 --transform=nip --set=transform.layer=features

Method: see configs/digits_nip.py. The layer is the last pooled one, 512 neurons; sets
and size are those of the authors' CIFAR-10 script. Schedule: see configs/cifar10.py.
"""

import ml_collections

from configs import cifar10_standard_resnet18, nip


def get_config() -> ml_collections.ConfigDict:
    """The config."""
    config = cifar10_standard_resnet18.get_config().unlock()
    config.model.name = "vgg19_bn"
    config.transform = nip.nip("features", size=0.001, front=1, tail=5)
    config.transform.output = "log_probability"
    return config.lock()
