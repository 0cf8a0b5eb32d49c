"""Evaluation: plain arrays per example, and reports made of them."""

from robustjax.evaluation.report import mean_and_deviation as mean_and_deviation
from robustjax.evaluation.report import save_adversarial as save_adversarial
from robustjax.evaluation.report import seeds_table as seeds_table
from robustjax.evaluation.report import summarise as summarise
from robustjax.evaluation.report import table as table
from robustjax.evaluation.report import write_report as write_report
from robustjax.evaluation.robustness import AttackResult as AttackResult
from robustjax.evaluation.robustness import NamedAttack as NamedAttack
from robustjax.evaluation.robustness import Robustness as Robustness
from robustjax.evaluation.robustness import evaluate as evaluate
from robustjax.evaluation.robustness import robustness_curve as robustness_curve
from robustjax.evaluation.robustness import wilson_interval as wilson_interval
