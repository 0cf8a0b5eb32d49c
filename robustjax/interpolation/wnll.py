"""Weighted nonlocal Laplacian: labels of templates, interpolated over a graph.

For queries U and templates L with one-hot labels G, weights w of the graph and the
template weight gamma, the scores u solve, for every query i,

    c_ij = w_ij + w_ji             for a query j
    c_ij = w_ij + (1 + gamma) w_ji for a template j
    sum_j c_ij (u_i - u_j) = 0     with u = G on the templates

that is A u = R with A_ii = sum_j c_ij, A_ij = -c_ij, R_ik = sum_{j in L} c_ij G_jk. A
is symmetric, and positive definite where every query reaches a template. See "Deep
Neural Nets with Interpolating Function as Output Activation" (Wang et al., 2018); gamma
= n/m - 1 is from "Weighted Nonlocal Laplacian on Interpolation from Sparse Data" (Shi
et al., 2017). The answer for a query depends on the queries beside it.
"""

import dataclasses
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import _checks
from robustjax._checks import InputError
from robustjax.interpolation import _solve, graph
from robustjax.interpolation._solve import System
from robustjax.interpolation.graph import Kernel, Neighbors, gaussian
from robustjax.types import Array

TemplateWeight = Literal["paper", "released", "released_floor"] | float


@dataclasses.dataclass(frozen=True)
class Similarity:
    """How points of the graph are alike.

    Attributes:
      num_neighbors: Length of a point's list; the released `num_s`. None lists all
        points: the complete graph, smooth and for small sets only.
      bandwidth_rank: The entry of its list whose distance is a point's bandwidth,
        counted from 1; the released `num_s_normal`.
      include_self: Whether a point takes the first place (and rank) of its own list, as
        in the released code; 15 and 8 then mean 14 neighbours and the 7th.
      bandwidth: None tunes each point's by `bandwidth_rank`; else one for all.
      kernel: `gaussian`, the papers', or `quartic`, the released code's, or any
        function of the squared distance in bandwidths.
      recall: As in `nearest`.
    """

    num_neighbors: int | None = 15
    bandwidth_rank: int = 8
    include_self: bool = True
    bandwidth: float | Array | None = None
    kernel: Kernel = gaussian
    recall: float | None = None

    def __post_init__(self):
        _checks.positive_int(bandwidth_rank=self.bandwidth_rank)
        if self.num_neighbors is not None:
            _checks.positive_int(num_neighbors=self.num_neighbors)
        if self.bandwidth is not None:
            _checks.positive(bandwidth=self.bandwidth)
            return
        least, most = 1 + self.include_self, self.num_neighbors or math.inf
        if not least <= self.bandwidth_rank <= most:
            raise InputError(
                f"`bandwidth_rank` must lie in [{least}, {most}], up to "
                f"`num_neighbors`, got {self.bandwidth_rank}."
            )


class Template(NamedTuple):
    """Labelled points that are kept at test time, made by `make_template`.

    Attributes:
      features: [M, D].
      labels: [M] int32.
      neighbors: The lists of the templates among themselves. They depend on the
        features alone: make the template anew when the network changes.
    """

    features: Array
    labels: Array
    neighbors: Neighbors


class Diagnostics(NamedTuple):
    """How the solve went.

    Attributes:
      residual: The largest |A u - R| relative to the diagonal of A.
      iterations: Of conjugate gradients; 0 for a Cholesky factorisation.
      converged: Whether the residual is as small as asked.
      reached: Queries that are connected to a template, [Q] bool. The others hold the
        class shares of the template.
    """

    residual: Array
    iterations: Array
    converged: Array
    reached: Array


def make_template(
    features: Array, labels: Array, similarity: Similarity | None = None
) -> Template:
    """The template of these points, with the lists of its points among themselves.

    Args:
      features: [M, D], float32 or float64.
      labels: [M] integers.
      similarity: The one to be interpolated with.

    Raises:
      InputError: shapes do not fit, features are not finite, or there are fewer points
        than neighbours.

    Example:
      >>> points = jnp.array([[0.0], [0.1], [1.0], [1.1]])
      >>> likeness = Similarity(num_neighbors=3, bandwidth_rank=2)
      >>> template = make_template(points, jnp.array([0, 0, 1, 1]), likeness)
      >>> template.neighbors.index[:, :2].tolist()
      [[0, 1], [1, 0], [2, 3], [3, 2]]
    """
    similarity = similarity or Similarity()
    graph.features(features=features)
    if labels.shape != features.shape[:1] or not jnp.issubdtype(
        labels.dtype, jnp.integer
    ):
        raise InputError(
            f"`labels` must be integers [{features.shape[0]}], one per template, got "
            f"{labels.dtype} {labels.shape}."
        )
    count = features.shape[0]
    size = similarity.num_neighbors or count
    if similarity.bandwidth is None:
        size = max(size, similarity.bandwidth_rank)
    if count < size:
        raise InputError(
            f"`features` holds {count} templates, fewer than `num_neighbors` (or "
            f"`bandwidth_rank`), {size}: take more templates or shorter lists."
        )
    neighbors = graph.nearest(
        *(features, features, size),
        own=jnp.arange(count),
        include_self=similarity.include_self,
        recall=similarity.recall,
    )
    return Template(features, labels.astype(jnp.int32), neighbors)


