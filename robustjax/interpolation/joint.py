"""Templates and queries in one batch, as the papers train and attack.

Rows are templates first. Their answers are their labels, whatever their images become.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from robustjax import _checks, _random
from robustjax._gradients import with_gradient_of
from robustjax.interpolation.classifier import features_and_logits
from robustjax.interpolation.template import Similarity, make_template
from robustjax.interpolation.wnll import Solver, TemplateWeight, interpolate
from robustjax.types import Array, Attack, Key, LogitsFn, Model, PyTree

Gradient = Literal["straight_through", "exact"]


@dataclasses.dataclass(frozen=True)
class Joint:
    """How a batch of templates and queries is answered.

    Attributes:
      similarity: Of the graph.
      template_weight: As in `interpolate`.
      gradient: "straight_through" is the papers': the derivative of the linear head.
        "exact" differentiates the solve, templates included.
      solver: How the system is solved.
    """

    similarity: Similarity = dataclasses.field(default_factory=Similarity)
    template_weight: TemplateWeight = "paper"
    gradient: Gradient = "straight_through"
    solver: Solver = dataclasses.field(default_factory=Solver)

    def __post_init__(self):
        _checks.one_of(("straight_through", "exact"), gradient=self.gradient)

    def scores(self, features: Array, logits: Array, labels: Array) -> Array:
        """One-hot labels of the templates, then U of the queries, [M + Q, K].

        Args:
          features: [M + Q, D].
          logits: The linear head's, [M + Q, K].
          labels: Of the templates, [M].
        """
        count, num_classes = labels.shape[0], logits.shape[1]
        given = features
        if self.gradient == "straight_through":
            given = jax.lax.stop_gradient(features)
        template = make_template(given[:count], labels, self.similarity)
        found = interpolate(
            *(given[count:], template, num_classes),
            template_weight=self.template_weight,
            solver=self.solver,
        )
        rows = jnp.concatenate([jax.nn.one_hot(labels, num_classes), found])
        if self.gradient == "exact":
            return rows
        return with_gradient_of(rows, logits)


def perturbing_templates(
    attack: Attack,
    model: Model,
    params: PyTree,
    model_state: PyTree,
    images: Array,
    labels: Array,
    *,
    layer: str = "features",
    joint: Joint | None = None,
) -> Attack:
    """The papers' attack: it moves templates and queries together.

    The attack climbs the scores of the joined batch, as if they were logits, over all
    rows; what it did to the templates is thrown away. It runs on the model given here,
    whatever classifier it is called with, and needs the images of a batch at once.

    Args:
      attack: Any.
      model: The classifier.
      params: Its parameters.
      model_state: Its BatchNorm statistics.
      images: The templates, [M, H, W, C].
      labels: [M].
      layer: Whose output the graph is on.
      joint: How the joined batch is answered.

    Example:
      >>> from robustjax import attacks, models, threats
      >>> model = models.from_linen(models.small_cnn(num_classes=2, dense=4))
      >>> x = jax.random.uniform(jax.random.key(0), (30, 8, 8, 1))
      >>> weights = model.init(jax.random.key(1), x)
      >>> labels = jnp.arange(30) % 2
      >>> attack = perturbing_templates(
      ...     attacks.fgsm(threats.linf(0.1)), model, *weights, x[:20], labels[:20])
      >>> attack(jax.random.key(2), None, x[20:], labels[20:]).shape
      (10, 8, 8, 1)
    """
    static = _PerturbingTemplates(attack, model, layer, joint or Joint())
    return Partial(static, params, model_state, images, labels)


@dataclasses.dataclass(frozen=True)
class _PerturbingTemplates:
    attack: Attack
    model: Model
    layer: str
    joint: Joint
    transductive: bool = True

    def __call__(
        self,
        params: PyTree,
        model_state: PyTree,
        images: Array,
        labels: Array,
        key: Key,
        logits_fn: LogitsFn,
        x: Array,
        y: Array,
    ) -> Array:
        del logits_fn
        # Traced always: an attack's look at the first images alone has no templates.
        return self._run(params, model_state, images, labels, key, x, y)

    @functools.partial(jax.jit, static_argnums=0)
    def _run(self, params, model_state, images, labels, key, x, y) -> Array:
        def answer(z: Array) -> Array:
            features, logits = features_and_logits(
                self.model, params, model_state, z, self.layer
            )
            return self.joint.scores(features, logits, labels)

        keys = _random.per_image_keys(key, x.shape[0])
        first = jax.random.fold_in(jax.random.clone(keys)[0], 1)
        own = _random.per_image_keys(first, images.shape[0])
        pairs = (own, keys), (images, x), (labels, y)
        every_key, every_x, every_y = (jnp.concatenate(pair) for pair in pairs)
        return self.attack(every_key, answer, every_x, every_y)[images.shape[0] :]
