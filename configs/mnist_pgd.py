"""PGD adversarial training of a small CNN on MNIST, L-infinity eps 0.3.

    python train.py --config=configs/mnist_pgd.py --workdir=runs/mnist_pgd
    python eval.py --workdir=runs/mnist_pgd --attack.num_steps=100

Method: "Towards Deep Learning Models Resistant to Adversarial Attacks" (Madry et al.,
2018), section 5: 40 steps of 0.01 from a uniform start. Network and schedule are ours.
"""

import ml_collections

from configs import common

EPS = 0.3


def get_config() -> ml_collections.ConfigDict:
    """The config."""
    config = common.base(EPS)
    config.data.name = "mnist"
    config.data.validation = 1000.0
    config.model = dict(name="small_cnn", stages=((16,), (32,)), dense=128)
    config.train = common.train_stage(
        loss=dict(
            name="adversarial",
            attack=common.pgd(EPS, step_size=0.01, num_steps=40),
            clean_weight=0.0,
        ),
        optimizer=dict(name="adam", schedule=dict(name="one_cycle", value=2e-3)),
        num_epochs=20,
    )
    config.evaluation.step_size = 0.01
    return config.lock()
