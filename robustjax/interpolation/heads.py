"""Heads over a template: WNLL, and the controls that it must be compared with.

A head is a pytree of its template, so that compiled code holds no features, and other
templates of the same size do not compile again. A template of stacked sets (see
`stack_templates`) makes each head an average over the sets.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from robustjax import _checks
from robustjax._checks import InputError
from robustjax.interpolation import graph
from robustjax.interpolation.single import interpolate_singly, own_votes
from robustjax.interpolation.template import Template
from robustjax.interpolation.wnll import (
    Solver,
    TemplateWeight,
    check_labels,
    interpolate_with_diagnostics,
    log_scores,
)
from robustjax.types import Array, Head

Queries = Literal["batch", "single"]
Average = Literal["scores", "draws"]
Unreachable = Literal["shares", "nan"]


def wnll(
    template: Template,
    num_classes: int,
    *,
    queries: Queries = "batch",
    template_weight: TemplateWeight = "paper",
    solver: Solver | None = None,
    average: Average = "scores",
    unreachable: Unreachable = "shares",
) -> Head:
    """The WNLL head: log(U + tiny), so that cross-entropy is -log U_y.

    Args:
      template: From `make_template`, or several from `stack_templates`.
      num_classes: K.
      queries: "batch" interpolates all rows together, as the papers do: an answer
        depends on the rows beside it. "single" answers each row as if it were alone.
      template_weight: As in `interpolate`.
      solver: How the system of a batch is solved.
      average: Over stacked templates: "scores" is the mean of U, which predicts like
        the sum over chunks of the training set; "draws" keeps them, [S, B, K], for
        attacks on a random choice of templates.
      unreachable: What rows that reach no template answer: the class "shares" of the
        template, or "nan", which evaluation counts as an error.

    Raises:
      InputError: an argument is unknown.

    Example:
      >>> from robustjax.interpolation import Similarity, make_template
      >>> likeness = Similarity(num_neighbors=None, bandwidth=1.0)
      >>> template = make_template(
      ...     jnp.array([[0.0], [1.0]]), jnp.array([0, 1]), likeness)
      >>> head = wnll(template, 2)
      >>> jnp.exp(head(jnp.array([[0.3]]), jnp.array([True]))).round(3).tolist()
      [[0.599..., 0.401...]]
    """
    kind = _WNLL(num_classes, queries, template_weight, solver or Solver(), unreachable)
    return _head(kind, template, log=True, average=average)


def wnll_released(
    template: Template,
    num_classes: int,
    *,
    queries: Queries = "batch",
    template_weight: TemplateWeight = "released_floor",
    solver: Solver | None = None,
    average: Average = "scores",
    unreachable: Unreachable = "shares",
) -> Head:
    """The head as the released code uses it: U itself, in [0, 1], taken for logits.

    Their softmax of it is nearly flat: with 10 classes no probability exceeds 0.232.
    Arguments are those of `wnll`.

    Example:
      >>> from robustjax.interpolation import Similarity, make_template
      >>> likeness = Similarity(num_neighbors=None, bandwidth=1.0)
      >>> template = make_template(
      ...     jnp.array([[0.0], [1.0]]), jnp.array([0, 1]), likeness)
      >>> head = wnll_released(template, 2)
      >>> head(jnp.array([[0.3]]), jnp.array([True])).round(3).tolist()
      [[0.599..., 0.401...]]
    """
    kind = _WNLL(num_classes, queries, template_weight, solver or Solver(), unreachable)
    return _head(kind, template, log=False, average=average)


def nearest_neighbors(
    template: Template, num_classes: int, *, average: Average = "scores"
) -> Head:
    """A control: the share of votes of the nearest templates, as log(share + tiny).

    As many of them as are in a list of the template's similarity, a point itself not
    counted. Its gradient is zero everywhere: attack a smooth head in its place.

    Args:
      template: As in `wnll`; kernel and bandwidths are of no effect.
      num_classes: K.
      average: As in `wnll`.

    Example:
      >>> from robustjax.interpolation import Similarity, make_template
      >>> points = jnp.array([[0.0], [0.1], [1.0]])
      >>> template = make_template(points, jnp.array([0, 0, 1]), Similarity(3, 2))
      >>> head = nearest_neighbors(template, 2)
      >>> jnp.exp(head(jnp.array([[0.2]]), jnp.array([True]))).round(3).tolist()
      [[1.0, 0.0]]
    """
    return _head(_Local(num_classes, False), template, log=True, average=average)


def kernel_regression(
    template: Template, num_classes: int, *, average: Average = "scores"
) -> Head:
    """A control: sum_t w_qt G_t / sum_t w_qt over a query's own list, as a logarithm.

    What remains of WNLL without the graph among queries and templates.

    Args:
      template: As in `wnll`.
      num_classes: K.
      average: As in `wnll`.

    Example:
      >>> from robustjax.interpolation import Similarity, make_template
      >>> likeness = Similarity(num_neighbors=None, bandwidth=1.0)
      >>> template = make_template(
      ...     jnp.array([[0.0], [1.0]]), jnp.array([0, 1]), likeness)
      >>> head = kernel_regression(template, 2)
      >>> jnp.exp(head(jnp.array([[0.3]]), jnp.array([True]))).round(3).tolist()
      [[0.599..., 0.401...]]
    """
    return _head(_Local(num_classes, True), template, log=True, average=average)


def stack_templates(templates: Sequence[Template]) -> Template:
    """Several templates of one size as one whose arrays have a leading axis [S].

    Raises:
      InputError: there is none, or they differ in size or similarity.
    """
    if not templates:
        raise InputError("`templates` must hold at least one, got none.")
    first = templates[0]
    for other in templates:
        if (other.features.shape, other.similarity) != (
            first.features.shape,
            first.similarity,
        ):
            raise InputError(
                "`templates` must have one size and similarity, got "
                f"{first.features.shape} and {other.features.shape}."
            )
    return jax.tree.map(lambda *parts: jnp.stack(parts), *templates)


@dataclasses.dataclass(frozen=True)
class _WNLL:
    num_classes: int
    queries: Queries
    template_weight: TemplateWeight
    solver: Solver
    unreachable: str

    def __post_init__(self):
        _checks.one_of(("batch", "single"), queries=self.queries)
        _checks.one_of(("shares", "nan"), unreachable=self.unreachable)

    def __call__(self, template: Template, features: Array, valid: Array) -> Array:
        if self.queries == "single":
            scores, reached = interpolate_singly(
                *(features, template, self.num_classes),
                template_weight=self.template_weight,
            )
        else:
            scores, report = interpolate_with_diagnostics(
                *(features, template, self.num_classes),
                valid=valid,
                template_weight=self.template_weight,
                solver=self.solver,
            )
            reached = report.reached | ~valid
        if self.unreachable == "nan":
            scores = jnp.where(reached[:, None], scores, jnp.nan)
        return scores


@dataclasses.dataclass(frozen=True)
class _Local:
    """Votes of a query's own list of templates, weighted or not."""

    num_classes: int
    weighted: bool
    queries: Queries = "single"

    def __call__(self, template: Template, features: Array, valid: Array) -> Array:
        del valid  # rows do not know of one another
        onehot = jax.nn.one_hot(template.labels, self.num_classes, dtype=features.dtype)
        votes = own_votes(features, template, onehot, weighted=self.weighted)
        return votes / votes.sum(axis=1, keepdims=True)


