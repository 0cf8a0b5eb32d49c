"""What the configs on 17 Flowers share.

The TFDS builder `oxford_flowers17` has the three official partitions as its configs,
`--config.data.name=oxford_flowers17/split1` and so on; report the mean over them. The
default here is the split that stands in `data_dir`.
"""

import ml_collections

from configs import at_alp, common
from robustjax import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
RADII = ("0.25", "0.5")


def resnet50(variant: str, eps: str) -> ml_collections.ConfigDict:
    """ResNet-50 at 224 x 224, all sizes as in the spec of configs/at_alp.py.

    Images are resized to 256; training cuts random rectangles out of these, the test
    the centre. PGD of the evaluation has steps of eps / 32 and 10 restarts, that of 10
    steps (validation) steps of eps / 8.

    Args:
      variant: One of `at_alp.VARIANTS`.
      eps: "0.25" or "0.5", of training and of the evaluation.
    """
    if eps not in RADII:
        raise InputError(f"`config` ends in :0.25 or :0.5, got :{eps}.")
    radius = float(eps)
    config = common.base(radius)
    config.data.name = "oxford_flowers17"
    config.data.image_size, config.data.crop = 256, 224
    config.data.batch_size = 32
    config.data.augment = dict(random_resized_crop=dict(size=224), flip=dict())
    config.model = dict(
        name="resnet50",
        normalise=(IMAGENET_MEAN, IMAGENET_STD),
        dtype="float32",
    )
    stages = ("stage1", "stage2", "stage3", "stage4")
    config.train = common.train_stage(
        loss=at_alp.loss(variant, at_alp.attack(radius), stages),
        optimizer=at_alp.fine_tuning(),
        num_epochs=60,
    )
    config.validation_attack.step_size = radius / 8  # of its 10 steps
    config.evaluation.step_size = radius / 32
    config.evaluation.num_steps = 50
    config.evaluation.num_restarts = 10
    config.evaluation.batch_size = 64
    config.evaluation.layer = "stage4"
    return config.lock()
