"""Single-step adversarial training of ResNet-20 on CIFAR-10, for small machines.

    python train.py --config=configs/cifar10_fast_resnet20.py --workdir=runs/fast
    python eval.py --workdir=runs/fast --attack.num_steps=20 --num_examples=1000

Method: "Fast is better than free: Revisiting adversarial training" (Wong et al., 2020):
FGSM of step 1.25 eps from a uniform start, one-cycle learning rate. The network is
smaller than the paper's.
"""

import ml_collections

from configs import cifar10, common

EPS = common.EPS_255


def get_config() -> ml_collections.ConfigDict:
    """The config."""
    config = cifar10.base()
    config.data.batch_size = 128
    config.model = dict(name="resnet20", dtype="float32")
    config.train = common.train_stage(
        loss=dict(
            name="adversarial",
            attack=dict(
                name="fgsm",
                threat=common.linf(EPS),
                step_size=1.25 * EPS,
                random_start="uniform",
            ),
            clean_weight=0.0,
        ),
        optimizer=dict(
            name="sgd",
            momentum=0.9,
            weight_decay=5e-4,
            schedule=dict(name="one_cycle", value=0.2),
        ),
        num_epochs=15,
    )
    return config.lock()
