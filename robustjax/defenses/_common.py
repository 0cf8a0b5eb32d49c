"""What the adversarial losses share."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Literal

import jax
from jax.tree_util import Partial

from robustjax import objectives
from robustjax.types import (
    Array,
    Attack,
    Batch,
    Key,
    LogitsFn,
    LossAux,
    Mode,
    Model,
    ModelOutput,
    PyTree,
)

Craft = Callable[[PyTree, PyTree, Key, Batch], Array]
Objective = Callable[[PyTree, PyTree, Key, Batch, Array], tuple[Array, LossAux]]
Terms = Callable[[Array, Array, Array], tuple[Array, dict[str, Array]]]
Statistics = Literal["adversarial", "both"]


def crafting(
    model: Model, attack: Attack, *, mode: Mode, own_answers: bool = False
) -> Craft:
    """`(params, model_state, key, batch) -> x_adv` against the current weights.

    The attack is given the labels, or the model's softmax of the clean images.

    Of an attack that is a pytree it is one too: the training step takes the weights of
    static models as arguments and does not compile them in.
    """
    craft = _Crafting(model, mode, own_answers)
    if isinstance(attack, Partial):
        return Partial(craft, attack)
    return functools.partial(craft, attack)


@dataclasses.dataclass(frozen=True)
class _Crafting:
    model: Model
    mode: Mode
    own_answers: bool

    def __call__(
        self,
        attack: Attack,
        params: PyTree,
        model_state: PyTree,
        key: Key,
        batch: Batch,
    ) -> Array:
        attack_key, dropout_key = jax.random.split(key)
        logits_fn = frozen(
            self.model, params, model_state, mode=self.mode, key=dropout_key
        )
        y = jax.nn.softmax(logits_fn(batch.x)) if self.own_answers else batch.y
        return attack(attack_key, logits_fn, batch.x, y)


def frozen(
    model: Model, params: PyTree, model_state: PyTree, *, mode: Mode, key: Key
) -> LogitsFn:
    """The model for an attack: no gradient to the weights, no new statistics.

    Cutting the weights off here, not at the attack's result, keeps `grad` from
    tracing a derivative of the whole attack that it then throws away.
    """
    fixed = jax.lax.stop_gradient(params)
    return lambda x: model.apply(fixed, model_state, x, mode=mode, key=key).logits


def clean_and_adversarial(
    model: Model,
    params: PyTree,
    model_state: PyTree,
    key: Key,
    x: Array,
    x_adv: Array,
    *,
    statistics: Statistics,
    capture: Sequence[str] = (),
) -> tuple[ModelOutput, ModelOutput]:
    """Forward passes of x and x_adv; the second one's `model_state` is the new one.

    `statistics` says which of them move BatchNorm's running statistics.
    """
    clean_key, adv_key = jax.random.split(key)
    mode = "train" if statistics == "both" else "batch"
    clean = model.apply(
        params, model_state, x, mode=mode, capture=capture, key=clean_key
    )
    state = clean.model_state
    adv = model.apply(params, state, x_adv, mode="train", capture=capture, key=adv_key)
    return clean, adv


def paired(model: Model, terms: Terms, *, statistics: Statistics) -> Objective:
    """The objective that is `terms` of one forward pass of x and one of x_adv."""

    def objective(
        params: PyTree, model_state: PyTree, key: Key, batch: Batch, x_adv: Array
    ) -> tuple[Array, LossAux]:
        clean, adv = clean_and_adversarial(
            model, params, model_state, key, batch.x, x_adv, statistics=statistics
        )
        loss, metrics = terms(clean.logits, adv.logits, batch.y)
        return loss, LossAux(adv.model_state, metrics)

    return objective


def mixed_cross_entropy(
    clean: Array, adv: Array, y: Array, *, clean_weight: float, label_smoothing: float
) -> tuple[Array, dict[str, Array]]:
    """(1 - w) * cross-entropy(adv) + w * cross-entropy(clean), and both accuracies.

    At w = 1/2 the mean over clean and adversarial rows, mixed-minibatch PGD; at w = 0
    the clean rows are not looked at.
    """
    each = functools.partial(objectives.cross_entropy, label_smoothing=label_smoothing)
    loss = (1 - clean_weight) * each(adv, y).mean()
    if clean_weight:
        loss += clean_weight * each(clean, y).mean()
    right = {"accuracy/clean": accuracy(clean, y), "accuracy/robust": accuracy(adv, y)}
    return loss, right


def accuracy(logits: Array, y: Array) -> Array:
    """Share of rows whose largest logit is the label's."""
    return (logits.argmax(axis=-1) == y).mean()
