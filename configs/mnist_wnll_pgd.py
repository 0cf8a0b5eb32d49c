"""WNLL on MNIST after PGD adversarial training, L-infinity eps 0.3.

    python train.py --config=configs/mnist_wnll_pgd.py --workdir=runs/mnist_wnll
    python train.py --config=configs/mnist_wnll_pgd.py:released --workdir=runs/mnist_wnll
    python eval.py --workdir=runs/mnist_wnll --suite=wnll_paper --set=head.queries=batch --batch_size=2000
    python eval.py --workdir=runs/mnist_wnll --suite=wnll_adaptive

From the released MNIST script of "Adversarial Defense via Data Dependent Activation
Function and Total Variation Minimization" (Wang et al., 2018): its network, 40 steps of
0.01 from a uniform start against the network in training mode, 100 epochs of SGD, 0.01
divided by 10 at epochs 55, 75 and 90, one round. Its second stage is prepared (2,400
templates, 9,600 queries) and never run: the default runs it, `released` does not.
"""  # noqa: E501

import ml_collections

from configs import common, wnll

EPS = 0.3


def get_config(variant: str = "intended") -> ml_collections.ConfigDict:
    """The config; `variant` is "intended" or "released"."""
    config = common.base(EPS)
    config.data.name = "mnist"
    config.data.validation = 1000.0
    config.model = dict(name="wnll_mnist_cnn", buffer=1)
    config.validation_attack.objective = "margin"  # see wnll.py
    config.head = wnll.head(num_templates=2000)
    config.train = common.train_stage(
        loss=dict(
            name="adversarial",
            attack=common.pgd(EPS, step_size=0.01, num_steps=40),
            clean_weight=0.0,
            attack_mode="batch",
        ),
        optimizer=wnll.sgd(0.01, drops=(0.55, 0.75, 0.9)),
        num_epochs=100,
    )
    stage = wnll.stage(num_templates=2400, num_queries=9600)
    wnll.choose_stages(config, variant, stage)
    config.evaluation.step_size = 0.01
    config.evaluation.wnll_paper = wnll.attacks(
        EPS, step_size=0.01, num_steps=40, cw_step_size=0.003, cw_steps=100
    )
    return config.lock()
