"""Interpolation for queries that come one at a time.

WNLL is transductive: queries of one batch answer together. A query alone is a system of
one equation, so many of them need no solve. For a query q and templates t,

    u_q = sum_t c_qt G_t / sum_t c_qt    with c_qt = w_qt + (1 + gamma) w_tq

where w_tq is 0 unless q enters the list of t, and q may become the point that tunes the
bandwidth of t.
"""

import functools

import jax
import jax.numpy as jnp

from robustjax.interpolation import graph
from robustjax.interpolation.template import Template
from robustjax.interpolation.wnll import TemplateWeight, check_call, extra_weight
from robustjax.types import Array


def interpolate_singly(
    features: Array,
    template: Template,
    num_classes: int,
    *,
    template_weight: TemplateWeight = "paper",
) -> tuple[Array, Array]:
    """The scores of each query as if it were the only one of its batch.

    What `jax.vmap` of `interpolate` over batches of one gives, without its lists and
    solves; differentiable like it, the lists fixed.

    Args:
      features: The queries, [Q, D], float32 or float64.
      template: From `make_template`.
      num_classes: K.
      template_weight: As in `interpolate`.

    Returns:
      Scores [Q, K], rows that sum to 1, and whether each query is connected to a
      template, [Q]; the others hold the class shares of the template.

    Raises:
      InputError: an argument is out of range or does not fit.

    Example:
      >>> from robustjax.interpolation import Similarity, make_template
      >>> likeness = Similarity(num_neighbors=None, bandwidth=1.0)
      >>> template = make_template(
      ...     jnp.array([[0.0], [1.0]]), jnp.array([0, 1]), likeness)
      >>> interpolate_singly(jnp.array([[0.3]]), template, 2)[0].round(3).tolist()
      [[0.599..., 0.401...]]
    """
    check_call(features, template, num_classes)
    count = template.features.shape[0]
    extra = extra_weight(template_weight, count, jnp.ones(1, bool))
    return _interpolate_singly(num_classes, features, template, extra)


@functools.partial(jax.jit, static_argnums=0)
def _interpolate_singly(
    num_classes: int, features: Array, template: Template, extra: Array
) -> tuple[Array, Array]:
    onehot = jax.nn.one_hot(template.labels, num_classes, dtype=features.dtype)
    seen = own_votes(features, template, onehot)
    back = (1 + extra.astype(features.dtype)) * _from_templates(features, template)
    scores = seen + jnp.matmul(back, onehot, precision=jax.lax.Precision.HIGHEST)
    total = scores.sum(axis=1, keepdims=True)
    reached = total > 0
    shares = onehot.mean(axis=0, keepdims=True)
    scores = jnp.where(reached, scores / jnp.where(reached, total, 1.0), shares)
    return scores, reached[:, 0]


def own_votes(
    features: Array, template: Template, onehot: Array, *, weighted: bool = True
) -> Array:
    """sum_t w_qt G_t over the templates in each query's own list, [Q, K].

    Without weights every template in the list counts 1.
    """
    similarity, count = template.similarity, template.features.shape[0]
    # The query itself takes the first place of its list.
    own = int(similarity.include_self)
    rank = similarity.bandwidth_rank - own
    is_complete = similarity.num_neighbors is None
    size = (similarity.num_neighbors or similarity.bandwidth_rank) - own
    lists = graph.nearest(
        *(features, template.features, min(max(size, 1), count)),
        recall=similarity.recall,
    )
    squares = graph.square_distances(features, template.features, lists.index)
    if similarity.bandwidth is not None:
        width = jnp.asarray(similarity.bandwidth**2, squares.dtype)
    else:
        width = squares[:, rank - 1 : rank]
    if is_complete:
        squares, _ = all_square_distances(features, template.features)
    weight = graph.weights(squares, width, similarity.kernel)
    if not weighted:
        weight = jnp.ones_like(weight)
    if is_complete:
        return jnp.matmul(weight, onehot, precision=jax.lax.Precision.HIGHEST)
    if size == 0:  # nothing but the query itself
        weight = jnp.zeros_like(weight)
    return jnp.einsum("qk,qkc->qc", weight, onehot[lists.index])


def _from_templates(features: Array, template: Template) -> Array:
    """w_tq for every pair, [Q, M]: 0 where q is not in the list of t."""
    similarity, known = template.similarity, template.neighbors
    squares, error = all_square_distances(features, template.features)
    # Equally near queries do not enter, rounding or not.
    enters = squares < known.square_distance[None, :, -1] - error
    if similarity.num_neighbors is None:
        enters = jnp.ones_like(enters)
    if similarity.bandwidth is not None:
        width = jnp.asarray(similarity.bandwidth**2, squares.dtype)
    else:
        width = _widths(squares, template)
    return jnp.where(enters, graph.weights(squares, width, similarity.kernel), 0.0)


def _widths(squares: Array, template: Template) -> Array:
    """The squared bandwidth of each template after q has entered its list, [Q, M]."""
    rank = template.similarity.bandwidth_rank - 1
    index = template.neighbors.index[:, max(rank - 1, 0) : rank + 1]
    tuned = graph.square_distances(template.features, template.features, index)
    tuned = jnp.where(index < 0, jnp.inf, tuned)
    after = tuned[None, :, -1]
    before = tuned[None, :, 0] if rank else jnp.zeros_like(after)
    inside = jnp.where(squares < after, squares, before)
    moved = jnp.where(inside > before, inside, before)
    width = jnp.where(squares < after, moved, after)
    return jnp.where(jnp.isfinite(width), width, 0.0)


def all_square_distances(rows: Array, points: Array) -> tuple[Array, Array]:
    """||rows_i - points_j||^2, [R, N], by one matrix product, and its rounding."""
    # Around their centre, where cancellation is least; it moves with nothing.
    centre = jax.lax.stop_gradient(points.mean(axis=0, keepdims=True))
    rows, points = rows - centre, points - centre
    squares = jnp.sum(rows**2, axis=1)[:, None] + jnp.sum(points**2, axis=1)[None]
    products = jnp.matmul(rows, points.T, precision=jax.lax.Precision.HIGHEST)
    error = 8 * jnp.finfo(squares.dtype).eps * jax.lax.stop_gradient(squares)
    squares = squares - 2 * products
    # Coincident points are at 0, not at what rounding leaves of it.
    return jnp.where(squares > error, squares, 0.0), error
