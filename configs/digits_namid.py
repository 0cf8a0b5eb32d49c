"""NAMID on scikit-learn's digits, L-infinity eps 0.1: all three stages.

    python train.py --config=configs/digits_namid.py --workdir=runs/digits_namid
    python train.py --config=configs/digits_namid.py:trades --workdir=runs/namid_trades
    python eval.py --workdir=runs/digits_namid --suite=namid_adaptive
    python eval.py --workdir=runs/digits_namid --network=reference --suite=standard

Method: "Improving Adversarial Robustness via Mutual Information Estimation" (Zhou et
al., 2022); data set, networks and schedules are ours. The variants after the colon, and
how runs share their references and critics: configs/namid.py.

The reference is trained for 5 epochs, not 40: critics learn from images that fool it,
and after 40 the attack fools none of these 1,080. The released objective, whose term of
surviving images has no lower bound, then runs away (estimates of -2,600 nats).
"""

import ml_collections

from configs import common, namid

EPS = 0.1


def get_config(variant: str = "namid") -> ml_collections.ConfigDict:
    """The config; `variant` is one of `namid.VARIANTS`."""
    config = common.base(EPS)
    config.model = dict(name="small_cnn", stages=((32, 64),))
    config.data.batch_size = 64
    config.loop.validate_every = 4
    attack = common.pgd(
        EPS, step_size=EPS / 4, num_steps=10, random_start=common.gaussian_start()
    )
    optimizer = dict(name="adam", schedule=dict(name="one_cycle", value=5e-3))
    stage = dict(optimizer=optimizer, num_epochs=40, selection="last")
    namid.add(
        config,
        variant,
        reference=stage
        | dict(
            loss=dict(name="adversarial", network="reference", attack=attack),
            num_epochs=5,
        ),
        critics=namid.critics_stage(num_epochs=25, value=1e-2),
        target=dict(stage),
        attack=attack,
        critic_attack=attack | dict(num_steps=20),
        units=256,
        widths=(32, 64),
    )
    return config.lock()
