"""Adversarial weight perturbation (AWP), a wrapper of any loss."""

import dataclasses

import jax
import jax.numpy as jnp

from robustjax import _checks
from robustjax.types import AdversarialLoss, Array, Batch, Key, LossAux, LossFn, PyTree

_FLOOR = 1e-20


def awp(loss_fn: LossFn, *, gamma: float = 0.01) -> LossFn:
    """The loss at adversarially perturbed weights, L(w + v).

    For every tensor with more than one axis, v = gamma * ||w|| * g / (||g|| + 1e-20),
    where g is the gradient of the loss at w on the same batch; biases and
    normalisation parameters stay. v is a constant of the step: the gradient at w + v
    is applied to w; the authors' code adds v and takes it off again.

    See "Adversarial Weight Perturbation Helps Robust Generalization" (Wu et al., 2020),
    eqs. (8)-(10); gamma 0.01 for adversarial training and 0.005 for TRADES there (the
    latter from epoch 10 on: a first stage without AWP). The authors' code selects
    tensors of more than one axis whose name holds "weight"; here that is all of them.

    Args:
      loss_fn: Any loss. The adversarial examples of an `AdversarialLoss` are made once,
        at the unperturbed weights, as in the paper; any other loss is evaluated whole
        at both weights.
      gamma: Relative size of the perturbation.

    Returns:
      A loss that costs one more forward and backward pass.

    Raises:
      InputError: `gamma` is negative.

    Example:
      >>> def square(params, model_state, key, batch):
      ...     return jnp.sum(params["w"] ** 2), LossAux(model_state, {})
      >>> params = {"w": jnp.ones((1, 1))}
      >>> batch = Batch(jnp.zeros((1, 1)), jnp.zeros(1, jnp.int32))
      >>> loss, _ = awp(square, gamma=0.5)(params, {}, jax.random.key(0), batch)
      >>> float(loss)
      2.25
    """
    _checks.non_negative(gamma=gamma)
    return Perturbed(loss_fn, gamma)


@dataclasses.dataclass(frozen=True)
class Perturbed:
    """A loss at weights that have moved against it: see `awp`."""

    loss_fn: LossFn
    gamma: float

    def __call__(
        self, params: PyTree, model_state: PyTree, key: Key, batch: Batch
    ) -> tuple[Array, LossAux]:
        """The loss of `loss_fn` there."""
        loss_fn = loss = self.loss_fn
        if isinstance(loss_fn, AdversarialLoss):
            craft_key, key = jax.random.split(key)
            x_adv = loss_fn.craft(params, model_state, craft_key, batch)
            objective = loss_fn.objective

            def at_x_adv(params, model_state, key, batch, /):
                return objective(params, model_state, key, batch, x_adv)

            loss = at_x_adv

        # The proxy and the loss share the key: same dropout, same random starts.
        grads, _ = jax.grad(loss, has_aux=True)(
            jax.lax.stop_gradient(params), model_state, jax.random.clone(key), batch
        )
        offset = jax.tree.map(lambda w, g: _offset(w, g, self.gamma), params, grads)
        moved = jax.tree.map(jnp.add, params, jax.lax.stop_gradient(offset))
        return loss(moved, model_state, key, batch)


def _offset(weight: Array, grad: Array, gamma: float) -> Array:
    if weight.ndim <= 1:
        return jnp.zeros_like(weight)
    scale = jnp.linalg.norm(weight.ravel()) / (jnp.linalg.norm(grad.ravel()) + _FLOOR)
    return gamma * scale * grad
