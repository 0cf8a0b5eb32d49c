"""TRADES on scikit-learn's digits, L-infinity eps 0.1.

    python train.py --config=configs/digits_trades.py --workdir=runs/digits_trades
    python eval.py --workdir=runs/digits_trades --suite=quick

Method: "Theoretically Principled Trade-off between Robustness and Accuracy" (Zhang et
al., 2019), eq. (5), beta 6; the data set, network and schedule are ours.
"""

import ml_collections

from configs import common, digits_pgd


def get_config() -> ml_collections.ConfigDict:
    """The config."""
    config = digits_pgd.get_config().unlock()
    eps = digits_pgd.EPS
    config.train.loss = dict(
        name="trades",
        attack=common.pgd(
            eps,
            step_size=eps / 4,
            num_steps=10,
            objective="kl",
            random_start=common.gaussian_start(),
        ),
        beta=6.0,
    )
    return config.lock()
