"""State, stages, one training step, one loop."""

from robustjax.training.checkpoint import Checkpoints as Checkpoints
from robustjax.training.checkpoint import Progress as Progress
from robustjax.training.checkpoint import write_json as write_json
from robustjax.training.loop import load as load
from robustjax.training.loop import train as train
from robustjax.training.optimizers import adam as adam
from robustjax.training.optimizers import adamw as adamw
from robustjax.training.optimizers import constant as constant
from robustjax.training.optimizers import cosine as cosine
from robustjax.training.optimizers import freeze as freeze
from robustjax.training.optimizers import one_cycle as one_cycle
from robustjax.training.optimizers import piecewise as piecewise
from robustjax.training.optimizers import sgd as sgd
from robustjax.training.sharding import data_mesh as data_mesh
from robustjax.training.stage import Adopt as Adopt
from robustjax.training.stage import Diverged as Diverged
from robustjax.training.stage import LoopOptions as LoopOptions
from robustjax.training.stage import StoppedBySignal as StoppedBySignal
from robustjax.training.stage import Validate as Validate
from robustjax.training.state import TrainState as TrainState
from robustjax.training.state import create_state as create_state
from robustjax.training.step import make_train_step as make_train_step
