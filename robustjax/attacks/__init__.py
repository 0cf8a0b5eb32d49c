"""Attacks: `(key, logits_fn, x, y) -> x_adv`, pure functions that compile whole."""

from robustjax.attacks.combine import restarts as restarts
from robustjax.attacks.gradient import bim as bim
from robustjax.attacks.gradient import fgsm as fgsm
from robustjax.attacks.gradient import mi_fgsm as mi_fgsm
from robustjax.attacks.gradient import pgd as pgd
from robustjax.attacks.gradient import projected_gradient as projected_gradient
