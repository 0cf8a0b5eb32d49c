"""WNLL and total-variation minimisation on CIFAR-10, ResNet-56, natural training.

    python train.py --config=configs/cifar10_wnll_resnet56_tvm.py --workdir=runs/wnll56
    python train.py --config=configs/cifar10_wnll_resnet56_tvm.py:released --workdir=runs/wnll56
    python eval.py --workdir=runs/wnll56 --suite=wnll_paper --set=head.queries=batch --batch_size=1000
    python eval.py --workdir=runs/wnll56 --suite=wnll_adaptive
    python eval.py --workdir=runs/wnll56 --transform=none --suite=wnll_adaptive
    python eval.py --workdir=runs/wnll56 --head=linear --transform=none --suite=standard

The combination behind "+38.9%" of "Adversarial Defense via Data Dependent Activation
Function and Total Variation Minimization" (Wang et al., 2018). Network, schedule and
second stage are those of the released natural-training script of 2019: two rounds of
400 epochs, learning rate 0.1 / (10 round + 1) halved every 40 epochs, two buffer layers,
ImageNet statistics; templates 2,000 and queries 4,000 in the second stage; 10 chunks of
templates for natural accuracy, 4,900 each without the 1,000 validation images
(`--set=head.num_templates=4900 --set=head.num_sets=10 --set=head.disjoint=True`; the
paper's 5,000 are all of train). Its stages after the first never touch the
network; `released` leaves them out. No TVM code was released: drop rate 0.5 and weight
0.03 are those of Guo et al. (2018), and that the training set is the union of images
and their TVM is our reading. The radius 0.02 is the documented example of FGSM; IFGSM
has 0.031.
"""  # noqa: E501

import ml_collections

from configs import cifar10, common, wnll

EPS = 0.02
ROUNDS = 2


def get_config(variant: str = "intended") -> ml_collections.ConfigDict:
    """The config; `variant` is "intended" or "released"."""
    config = cifar10.base(EPS)
    config.data.batch_size = 128
    config.model = dict(
        name="resnet56",
        buffer=2,
        normalise=((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        dtype="float32",
    )
    config.validation_attack.objective = "margin"  # see wnll.py
    config.head = wnll.head(num_templates=1000)
    wnll.add_tvm(config)
    rounds = [_round(number) for number in range(ROUNDS)]
    config.train, stage = rounds[0]
    wnll.choose_stages(config, variant, stage)
    if variant == "intended":
        for number, (linear, stage) in enumerate(rounds[1:], 2):
            config[f"train_{number}"], config[f"wnll_{number}"] = linear, stage
            config.stages += (f"train_{number}", f"wnll_{number}")
    config.evaluation.wnll_paper = wnll.attacks(
        EPS, step_size=0.003, num_steps=100, ifgsm_eps=0.031
    )
    return config.lock()


def _round(number: int) -> tuple[dict, dict]:
    """Linear and WNLL stage of a round, counted from 0."""
    halvings = tuple(k / 10 for k in range(1, 10))
    linear = common.train_stage(
        loss=dict(name="standard", label_smoothing=0.0),
        optimizer=wnll.sgd(0.1 / (10 * number + 1), drops=halvings, factor=0.5),
        num_epochs=400,
    )
    stage = wnll.stage(
        num_templates=2000, num_queries=4000, learning_rate=0.05 / (number + 1)
    )
    return linear, stage
