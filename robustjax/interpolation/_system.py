"""The system of an interpolation: joint lists, their weights, A and R."""

import jax
import jax.numpy as jnp

from robustjax.interpolation import graph
from robustjax.interpolation._solve import System
from robustjax.interpolation.graph import Neighbors
from robustjax.interpolation.template import Template
from robustjax.types import Array


def assemble(
    features: Array, template: Template, num_classes: int, valid: Array, extra: Array
) -> System:
    """A and R, before anything is said about reachability; `extra` is gamma."""
    scale = 1 + extra.astype(features.dtype)
    if template.similarity.num_neighbors is None:
        return _complete(features, template, num_classes, valid, scale)
    return _sparse(features, template, num_classes, valid, scale)


def joint_lists(
    features: Array, template: Template, valid: Array, num_neighbors: int
) -> tuple[Neighbors, Neighbors]:
    """The lists over templates and queries together, templates first.

    Returns:
      Those of the templates, [M, k], and those of the queries, [Q, k]. The former merge
      the cached lists with the nearest queries.
    """
    similarity, count = template.similarity, template.features.shape[0]
    of_queries = _lists_of_queries(
        *(features, template, valid, num_neighbors), similarity.recall
    )
    known = Neighbors(*(part[:, :num_neighbors] for part in template.neighbors))
    close = graph.nearest(
        *(template.features, features, num_neighbors),
        valid=valid,
        within=known.square_distance[:, -1],
        recall=similarity.recall,
    )
    index = jnp.where(close.index < 0, -1, close.index + count)
    # Templates first: of equally near points the earlier comes first.
    index = jnp.concatenate([known.index, index], axis=1)
    distance = jnp.concatenate([known.square_distance, close.square_distance], axis=1)
    # The two were computed apart: what rounding alone tells apart counts as equal.
    later = close.square_distance * (1 + 2 * jnp.finfo(distance.dtype).eps)
    order_by = jnp.concatenate([known.square_distance, later], axis=1)
    _, order = jax.lax.top_k(-order_by, num_neighbors)
    of_templates = Neighbors(
        jnp.take_along_axis(index, order, axis=1),
        jnp.take_along_axis(distance, order, axis=1),
    )
    return of_templates, of_queries


def _lists_of_queries(
    features: Array,
    template: Template,
    valid: Array,
    num_neighbors: int,
    recall: float | None,
) -> Neighbors:
    count = template.features.shape[0]
    return graph.nearest(
        *(features, jnp.concatenate([template.features, features]), num_neighbors),
        own=count + jnp.arange(features.shape[0]),
        include_self=template.similarity.include_self,
        valid=jnp.concatenate([jnp.ones(count, bool), valid]),
        recall=recall,
    )


def reached_recall(features: Array, template: Template, valid: Array) -> Array:
    """The share of the queries' nearest neighbours that are in their lists."""
    num_neighbors, asked = template.similarity.num_neighbors, template.similarity.recall
    if num_neighbors is None or asked is None:
        return jnp.ones((), features.dtype)
    given = (features, template, valid, num_neighbors)
    exact, found = (_lists_of_queries(*given, each).index for each in (None, asked))
    real = (exact >= 0) & valid[:, None]
    hit = (exact[:, :, None] == found[:, None]).any(axis=2) & real
    return (hit.sum() / jnp.maximum(real.sum(), 1)).astype(features.dtype)


def _square_distances(rows: Array, points: Array, index: Array) -> Array:
    squares = graph.square_distances(rows, points, index)
    return jnp.where(index < 0, jnp.inf, squares)


def _width(square_distance: Array) -> Array:
    """Of a row, [R, 1], from the distance of the given rank, [R]."""
    finite = jnp.isfinite(square_distance)
    return jnp.where(finite, square_distance, 0.0)[:, None]


def _sparse(
    features: Array, template: Template, num_classes: int, valid: Array, scale: Array
) -> System:
    count, num_queries = template.features.shape[0], features.shape[0]
    similarity = template.similarity
    assert similarity.num_neighbors is not None
    of_templates, of_queries = joint_lists(
        features, template, valid, similarity.num_neighbors
    )
    everything = jnp.concatenate([template.features, features])

    def weigh(rows: Array, lists: Neighbors) -> Array:
        squares = _square_distances(rows, everything, lists.index)
        if similarity.bandwidth is None:
            width = _width(squares[:, similarity.bandwidth_rank - 1])
        else:
            width = jnp.asarray(similarity.bandwidth**2, squares.dtype)
        return graph.weights(squares, width, similarity.kernel)

    from_queries = weigh(features, of_queries)
    itself = of_queries.index == count + jnp.arange(num_queries)[:, None]
    from_queries = jnp.where(itself | ~valid[:, None], 0.0, from_queries)
    to_query = of_templates.index >= count
    weight = weigh(template.features, of_templates)
    from_templates = scale * jnp.where(to_query, weight, 0.0)

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


def _complete(
    features: Array, template: Template, num_classes: int, valid: Array, scale: Array
) -> System:
    """Everything is in every list: matrices."""
    count, num_queries = template.features.shape[0], features.shape[0]
    similarity = template.similarity
    everything = jnp.concatenate([template.features, features])
    exists = jnp.concatenate([jnp.ones(count, bool), valid])
    squares = jnp.sum((features[:, None] - everything[None]) ** 2, axis=-1)
    if similarity.bandwidth is None:
        rank = similarity.bandwidth_rank
        of_templates, of_queries = joint_lists(features, template, valid, rank)
        tune = lambda rows, lists: _width(
            _square_distances(rows, everything, lists.index[:, -1:])[:, 0]
        )
        of_query = tune(features, of_queries)
        of_template = tune(template.features, of_templates).T
    else:
        of_query = of_template = jnp.asarray(similarity.bandwidth**2, squares.dtype)
    itself = jnp.arange(count + num_queries)[None] == (
        count + jnp.arange(num_queries)[:, None]
    )
    exists = exists[None] & valid[:, None] & ~itself
    kernel = similarity.kernel
    weight = jnp.where(exists, graph.weights(squares, of_query, kernel), 0.0)
    back = graph.weights(squares[:, :count], of_template, kernel)
    known = weight[:, :count] + scale * jnp.where(valid[:, None], back, 0.0)
    onehot = jax.nn.one_hot(template.labels, num_classes, dtype=known.dtype)
    right = jnp.matmul(known, onehot, precision=jax.lax.Precision.HIGHEST)
    between = weight[:, count:]
    diagonal = right.sum(axis=1) + between.sum(axis=1) + between.sum(axis=0)
    return System(diagonal, None, between, right)
