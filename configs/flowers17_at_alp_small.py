"""AT+ALP of a small ResNet on 17 Flowers at 64 x 64, for two CPU cores.

    python train.py --config=configs/flowers17_at_alp_small.py --workdir=runs/flowers
    python train.py --config=configs/flowers17_at_alp_small.py:mpgd --workdir=runs/mpgd
    python train.py --config=configs/flowers17_at_alp_small.py:mpgd,0.25 --workdir=DIR
    python train.py --config=configs/flowers17_at_alp_small.py:undefended,cnn --workdir=DIR

Method and variants: configs/at_alp.py; network, schedule and the radius of 8/255 are
ours. After a comma another radius of training and evaluation, or `cnn`: a network of
another family, from which attacks are transferred.
"""  # noqa: E501

import ml_collections

from configs import at_alp, common, flowers17
from robustjax import InputError


def get_config(variant: str = "at_alp") -> ml_collections.ConfigDict:
    """The config; `variant` is one of `at_alp.VARIANTS`, or that, a comma, and what."""
    chosen, _, more = variant.partition(",")
    try:
        eps = float(more) if more not in ("", "cnn") else common.EPS_255
    except ValueError as error:
        raise InputError(
            f"`config` ends in :{chosen},RADIUS such as 0.25, or :{chosen},cnn, got "
            f"{more!r}."
        ) from error
    config = common.base(eps)
    config.data.name = "oxford_flowers17"
    config.data.image_size = 64
    config.data.batch_size = 40
    config.data.augment = dict(
        random_resized_crop=dict(size=64, scale=(0.35, 1.0)), flip=dict()
    )
    normalise = (flowers17.IMAGENET_MEAN, flowers17.IMAGENET_STD)
    stages, rate = ("stage1", "stage2", "stage3", "stage4"), 0.1
    config.model = dict(
        name="small_resnet",
        depths=(1, 1, 1, 1),
        widths=(16, 32, 64, 128),
        stem_stride=2,
        normalise=normalise,
        dtype="float32",
    )
    if more == "cnn":
        stages, rate = ("relu1_1", "relu2_1", "relu3_1", "relu4_1"), 0.02
        config.model = dict(
            name="small_cnn",
            stages=((16,), (32,), (64,), (64,)),
            normalise=normalise,
            dtype="float32",
        )
    attack = common.pgd(eps, step_size=eps / 4, num_steps=10)
    config.train = common.train_stage(
        loss=at_alp.loss(chosen, attack, stages),
        optimizer=dict(
            name="sgd",
            momentum=0.9,
            weight_decay=5e-4,
            schedule=dict(name="one_cycle", value=rate),
        ),
        num_epochs=90,
    )
    config.loop.validate_every = 15
    config.evaluation.layer = stages[-1]
    return config.lock()
