"""NAMID of ResNet-20 on CIFAR-10, L-infinity eps 8/255, without an accelerator.

    python train.py --config=configs/cifar10_namid_resnet20.py --workdir=runs/namid20
    python train.py --config=configs/cifar10_namid_resnet20.py:light --workdir=runs/namid20
    python train.py --config=configs/cifar10_namid_resnet20.py:no_information,light --workdir=runs/at20

Method and variants: configs/namid.py; networks and schedules are ours, those of
configs/cifar10_at_alp_resnet20.py, whose run of a baseline may be the reference:
`--config.adopt.reference=runs/mpgd20` and no stage `reference`. It stands in for the
target's warm-up too with `--config.init_from=runs/mpgd20`, and then
`--config.stages="('critics','train')"`. `light`, alone or after a comma, has 5 steps
and 3 epochs of each network instead of 10 and 30.

The critics' gradient is 40 times the cross-entropy's at the paper's alpha of 5, and
a network as short of training as this one collapses under it (RESULTS.md). The target
therefore begins with adversarial training at the same radius, its gradient is clipped,
and alpha is 0.1 if light; the whole schedule, with alpha 5, is not shown to train.
"""  # noqa: E501

import ml_collections

from configs import cifar10, common, namid

EPS = common.EPS_255


def get_config(variant: str = "namid") -> ml_collections.ConfigDict:
    """The config; `variant` is one of `namid.VARIANTS`, "light", or both."""
    chosen, light = namid.split(variant)
    attack = common.pgd(EPS, step_size=2 / 255, num_steps=5 if light else 10)
    schedule = dict(name="one_cycle", value=0.2)
    sgd = dict(name="sgd", momentum=0.9, weight_decay=5e-4, schedule=schedule)

    def stage(num_epochs: int, **optimizer: float) -> dict:
        both = sgd | optimizer
        return dict(optimizer=both, num_epochs=num_epochs, selection="last")

    def adversarial(network: str) -> dict:
        return dict(loss=dict(name="adversarial", network=network, attack=attack))

    config = cifar10.base()
    config.data.batch_size = 128
    config.model = dict(name="resnet20", dtype="float32")
    namid.add(
        config,
        chosen,
        reference=stage(3 if light else 30) | adversarial("reference"),
        critics=namid.critics_stage(num_epochs=3 if light else 25),
        target=stage(2 if light else 25, clip_norm=1.0),
        attack=attack,
        critic_attack=attack,
        units=512,
        widths=(32, 64) if light else (64, 128),
        warmups=dict(train=stage(1 if light else 5) | adversarial("model")),
        alpha=0.1 if light else 5.0,
    )
    return config.lock()
