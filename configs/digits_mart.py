"""MART on scikit-learn's digits, L-infinity eps 0.1.

    python train.py --config=configs/digits_mart.py --workdir=runs/digits_mart
    python eval.py --workdir=runs/digits_mart --suite=quick

Method: "Improving Adversarial Robustness Requires Revisiting Misclassified Examples"
(Wang et al., 2020), eq. (11), beta 6; the data set, network and schedule are ours.
"""

import ml_collections

from configs import common, digits_pgd


def get_config() -> ml_collections.ConfigDict:
    """The config."""
    config = digits_pgd.get_config().unlock()
    eps = digits_pgd.EPS
    config.train.loss = dict(
        name="mart",
        attack=common.pgd(
            eps, step_size=eps / 4, num_steps=10, random_start=common.gaussian_start()
        ),
        beta=6.0,
    )
    return config.lock()
