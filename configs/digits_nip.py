"""NIP on scikit-learn's digits: standard training, then the defense at test time.

    python train.py --config=configs/digits_nip.py --workdir=runs/digits_nip
    python eval.py --workdir=runs/digits_nip --suite=nip_paper
    python eval.py --workdir=runs/digits_nip --suite=nip_adaptive
    python eval.py --workdir=runs/digits_pgd --transform=nip --suite=nip_adaptive

Method: "Fight Perturbations with Perturbations: Defending Adversarial Attacks via
Neuron Influence" (Chen et al., 2021), as far as it is known (`transforms.nip`); data
set, network, schedule and sizes are ours. The variant after the colon, `adversarial`,
trains the same network by PGD first.
"""

import ml_collections

from configs import common, nip

EPS = 0.1


def get_config(training: str = "standard") -> ml_collections.ConfigDict:
    """The config; `training` is "standard" or "adversarial"."""
    config = common.base(EPS)
    config.model = dict(name="small_cnn", stages=((16, 32),))
    config.data.batch_size = 64
    config.loop.validate_every = 8
    attack = common.pgd(EPS, step_size=EPS / 4, num_steps=10)
    config.train = common.train_stage(
        loss=nip.training_loss(training, attack),
        optimizer=dict(name="adam", schedule=dict(name="constant", value=1e-3)),
        num_epochs=80,
    )
    config.transform = nip.nip("flatten", size=0.05, front=20, tail=20)
    config.evaluation.step_size = EPS / 10
    return config.lock()
