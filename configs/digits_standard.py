"""Standard training on scikit-learn's digits: the undefended baseline.

python train.py --config=configs/digits_standard.py --workdir=runs/digits_standard
python eval.py --workdir=runs/digits_standard --suite=quick
"""

import ml_collections

from configs import digits_pgd


def get_config() -> ml_collections.ConfigDict:
    """The config."""
    config = digits_pgd.get_config().unlock()
    config.train.loss = dict(name="standard", label_smoothing=0.0)
    return config.lock()
