"""WNLL on CIFAR-10 after PGD adversarial training of ResNet-20, eps 0.031.

    python train.py --config=configs/cifar10_wnll_resnet20.py --workdir=runs/wnll20
    python train.py --config=configs/cifar10_wnll_resnet20.py:released --workdir=runs/wnll20
    python eval.py --workdir=runs/wnll20 --suite=wnll_paper --set=head.queries=batch --batch_size=1000
    python eval.py --workdir=runs/wnll20 --suite=wnll_adaptive
    python eval.py --workdir=runs/wnll20 --head=linear --suite=standard

The network behind the headline number of "Adversarial Defense via Data Dependent
Activation Function and Total Variation Minimization" (Wang et al., 2018; 46% to 69%
under IFGSM, the paper's numbers), trained as configs/cifar10_pgd_resnet20.py. Its
released script prepares a second stage (500 templates, 1,000 queries) and never runs
it: the default runs it, `released` does not. Templates are 1,000 augmented training
images, lists 15 long with the bandwidth at 8, as in the attack script; the training
script has 60 and 30.
"""  # noqa: E501

import ml_collections

from configs import cifar10_pgd_resnet20, wnll

EPS = 0.031


def get_config(variant: str = "intended") -> ml_collections.ConfigDict:
    """The config; `variant` is "intended" or "released"."""
    config = cifar10_pgd_resnet20.get_config().unlock()
    config.validation_attack.objective = "margin"  # see wnll.py
    config.head = wnll.head(num_templates=1000)
    stage = wnll.stage(num_templates=500, num_queries=1000)
    wnll.choose_stages(config, variant, stage)
    config.evaluation.wnll_paper = wnll.attacks(EPS, step_size=0.003, num_steps=100)
    return config.lock()
