"""Neuron influence: which outputs of a layer a classifier's answer rests on."""

from robustjax.influence.gradients import Measure as Measure
from robustjax.influence.gradients import Output as Output
from robustjax.influence.gradients import (
    activation_x_gradient as activation_x_gradient,
)
from robustjax.influence.gradients import activations as activations
from robustjax.influence.gradients import all_classes as all_classes
from robustjax.influence.gradients import captured as captured
from robustjax.influence.gradients import conductance as conductance
from robustjax.influence.gradients import gradient as gradient
from robustjax.influence.outputs import log_probability as log_probability
from robustjax.influence.outputs import logit as logit
from robustjax.influence.outputs import margin as margin
from robustjax.influence.outputs import probability as probability
from robustjax.influence.removal import ShapleyValues as ShapleyValues
from robustjax.influence.removal import ablation as ablation
from robustjax.influence.removal import shapley as shapley
from robustjax.influence.sets import ClassMeans as ClassMeans
from robustjax.influence.sets import class_means as class_means
from robustjax.influence.sets import front_and_tail as front_and_tail
from robustjax.influence.sets import per_channel as per_channel
from robustjax.influence.sets import random_sets as random_sets
from robustjax.influence.sets import set_sizes as set_sizes
