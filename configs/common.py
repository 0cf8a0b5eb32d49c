"""Blocks that several configs share. A config holds numbers and strings only.

`stages` names the blocks that run one after another; each has a loss, an optimizer and
a number of epochs. `evaluation` is what `eval.py` attacks with, `validation_attack`
what decides, on the validation split, which checkpoint is the best.
"""

import ml_collections
from ml_collections import config_dict

EPS_255 = 8 / 255
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)


def linf(eps: float) -> dict:
    """The L-infinity threat."""
    return dict(name="linf", eps=eps)


def pgd(eps: float, *, step_size: float, num_steps: int, **rest) -> dict:
    """An L-infinity PGD block."""
    return dict(
        name="pgd", threat=linf(eps), step_size=step_size, num_steps=num_steps, **rest
    )


def gaussian_start(scale: float = 0.001) -> dict:
    """The start of TRADES, MART and NAMID."""
    return dict(name="gaussian", scale=scale)


def base(eps: float) -> ml_collections.ConfigDict:
    """What every config has; `eps` is the radius that it is judged at.

    PGD-40 steps are eps / 4 (papers on CIFAR-10 use 2/255 for 8/255).
    """
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.data = dict(
        name="digits",
        data_dir=config_dict.placeholder(str),
        image_size=config_dict.placeholder(int),
        crop=config_dict.placeholder(int),
        validation=0.1,
        batch_size=128,
        augment=dict(),
    )
    config.stages = ("train",)
    config.init_from = config_dict.placeholder(str)
    config.loop = dict(
        log_every=20,
        validate_every=1,
        keep_last=2,
        average_decay=config_dict.placeholder(float),
        accumulate=1,
    )
    config.validation_attack = pgd(eps, step_size=eps / 4, num_steps=10)
    config.evaluation = dict(
        threat=linf(eps),
        step_size=eps / 4,
        num_steps=40,
        num_restarts=5,
        batch_size=512,
        draws=30,  # of a random classifier, per image
        bank=64,  # training images that critics compare an image with
    )
    return config


def train_stage(loss: dict, optimizer: dict, *, num_epochs: int) -> dict:
    """A stage's block."""
    return dict(loss=loss, optimizer=optimizer, num_epochs=num_epochs, selection="last")
