"""Evaluation: plain arrays per example, and reports made of them."""

from robustjax.evaluation._access_section import access_cells as access_cells
from robustjax.evaluation._access_section import access_lines as access_lines
from robustjax.evaluation._access_section import (
    surrogate_accuracies as surrogate_accuracies,
)
from robustjax.evaluation.attention import KeyArea as KeyArea
from robustjax.evaluation.attention import Subject as Subject
from robustjax.evaluation.attention import attention_of as attention_of
from robustjax.evaluation.attention import attention_of_models as attention_of_models
from robustjax.evaluation.attention import box_masks as box_masks
from robustjax.evaluation.attention import cover as cover
from robustjax.evaluation.attention import grad_cam as grad_cam
from robustjax.evaluation.attention import key_area as key_area
from robustjax.evaluation.attention import reference_masks as reference_masks
from robustjax.evaluation.defended import beside_bare as beside_bare
from robustjax.evaluation.information import information_of as information_of
from robustjax.evaluation.landscape import GradientHealth as GradientHealth
from robustjax.evaluation.landscape import Surface as Surface
from robustjax.evaluation.landscape import gradient_health as gradient_health
from robustjax.evaluation.landscape import loss_surface as loss_surface
from robustjax.evaluation.limits import InconsistentError as InconsistentError
from robustjax.evaluation.limits import above_limit as above_limit
from robustjax.evaluation.limits import by_access as by_access
from robustjax.evaluation.limits import class_prior as class_prior
from robustjax.evaluation.limits import inconsistencies as inconsistencies
from robustjax.evaluation.maps import influence_maps as influence_maps
from robustjax.evaluation.minimum_norm import accuracy_at as accuracy_at
from robustjax.evaluation.minimum_norm import minimum_norms as minimum_norms
from robustjax.evaluation.neurons import neuron_shifts as neuron_shifts
from robustjax.evaluation.report import mean_and_deviation as mean_and_deviation
from robustjax.evaluation.report import save_adversarial as save_adversarial
from robustjax.evaluation.report import seeds_table as seeds_table
from robustjax.evaluation.report import summarise as summarise
from robustjax.evaluation.report import table as table
from robustjax.evaluation.report import write_report as write_report
from robustjax.evaluation.results import AttackResult as AttackResult
from robustjax.evaluation.results import NamedAttack as NamedAttack
from robustjax.evaluation.results import Robustness as Robustness
from robustjax.evaluation.results import wilson_interval as wilson_interval
from robustjax.evaluation.robustness import evaluate as evaluate
from robustjax.evaluation.robustness import robustness_curve as robustness_curve
from robustjax.evaluation.steps import step_curves as step_curves
from robustjax.evaluation.true_label import benign_twin_share as benign_twin_share
from robustjax.evaluation.true_label import oracle_share as oracle_share