@dataclasses.dataclass(frozen=True)
class _Head:
    kind: _WNLL | _Local
    log: bool
    average: Average

    @property
    def transductive(self) -> bool:
        """Whether a row's answer depends on the rows beside it."""
        return self.kind.queries == "batch"

    def __call__(self, template: Template, features: Array, valid: Array) -> Array:
        graph.features(features=features)
        return self._answer(template, features, valid)

    @functools.partial(jax.jit, static_argnums=0)
    def _answer(self, template: Template, features: Array, valid: Array) -> Array:
        if template.features.ndim == 2:
            scores = self.kind(template, features, valid)
        else:
            scores = jax.lax.map(lambda t: self.kind(t, features, valid), template)
            if self.average == "scores":
                scores = scores.mean(axis=0)
        # No answer to what is no number, whatever a head makes of it.
        known = jnp.isfinite(features).all(axis=1)[:, None]
        known = jnp.broadcast_to(known, scores.shape)
        scores = jnp.where(known, scores, jnp.nan)
        return log_scores(scores) if self.log else scores


def _head(kind: _WNLL | _Local, template: Template, *, log: bool, average: Average):
    _checks.positive_int(num_classes=kind.num_classes)
    _checks.one_of(("scores", "draws"), average=average)
    labels = jnp.atleast_2d(template.labels)
    if _checks.is_concrete(labels):
        for each in labels:
            check_labels(each, kind.num_classes)
    return Partial(_Head(kind, log, average), template)