def interpolate(
    features: Array,
    template: Template,
    num_classes: int,
    *,
    valid: Array | None = None,
    similarity: Similarity | None = None,
    template_weight: TemplateWeight = "paper",
    solver: Literal["auto", "cholesky", "cg"] = "auto",
    dtype: str | None = None,
    tolerance: float | None = None,
    max_iterations: int = 1000,
) -> Array:
    """The scores of the queries, rows that sum to 1 with entries in [0, 1].

    Differentiable in forward and reverse mode with respect to the features of queries
    and templates, through weights, bandwidths and the solve, at the price of one more
    solve; the neighbour lists count as fixed.

    Args:
      features: The queries, [Q, D], float32 or float64.
      template: From `make_template`, with the same `similarity`.
      num_classes: K.
      valid: Which queries exist, [Q]; all if None. For the others padding does not
        exist; its own rows hold the class shares of the template.
      similarity: The graph's; the default is the released one with the papers' kernel.
      template_weight: gamma: "paper" is n/m - 1 for n points, m of them templates;
        "released" n/m, "released_floor" its integer part, as in Python 2, whose
        scripts they are; 0 gives the plain graph Laplacian.
      solver: "cholesky" on the dense matrix, "cg" (conjugate gradients, Jacobi
        preconditioner) on the sparse one, or "auto": by the number of queries.
      dtype: Of the solve, "float32" or "float64" (needs jax_enable_x64); that of the
        features if None.
      tolerance: Of conjugate gradients, on the residual relative to the diagonal; by
        the dtype if None.
      max_iterations: Of conjugate gradients.

    Raises:
      InputError: an argument is out of range or does not fit.

    Example:
      >>> likeness = Similarity(num_neighbors=None, bandwidth=1.0)
      >>> template = make_template(
      ...     jnp.array([[0.0], [1.0]]), jnp.array([0, 1]), likeness)
      >>> scores = interpolate(jnp.array([[0.3]]), template, 2, similarity=likeness)
      >>> scores.round(3).tolist()
      [[0.599..., 0.401...]]
    """
    return interpolate_with_diagnostics(
        features,
        template,
        num_classes,
        valid=valid,
        similarity=similarity,
        template_weight=template_weight,
        solver=solver,
        dtype=dtype,
        tolerance=tolerance,
        max_iterations=max_iterations,
    )[0]


def interpolate_with_diagnostics(
    features: Array,
    template: Template,
    num_classes: int,
    *,
    valid: Array | None = None,
    similarity: Similarity | None = None,
    template_weight: TemplateWeight = "paper",
    solver: Literal["auto", "cholesky", "cg"] = "auto",
    dtype: str | None = None,
    tolerance: float | None = None,
    max_iterations: int = 1000,
) -> tuple[Array, Diagnostics]:
    """`interpolate`, and how the solve went.

    Example:
      >>> likeness = Similarity(num_neighbors=None, bandwidth=1.0)
      >>> template = make_template(
      ...     jnp.array([[0.0], [1.0]]), jnp.array([0, 1]), likeness)
      >>> _, report = interpolate_with_diagnostics(
      ...     jnp.array([[0.3]]), template, 2, similarity=likeness)
      >>> bool(report.converged), report.reached.tolist()
      (True, [True])
    """
    similarity = similarity or Similarity()
    _check_call(features, template, num_classes, similarity)
    if valid is None:
        valid = jnp.ones(features.shape[:1], bool)
    system = _assemble(
        features, template, num_classes, valid, similarity, template_weight
    )
    if dtype is not None:
        system = jax.tree.map(
            lambda a: a.astype(dtype) if a.dtype in (jnp.float32, jnp.float64) else a,
            system,
        )
    shares = jnp.bincount(template.labels, length=num_classes) / len(template.labels)
    system, reached = _solve.isolated(system, shares.astype(system.diagonal.dtype))
    raw, residual, iterations, converged = _solve.solved(
        system, method=solver, tolerance=tolerance, max_iterations=max_iterations
    )
    # The maximum principle holds up to rounding; log(scores) needs it to the letter.
    scores = jnp.clip(raw, 0.0, 1.0)
    scores = scores / scores.sum(axis=1, keepdims=True)
    scores = raw + jax.lax.stop_gradient(scores - raw)
    scores = jax.lax.stop_gradient(jnp.clip(scores, 0.0, 1.0) - scores) + scores
    report = Diagnostics(residual, iterations, converged, reached & valid)
    return scores.astype(features.dtype), report


