"""Pairing clean and adversarial examples: M-PGD, ALP, attention, AT+ALP.

    L = cross-entropy of the rows [x; x'] + w_logit L_logit + w_attn L_attn

with L_logit the mean distance of the logits of x' and x, and L_attn that of their
attention maps (`robustjax.pairing`). w_logit = w_attn = 0 is mixed-minibatch PGD,
w_attn = 0 is "Adversarial Logit Pairing" (Kannan et al., 2018), and with both it is
"Improving Adversarial Robustness via Attention and Adversarial Logit Pairing" (Goodman
et al., 2019), of which only the abstract and the first lines could be read.

No loss here forbids that evidence moves between the channels of one place, and pairing
flattens the loss along what the training attack finds: judge by `at_alp_adaptive`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import get_args

import jax
import jax.numpy as jnp

from robustjax import _checks, pairing
from robustjax._checks import InputError
from robustjax.defenses._common import (
    clean_and_adversarial,
    crafting,
    mixed_cross_entropy,
)
from robustjax.pairing import Distance, LogitDistance, MapKind, Reduction
from robustjax.types import (
    AdversarialLoss,
    Array,
    Attack,
    Batch,
    Key,
    LossAux,
    Mode,
    Model,
    PyTree,
)

STAGES = ("stage1", "stage2", "stage3", "stage4")


@dataclasses.dataclass(frozen=True)
class _Attention:
    """How maps are compared."""

    layers: Sequence[str]
    kind: Distance
    map_kind: MapKind
    power: float
    floor: float
    reduction: Reduction

    def __post_init__(self):
        _checks.one_of(get_args(Distance), attention_kind=self.kind)
        _checks.one_of(get_args(MapKind), map_kind=self.map_kind)
        _checks.one_of(get_args(Reduction), layer_reduction=self.reduction)
        _checks.positive(power=self.power)
        _checks.non_negative(floor=self.floor)
        if isinstance(self.layers, str) or not self.layers:
            raise InputError(
                "`layers` must be a sequence of at least one path, got "
                f"{self.layers!r}."
            )

    def distance(self, one: Mapping[str, Array], other: Mapping[str, Array]) -> Array:
        """[B]."""
        return pairing.attention_distance(
            one,
            other,
            kind=self.kind,
            map_kind=self.map_kind,
            power=self.power,
            floor=self.floor,
            reduction=self.reduction,
        )


def at_alp(
    model: Model,
    attack: Attack,
    *,
    logit_weight: float = 0.5,
    attention_weight: float = 1.0,
    layers: Sequence[str] = STAGES,
    logit_kind: LogitDistance = "mse",
    attention_kind: Distance = "l2",
    map_kind: MapKind = "sum",
    power: float = 2.0,
    floor: float = 1e-12,
    layer_reduction: Reduction = "sum",
    clean_weight: float = 0.5,
    label_smoothing: float = 0.1,
    detach_clean: bool = False,
    joint_batch: bool = True,
    attack_mode: Mode = "eval",
) -> AdversarialLoss:
    """Attention and adversarial logit pairing, and with weights of 0 its ablations.

    What is known of AT+ALP is that clean and adversarial attention maps and logits are
    brought close. From the official code of ALP come the mixed cross-entropy, the joint
    batch and its statistics, `logit_kind`, `logit_weight`, `label_smoothing`,
    `detach_clean` (for logits) and `attack_mode`; from that of attention transfer
    `map_kind`, `power` and `floor`. Ours, for want of a source: `layers`,
    `attention_kind`, `attention_weight` (to be swept over 0.1, 1, 10; the distance
    "mse" of attention transfer takes 1000), `layer_reduction` and `detach_clean` for
    maps.

    Args:
      model: The classifier.
      attack: Makes x' from the current weights; its own loss has no pairing terms. ALP
        climbs away from the model's own prediction: `attacks.unlabelled(attack)`.
      logit_weight: w_logit; at 0 the term is not computed.
      attention_weight: w_attn; at 0 no layer is looked at.
      layers: Whose maps are paired, "stage1" to "stage4" of a ResNet; [B, H, W, C].
      logit_kind: See `pairing.logit_distance`.
      attention_kind: See `pairing.map_distance`.
      map_kind: See `pairing.attention_map`.
      power: See `pairing.attention_map`.
      floor: See `pairing.unit_map`.
      layer_reduction: Whether distances of layers are added or averaged.
      clean_weight: Of the clean rows in the cross-entropy; 0.5 is its mean over 2B.
      label_smoothing: s of (1 - s) one-hot + s / K, on all rows.
      detach_clean: Whether pairing moves the adversarial member of a pair only.
      joint_batch: Whether x and x' go through the network in one batch of 2B, whose
        BatchNorm statistics they share, or one after the other.
      attack_mode: BatchNorm during the attack.

    Returns:
      A loss with the metrics `loss/cross_entropy`, `loss/logit`, `loss/attention` (the
      last two where they are computed, without weights), `accuracy/clean`,
      `accuracy/robust`.

    Raises:
      InputError: an argument is out of range; from the loss, a layer that does not
        exist (the message lists those that do) or that has no maps.

    Example:
      >>> from robustjax import attacks, models, threats
      >>> model = models.from_linen(models.resnet20())
      >>> attack = attacks.pgd(threats.linf(8 / 255), step_size=1 / 255, num_steps=10)
      >>> loss_fn = at_alp(model, attack, layers=("stage1", "stage2", "stage3"))
    """
    _checks.non_negative(logit_weight=logit_weight, attention_weight=attention_weight)
    _checks.fraction(clean_weight=clean_weight, label_smoothing=label_smoothing)
    _checks.one_of(get_args(LogitDistance), logit_kind=logit_kind)
    attention = _Attention(
        layers, attention_kind, map_kind, power, floor, layer_reduction
    )
    mixed = dict(clean_weight=clean_weight, label_smoothing=label_smoothing)
    capture = tuple(layers) if attention_weight else ()
    apart = jax.lax.stop_gradient if detach_clean else lambda a: a

    def forward(params, model_state, key, x, x_adv):
        """Logits and features of x and of x', and the new state."""
        if not joint_batch:
            given = (model, params, model_state, key, x, x_adv)
            clean, adv = clean_and_adversarial(
                *given, statistics="both", capture=capture
            )
            return (clean.logits, clean.features), (adv.logits, adv.features), adv
        out = model.apply(
            params,
            model_state,
            jnp.concatenate([x, x_adv]),
            mode="train",
            capture=capture,
            key=key,
        )
        both = (out.logits, out.features)
        clean, adv = (
            jax.tree.map(lambda a, rows=rows: a[rows], both)
            for rows in (slice(None, len(x)), slice(len(x), None))
        )
        return clean, adv, out

    def objective(
        params: PyTree, model_state: PyTree, key: Key, batch: Batch, x_adv: Array
    ) -> tuple[Array, LossAux]:
        clean, adv, out = forward(params, model_state, key, batch.x, x_adv)
        loss, metrics = mixed_cross_entropy(clean[0], adv[0], batch.y, **mixed)
        metrics["loss/cross_entropy"] = loss
        if logit_weight:
            off = pairing.logit_distance(apart(clean[0]), adv[0], kind=logit_kind)
            metrics["loss/logit"] = off.mean()
            loss += logit_weight * metrics["loss/logit"]
        if attention_weight:
            metrics["loss/attention"] = attention.distance(
                apart(clean[1]), adv[1]
            ).mean()
            loss += attention_weight * metrics["loss/attention"]
        return loss, LossAux(out.model_state, metrics)

    craft = crafting(model, attack, mode=attack_mode)
    return AdversarialLoss(craft, objective)


