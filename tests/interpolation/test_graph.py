"""Neighbour lists against brute force: ties, coincident points, blocks, padding."""

import functools

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from robustjax.interpolation import (
    Neighbors,
    Similarity,
    Template,
    graph,
    interpolate,
    make_template,
    nearest,
)
from robustjax.interpolation._system import joint_lists

RNG = np.random.default_rng(0)
NUM_POINTS, NUM_ROWS, SIZE = 600, 40, 5  # enough points for the threshold


@functools.cache
def compiled(include_self=True, recall=None):
    options = dict(include_self=include_self, recall=recall)
    return jax.jit(
        lambda rows, points, own, valid: nearest(
            rows, points, SIZE, own=own, valid=valid, **options
        )
    )


def clouds(seed, spread):
    """Points on a lattice, where distances are exact and often equal."""
    rng = np.random.default_rng(seed)
    points = np.round(spread * rng.normal(size=(NUM_POINTS, 3))).astype(np.float32)
    return rng, points


def reference(rows, points, own, valid, include_self):
    """Sorted squared distances of the nearest, [R, k]; own first, at 0."""
    square = ((rows[:, None] - points[None]) ** 2).sum(axis=-1)
    square[:, ~valid] = np.inf
    for row, place in enumerate(own):
        if place >= 0:
            square[row, place] = -1 if include_self else np.inf
    return np.maximum(np.sort(square, axis=1)[:, :SIZE], 0)


def assert_lists(lists, rows, points, own, valid, include_self):
    index, distance = map(np.asarray, lists)
    expected = reference(rows, points, own, valid, include_self)
    np.testing.assert_array_equal(distance, expected)
    np.testing.assert_array_equal(index < 0, np.isinf(expected))
    there = index >= 0
    real = ((rows[:, None] - points[index]) ** 2).sum(axis=-1)
    np.testing.assert_array_equal(distance[there], real[there])
    assert valid[index[there]].all()
    for row, place in enumerate(own):
        found = list(index[row][there[row]])
        assert len(set(found)) == len(found)
        if place >= 0:
            assert (place in found) == include_self
            assert found[:1] == [place] or not include_self
        # Of equally near points the earlier comes first.
        order = [(d, i != place, i) for d, i in zip(distance[row], found, strict=False)]
        assert order == sorted(order)


@hypothesis.given(
    seed=st.integers(0, 999),
    spread=st.sampled_from([0.0, 0.3, 1.0, 3.0, 30.0]),
    share=st.sampled_from([0.0, 0.003, 0.02, 0.5, 1.0]),
    include_self=st.booleans(),
)
@hypothesis.settings(max_examples=60)
def test_lists_are_those_of_brute_force(seed, spread, share, include_self):
    rng, points = clouds(seed, spread)
    valid = rng.random(NUM_POINTS) < share
    own = np.where(rng.random(NUM_ROWS) < 0.5, rng.permutation(NUM_ROWS), -1)
    valid[own[own >= 0]] = True
    rows = np.where(own[:, None] < 0, points[-NUM_ROWS:], points[own])
    lists = compiled(include_self)(rows, points, own.astype(np.int32), valid)
    assert_lists(lists, rows, points, own, valid, include_self)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("num_points", [100, 900])
def test_lists_are_scikit_learns(dtype, num_points):
    points = RNG.normal(size=(num_points, 16)).astype(dtype)
    with jax.enable_x64(True):
        lists = nearest(*2 * (jnp.asarray(points),), 15, own=jnp.arange(num_points))
    search = NearestNeighbors(n_neighbors=15).fit(points.astype(np.float64))
    distance, index = search.kneighbors(points)
    np.testing.assert_array_equal(lists.index, index)
    assert lists.square_distance.dtype == dtype
    np.testing.assert_allclose(lists.square_distance, distance**2, 1e-5, atol=1e-12)


@pytest.mark.parametrize("spread", [pytest.param(0.5, marks=pytest.mark.slow), 50.0])
def test_blocks_change_nothing(monkeypatch, spread):
    _, points = clouds(3, spread)
    run = lambda: nearest(points, points, SIZE, own=jnp.arange(NUM_POINTS))
    whole = run()
    monkeypatch.setattr(graph, "_CPU_BLOCK", 1)
    monkeypatch.setattr(graph, "_FEW", 77)  # 8 blocks, the last padded
    jax.clear_caches()  # the search is traced anew
    chex.assert_trees_all_equal(run(), whole)