def _check_call(
    features: Array, template: Template, num_classes: int, similarity: Similarity
) -> None:
    graph.features(features=features, template=template.features)
    _checks.positive_int(num_classes=num_classes)
    if not features.shape[0]:
        raise InputError("`features` must hold at least one query, got none.")
    listed = template.neighbors.index.shape[1]
    if listed != (similarity.num_neighbors or template.features.shape[0]):
        raise InputError(
            f"`template` was made with lists of {listed}, `similarity` has "
            f"`num_neighbors` {similarity.num_neighbors}: make it with the same one."
        )
    if _checks.is_concrete(template.labels):
        labels = np.asarray(template.labels)  # NumPy: an outer trace records nothing
        out = (labels < 0) | (labels >= num_classes)
        if out.any():
            raise InputError(
                f"`template.labels` must lie in [0, {num_classes}), `num_classes`, got "
                f"{labels[out.argmax()]}."
            )
        counts = np.bincount(labels, minlength=num_classes)
        if counts.min() == 0:
            raise InputError(
                f"`template` must hold every class, has none of {counts.argmin()}: "
                "draw more templates, or class-balanced ones."
            )


def joint_lists(
    features: Array, template: Template, valid: Array, similarity: Similarity
) -> tuple[Neighbors, Neighbors]:
    """The lists over templates and queries together, templates first.

    Returns:
      Those of the templates, [M, k], and those of the queries, [Q, k]. The former merge
      the cached lists with the nearest queries.
    """
    count = template.features.shape[0]
    size = similarity.num_neighbors or count + features.shape[0]
    everything = jnp.concatenate([template.features, features])
    exists = jnp.concatenate([jnp.ones(count, bool), valid])
    of_queries = graph.nearest(
        *(features, everything, size),
        own=count + jnp.arange(features.shape[0]),
        include_self=similarity.include_self,
        valid=exists,
        recall=similarity.recall,
    )
    close = graph.nearest(
        *(template.features, features, size), valid=valid, recall=similarity.recall
    )
    index = jnp.where(close.index < 0, -1, close.index + count)
    known = template.neighbors
    index = jnp.concatenate([known.index, index], axis=1)
    distance = jnp.concatenate([known.square_distance, close.square_distance], axis=1)
    _, order = jax.lax.top_k(-distance, size)
    of_templates = Neighbors(
        jnp.take_along_axis(index, order, axis=1),
        jnp.take_along_axis(distance, order, axis=1),
    )
    return of_templates, of_queries


def _assemble(
    features: Array,
    template: Template,
    num_classes: int,
    valid: Array,
    similarity: Similarity,
    template_weight: TemplateWeight,
) -> System:
    """A and R, before anything is said about reachability."""
    count, num_queries = template.features.shape[0], features.shape[0]
    of_templates, of_queries = joint_lists(features, template, valid, similarity)
    everything = jnp.concatenate([template.features, features])

    def weigh(rows: Array, lists: Neighbors) -> Array:
        squares = graph.square_distances(rows, everything, lists.index)
        squares = jnp.where(lists.index < 0, jnp.inf, squares)
        if similarity.bandwidth is None:
            rank = similarity.bandwidth_rank - 1
            width = jnp.where(jnp.isfinite(squares[:, rank]), squares[:, rank], 0.0)
            width = width[:, None]
        else:
            width = jnp.asarray(similarity.bandwidth, squares.dtype) ** 2
        return graph.weights(squares, width, similarity.kernel)

    from_queries = weigh(features, of_queries)
    itself = of_queries.index == count + jnp.arange(num_queries)[:, None]
    from_queries = jnp.where(itself | ~valid[:, None], 0.0, from_queries)
    to_query = of_templates.index >= count
    from_templates = jnp.where(to_query, weigh(template.features, of_templates), 0.0)
    extra = _extra(template_weight, count, valid)
    from_templates = (1 + extra.astype(from_templates.dtype)) * from_templates

    # R: template columns of the queries' lists, and the queries in the templates'.
    is_template = (of_queries.index >= 0) & (of_queries.index < count)
    labels = template.labels[jnp.where(is_template, of_queries.index, 0)]
    seen = jnp.where(is_template, from_queries, 0.0)
    onehot = jax.nn.one_hot(labels, num_classes, dtype=seen.dtype)
    right = jnp.einsum("qk,qkc->qc", seen, onehot)
    target = jnp.where(to_query, of_templates.index - count, num_queries)
    bins = target * num_classes + template.labels[:, None]
    spread = jnp.zeros((num_queries + 1) * num_classes, right.dtype)
    spread = spread.at[bins.reshape(-1)].add(from_templates.reshape(-1))
    right += spread.reshape(num_queries + 1, num_classes)[:-1]

    between = jnp.where(of_queries.index >= count, from_queries, 0.0)
    column = jnp.where(of_queries.index >= count, of_queries.index - count, 0)
    diagonal = right.sum(axis=1) + between.sum(axis=1)
    diagonal = diagonal.at[column].add(between)
    return System(diagonal, column, between, right)


def _extra(template_weight: TemplateWeight, count: int, valid: Array) -> Array:
    ratio = (count + valid.sum()) / count
    if template_weight == "paper":
        return ratio - 1
    if template_weight == "released":
        return ratio
    if template_weight == "released_floor":
        return jnp.floor(ratio)
    _checks.non_negative(template_weight=template_weight)
    return jnp.asarray(template_weight)
