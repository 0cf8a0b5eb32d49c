"""NAMID on MNIST, L-infinity eps 0.3: all three stages.

    python train.py --config=configs/mnist_namid.py --workdir=runs/mnist_namid
    python train.py --config=configs/mnist_namid.py:light --workdir=runs/mnist_namid
    python train.py --config=configs/mnist_namid.py:trades,light --workdir=runs/trades
    python eval.py --workdir=runs/mnist_namid --suite=namid_adaptive

Method: "Improving Adversarial Robustness via Mutual Information Estimation" (Zhou et
al., 2022); data set, networks and schedules are ours: see configs/mnist_pgd.py for the
warm-ups. After the colon come a variant of configs/namid.py, `light`, or both; `light`
has a smaller network, 7 steps of 0.1 and 5 epochs instead of 24, for two CPU cores.
"""

import ml_collections

from configs import common, namid

EPS = 0.3


def get_config(variant: str = "namid") -> ml_collections.ConfigDict:
    """The config; `variant` is one of `namid.VARIANTS`, "light", or both."""
    chosen, light = namid.split(variant)
    num_steps, step_size = (7, 0.1) if light else (40, 0.01)

    def attack(eps: float) -> dict:
        return common.pgd(eps, step_size=step_size * eps / EPS, num_steps=num_steps)

    def stage(num_epochs: int, value: float) -> dict:
        schedule = dict(name="one_cycle", value=value, peak=0.2)
        optimizer = dict(name="adam", schedule=schedule)
        return dict(optimizer=optimizer, num_epochs=num_epochs, selection="last")

    def warmup(network: str) -> dict:
        loss = dict(name="adversarial", network=network, attack=attack(EPS / 2))
        return stage(1 if light else 2, 2e-3) | dict(loss=loss)

    config = common.base(EPS)
    config.data.name = "mnist"
    config.data.validation = 1000.0
    config.model = dict(name="small_cnn", stages=((24,), (48,)), dense=256)
    if light:
        config.model = dict(name="small_cnn", stages=((16,), (32,)), dense=128)
    config.evaluation.step_size = 0.01
    main = stage(4 if light else 22, 3e-3)
    namid.add(
        config,
        chosen,
        reference=main
        | dict(loss=dict(name="adversarial", network="reference", attack=attack(EPS))),
        critics=namid.critics_stage(num_epochs=3 if light else 25),
        target=dict(main),
        attack=attack(EPS),
        critic_attack=attack(EPS),
        units=256,
        widths=(32, 64) if light else (64, 128),
        warmups=dict(reference=warmup("reference"), train=warmup("model")),
    )
    return config.lock()
