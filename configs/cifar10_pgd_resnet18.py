"""PGD adversarial training of ResNet-18 on CIFAR-10, L-infinity eps 8/255.

    python train.py --config=configs/cifar10_pgd_resnet18.py --workdir=DIR
    python train.py --config=configs/cifar10_pgd_resnet18.py:one_cycle --workdir=DIR

Standard adversarial training as in Zhou et al. (2022), table 1: PGD-10, step 2/255,
start 0.001 x Gaussian; schedule: see configs/cifar10.py. The variant `one_cycle`, for a
single GPU, takes 30 epochs, batches of 256 and bfloat16.
"""

import ml_collections

from configs import cifar10, common
from robustjax import InputError

EPS = common.EPS_255


def get_config(schedule: str = "paper") -> ml_collections.ConfigDict:
    """The config; `schedule` is "paper" or "one_cycle"."""
    config = cifar10.base()
    config.train = common.train_stage(
        loss=dict(
            name="adversarial",
            attack=common.pgd(
                EPS,
                step_size=2 / 255,
                num_steps=10,
                random_start=common.gaussian_start(),
            ),
            clean_weight=0.0,
        ),
        optimizer=cifar10.papers_sgd(),
        num_epochs=100,
    )
    if schedule == "one_cycle":
        config.train.optimizer.schedule = dict(name="one_cycle", value=0.2)
        config.train.optimizer.weight_decay = 5e-4
        config.train.num_epochs = 30
        config.data.batch_size = 256
        config.model.dtype = "bfloat16"
    elif schedule != "paper":
        raise InputError(f"`config` ends in :paper or :one_cycle, got :{schedule}.")
    return config.lock()
