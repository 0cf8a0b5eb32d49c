"""AT+ALP on scikit-learn's digits, L-infinity eps 0.1, and its ablations.

    python train.py --config=configs/digits_at_alp.py --workdir=runs/digits_at_alp
    python train.py --config=configs/digits_at_alp.py:mpgd --workdir=runs/digits_mpgd
    python eval.py --workdir=runs/digits_at_alp --suite=at_alp_adaptive

Method and variants: configs/at_alp.py; data set, network and schedule are ours, those
of configs/digits_pgd.py. The paired maps are those of both convolutions.
"""

import ml_collections

from configs import at_alp, common, digits_pgd


def get_config(variant: str = "at_alp") -> ml_collections.ConfigDict:
    """The config; `variant` is one of `at_alp.VARIANTS`."""
    config = digits_pgd.get_config().unlock()
    eps = digits_pgd.EPS
    attack = common.pgd(eps, step_size=eps / 4, num_steps=10)
    config.train.loss = at_alp.loss(variant, attack, ("relu1_1", "relu1_2"))
    config.evaluation.layer = "relu1_2"
    return config.lock()
