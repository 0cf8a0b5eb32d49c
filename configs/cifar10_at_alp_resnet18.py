"""AT+ALP of ResNet-18 on CIFAR-10, L-infinity eps 8/255.

    python train.py --config=configs/cifar10_at_alp_resnet18.py --workdir=DIR

Method: configs/at_alp.py; schedule and attack as the other CIFAR-10 configs for a
single GPU (cifar10_pgd_resnet18.py:one_cycle), batches of 128 clean and 128 adversarial
images, bfloat16.
"""

import ml_collections

from configs import at_alp, cifar10, common

EPS = common.EPS_255


def get_config(variant: str = "at_alp") -> ml_collections.ConfigDict:
    """The config; `variant` is one of `at_alp.VARIANTS`."""
    config = cifar10.base()
    config.data.batch_size = 128
    config.model.dtype = "bfloat16"
    attack = common.pgd(EPS, step_size=2 / 255, num_steps=10)
    stages = ("stage1", "stage2", "stage3", "stage4")
    config.train = common.train_stage(
        loss=at_alp.loss(variant, attack, stages),
        optimizer=dict(
            name="sgd",
            momentum=0.9,
            weight_decay=5e-4,
            schedule=dict(name="one_cycle", value=0.1),
        ),
        num_epochs=30,
    )
    config.evaluation.layer = "stage4"
    return config.lock()
