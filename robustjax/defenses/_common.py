"""What the adversarial losses share."""

from collections.abc import Callable

import jax

from robustjax.types import Array, Attack, Batch, Key, LogitsFn, Mode, Model, PyTree

Craft = Callable[[PyTree, PyTree, Key, Batch], Array]


def crafting(model: Model, attack: Attack, *, mode: Mode) -> Craft:
    """`(params, model_state, key, batch) -> x_adv` against the current weights."""

    def craft(params: PyTree, model_state: PyTree, key: Key, batch: Batch) -> Array:
        attack_key, dropout_key = jax.random.split(key)
        logits_fn = frozen(model, params, model_state, mode=mode, key=dropout_key)
        return attack(attack_key, logits_fn, batch.x, batch.y)

    return craft


def frozen(
    model: Model, params: PyTree, model_state: PyTree, *, mode: Mode, key: Key
) -> LogitsFn:
    """The model for an attack: no gradient to the weights, no new statistics.

    Cutting the weights off here, not at the attack's result, keeps `grad` from
    tracing a derivative of the whole attack that it then throws away.
    """
    fixed = jax.lax.stop_gradient(params)
    return lambda x: model.apply(fixed, model_state, x, mode=mode, key=key).logits


def accuracy(logits: Array, y: Array) -> Array:
    """Share of rows whose largest logit is the label's."""
    return (logits.argmax(axis=-1) == y).mean()
