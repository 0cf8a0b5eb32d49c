"""Evaluation: plain arrays per example, and reports made of them."""

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
from robustjax.evaluation.binarization import Binarization as Binarization
from robustjax.evaluation.binarization import binarization as binarization
from robustjax.evaluation.binarization import features_of as features_of
from robustjax.evaluation.binarization import (
    summarise_binarization as summarise_binarization,
)
from robustjax.evaluation.compare import compare as compare
from robustjax.evaluation.compare import comparison_lines as comparison_lines
from robustjax.evaluation.compare import write_comparison as write_comparison
from robustjax.evaluation.defended import beside_bare as beside_bare
from robustjax.evaluation.document import Document as Document
from robustjax.evaluation.document import compose as compose
from robustjax.evaluation.document import report_markdown as report_markdown
from robustjax.evaluation.estimate import Estimate as Estimate
from robustjax.evaluation.estimate import Passes as Passes
from robustjax.evaluation.estimate import count_passes as count_passes
from robustjax.evaluation.estimate import estimate as estimate
from robustjax.evaluation.history import examples_of as examples_of
from robustjax.evaluation.history import training_history as training_history
from robustjax.evaluation.history import weights_by_class as weights_by_class
from robustjax.evaluation.html import page as page
from robustjax.evaluation.html import report_html as report_html
from robustjax.evaluation.indicators import Indicator as Indicator
from robustjax.evaluation.indicators import indicators as indicators
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
from robustjax.evaluation.outcomes import Outcomes as Outcomes
from robustjax.evaluation.outcomes import load_outcomes as load_outcomes
from robustjax.evaluation.outcomes import save_outcomes as save_outcomes
from robustjax.evaluation.report import save_adversarial as save_adversarial
from robustjax.evaluation.report import seeds_table as seeds_table
from robustjax.evaluation.report import summarise as summarise
from robustjax.evaluation.report import table as table
from robustjax.evaluation.report import write_report as write_report
from robustjax.evaluation.restarts import restart_curve as restart_curve
from robustjax.evaluation.results import AttackResult as AttackResult
from robustjax.evaluation.results import NamedAttack as NamedAttack
from robustjax.evaluation.results import Robustness as Robustness
from robustjax.evaluation.robustbench import export_robustbench as export_robustbench
from robustjax.evaluation.robustbench import robustbench_entry as robustbench_entry
from robustjax.evaluation.robustness import evaluate as evaluate
from robustjax.evaluation.robustness import robustness_curve as robustness_curve
from robustjax.evaluation.schema import read_report as read_report
from robustjax.evaluation.statistics import Paired as Paired
from robustjax.evaluation.statistics import compare_paired as compare_paired
from robustjax.evaluation.statistics import compare_runs as compare_runs
from robustjax.evaluation.statistics import holm as holm
from robustjax.evaluation.statistics import mcnemar_exact as mcnemar_exact
from robustjax.evaluation.statistics import mean_and_deviation as mean_and_deviation
from robustjax.evaluation.statistics import tango_interval as tango_interval
from robustjax.evaluation.statistics import wilson_interval as wilson_interval
from robustjax.evaluation.steps import step_curves as step_curves
from robustjax.evaluation.test_time import inference_cost as inference_cost
from robustjax.evaluation.test_time import judge_test_time as judge_test_time
from robustjax.evaluation.test_time import multiply_adds as multiply_adds
from robustjax.evaluation.test_time import summarise_test_time as summarise_test_time
from robustjax.evaluation.true_label import benign_twin_share as benign_twin_share
from robustjax.evaluation.true_label import oracle_share as oracle_share
from robustjax.evaluation.unfinished import begin as begin
from robustjax.evaluation.unfinished import end_if_empty as end_if_empty
from robustjax.evaluation.unfinished import forget as forget
