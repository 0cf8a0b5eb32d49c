"""The classifier that a run's weights and the blocks `head` and `transform` make.

Beside the classifier that is judged there are views of it, which differ in what an
attacker may ask of it: another gradient, the bare linear head, several draws of
templates or masks at once. A view is written like the block, as what changes in it.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from robustjax import data, interpolation, models
from robustjax._checks import InputError, positive_int
from robustjax.attacks import expectation, penalised
from robustjax.attacks.penalty import Penalty
from robustjax.config import names
from robustjax.config.blocks import Block, call
from robustjax.config.critics import Critics
from robustjax.config.heads import HeadSettings, build_similarity, made_template
from robustjax.config.input_transforms import (
    Transformed,
    build_transform,
    transformed,
)
from robustjax.config.inside import Asked, guides, paired, pairing_penalty
from robustjax.config.test_time import (
    FittedDefenses,
    build_defense,
    check_head,
    choice_of,
    is_test_time,
)
from robustjax.interpolation import Template
from robustjax.types import (
    Array,
    Attack,
    Head,
    InputTransform,
    LogitsFn,
    Model,
    PyTree,
)

_SAMPLES = 10  # masks that an attack averages over where a row names no view


class Classifier:
    """A run's classifier, whole and in the views that attacks take of it."""

    def __init__(
        self,
        config: Any,
        train: data.Dataset,
        augment: data.Augmentation,
        model: Model,
        params: PyTree,
        model_state: PyTree,
        critics: Callable[[LogitsFn], Critics] | None = None,
        directory: Path | None = None,
    ):
        """Of these weights.

        Args:
          config: The run's, with or without the blocks `head` and `transform`.
          train: Where templates are drawn from.
          augment: The training set's augmentation.
          model: The model.
          params: Its parameters.
          model_state: Its BatchNorm statistics.
          critics: Those of the run, of the classifier that is judged.
          directory: Where states of test-time defenses are kept; None keeps none.
        """
        self._make_critics = critics
        self._critics: Critics | None = None
        head = config.get("head")
        self._head = HeadSettings(name="linear")
        if head is not None:
            self._head = call("head", HeadSettings, _dict(head))
        self._transform = _dict(config.get("transform") or {})
        self.has_head = self._head.name != "linear"
        self.has_transform = bool(self._transform)
        draws = (config.get("evaluation") or {}).get("draws", 30)
        positive_int(**{"evaluation.draws": draws})
        self._paired = paired(config)
        self.paired_layers: tuple[str, ...] = self._paired["layers"]
        self.maps_of = (config.get("evaluation") or {}).get("influence_maps")
        self._fitted = FittedDefenses(train, model, params, model_state, directory)
        masked = self.has_transform and self._is_random(train.num_classes)
        self._draws = draws if masked else 1
        self._drawn = self._head.average == "draws" and self._head.num_sets > 1
        if masked and self._drawn:
            raise InputError(
                '`head.average` "draws" with masks of a transform would judge and be '
                'attacked by the same templates: set it to "scores", or p_drop to 0.'
            )
        self.random_view: Mapping[str, Any] | None = None
        if masked or self._drawn:
            self.random_view = dict(samples=_SAMPLES) if masked else {}
        self._train, self._augment = train, augment
        self._features: dict[Any, Array] = {}
        self._weights = (model, params, model_state)
        self.model_fn = models.model_fn(*self._weights)

    def _is_random(self, num_classes: int) -> bool:
        if is_test_time(self._transform):
            check_head(self._head.name)
            return build_defense(self._transform, num_classes).random
        # Without a mask every draw is the same.
        return self._transform.get("p_drop") != 0

    @functools.cached_property
    def logits_fn(self) -> LogitsFn:
        """What is judged: with masks and templates that no attacker can search.

        If random it returns draws, [S, B, K], else [B, K]: `config.evaluation.draws` of
        a random transform, the sets of a head with `average="draws"`.
        """
        return self.judge({})

    @property
    def bare(self) -> LogitsFn | None:
        """The model without its transform, if it has one."""
        if not self.has_transform or self._drawn:
            return None
        return self.view(dict(transform=None))

    @property
    def defense(self) -> str | None:
        """The name of the test-time defense, if there is one."""
        name = self._transform.get("name")
        return str(name) if is_test_time(self._transform) else None

    @property
    def neurons(self) -> dict[str, Any] | None:
        """What `evaluation.neuron_shifts` needs, where the defense knows neurons."""
        return None if self.bare is None else self._fitted.neurons(self._transform)

    @property
    def chooses(self) -> str | None:
        """The policy by which it chooses among candidates of classes, if it does."""
        return choice_of(self._transform)

    @property
    def feature_layer(self) -> str:
        """The layer that heads and templates read."""
        return self._head.layer

    @property
    def source(self) -> LogitsFn | None:
        """What attacks climb where they name nothing, if it is not what is judged."""
        return None if self.random_view is None else self.view(self.random_view)

    @property
    def critics(self) -> Critics | None:
        """The run's critics; None without any, or of a random classifier."""
        if self._make_critics is None or self.random_view is not None:
            return None
        if self._critics is None:
            self._critics = self._make_critics(self.logits_fn)
        return self._critics

    def penalised(self, attack: Attack, kind: str, changes: Block) -> Attack:
        """The attack with something beside its objective.

        Args:
          attack: One that climbs an `attacks.WithPenalty`.
          kind: "information", what critics say, or "pairing", how far the model's maps
            and logits are from the clean image's.
          changes: See `Critics.penalised` and `pairing`.

        Raises:
          InputError: there are no critics, or a value is wrong.
        """
        if kind == "pairing":
            return penalised(attack, self.pairing(changes))
        if self.critics is None:
            raise InputError(
                "`information` in an attack's block needs a run with critics, and a "
                "classifier that is not random: see configs/namid.py."
            )
        return self.critics.penalised(attack, changes)

    def pairing(self, changes: Block) -> Penalty:
        """An `attacks.PairingPenalty` as the run compares, but for `changes`."""
        return pairing_penalty(self._paired, changes, self.model_fn)

    def view(self, changes: Block) -> LogitsFn:
        """The classifier with these changes.

        Args:
          changes: Keywords of the block `head`; `transform`, None to look past it or
            changes in its block; `samples`, masks averaged over by an attack.

        A random transform draws other masks here than the classifier that is judged,
        a random head other templates (unless `seed` says which): an attack that keeps
        its best iterate would else find an unlucky mask and not an image.

        Raises:
          InputError: a keyword or value is wrong.
        """
        changes = _dict(changes)
        if self._drawn:
            changes = dict(seed=self._head.seed + 1) | changes
        return self._defended(changes, draw=2)

    def judge(self, changes: Block) -> LogitsFn:
        """The classifier with these changes, with the draws of the one that judges."""
        return self._defended(dict(samples=self._draws) | _dict(changes), draw=1)

    def _defended(self, changes: Block, *, draw: int) -> LogitsFn:
        changes = _dict(changes)
        samples = changes.pop("samples", 1)
        positive_int(samples=samples)
        block = dict(self._transform)
        if "transform" in changes:
            changed = changes.pop("transform")
            block = {} if changed is None else {**block, **changed}
        head = call("view", functools.partial(dataclasses.replace, self._head), changes)
        if is_test_time(block):
            check_head(head.name)
            return self._fitted.logits_fn(block, draw=draw, samples=samples)
        transform = build_transform(block)
        fun = self._interpolated(head, transform)
        if transform is None:
            return fun
        key = jax.random.key(block.get("seed", 0))
        return expectation(
            Partial(Transformed(transform.apply), fun),
            jax.random.fold_in(key, draw),
            samples,
            average="logits" if samples == 1 else "objective",
        )

    def perturbing(self, attack: Attack, changes: Block) -> Attack:
        """The attack on templates and queries together, as the papers run it.

        Args:
          attack: What moves them.
          changes: As in `view`, `gradient` "straight_through" or "exact".
        """
        head = call("view", functools.partial(dataclasses.replace, self._head), changes)
        rows = self._rows(head)[0]
        return interpolation.perturbing_templates(
            attack,
            *self._weights,
            self._images(head, rows, None),
            jnp.asarray(self._train.labels[rows]),
            layer=head.layer,
            joint=interpolation.Joint(
                build_similarity(head.similarity), head.template_weight, head.gradient
            ),
        )

    def guides(self, changes: Block) -> dict[str, Any]:
        """What a feature collision needs: features, and images to take them from.

        Args:
          changes: `layer`, whose features, by default those of the head; `maps`,
            whether they are its attention map.
        """
        asked = call("feature_collision", Asked, {"layer": self._head.layer, **changes})
        rows = interpolation.draw_templates(
            jax.random.key(self._head.seed),
            jnp.asarray(self._train.labels),
            min(self._head.num_templates, len(self._train)),
        )[0]
        return guides(asked, self._weights, self._train.take(np.asarray(rows)))

    def _interpolated(
        self, head: HeadSettings, transform: InputTransform | None
    ) -> LogitsFn:
        if head.name == "linear":
            return models.logits_fn(*self._weights)
        gradient = head.gradient
        if isinstance(gradient, Mapping):
            smooth = call(
                "gradient", functools.partial(dataclasses.replace, head), gradient
            )
            smooth = dataclasses.replace(
                smooth, gradient=gradient.get("gradient", "exact")
            )
            gradient = self._interpolated(smooth, transform)
        return interpolation.interpolated_logits_fn(
            *self._weights,
            self._built(head, transform),
            layer=head.layer,
            gradient=gradient,
        )

    def _built(self, head: HeadSettings, transform: InputTransform | None) -> Head:
        rows = self._rows(head)
        template = self._template(head, rows, transform)
        num_classes = self._train.num_classes
        options: dict[str, Any] = dict(average=head.average)
        if head.name.startswith("wnll"):
            options |= dict(
                queries=head.queries,
                template_weight=head.template_weight,
                solver=call("solver", interpolation.Solver, head.solver),
                unreachable="nan",
            )
        built = names.HEADS[head.name](template, num_classes, **options)
        if not head.companions:
            return built
        rest = np.setdiff1d(np.arange(len(self._train)), rows)
        if len(rest) < head.companions:
            raise InputError(
                f"`head.companions` must be at most {len(rest)}, the training images "
                f"that are no templates, got {head.companions}."
            )
        key = jax.random.fold_in(jax.random.key(head.seed), 2)
        others = jax.random.permutation(key, rest)[: head.companions]
        plain = dataclasses.replace(head, augment=False)
        features = self._embedded(plain, np.asarray(others), transform)
        return interpolation.among(built, features)

    def _rows(self, head: HeadSettings) -> np.ndarray:
        """Which training images are templates, [S, M]."""
        rows = interpolation.draw_templates(
            jax.random.key(head.seed),
            jnp.asarray(self._train.labels),
            head.num_templates,
            num_sets=head.num_sets,
            balanced=head.balanced,
            disjoint=head.disjoint,
        )
        return np.asarray(rows)

    def _template(
        self,
        head: HeadSettings,
        rows: np.ndarray,
        transform: InputTransform | None,
    ) -> Template:
        similarity = build_similarity(head.similarity)
        labels = self._train.labels[rows]
        counts = [np.bincount(y, minlength=self._train.num_classes) for y in labels]
        if np.min(counts) == 0:
            raise InputError(
                f"`head.num_templates` {head.num_templates} drew no template of class "
                f"{int(np.argmin(counts)) % self._train.num_classes}: draw more, or "
                "set head.balanced."
            )
        sets = [
            made_template(
                self._embedded(head, chosen, transform), jnp.asarray(y), similarity
            )
            for chosen, y in zip(rows, labels, strict=True)
        ]
        if len(sets) == 1 and head.average == "scores":
            return sets[0]
        return interpolation.stack_templates(sets)

    def _embedded(
        self,
        head: HeadSettings,
        rows: np.ndarray,
        transform: InputTransform | None,
    ) -> Array:
        """Features of training images, as a query of the same image would have them."""
        known = (head.layer, head.augment, head.seed, rows.tobytes(), transform)
        if known not in self._features:
            x = self._images(head, rows, transform)
            features = interpolation.embed(*self._weights, x, layer=head.layer)
            # Off the mesh that the weights are on: lists are made on one device.
            found = np.asarray(features)
            if not np.isfinite(found).all():
                raise InputError(
                    f"The features of layer {head.layer!r} must be finite, got NaN or "
                    "infinity for training images: the network has diverged."
                )
            self._features[known] = jnp.asarray(found)
        return self._features[known]

    def _images(
        self, head: HeadSettings, rows: np.ndarray, transform: InputTransform | None
    ) -> Array:
        """Training images, augmented and transformed."""
        key = jax.random.key(head.seed)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(
            jax.random.fold_in(key, 1), self._train.index[rows].astype(np.uint32)
        )
        x = data.as_float(jnp.asarray(self._train.images[rows]))
        if head.augment:
            x = jax.jit(self._augment)(keys, x)
        if transform is not None:
            x = transformed(transform, keys, models.logits_fn(*self._weights), x)
        return x


def _dict(block: Block) -> dict[str, Any]:
    to_dict = getattr(block, "to_dict", None)
    return dict(block) if to_dict is None else to_dict()
