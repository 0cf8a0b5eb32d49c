"""The one training step, for every defense."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from robustjax import _checks
from robustjax._gradients import loop_safe
from robustjax.training.state import TrainState
from robustjax.types import Array, Batch, Key, LossAux, LossFn, PyTree

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]
Prepare = Callable[[Key, Array], Array]


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    prepare: Prepare | None = None,
    trainable: PyTree | None = None,
    average_decay: float | None = None,
    accumulate: int = 1,
) -> TrainStep:
    """`(state, batch) -> (state, metrics)`, pure; the caller jits and donates.

    The step's key is `fold_in(state.key, state.step)`.

    Args:
      loss_fn: The defense.
      optimizer: As given to `create_state`.
      prepare: `(key, images) -> x`: conversion to [0, 1] and augmentation, on the
        device; None takes `batch.x` as it is.
      trainable: Bools, a prefix of the parameters: no gradient is computed for the
        rest. The optimizer must leave them alone too (`freeze`).
      average_decay: Decay d of the moving average; the effective one is
        min(d, (1 + t) / (10 + t)), so that early averages forget the initialisation.
      accumulate: Into how many parts the batch is cut; their gradients are averaged
        before one update, BatchNorm statistics move on from part to part.

    Returns:
      The step. Its metrics are those of the loss with `loss/total` and `grad/norm`.

    Raises:
      InputError: an argument is out of range.

    Example:
      >>> from robustjax.training.state import create_state
      >>> def loss_fn(params, model_state, key, batch):
      ...     return jnp.mean((batch.x * params - 1.0) ** 2), LossAux(model_state, {})
      >>> tx = optax.sgd(0.25)
      >>> step = make_train_step(loss_fn, tx)
      >>> state = create_state(jnp.zeros(()), {}, tx, jax.random.key(0))
      >>> state, metrics = step(state, Batch(jnp.ones(4), jnp.zeros(4, jnp.int32)))
      >>> float(state.params), float(metrics["loss/total"])
      (0.5, 1.0)
    """
    _checks.positive_int(accumulate=accumulate)
    if average_decay is not None:
        _checks.fraction(average_decay=average_decay)

    def loss(params, model_state, key, batch):
        if trainable is not None:
            params = _stop_frozen(params, trainable)
        value, aux = loss_fn(params, model_state, key, batch)
        return value, aux._replace(metrics={**aux.metrics, "loss/total": value})

    gradient = jax.grad(loss, has_aux=True)

    def train_step(state: TrainState, batch: Batch):
        key = jax.random.fold_in(state.key, state.step)
        prepare_key, loss_key = jax.random.split(key)
        if prepare is not None:
            batch = batch._replace(x=prepare(prepare_key, batch.x))
        if accumulate == 1:
            grads, aux = gradient(state.params, state.model_state, loss_key, batch)
        else:
            grads, aux = _accumulated(gradient, accumulate, state, loss_key, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = state.average
        if average is not None and average_decay is not None:
            count = state.step.astype(jnp.float32)
            decay = jnp.minimum(average_decay, (1 + count) / (10 + count))
            moved = optax.incremental_update(params, average, 1 - decay)
            average = _keep_frozen(moved, average, trainable)
        new = TrainState(
            step=state.step + 1,
            params=params,
            model_state=aux.model_state,
            opt_state=opt_state,
            key=state.key,
            average=average,
        )
        return new, {**aux.metrics, "grad/norm": optax.global_norm(grads)}

    return train_step


def _stop_frozen(params: PyTree, trainable: PyTree) -> PyTree:
    def stop(is_trained, subtree):
        return subtree if is_trained else jax.lax.stop_gradient(subtree)

    return jax.tree.map(stop, trainable, params)


def _keep_frozen(new: PyTree, old: PyTree, trainable: PyTree | None) -> PyTree:
    """`new` where it is trained, else `old` to the bit: averaging rounds."""
    if trainable is None:
        return new
    return jax.tree.map(lambda trained, n, o: n if trained else o, trainable, new, old)


def _accumulated(
    gradient: Callable[..., tuple[PyTree, LossAux]],
    parts: int,
    state: TrainState,
    key: Key,
    batch: Batch,
) -> tuple[PyTree, LossAux]:
    """Mean gradient and metrics over `parts` equal parts of the batch."""
    size = batch.x.shape[0]
    if size % parts:
        raise _checks.InputError(
            f"`accumulate` must divide the batch of {size}, got {parts}."
        )

    def cut(rows: Array) -> Array:
        # Interleaved, so that every device keeps its own rows.
        return rows.reshape(size // parts, parts, *rows.shape[1:]).swapaxes(0, 1)

    def body(carry, part):
        model_state, total = carry
        index, rows = part
        out = loop_safe(gradient)(
            state.params, model_state, jax.random.fold_in(key, index), rows
        )
        grads, aux = out
        total = jax.tree.map(lambda t, g: t + g / parts, total, grads)
        return (aux.model_state, total), aux.metrics

    zeros = jax.tree.map(jnp.zeros_like, state.params)
    parts_of_batch = (jnp.arange(parts), jax.tree.map(cut, batch))
    (model_state, grads), metrics = jax.lax.scan(
        body, (state.model_state, zeros), parts_of_batch
    )
    mean = jax.tree.map(lambda m: m.mean(axis=0), metrics)
    return grads, LossAux(model_state, mean)
