"""What a run's trained critics say of images: for diagnostics, and for attackers.

Every estimate is against a bank of training images, so that images stand alone.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from robustjax import attacks, data, information
from robustjax._checks import InputError, non_negative, one_of, positive_int
from robustjax.config import names
from robustjax.config.blocks import Block, call, make
from robustjax.config.networks import ROLES, Networks
from robustjax.types import Array, Attack, LogitsFn, MIEstimator, PyTree


class Critics:
    """The critics of a run, beside the classifier that is judged.

    Those of logits: what sees a layer inside is of the network it was trained with.
    """

    def __init__(
        self,
        config: Any,
        train: data.Dataset,
        networks: Networks,
        params: PyTree,
        model_state: PyTree,
        logits_fn: LogitsFn,
        attack: Attack,
    ):
        """Of these weights.

        Args:
          config: The run's; `evaluation.bank` training images are the bank.
          train: Where they are drawn from.
          networks: The run's, without those that it has not trained.
          params: Of all networks.
          model_state: Of all networks.
          logits_fn: The classifier.
          attack: Makes the bank's adversarial images.
        """
        self._estimators: dict[str, MIEstimator] = {}
        for name in ROLES:
            network = networks.others.get(name)
            if isinstance(network, MIEstimator) and network.layer is None:
                self._estimators[name] = network
        self.has_reference = "reference" in networks.others
        self._params, self._state = params, model_state
        self._logits_fn, self._attack = logits_fn, attack
        loss = config[config.stages[-1]].loss
        block = loss.get("bound") or dict(name="dv")
        self._bound = make("bound", names.BOUNDS, block)
        self._defaults = dict(
            amount=loss.get("alpha", 0.0) * loss.get("information_weight", 0.0),
            cosine=loss.get("alpha", 0.0),
            natural=loss.get("natural_weight", 1.0),
            adversarial=loss.get("adversarial_weight", 1.0),
        )
        self._standard = dict(weight=loss.get("weight", 1.0))
        count = (config.get("evaluation") or {}).get("bank", 64)
        positive_int(**{"evaluation.bank": count})
        rows = jax.random.permutation(jax.random.key(0), len(train))
        self._train = train
        self._rows, self._others = rows[:count], rows[count : 2 * count]

    @property
    def roles(self) -> tuple[str, ...]:
        """Which critics there are."""
        return tuple(self._estimators)

    @functools.cached_property
    def probes(self) -> Mapping[str, Partial]:
        """Each critic as a function of samples and logits, see `information.probe`."""
        x, _, x_adv = self._examples(self._rows)
        samples = dict(natural=x, adversarial=x_adv - x, standard=x_adv)
        return {
            name: information.probe(
                estimator,
                self._params[name],
                self._state[name],
                samples[name],
                bound=self._bound,
            )
            for name, estimator in self._estimators.items()
        }

    def penalised(self, attack: Attack, changes: Block) -> Attack:
        """The attack with the terms of the training loss beside its objective.

        Args:
          attack: One that climbs a `WithPenalty`.
          changes: `amount`, the weight of the adversarial information minus the natural
            one, `cosine`, that of the cosines' distances from 1 (of vectors over the
            batch), `natural` and `adversarial`, those of each critic's terms, or of
            WMIM's term `weight`; by default as in the training loss. `sign` -1 goes the
            other way, towards images that look benign to the critics.

        Raises:
          InputError: the run has no such critics, or a value is wrong.
        """
        if "standard" in self.roles:
            terms = call("information", _Standard, dict(self._standard) | dict(changes))
            return attacks.penalised(attack, Partial(terms, self.probes["standard"]))
        if {"natural", "adversarial"} - set(self.roles):
            raise InputError(
                "`information` in an attack's block needs a run with the critics "
                f"natural and adversarial, or standard, got {list(self.roles)}."
            )
        weights = call("information", _Weights, {**self._defaults, **dict(changes)})
        both = self.probes["natural"], self.probes["adversarial"]
        return attacks.penalised(attack, Partial(weights, *both, self._companions))

    @functools.cached_property
    def _companions(self) -> Array:
        """a, b, c, d of training images that the attack fools, 0 for others: [4, S]."""
        x, y, x_adv = self._examples(self._others)
        logits = self._logits_fn(x), self._logits_fn(x_adv)
        fooled = (logits[0].argmax(1) == y) & (logits[1].argmax(1) != y)
        samples = dict(natural=x, adversarial=x_adv - x)
        rows = [self.probes[n](s, z) for n, s in samples.items() for z in logits]
        return jnp.where(fooled, jnp.stack(rows), 0.0)

    def _examples(self, rows: Array) -> tuple[Array, Array, Array]:
        chosen = self._train.take(jax.device_get(rows))
        x, y = data.as_float(jnp.asarray(chosen.images)), jnp.asarray(chosen.labels)
        x_adv = _crafted(self._attack, self._logits_fn, x, y)
        return x, y, x_adv


@functools.partial(jax.jit, static_argnums=0)
def _crafted(attack: Attack, logits_fn: LogitsFn, x: Array, y: Array) -> Array:
    return attack(jax.random.key(0), logits_fn, x, y)


@dataclasses.dataclass(frozen=True)
class _Weights:
    """NAMID's terms of each image, its batch being a bank of others that are fooled."""

    amount: float
    cosine: float
    natural: float
    adversarial: float
    sign: int = 1

    def __post_init__(self):
        non_negative(amount=self.amount, cosine=self.cosine)
        non_negative(natural=self.natural, adversarial=self.adversarial)
        one_of((1, -1), sign=self.sign)

    def __call__(
        self,
        natural: Partial,
        adversarial: Partial,
        companions: Array,
        x: Array,
        x_adv: Array,
        clean: Array,
        logits: Array,
    ) -> Array:
        noise = x_adv - x
        a, b = natural(x, clean), natural(x, logits)
        c, d = adversarial(noise, clean), adversarial(noise, logits)
        of_x = self.cosine * _distance(a, b, *companions[:2]) - self.amount * b
        of_noise = self.cosine * _distance(c, d, *companions[2:]) + self.amount * d
        return self.sign * (self.natural * of_x + self.adversarial * of_noise)


@dataclasses.dataclass(frozen=True)
class _Standard:
    """WMIM's term of each image: the information of x_adv in its own logits, away."""

    weight: float
    sign: int = 1

    def __post_init__(self):
        non_negative(weight=self.weight)
        one_of((1, -1), sign=self.sign)

    def __call__(
        self, standard: Partial, x: Array, x_adv: Array, clean: Array, logits: Array
    ) -> Array:
        del x, clean
        return -self.sign * self.weight * standard(x_adv, logits)


def _distance(one: Array, other: Array, ones: Array, others: Array) -> Array:
    """|1 - cos| of vectors whose first entry is the image's, the rest companions'."""
    inner = one * other + ones @ others
    squares = (one**2 + ones @ ones) * (other**2 + others @ others)
    return jnp.abs(1 - inner / jnp.sqrt(jnp.maximum(squares, 1e-16)))
