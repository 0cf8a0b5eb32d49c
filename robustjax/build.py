"""Config to objects: the only code that knows a name as a string.

A block `dict(name="pgd", step_size=0.01, ...)` is looked up by its name in a literal
table and called with the rest, so a factory's keywords *are* the schema of its block.
"""

from robustjax.config.areas import attention as attention
from robustjax.config.areas import key_areas as key_areas
from robustjax.config.attack_blocks import build_threat as build_threat
from robustjax.config.attacks import build_attack as build_attack
from robustjax.config.attacks import build_suite as build_suite
from robustjax.config.attacks import check_suite as check_suite
from robustjax.config.attacks import curve_attack as curve_attack
from robustjax.config.classifiers import Classifier as Classifier
from robustjax.config.diagnostics import check_layer as check_layer
from robustjax.config.diagnostics import diagnostics as diagnostics
from robustjax.config.diagnostics import features_fn as features_fn
from robustjax.config.diagnostics import looks_at_images as looks_at_images
from robustjax.config.initial import initial_weights as initial_weights
from robustjax.config.inside import paired as paired
from robustjax.config.networks import Networks as Networks
from robustjax.config.networks import build_model as build_model
from robustjax.config.networks import build_networks as build_networks
from robustjax.config.other_runs import another_run as another_run
from robustjax.config.overrides import evaluation_with as evaluation_with
from robustjax.config.overrides import override as override
from robustjax.config.runs import Run as Run
from robustjax.config.runs import build_augmentation as build_augmentation
from robustjax.config.runs import build_classifier as build_classifier
from robustjax.config.runs import load_data as load_data
from robustjax.config.runs import read_config as read_config
from robustjax.config.runs import resolved as resolved
from robustjax.config.runs import restore as restore
from robustjax.config.runs import run as run
from robustjax.config.scrutiny import as_curve as as_curve
from robustjax.config.scrutiny import as_radii as as_radii
from robustjax.config.scrutiny import as_steps as as_steps
from robustjax.config.scrutiny import step_curves as step_curves
from robustjax.config.stages import build_loss as build_loss
from robustjax.config.stages import build_optimizer as build_optimizer
from robustjax.config.stages import build_stages as build_stages
from robustjax.config.stages import build_union as build_union
from robustjax.config.stages import check_losses as check_losses
from robustjax.config.test_time import build_defense as build_defense
