"""Ensemble adversarial training on MNIST, L-infinity eps 0.3.

    python train.py --config=configs/mnist_ensemble_adv.py:static --workdir=runs/mnist_static --seeds=1,2,3
    python train.py --config=configs/mnist_ensemble_adv.py --workdir=runs/mnist_ensemble
    python train.py --config=configs/mnist_ensemble_adv.py:at_alp --workdir=DIR

Method: "Ensemble Adversarial Training" (Tramer et al., 2018) with its MNIST sizes: each
batch is attacked by FGSM, without labels, on one of three static models (those of the
first command) or the one in training; 0.5 (clean + adversarial), Adam, batches of 64,
12 epochs (static models: 6, no defense). Networks are ours. `at_alp` pairs such images,
with PGD on the model in training. It is no defense against white-box PGD.
"""  # noqa: E501

import ml_collections

from configs import at_alp, common
from robustjax import InputError

EPS = 0.3
SOURCES = tuple(f"runs/mnist_static/seed_{seed}" for seed in (1, 2, 3))


def get_config(variant: str = "ensemble") -> ml_collections.ConfigDict:
    """The config; `variant` is "ensemble", "at_alp" or "static"."""
    if variant not in ("ensemble", "at_alp", "static"):
        raise InputError(
            f"`config` ends in :ensemble, :at_alp or :static, got :{variant}."
        )
    config = common.base(EPS)
    config.data.name = "mnist"
    config.data.validation = 1000.0
    config.data.batch_size = 64
    config.model = dict(name="small_cnn", stages=((24,), (48,)), dense=256)
    step = dict(name="unlabelled", attack=dict(name="fgsm", threat=common.linf(EPS)))
    drawn = dict(name="drawn_source", attack=step, sources=SOURCES)
    if variant == "static":
        loss = dict(name="standard", label_smoothing=0.0)
    elif variant == "ensemble":
        loss = dict(name="adversarial", attack=drawn, clean_weight=0.5)
    else:
        own = common.pgd(EPS, step_size=0.1, num_steps=7)
        layers = ("relu1_1", "relu2_1")
        loss = at_alp.loss("at_alp", drawn | dict(own=own), layers)
    config.train = common.train_stage(
        loss=loss,
        optimizer=dict(name="adam", schedule=dict(name="constant", value=1e-3)),
        num_epochs=6 if variant == "static" else 12,
    )
    config.evaluation.step_size = 0.01
    return config.lock()
