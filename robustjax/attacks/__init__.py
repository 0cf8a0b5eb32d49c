"""Attacks: `(key, logits_fn, x, y) -> x_adv`, pure functions that compile whole."""

from robustjax.attacks.adaptive import against as against
from robustjax.attacks.adaptive import expectation as expectation
from robustjax.attacks.adaptive import oblivious as oblivious
from robustjax.attacks.adaptive import transfer as transfer
from robustjax.attacks.adaptive import with_surrogate as with_surrogate
from robustjax.attacks.combine import each_target as each_target
from robustjax.attacks.combine import masked as masked
from robustjax.attacks.combine import restarts as restarts
from robustjax.attacks.combine import worst_case as worst_case
from robustjax.attacks.gradient import bim as bim
from robustjax.attacks.gradient import fgsm as fgsm
from robustjax.attacks.gradient import mi_fgsm as mi_fgsm
from robustjax.attacks.gradient import pgd as pgd
from robustjax.attacks.gradient import projected_gradient as projected_gradient
from robustjax.attacks.iterate import Trajectory as Trajectory
from robustjax.attacks.iterate import early_stop as early_stop
from robustjax.attacks.iterate import keep_trajectory as keep_trajectory
