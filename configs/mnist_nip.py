"""NIP on MNIST: standard training, then the defense at test time, L-infinity eps 0.1.

    python train.py --config=configs/mnist_nip.py --workdir=runs/mnist_nip
    python train.py --config=configs/mnist_nip.py:adversarial --workdir=runs/mnist_nip_at
    python eval.py --workdir=runs/mnist_nip --suite=nip_adaptive --num_examples=1000

Method: see configs/digits_nip.py. At the usual radius 0.3 nothing of an undefended
network is left that a nudge could save; at 0.1 there is something to compare.
"""  # noqa: E501

import ml_collections

from configs import common, nip

EPS = 0.1


def get_config(training: str = "standard") -> ml_collections.ConfigDict:
    """The config; `training` is "standard" or "adversarial"."""
    config = common.base(EPS)
    config.data.name = "mnist"
    config.data.validation = 1000.0
    config.model = dict(name="small_cnn", stages=((16,), (32,)), dense=128)
    attack = common.pgd(EPS, step_size=EPS / 3, num_steps=5)
    config.train = common.train_stage(
        loss=nip.training_loss(training, attack),
        optimizer=dict(name="adam", schedule=dict(name="one_cycle", value=3e-3)),
        num_epochs=4,
    )
    config.transform = nip.nip("flatten", size=0.05, front=50, tail=50)
    config.evaluation.step_size = EPS / 10
    return config.lock()