def test_regular_places_change_nothing():
    """Neighbours one after the other, or at every tenth place."""
    clusters = RNG.normal(size=(10, 8)) * 9
    rows = RNG.normal(size=(NUM_ROWS, 8)).astype(np.float32) + np.float32(clusters[3])
    for place in (np.arange(NUM_POINTS) % 10, np.arange(NUM_POINTS) // 60):
        points = (clusters[place] + RNG.normal(size=(NUM_POINTS, 8))).astype(np.float32)
        search = NearestNeighbors(n_neighbors=SIZE).fit(points.astype(np.float64))
        none = np.full(NUM_ROWS, -1, np.int32)
        lists = compiled()(rows, points, none, np.ones(NUM_POINTS, bool))
        np.testing.assert_array_equal(lists.index, search.kneighbors(rows)[1])


def test_a_batch_of_searches_is_each():
    rng, points = clouds(0, 2.0)
    several = np.stack([points, points[rng.permutation(NUM_POINTS)]])
    run = jax.jit(lambda points: nearest(points[:NUM_ROWS], points, SIZE))
    each = jax.tree.map(lambda *parts: jnp.stack(parts), *map(run, several))
    chex.assert_trees_all_equal(jax.jit(jax.vmap(run))(several), each)


@hypothesis.given(seed=st.integers(0, 999), limit=st.floats(0.0, 20.0))
@hypothesis.settings(max_examples=20)
def test_within_finds_what_is_nearer(seed, limit):
    rng, points = clouds(seed, 3.0)
    rows = points[rng.permutation(NUM_POINTS)[:NUM_ROWS]]
    limits = np.float32(limit * rng.random(NUM_ROWS))
    index, distance = map(np.asarray, _within(rows, points, limits))
    none = np.full(NUM_ROWS, -1)
    expected = reference(rows, points, none, np.ones(NUM_POINTS, bool), True)
    near = expected < limits[:, None]
    np.testing.assert_array_equal(distance[near], expected[near])
    assert (index[near] >= 0).all()


@jax.jit
def _within(rows, points, limits):
    return nearest(rows, points, SIZE, within=limits)


@pytest.mark.parametrize("recall", [0.5, 0.95])
def test_recall_is_reached(recall):
    _, points = clouds(1, 300.0)
    own, valid = np.arange(NUM_ROWS, dtype=np.int32), np.ones(NUM_POINTS, bool)
    arguments = (points[:NUM_ROWS], points, own, valid)
    exact = compiled()(*arguments)
    some = compiled(recall=recall)(*arguments)
    hit = (np.asarray(exact.index)[:, :, None] == np.asarray(some.index)[:, None]).any(
        axis=2
    )
    assert hit.mean() >= recall
    np.testing.assert_array_equal(some.index[:, 0], own)
    if jax.default_backend() == "cpu":  # where XLA searches exactly
        chex.assert_trees_all_equal(some.square_distance, exact.square_distance)


# --- joint lists ----------------------------------------------------------------------


@functools.cache
def jointly(num_templates, include_self):
    likeness = Similarity(SIZE, 2, include_self)

    def lists(points, valid):
        labels = jnp.zeros(num_templates, jnp.int32)
        template = make_template(points[:num_templates], labels, likeness)
        parts = joint_lists(points[num_templates:], template, valid, SIZE)
        return Neighbors(*(jnp.concatenate(part) for part in zip(*parts, strict=True)))

    return jax.jit(lists)


@hypothesis.given(
    seed=st.integers(0, 999),
    spread=st.sampled_from([0.0, 1.0, 3.0, 30.0]),
    num_templates=st.sampled_from([20, 560]),
    include_self=st.booleans(),
)
@hypothesis.settings(max_examples=50)
def test_joint_lists_are_those_over_all_points(
    seed, spread, num_templates, include_self
):
    rng, points = clouds(seed, spread)
    valid = rng.random(NUM_POINTS) < 0.9
    valid[:num_templates] = True
    lists = jointly(num_templates, include_self)(points, valid[num_templates:])
    own = np.arange(NUM_POINTS)
    lists = jax.tree.map(lambda part: np.asarray(part)[valid], lists)
    assert_lists(lists, points[valid], points, own[valid], valid, include_self)


# --- compilation ----------------------------------------------------------------------


def test_repeated_calls_trace_once():
    labels = jnp.asarray(np.arange(300) % 4)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(template: Template, queries):
        return interpolate(queries, template, 4)

    make = jax.jit(chex.assert_max_traces(make_template, n=1))
    for seed in range(3):
        points = jnp.asarray(clouds(seed, 3.0)[1])
        scores = run(make(points[:300], labels), points[300:])
        np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-5)
