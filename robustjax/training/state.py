"""What training carries from one step to the next."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from robustjax.types import Array, Key, PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """Everything the next step depends on; a pytree.

    Attributes:
      step: Steps taken since the run began, over all stages, int32 scalar.
      params: Trainable and frozen parameters.
      model_state: BatchNorm statistics.
      opt_state: State of the stage's optimizer.
      key: The stage's key; step `t` draws from `fold_in(key, t)`, so that a resumed
        run repeats what an uninterrupted one would have drawn.
      average: Exponential moving average of `params`; None without one.
    """

    step: Array
    params: PyTree
    model_state: PyTree
    opt_state: optax.OptState
    key: Key
    average: PyTree | None

    @property
    def evaluated_params(self) -> PyTree:
        """The parameters to judge: the moving average where there is one."""
        return self.params if self.average is None else self.average


def create_state(
    params: PyTree,
    model_state: PyTree,
    optimizer: optax.GradientTransformation,
    key: Key,
    *,
    step: int | Array = 0,
    average: bool = False,
) -> TrainState:
    """A state at the start of a stage.

    Args:
      params: Initial parameters.
      model_state: Initial BatchNorm statistics.
      optimizer: The stage's optimizer, as `freeze` returned it.
      key: A typed key.
      step: Steps taken in earlier stages.
      average: Whether to carry a moving average of the parameters.

    Example:
      >>> params = {"w": jnp.ones(2)}
      >>> state = create_state(params, {}, optax.sgd(0.1), jax.random.key(0))
      >>> int(state.step)
      0
    """
    return TrainState(
        step=jnp.asarray(step, jnp.int32),
        params=params,
        model_state=model_state,
        opt_state=optimizer.init(params),
        key=key,
        # A copy: donated buffers must not be shared.
        average=jax.tree.map(jnp.copy, params) if average else None,
    )
