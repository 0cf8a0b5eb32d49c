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
import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import _checks
from robustjax._checks import InputError
from robustjax._gradients import with_gradient_of
from robustjax.interpolation import _solve, _system, graph
from robustjax.interpolation.template import Template
from robustjax.types import Array

TemplateWeight = Literal["paper", "released", "released_floor"] | float


@dataclasses.dataclass(frozen=True)
class Solver:
    """How A u = R is solved.

    Attributes:
      method: "cholesky" on the dense matrix, "cg" (conjugate gradients, Jacobi
        preconditioner) on the sparse one, or "auto": by the number of queries.
      dtype: "float32" or "float64" (needs jax_enable_x64); that of the features if
        None.
      tolerance: Of conjugate gradients, on the residual relative to the diagonal; by
        the dtype if None.
      max_iterations: Of conjugate gradients.
    """

    method: Literal["auto", "cholesky", "cg"] = "auto"
    dtype: str | None = None
    tolerance: float | None = None
    max_iterations: int = 1000

    def __post_init__(self):
        _checks.one_of(("auto", "cholesky", "cg"), method=self.method)
        if self.dtype is not None:
            _checks.one_of(("float32", "float64"), dtype=self.dtype)
        if self.tolerance is not None:
            _checks.positive(tolerance=self.tolerance)
        _checks.positive_int(max_iterations=self.max_iterations)


_SOLVER = Solver()


class Diagnostics(NamedTuple):
    """How the solve went.

    Attributes:
      residual: The largest |A u - R| relative to the diagonal of A.
      iterations: Of conjugate gradients; 0 for a Cholesky factorisation.
      converged: Whether the residual is as small as asked.
      reached: Queries that are connected to a template, [Q] bool. The others hold the
        class shares of the template.
      recall: The share of the queries' nearest neighbours that an approximate search
        found, by an exact one; 1 if the search is exact.
    """

    residual: Array
    iterations: Array
    converged: Array
    reached: Array
    recall: Array


def interpolate(
    features: Array,
    template: Template,
    num_classes: int,
    *,
    valid: Array | None = None,
    template_weight: TemplateWeight = "paper",
    solver: Solver = _SOLVER,
) -> Array:
    """The scores of the queries, rows that sum to 1 with entries in [0, 1].

    Differentiable in forward and reverse mode with respect to the features of queries
    and templates, through weights, bandwidths and the solve, at the price of one more
    solve; the neighbour lists count as fixed.

    Args:
      features: The queries, [Q, D], float32 or float64.
      template: From `make_template`.
      num_classes: K.
      valid: Which queries exist, [Q]; all if None. For the others padding does not
        exist; its own rows hold the class shares of the template.
      template_weight: gamma: "paper" is n/m - 1 for n points, m of them templates;
        "released" n/m, "released_floor" its integer part, as in Python 2, whose
        scripts they are; 0 gives the plain graph Laplacian.
      solver: How the system is solved.

    Raises:
      InputError: an argument is out of range or does not fit.

    Example:
      >>> from robustjax.interpolation import Similarity, make_template
      >>> likeness = Similarity(num_neighbors=None, bandwidth=1.0)
      >>> template = make_template(
      ...     jnp.array([[0.0], [1.0]]), jnp.array([0, 1]), likeness)
      >>> scores = interpolate(jnp.array([[0.3]]), template, 2)
      >>> scores.round(3).tolist()
      [[0.599..., 0.401...]]
    """
    valid = _valid(features, valid)
    return _interpolate(
        *(features, template, num_classes, valid, template_weight, solver)
    )[0]


def interpolate_with_diagnostics(
    features: Array,
    template: Template,
    num_classes: int,
    *,
    valid: Array | None = None,
    template_weight: TemplateWeight = "paper",
    solver: Solver = _SOLVER,
) -> tuple[Array, Diagnostics]:
    """`interpolate`, and how the solve went.

    Example:
      >>> from robustjax.interpolation import Similarity, make_template
      >>> likeness = Similarity(num_neighbors=None, bandwidth=1.0)
      >>> template = make_template(
      ...     jnp.array([[0.0], [1.0]]), jnp.array([0, 1]), likeness)
      >>> _, report = interpolate_with_diagnostics(jnp.array([[0.3]]), template, 2)
      >>> bool(report.converged), report.reached.tolist()
      (True, [True])
    """
    valid = _valid(features, valid)
    scores, report = _interpolate(
        *(features, template, num_classes, valid, template_weight, solver)
    )
    return scores, report._replace(
        recall=_system.reached_recall(features, template, valid)
    )


