"""NIP on CIFAR-10 with ResNet-20 at 8/255, for machines without an accelerator.

    python train.py --config=configs/cifar10_nip_resnet20.py --workdir=runs/nip20
    python train.py --config=configs/cifar10_nip_resnet20.py:adversarial --workdir=runs/fast20
    python eval.py --workdir=runs/nip20 --suite=nip_adaptive --num_examples=100

Method: see configs/digits_nip.py; network and schedules are ours. Two epochs of
standard training, or of single-step adversarial training
(configs/cifar10_fast_resnet20.py). The layer is the pooled one, 64 neurons.
"""  # noqa: E501

import ml_collections

from configs import cifar10_fast_resnet20, nip


def get_config(training: str = "standard") -> ml_collections.ConfigDict:
    """The config; `training` is "standard" or "adversarial"."""
    config = cifar10_fast_resnet20.get_config().unlock()
    attack = config.train.loss.attack.to_dict()
    config.train.loss = nip.training_loss(training, attack)
    config.train.num_epochs = 2
    config.transform = nip.nip("features", size=4 / 255, front=20, tail=20)
    config.evaluation.step_size = config.evaluation.threat.eps / 10
    return config.lock()
