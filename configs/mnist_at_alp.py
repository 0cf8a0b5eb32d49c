"""AT+ALP on MNIST, L-infinity eps 0.3, and its ablations.

    python train.py --config=configs/mnist_at_alp.py --workdir=runs/mnist_at_alp
    python train.py --config=configs/mnist_at_alp.py:alp,light --workdir=runs/mnist_alp
    python eval.py --workdir=runs/mnist_at_alp --suite=at_alp_adaptive

Method and variants: configs/at_alp.py; data set, networks and schedules are ours, those
of configs/mnist_pgd.py, whose `light` comes after a comma. The paired maps are those of
both convolutions.
"""

import ml_collections

from configs import at_alp, mnist_pgd


def get_config(variant: str = "at_alp") -> ml_collections.ConfigDict:
    """The config; `variant` is one of `at_alp.VARIANTS`, or that and ",light"."""
    light = variant.endswith(",light")
    config = mnist_pgd.get_config("light" if light else "full").unlock()
    for name in config.stages:
        config[name].loss = at_alp.loss(
            variant.removesuffix(",light"),
            config[name].loss.attack,
            ("relu1_1", "relu2_1"),
        )
    config.evaluation.layer = "relu2_1"
    return config.lock()
