"""Evaluation: plain arrays per example, and reports made of them."""

from robustjax.evaluation.defended import beside_bare as beside_bare
from robustjax.evaluation.information import information_of as information_of
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
from robustjax.evaluation.true_label import benign_twin_share as benign_twin_share
from robustjax.evaluation.true_label import oracle_share as oracle_share
