"""Attacks on more than the classifier's answer: an objective plus a penalty of images.

A defense may look at something beside the logits, such as the information of the image
in them. Somebody who knows it climbs that too. An attack sees one function, its
`logits_fn`, and its objective sees logits alone. So the penalty travels in the logits:
they are centred, and it is added to all of them. Cross-entropy, margin and DLR do not
change under such a shift, nor does the prediction, and the mean of what arrives is the
penalty.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence

import jax
from jax.tree_util import Partial

from robustjax import pairing
from robustjax._checks import InputError
from robustjax.types import (
    Array,
    Attack,
    Key,
    LogitsFn,
    ModelFn,
    Objective,
    as_pytree,
)

Penalty = Callable[[Array, Array, Array, Array], Array]
"""`(x, x', logits of x, logits of x') -> [B]`."""


@dataclasses.dataclass(frozen=True)
class WithPenalty:
    """An objective, invariant to shifts of the logits, plus the penalty in their mean.

    Example:
      >>> import jax.numpy as jnp
      >>> from robustjax import objectives
      >>> climbed = WithPenalty(objectives.margin)
      >>> climbed(jnp.array([[3.0, 1.0]]), jnp.array([0])).tolist()  # -2 + 2
      [0.0]
    """

    objective: Objective

    def __call__(self, logits: Array, y: Array) -> Array:
        """[B], from logits that a penalty has shifted."""
        return self.objective(logits, y) + logits.mean(axis=1)


def penalised(attack: Attack, penalty: Penalty) -> Attack:
    """The attack with a penalty to climb beside its objective.

    Args:
      attack: One that climbs `WithPenalty(objective)` and asks about the images of its
        batch in their order, all at once: `pgd`, `apgd`, `restarts` of them.
      penalty: Of each image apart, or images would no longer be independent. Held as a
        pytree if it is a `jax.tree_util.Partial`.

    Example:
      >>> import jax.numpy as jnp
      >>> from robustjax import attacks, objectives, threats
      >>> def dark(x, x_adv, clean, logits):
      ...     return -100 * x_adv.sum(axis=1)
      >>> attack = penalised(
      ...     attacks.bim(threats.linf(0.25), step_size=0.125, num_steps=2,
      ...                 objective=WithPenalty(objectives.cross_entropy)), dark)
      >>> x, y = jnp.full((1, 2), 0.5), jnp.array([0])
      >>> attack(jax.random.key(0), lambda z: z, x, y).tolist()
      [[0.25, 0.25]]
    """
    return Partial(_Penalised(attack), as_pytree(penalty))


@dataclasses.dataclass(frozen=True)
class _Penalised:
    attack: Attack

    def __call__(
        self, penalty: Partial, key: Key, logits_fn: LogitsFn, x: Array, y: Array
    ) -> Array:
        return self._run(penalty, key, as_pytree(logits_fn), x, y)

    # Traced always: an attack's look at the first images alone has another `x`.
    @functools.partial(jax.jit, static_argnums=0)
    def _run(self, penalty, key, logits_fn, x, y) -> Array:
        clean = logits_fn(x)

        def shifted(z: Array) -> Array:
            logits = logits_fn(z)
            amount = penalty(x, z, clean, logits)
            return logits - logits.mean(axis=1, keepdims=True) + amount[:, None]

        return self.attack(key, shifted, x, y)


@dataclasses.dataclass(frozen=True)
class PairingPenalty:
    """What AT+ALP trains to be small, for attacks: raised, or lowered past it.

        attention * sum_j distance(q_j(x'), q_j(x)) + logits * ||z(x') - z(x)||_2^2

    A penalty is `Partial(PairingPenalty(...), models.model_fn(...))`; for q see
    `pairing`. The maps are compared as `defenses.at_alp` compares them, by keywords of
    the same names.

    Attributes:
      attention: Weight of the maps; negative leaves them where they are.
      logits: Weight of the logits.
      layers: Whose maps.
      attention_kind: See `pairing.map_distance`.
      map_kind: See `pairing.attention_map`.
      power: See `pairing.attention_map`.
      floor: See `pairing.unit_map`.
      layer_reduction: Whether distances of layers are added or averaged.
    """

    attention: float = 0.0
    logits: float = 0.0
    layers: tuple[str, ...] = ()
    attention_kind: pairing.Distance = "l2"
    map_kind: pairing.MapKind = "sum"
    power: float = 2.0
    floor: float = 1e-12
    layer_reduction: pairing.Reduction = "sum"

    def __post_init__(self):
        object.__setattr__(self, "layers", tuple(self.layers))
        if self.attention and not self.layers:
            raise InputError(
                "`layers` must name those whose attention maps a penalty compares: the "
                "run was trained with none, set evaluation.layer."
            )

    def __call__(
        self, model_fn: ModelFn, x: Array, x_adv: Array, logits: Array, moved: Array
    ) -> Array:
        """[B]."""
        total = self.logits * pairing.logit_distance(logits, moved, kind="sq")
        if self.attention:
            one, other = (model_fn(z, capture=self.layers).features for z in (x, x_adv))
            total += self.attention * pairing.attention_distance(
                one,
                other,
                kind=self.attention_kind,
                map_kind=self.map_kind,
                power=self.power,
                floor=self.floor,
                reduction=self.layer_reduction,
            )
        return total


def mean_penalty(penalties: Sequence[Penalty]) -> Penalty:
    """The mean of penalties, such as those of surrogates that are climbed jointly.

    Args:
      penalties: At least one.

    Raises:
      InputError: there are none.

    Example:
      >>> import jax.numpy as jnp
      >>> bright = lambda x, x_adv, clean, logits: x_adv.sum(axis=1)
      >>> twice = lambda *given: 2 * bright(*given)
      >>> x = jnp.ones((1, 2))
      >>> mean_penalty([bright, twice])(x, x, x, x).tolist()
      [3.0]
    """
    if not penalties:
        raise InputError("`penalties` must hold at least one, got none.")
    return Partial(_mean_penalty, tuple(map(as_pytree, penalties)))


def _mean_penalty(penalties, x, x_adv, clean, logits) -> Array:
    found = [each(x, x_adv, clean, logits) for each in penalties]
    return functools.reduce(operator.add, found) / len(found)
