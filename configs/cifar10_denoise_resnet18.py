"""Feature denoising of ResNet-18 on CIFAR-10, L-infinity eps 8/255.

    python train.py --config=configs/cifar10_denoise_resnet18.py --workdir=DIR
    python train.py --config=configs/cifar10_denoise_resnet18.py:null --workdir=DIR
    python train.py --config=configs/cifar10_denoise_resnet18.py:dot_product,blocks --workdir=DIR

Method: "Feature Denoising for Improving Adversarial Robustness" (Xie et al., 2019): a
block after each stage, PGD towards random classes, adversarial images alone, label
smoothing, one image in five starting where it is (in their code one batch in five).
Radius, network and schedule are ours. After the colon another operation of
`models.DenoisingBlock`; `null` is the control with as many parameters. After a comma
`blocks`: behind every residual block, as in their ResNeXt-101 (dot_product).
"""  # noqa: E501

import ml_collections

from configs import at_alp, cifar10_at_alp_resnet18, common
from robustjax import InputError

EPS = common.EPS_255


def get_config(op: str = "gaussian") -> ml_collections.ConfigDict:
    """The config; `op` is an operation of `models.DenoisingBlock`, maybe ",blocks"."""
    op, _, after = op.partition(",")
    if after not in ("", "stages", "blocks"):
        raise InputError(f"`config` ends in :{op},blocks or :{op}, got {after!r}.")
    config = cifar10_at_alp_resnet18.get_config("at").unlock()
    config.model.denoise = dict(op=op, after=after or "stages")
    config.train.loss = dict(
        name="adversarial",
        attack=dict(
            name="pgd_targeted",
            threat=common.linf(EPS),
            step_size=2 / 255,
            num_steps=10,
            choice="random",
            random_start=dict(name="uniform", clean=0.2),
        ),
        clean_weight=0.0,
        label_smoothing=at_alp.SMOOTHING,
    )
    return config.lock()
