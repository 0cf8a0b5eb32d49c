"""Train, attack and honestly judge adversarially robust image classifiers in JAX."""

from robustjax import attacks as attacks
from robustjax import data as data
from robustjax import defenses as defenses
from robustjax import evaluation as evaluation
from robustjax import influence as influence
from robustjax import information as information
from robustjax import interoperation as interoperation
from robustjax import interpolation as interpolation
from robustjax import judging as judging
from robustjax import models as models
from robustjax import objectives as objectives
from robustjax import pairing as pairing
from robustjax import threats as threats
from robustjax import training as training
from robustjax import transforms as transforms
from robustjax import types as types
from robustjax._checks import InputError as InputError
from robustjax.judging import evaluate as evaluate

__version__ = "0.1.0"
