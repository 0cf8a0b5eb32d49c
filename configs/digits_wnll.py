"""WNLL on scikit-learn's digits: the alternating algorithm, L-infinity eps 0.1.

    python train.py --config=configs/digits_wnll.py --workdir=runs/digits_wnll
    python train.py --config=configs/digits_wnll.py:released --workdir=runs/digits_wnll
    python train.py --config=configs/digits_wnll.py:tvm --workdir=runs/digits_wnll_tvm
    python eval.py --workdir=runs/digits_wnll --suite=wnll_adaptive
    python eval.py --workdir=runs/digits_wnll --suite=wnll_paper --set=head.queries=batch --batch_size=597
    python eval.py --workdir=runs/digits_wnll --head=linear --suite=standard

Method: "Adversarial Defense via Data Dependent Activation Function and Total Variation
Minimization" (Wang et al., 2018): a linear stage, here adversarial, then a stage that
trains the buffer alone through the interpolation, with the papers' straight-through
gradient. `released` has no second stage, as in their released code for adversarially
trained networks: WNLL replaces the softmax at test time only. `tvm` puts total-variation
minimisation before the network and its results into the training set. Data set, network and
schedule are ours; 500 templates because digits has 1,080 training images.
"""  # noqa: E501

import ml_collections

from configs import common, wnll

EPS = 0.1


def get_config(variant: str = "intended") -> ml_collections.ConfigDict:
    """The config; `variant` is "intended", "released" or "tvm" (intended with TVM)."""
    config = common.base(EPS)
    config.model = dict(name="small_cnn", stages=((32, 64),), dense=64, buffer=1)
    config.data.batch_size = 64
    config.loop.validate_every = 4
    config.validation_attack.objective = "margin"  # see wnll.py
    config.head = wnll.head(num_templates=500)
    config.train = common.train_stage(
        loss=dict(
            name="adversarial",
            attack=common.pgd(EPS, step_size=EPS / 4, num_steps=10),
            clean_weight=0.0,
        ),
        optimizer=dict(name="adam", schedule=dict(name="one_cycle", value=5e-3)),
        num_epochs=40,
    )
    stage = wnll.stage(num_templates=200, num_queries=400, num_epochs=5)
    if variant == "tvm":
        wnll.add_tvm(config)
        variant = "intended"
    wnll.choose_stages(config, variant, stage)
    config.evaluation.wnll_paper = wnll.attacks(EPS, step_size=EPS / 10, num_steps=100)
    return config.lock()
