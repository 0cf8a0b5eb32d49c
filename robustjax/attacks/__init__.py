"""Attacks: `(key, logits_fn, x, y) -> x_adv`, pure functions that compile whole."""

from robustjax.attacks._outcome import broken as broken
from robustjax.attacks.adam_pgd import adam_pgd as adam_pgd
from robustjax.attacks.adaptive import against as against
from robustjax.attacks.adaptive import ensemble as ensemble
from robustjax.attacks.adaptive import expectation as expectation
from robustjax.attacks.adaptive import oblivious as oblivious
from robustjax.attacks.adaptive import transfer as transfer
from robustjax.attacks.adaptive import with_surrogate as with_surrogate
from robustjax.attacks.apgd import apgd as apgd
from robustjax.attacks.apgd import apgd_target as apgd_target
from robustjax.attacks.apgd import apgd_targeted as apgd_targeted
from robustjax.attacks.autoattack import aa_namid as aa_namid
from robustjax.attacks.autoattack import autoattack as autoattack
from robustjax.attacks.autoattack import autoattack_plus as autoattack_plus
from robustjax.attacks.autoattack import autoattack_rand as autoattack_rand
from robustjax.attacks.autoattack import screen as screen
from robustjax.attacks.boundary import boundary as boundary
from robustjax.attacks.carlini_wagner import carlini_wagner as carlini_wagner
from robustjax.attacks.carlini_wagner_fixed import (
    carlini_wagner_fixed as carlini_wagner_fixed,
)
from robustjax.attacks.carlini_wagner_linf import (
    carlini_wagner_linf as carlini_wagner_linf,
)
from robustjax.attacks.chosen_class import pgd_targeted as pgd_targeted
from robustjax.attacks.chosen_class import r_fgsm as r_fgsm
from robustjax.attacks.chosen_class import sign_start as sign_start
from robustjax.attacks.chosen_class import step_ll as step_ll
from robustjax.attacks.chosen_class import towards as towards
from robustjax.attacks.chosen_class import unlabelled as unlabelled
from robustjax.attacks.combine import each_target as each_target
from robustjax.attacks.combine import masked as masked
from robustjax.attacks.combine import restarts as restarts
from robustjax.attacks.combine import strongest as strongest
from robustjax.attacks.combine import worst_case as worst_case
from robustjax.attacks.ddn import ddn as ddn
from robustjax.attacks.deepfool import deepfool as deepfool
from robustjax.attacks.drawn_source import drawn_source as drawn_source
from robustjax.attacks.ead import ead as ead
from robustjax.attacks.fab import fab as fab
from robustjax.attacks.fab import fab_target as fab_target
from robustjax.attacks.fab import fab_targeted as fab_targeted
from robustjax.attacks.feature_collision import feature_collision as feature_collision
from robustjax.attacks.fmn import fmn as fmn
from robustjax.attacks.gradient import bim as bim
from robustjax.attacks.gradient import fgsm as fgsm
from robustjax.attacks.gradient import mi_fgsm as mi_fgsm
from robustjax.attacks.gradient import pgd as pgd
from robustjax.attacks.gradient import projected_gradient as projected_gradient
from robustjax.attacks.gradient import uniform_start as uniform_start
from robustjax.attacks.hop_skip_jump import hop_skip_jump as hop_skip_jump
from robustjax.attacks.input_diversity import gaussian_kernel as gaussian_kernel
from robustjax.attacks.input_diversity import resize_and_pad as resize_and_pad
from robustjax.attacks.iterate import Trajectory as Trajectory
from robustjax.attacks.iterate import early_stop as early_stop
from robustjax.attacks.iterate import keep_path as keep_path
from robustjax.attacks.iterate import keep_trajectory as keep_trajectory
from robustjax.attacks.jsma import jsma as jsma
from robustjax.attacks.momentum import di_fgsm as di_fgsm
from robustjax.attacks.momentum import ni_fgsm as ni_fgsm
from robustjax.attacks.momentum import si_ni_fgsm as si_ni_fgsm
from robustjax.attacks.momentum import ti_dim as ti_dim
from robustjax.attacks.momentum import vmi_fgsm as vmi_fgsm
from robustjax.attacks.noise import gaussian_noise as gaussian_noise
from robustjax.attacks.noise import grey as grey
from robustjax.attacks.noise import sign_noise as sign_noise
from robustjax.attacks.noise import uniform_noise as uniform_noise
from robustjax.attacks.penalty import PairingPenalty as PairingPenalty
from robustjax.attacks.penalty import WithPenalty as WithPenalty
from robustjax.attacks.penalty import mean_penalty as mean_penalty
from robustjax.attacks.penalty import penalised as penalised
from robustjax.attacks.pgd_minimal import pgd_minimal as pgd_minimal
from robustjax.attacks.pixel import pixel as pixel
from robustjax.attacks.pixel import single_pixel as single_pixel
from robustjax.attacks.rotation_translation import (
    rotation_translation as rotation_translation,
)
from robustjax.attacks.selector import Candidates as Candidates
from robustjax.attacks.selector import chosen as chosen
from robustjax.attacks.selector import pack_candidates as pack_candidates
from robustjax.attacks.selector import selector as selector
from robustjax.attacks.selector import unpack_candidates as unpack_candidates
from robustjax.attacks.spsa import estimated_gradient as estimated_gradient
from robustjax.attacks.spsa import nes as nes
from robustjax.attacks.spsa import spsa as spsa
from robustjax.attacks.square import square as square
from robustjax.attacks.stadv import stadv as stadv
from robustjax.attacks.staged import Placement as Placement
from robustjax.attacks.staged import Stage as Stage
from robustjax.attacks.staged import StagedAttack as StagedAttack
from robustjax.attacks.staged import StageOutcome as StageOutcome
from robustjax.attacks.towards_other import towards_other as towards_other
from robustjax.attacks.transferable import transferable as transferable
from robustjax.attacks.universal import apply_perturbation as apply_perturbation
from robustjax.attacks.universal import universal as universal
from robustjax.attacks.universal import universal_perturbation as universal_perturbation
from robustjax.attacks.warm_start import around as around
from robustjax.attacks.warm_start import drift as drift
from robustjax.attacks.warm_start import warm_start as warm_start
from robustjax.attacks.wasserstein import mass_above_one as mass_above_one
from robustjax.attacks.wasserstein import wasserstein_pgd as wasserstein_pgd