def teacher_attention(
    model: Model,
    reference: Model,
    attack: Attack,
    *,
    attention_weight: float = 1.0,
    layers: Sequence[str] = STAGES,
    attention_kind: Distance = "l2",
    map_kind: MapKind = "sum",
    power: float = 2.0,
    floor: float = 1e-12,
    layer_reduction: Reduction = "sum",
    clean_weight: float = 0.5,
    label_smoothing: float = 0.1,
    attack_mode: Mode = "eval",
) -> AdversarialLoss:
    """A fixed network says where to look: its map of x is paired with that of x'.

    After a digest, all that could be read of it, of "Adversarial Robustness via
    Attention Transfer"; the choice of a foreground by back-propagated gradients is left
    out. `reference` runs in the mode "eval" and gets no gradient.

    Args:
      model: The classifier that is trained.
      reference: The teacher, whose layers have maps of the same sizes; its weights are
        in the same `params`, see `models.part`.
      attack: Makes x' from the current weights of `model`.
      attention_weight: Above 0.
      layers: As in `at_alp`, of both networks.
      attention_kind: As in `at_alp`.
      map_kind: As in `at_alp`.
      power: As in `at_alp`.
      floor: As in `at_alp`.
      layer_reduction: As in `at_alp`.
      clean_weight: As in `at_alp`.
      label_smoothing: As in `at_alp`.
      attack_mode: As in `at_alp`.

    Returns:
      A loss with the metrics of `at_alp` but for `loss/logit`.

    Raises:
      InputError: as in `at_alp`; maps of the two networks that differ in size.

    Example:
      >>> from robustjax import attacks, models, threats
      >>> model, teacher = (
      ...     models.part(models.from_linen(models.resnet20()), name)
      ...     for name in ("model", "reference"))
      >>> attack = attacks.pgd(threats.linf(8 / 255), step_size=1 / 255, num_steps=10)
      >>> loss_fn = teacher_attention(model, teacher, attack, layers=("stage3",))
    """
    _checks.positive(attention_weight=attention_weight)
    _checks.fraction(clean_weight=clean_weight, label_smoothing=label_smoothing)
    attention = _Attention(
        layers, attention_kind, map_kind, power, floor, layer_reduction
    )

    mixed = dict(clean_weight=clean_weight, label_smoothing=label_smoothing)

    def objective(
        params: PyTree, model_state: PyTree, key: Key, batch: Batch, x_adv: Array
    ) -> tuple[Array, LossAux]:
        count, rows = len(batch.x), jnp.concatenate([batch.x, x_adv])
        out = model.apply(
            params, model_state, rows, mode="train", capture=layers, key=key
        )
        fixed = jax.lax.stop_gradient(params)
        taught = reference.apply(fixed, model_state, batch.x, capture=layers).features
        features = {name: a[count:] for name, a in out.features.items()}
        clean, adv = out.logits[:count], out.logits[count:]
        loss, metrics = mixed_cross_entropy(clean, adv, batch.y, **mixed)
        metrics["loss/cross_entropy"] = loss
        metrics["loss/attention"] = attention.distance(taught, features).mean()
        loss += attention_weight * metrics["loss/attention"]
        return loss, LossAux(out.model_state, metrics)

    craft = crafting(model, attack, mode=attack_mode)
    return AdversarialLoss(craft, objective)
