"""AT+ALP of ResNet-20 on CIFAR-10, L-infinity eps 8/255, and its ablations.

    python train.py --config=configs/cifar10_at_alp_resnet20.py --workdir=runs/at_alp20
    python train.py --config=configs/cifar10_at_alp_resnet20.py:alp --workdir=runs/alp20

Method and variants: configs/at_alp.py. A proxy for machines without an accelerator:
steps of 2/255, a one-cycle schedule; `light` after a comma (`:alp,light`) has 3 epochs
and 5 steps.
"""

import ml_collections

from configs import at_alp, cifar10, common

EPS = common.EPS_255


def get_config(variant: str = "at_alp") -> ml_collections.ConfigDict:
    """The config; `variant` is one of `at_alp.VARIANTS`, or that and ",light"."""
    light = variant.endswith(",light")
    config = cifar10.base()
    config.data.batch_size = 128
    config.model = dict(name="resnet20", dtype="float32")
    attack = common.pgd(EPS, step_size=2 / 255, num_steps=5 if light else 10)
    stages = ("stage1", "stage2", "stage3")
    config.train = common.train_stage(
        loss=at_alp.loss(variant.removesuffix(",light"), attack, stages),
        optimizer=dict(
            name="sgd",
            momentum=0.9,
            weight_decay=5e-4,
            schedule=dict(name="one_cycle", value=0.2),
        ),
        num_epochs=3 if light else 30,
    )
    config.evaluation.layer = "stage3"
    return config.lock()