def _valid(features: Array, valid: Array | None) -> Array:
    return jnp.ones(features.shape[:1], bool) if valid is None else valid


def _interpolate(
    features: Array,
    template: Template,
    num_classes: int,
    valid: Array,
    template_weight: TemplateWeight,
    solver: Solver,
) -> tuple[Array, Diagnostics]:
    """Scores, and all of the diagnostics but the recall."""
    check_call(features, template, num_classes)
    extra = extra_weight(template_weight, len(template.labels), valid)
    return _solution(num_classes, solver, features, template, valid, extra)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _solution(
    num_classes: int,
    solver: Solver,
    features: Array,
    template: Template,
    valid: Array,
    extra: Array,
) -> tuple[Array, Diagnostics]:
    system = _system.assemble(features, template, num_classes, valid, extra)
    if solver.dtype is not None:
        system = jax.tree.map(
            lambda a: (
                a.astype(solver.dtype) if a.dtype in (jnp.float32, jnp.float64) else a
            ),
            system,
        )
    shares = jnp.bincount(template.labels, length=num_classes) / len(template.labels)
    system, reached = _solve.isolated(system, shares.astype(system.diagonal.dtype))
    raw, residual, iterations, converged = _solve.solved(
        system,
        method=solver.method,
        tolerance=solver.tolerance,
        max_iterations=solver.max_iterations,
    )
    # The maximum principle holds up to rounding; log(scores) needs it to the letter.
    scores = jnp.clip(raw, 0.0, 1.0)
    scores = jnp.clip(scores / scores.sum(axis=1, keepdims=True), 0.0, 1.0)
    scores = with_gradient_of(scores, raw)
    reached, recall = reached & valid, jnp.ones(())
    report = Diagnostics(residual, iterations, converged, reached, recall)
    return scores.astype(features.dtype), report


def check_call(features: Array, template: Template, num_classes: int) -> None:
    """Raises unless queries, template and classes fit one another."""
    graph.features(features=features, template=template.features)
    _checks.positive_int(num_classes=num_classes)
    if not features.shape[0]:
        raise InputError("`features` must hold at least one query, got none.")
    check_labels(template.labels, num_classes)


def check_labels(labels: Array, num_classes: int) -> None:
    """Raises unless labels, where they are known, are all of the classes."""
    if not _checks.is_concrete(labels):
        return
    found = np.asarray(labels)  # NumPy: an outer trace records nothing
    out = (found < 0) | (found >= num_classes)
    if out.any():
        raise InputError(
            f"`template.labels` must lie in [0, {num_classes}), `num_classes`, got "
            f"{found[out.argmax()]}."
        )
    counts = np.bincount(found, minlength=num_classes)
    if counts.min() == 0:
        raise InputError(
            f"`template` must hold every class, has none of {counts.argmin()}: "
            "draw more templates, or class-balanced ones."
        )


def log_scores(scores: Array) -> Array:
    """log(U + tiny), with a derivative whose size leaves room for what it meets.

    That of log(U + sqrt(tiny)): 1 / tiny times anything above 4 would be infinite.
    """
    tiny = jnp.finfo(scores.dtype).tiny
    return with_gradient_of(jnp.log(scores + tiny), jnp.log(scores + tiny**0.5))


def extra_weight(template_weight: TemplateWeight, count: int, valid: Array) -> Array:
    """Gamma, for `count` templates and the queries that are `valid`."""
    ratio = (count + valid.sum()) / count
    if template_weight == "paper":
        return ratio - 1
    if template_weight == "released":
        return ratio
    if template_weight == "released_floor":
        return jnp.floor(ratio)
    _checks.non_negative(template_weight=template_weight)
    return jnp.asarray(template_weight)
