"""NAMID of ResNet-20 on CIFAR-10, L-infinity eps 8/255, without an accelerator.

    python train.py --config=configs/cifar10_namid_resnet20.py --workdir=runs/namid20
    python train.py --config=configs/cifar10_namid_resnet20.py:light --workdir=runs/namid20
    python train.py --config=configs/cifar10_namid_resnet20.py:no_information,light --workdir=runs/at20

Method and variants: configs/namid.py; networks and schedules are ours, those of
configs/cifar10_at_alp_resnet20.py, whose run of a baseline may be the reference:
`--config.adopt.reference=runs/mpgd20 --config.stages="('critics','train')"`. `light`,
alone or after a comma, has 5 steps and 3 epochs of each network instead of 10 and 30.
Not yet shown to train: against critics of one epoch the target was still at chance
after 80 steps, where `no_information` was not (RESULTS.md).
"""  # noqa: E501

import ml_collections

from configs import cifar10, common, namid

EPS = common.EPS_255


def get_config(variant: str = "namid") -> ml_collections.ConfigDict:
    """The config; `variant` is one of `namid.VARIANTS`, "light", or both."""
    chosen, light = namid.split(variant)
    attack = common.pgd(EPS, step_size=2 / 255, num_steps=5 if light else 10)
    schedule = dict(name="one_cycle", value=0.2)
    stage = dict(
        optimizer=dict(name="sgd", momentum=0.9, weight_decay=5e-4, schedule=schedule),
        num_epochs=3 if light else 30,
        selection="last",
    )
    loss = dict(name="adversarial", network="reference", attack=attack)
    config = cifar10.base()
    config.data.batch_size = 128
    config.model = dict(name="resnet20", dtype="float32")
    namid.add(
        config,
        chosen,
        reference=stage | dict(loss=loss),
        critics=namid.critics_stage(num_epochs=3 if light else 25),
        target=dict(stage),
        attack=attack,
        critic_attack=attack,
        units=512,
        widths=(32, 64) if light else (64, 128),
    )
    return config.lock()
