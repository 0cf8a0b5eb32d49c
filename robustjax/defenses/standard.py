"""Standard training: cross-entropy on clean images."""

import functools

from robustjax import _checks, objectives
from robustjax.defenses._common import accuracy
from robustjax.types import Array, Batch, Key, LossAux, LossFn, Model, PyTree


def standard(model: Model, *, label_smoothing: float = 0.0) -> LossFn:
    """Mean cross-entropy on clean images: the undefended baseline.

    Args:
      model: The classifier.
      label_smoothing: s of (1 - s) one-hot + s / K.

    Returns:
      A loss with the metric `accuracy/clean`.

    Raises:
      InputError: `label_smoothing` is out of range.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from robustjax import models
      >>> model = models.from_linen(models.small_cnn())
      >>> params, model_state = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
      >>> batch = Batch(jnp.zeros((2, 8, 8, 1)), jnp.array([3, 5]))
      >>> loss, aux = standard(model)(params, model_state, jax.random.key(1), batch)
      >>> sorted(aux.metrics)
      ['accuracy/clean']
    """
    _checks.fraction(label_smoothing=label_smoothing)
    cross_entropy = functools.partial(
        objectives.cross_entropy, label_smoothing=label_smoothing
    )

    def loss_fn(
        params: PyTree, model_state: PyTree, key: Key, batch: Batch
    ) -> tuple[Array, LossAux]:
        out = model.apply(params, model_state, batch.x, mode="train", key=key)
        loss = cross_entropy(out.logits, batch.y).mean()
        metrics = {"accuracy/clean": accuracy(out.logits, batch.y)}
        return loss, LossAux(out.model_state, metrics)

    return loss_fn
