"""The interpolation against its equations: closed forms, invariants, a dense float64
reference, and gradients against central differences."""

import dataclasses
import functools
import itertools

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial.distance
from hypothesis import strategies as st

from robustjax import InputError
from robustjax.interpolation import (
    Similarity,
    Solver,
    _system,
    gaussian,
    interpolate,
    interpolate_with_diagnostics,
    make_template,
    quartic,
)
from robustjax.interpolation._solve import matvec

RNG = np.random.default_rng(0)
POINTS = RNG.normal(size=(100, 16))
LABELS = np.concatenate([np.arange(4), RNG.integers(0, 4, 56)])
SHORT = Similarity(num_neighbors=5, bandwidth_rank=3)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def alike_of(points, likeness):
    """w(x, y) for all pairs, 0 on the diagonal."""
    n = len(points)
    square = scipy.spatial.distance.cdist(points, points, "sqeuclidean")
    alike = np.zeros((n, n))
    for x in range(n):
        order = [y for y in np.argsort(square[x], kind="stable") if y != x]
        if likeness.include_self:
            order = [x, *order]
        order = order[: likeness.num_neighbors or n]
        width = square[x, order[likeness.bandwidth_rank - 1]]
        if likeness.bandwidth is not None:
            width = likeness.bandwidth**2
        power = {gaussian: 1, quartic: 2}[likeness.kernel]
        alike[x, order] = np.exp(-((square[x, order] / width) ** power))
    np.fill_diagonal(alike, 0)
    return alike


def reference(points, labels, classes, likeness, gamma):
    """Dense, from the equation of each query, and one linear solve."""
    m, alike = len(labels), alike_of(points, likeness)
    both = alike + alike.T
    both[m:, :m] += gamma * alike[:m, m:].T
    system = np.diag(both[m:].sum(axis=1)) - both[m:, m:]
    return np.linalg.solve(system, both[m:, :m] @ np.eye(classes)[labels])


def ours(points, labels, likeness, classes=4, **options):
    known = jnp.asarray(points[: len(labels)])
    template = make_template(known, jnp.asarray(labels), likeness)
    queries = jnp.asarray(points[len(labels) :])
    return interpolate(queries, template, classes, **options)


@functools.cache
def compiled(likeness, solver):
    return jax.jit(
        lambda points, labels, gamma: ours(
            points, labels, likeness, template_weight=gamma, solver=Solver(solver)
        )
    )


# --- closed forms ---------------------------------------------------------------------

RELEASED = [[0.5707995699, 0.4292004301], [0.4776354975, 0.5223645025]]
LINE = Similarity(num_neighbors=None, bandwidth=1.0)


def on_a_line(queries, **options):
    points = np.array([0.0, 1.0, *queries])[:, None]
    return ours(points, np.array([0, 1]), LINE, 2, **options)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 7.0, "paper", "released"])
@pytest.mark.parametrize("solver", ["cholesky", "cg"])
def test_a_single_query_is_a_kernel_regression_whatever_gamma(float64, gamma, solver):
    expected = [[0.5986876601, 0.4013123399]]
    scores = on_a_line([0.3], template_weight=gamma, solver=Solver(solver))
    np.testing.assert_allclose(scores, expected, atol=1e-10)
    with jax.enable_x64(False):
        scores = on_a_line([0.3], template_weight=gamma, solver=Solver(solver))
        assert scores.dtype == jnp.float32
        np.testing.assert_allclose(scores, expected, atol=1e-6)


@pytest.mark.parametrize("solver", ["cholesky", "cg"])
@pytest.mark.parametrize(
    ("gamma", "expected"),
    [
        ("paper", [[0.5656128039, 0.4343871961], [0.4827444109, 0.5172555891]]),
        ("released", RELEASED),
        (
            "released_floor",
            [[0.5707995699, 0.4292004301], [0.4776354975, 0.5223645025]],
        ),
        ("released_floor", RELEASED),
        (2.0, RELEASED),
    ],
)
def test_two_queries_by_hand(float64, gamma, expected, solver):
    scores = on_a_line([0.3, 0.6], template_weight=gamma, solver=Solver(solver))
    np.testing.assert_allclose(scores, expected, atol=1e-10)
    single = on_a_line(
        np.float32([0.3, 0.6]), template_weight=gamma, solver=Solver(dtype="float32")
    )
    np.testing.assert_allclose(single, expected, atol=1e-6)


def test_a_huge_template_weight_decouples_queries(float64):
    scores = on_a_line([0.3, 0.6], template_weight=1e12)
    alone = [on_a_line([query])[0] for query in (0.3, 0.6)]
    np.testing.assert_allclose(scores, alone, atol=1e-9)


# --- the reference --------------------------------------------------------------------


def graphs():
    """Every list with every kernel and self convention; quick: each of them once."""
    usual = (15, 8, None)
    lists = [usual, (5, 2, None), (30, 15, None), (45, 23, None), (60, 30, None)]
    lists += [(15, 8, 4.0), (None, 8, None), (None, 1, 5.0)]
    for one, kernel, own in itertools.product(
        lists, (gaussian, quartic), (True, False)
    ):
        quick = one == usual or (kernel is gaussian and own)
        marks = () if quick else pytest.mark.slow
        name = f"{one}-{kernel.__name__}-{own}"
        yield pytest.param(*one, kernel, own, marks=marks, id=name)


@pytest.mark.parametrize(
    ("size", "rank", "bandwidth", "kernel", "include_self"), graphs()
)
def test_float64_reference(float64, size, rank, bandwidth, kernel, include_self):
    likeness = Similarity(size, rank, include_self, bandwidth, kernel)
    for gamma in (2 / 3, 5 / 3, 1.0, 0.0, 0.3):  # n/m - 1, n/m, its floor, others
        expected = reference(POINTS, LABELS, 4, likeness, gamma)
        for solver in ("cholesky", "cg"):
            scores = compiled(likeness, solver)(POINTS, LABELS, gamma)
            np.testing.assert_allclose(scores, expected, atol=1e-8)


def test_float32_is_near():
    likeness = Similarity()
    expected = reference(POINTS, LABELS, 4, likeness, 2 / 3)
    for solver in ("cholesky", "cg"):
        scores = ours(np.float32(POINTS), LABELS, likeness, solver=Solver(solver))
        assert scores.dtype == jnp.float32
        np.testing.assert_allclose(scores, expected, atol=2e-6)


# --- invariants -----------------------------------------------------------------------


@hypothesis.given(
    seed=st.integers(0, 999),
    queries=st.sampled_from([1, 12]),
    spread=st.floats(0.0, 1.0),
    solver=st.sampled_from(["cholesky", "cg"]),
)
@hypothesis.settings(max_examples=60)
def test_rows_are_distributions(seed, queries, spread, solver):
    rng = np.random.default_rng(seed)
    # Rounded: some points coincide.
    points = np.round(spread * 4 * rng.normal(size=(10 + queries, 2)))
    labels = np.concatenate([np.arange(4), rng.integers(0, 4, 6)])
    scores = compiled(SHORT, solver)(np.float32(points), labels, np.float32(0.5))
    assert ((scores >= 0) & (scores <= 1)).all()
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(("dtype", "atol"), [(np.float64, 1e-9), (np.float32, 1e-4)])
def test_what_changes_nothing(float64, dtype, atol):
    likeness = Similarity()
    program = compiled(likeness, "cholesky")
    run = lambda points: program(points.astype(dtype), LABELS, dtype(0.5))
    scores = run(POINTS)
    assert scores.dtype == dtype
    rotation = np.linalg.qr(RNG.normal(size=(16, 16)))[0]
    for moved in (POINTS + 3.0, POINTS @ rotation, 1e-3 * POINTS, 1e3 * POINTS):
        np.testing.assert_allclose(run(moved), scores, atol=atol)
    order = RNG.permutation(40)
    mixed = np.concatenate([POINTS[:60], POINTS[60:][order]])
    np.testing.assert_allclose(run(mixed), scores[order], atol=atol / 100)


def test_labels_of_one_class_give_ones(float64):
    scores = ours(POINTS, np.zeros(60, np.int64), Similarity(), 1)
    np.testing.assert_allclose(scores, 1.0, atol=1e-12)


@pytest.mark.parametrize("likeness", [Similarity(), Similarity(None, 8)])
def test_the_system_is_symmetric_and_positive_definite(float64, likeness):
    template = make_template(jnp.asarray(POINTS[:60]), jnp.asarray(LABELS), likeness)
    valid, gamma = jnp.ones(40, bool), jnp.asarray(2 / 3)
    system = _system.assemble(jnp.asarray(POINTS[60:]), template, 4, valid, gamma)
    matrix = np.asarray(matvec(system, jnp.eye(40)))
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-12)
    assert np.linalg.eigvalsh(matrix).min() > 0
    off = matrix - np.diag(np.diag(matrix))
    assert off.max() <= 0  # an M-matrix
    np.testing.assert_allclose(matrix.sum(axis=1), system.right.sum(axis=1), atol=1e-12)


def test_the_energy_never_falls_when_scores_are_disturbed(float64):
    """E(u) = sum of w(x, y) |u(x) - u(y)|^2, rows of templates n/m times."""
    likeness = Similarity()
    alike = alike_of(POINTS, likeness)
    times = np.where(np.arange(100) < 60, 100 / 60, 1.0)
    scores = np.asarray(ours(POINTS, LABELS, likeness))

    def energy(queries):
        u = np.concatenate([np.eye(4)[LABELS], queries])
        square = ((u[:, None] - u[None]) ** 2).sum(axis=-1)
        return (times[:, None] * alike * square).sum()

    least = energy(scores)
    for size in (1e-3, 1e-1):
        for _ in range(20):
            assert energy(scores + size * RNG.normal(size=scores.shape)) > least


def test_padding_does_not_exist(float64):
    template = make_template(jnp.asarray(POINTS[:60]), jnp.asarray(LABELS))
    queries = jnp.asarray(POINTS[60:])
    expected = interpolate(queries, template, 4)
    padded = jnp.concatenate([queries[:7] * 0.1, queries])
    scores = interpolate(padded, template, 4, valid=jnp.arange(47) >= 7)
    np.testing.assert_allclose(scores[7:], expected, atol=1e-12)
    shares = np.bincount(LABELS) / 60
    np.testing.assert_allclose(scores[:7], np.tile(shares, (7, 1)), atol=1e-12)


def test_queries_that_reach_nothing_are_flagged():
    template = make_template(jnp.float32(POINTS[:60]), jnp.asarray(LABELS), SHORT)
    far = jnp.float32(1e3 + RNG.normal(size=(8, 16)))  # among themselves
    queries = jnp.concatenate([jnp.float32(POINTS[60:70]), far])
    scores, report = interpolate_with_diagnostics(queries, template, 4)
    assert report.reached.tolist() == 10 * [True] + 8 * [False]
    assert np.isfinite(scores).all()
    shares = np.bincount(LABELS) / 60
    np.testing.assert_allclose(scores[10:], np.tile(shares, (8, 1)), atol=1e-6)
    assert bool(report.converged)


def test_diagnostics_say_when_it_did_not_converge(float64):
    template = make_template(jnp.asarray(POINTS[:60]), jnp.asarray(LABELS))
    run = functools.partial(
        interpolate_with_diagnostics, jnp.asarray(POINTS[60:]), template, 4
    )
    _, report = run(solver=Solver("cg"))
    assert bool(report.converged)
    assert 3 < int(report.iterations) < 100
    assert float(report.residual) < 1e-13
    _, report = run(solver=Solver("cg", max_iterations=2))
    assert (bool(report.converged), int(report.iterations)) == (False, 2)


# --- gradients ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("solver", "bandwidth", "kernel"),
    [
        ("cholesky", None, gaussian),
        ("cg", None, quartic),
        ("cg", 4.0, gaussian),
        pytest.param("cg", None, gaussian, marks=pytest.mark.slow),
        pytest.param("cholesky", None, quartic, marks=pytest.mark.slow),
        pytest.param("cholesky", 4.0, gaussian, marks=pytest.mark.slow),
        pytest.param("cg", 4.0, quartic, marks=pytest.mark.slow),
        pytest.param("cholesky", 4.0, quartic, marks=pytest.mark.slow),
    ],
)
def test_gradients_are_central_differences(float64, solver, bandwidth, kernel):
    likeness = Similarity(15, 8, True, bandwidth, kernel)
    labels, target = jnp.asarray(LABELS), RNG.integers(0, 4, 40)

    @jax.jit
    def loss(points):
        template = make_template(points[:60], labels, likeness)
        scores = interpolate(points[60:], template, 4, solver=Solver(solver))
        return -jnp.log(scores[jnp.arange(40), target]).sum()

    points = jnp.asarray(POINTS)
    grad = np.asarray(jax.jit(jax.grad(loss))(points))
    tangent = jax.jit(lambda d: jax.jvp(loss, (points,), (d,))[1])
    for seed in range(1, 5):
        direction = np.random.default_rng(seed).normal(size=POINTS.shape)
        step = 1e-5
        slope = (loss(points + step * direction) - loss(points - step * direction)) / (
            2 * step
        )
        assert (grad * direction).sum() == pytest.approx(float(slope), rel=1e-6)
        forward = tangent(jnp.asarray(direction))
        assert float(forward) == pytest.approx(float(slope), rel=1e-6)
    # Nothing changes when all points move, nor, self-tuned, when all are scaled.
    np.testing.assert_allclose(grad.sum(axis=0), 0, atol=1e-9)
    if bandwidth is None:
        assert (grad * POINTS).sum() == pytest.approx(0, abs=1e-8)


def test_jit_vmap_and_eager_agree(float64):
    template = make_template(jnp.asarray(POINTS[:60]), jnp.asarray(LABELS))
    batches = jnp.asarray(POINTS[60:]).reshape(2, 20, 16)
    run = functools.partial(interpolate, template=template, num_classes=4)

    def both(batch):
        return run(batch), jax.grad(lambda z: run(z)[:, 0].sum())(batch)

    each = jax.tree.map(lambda *parts: jnp.stack(parts), *map(jax.jit(both), batches))
    together = jax.jit(jax.vmap(both))(batches)
    chex.assert_trees_all_close(together, each, atol=1e-10)
    np.testing.assert_allclose(run(batches[0]), each[0][0], atol=1e-12)


# --- bad input ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda z, y: (z[:10], y[:10]), r"`features` holds 10 templates.*15"),
        (lambda z, y: (z.at[3, 3].set(jnp.nan), y), r"`features` must be finite"),
        (lambda z, y: (z.astype(jnp.float16), y), r"`features`.*float16.*astype"),
        (lambda z, y: (z[0], y), r"`features` must be floats \[rows, D\]"),
        (lambda z, y: (z, y[:-1]), r"`labels` must be integers \[60\]"),
        (lambda z, y: (z, y.astype(float)), r"`labels` must be integers"),
    ],
)
def test_bad_templates_are_one_line(change, message):
    known, labels = jnp.float32(POINTS[:60]), jnp.asarray(LABELS)
    with pytest.raises(InputError, match=message) as caught:
        make_template(*change(known, labels))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_classes=5), r"`template` must hold every class, has none of 4"),
        (dict(num_classes=3), r"`template.labels` must lie in \[0, 3\).*got 3"),
        (dict(features=jnp.zeros((0, 16))), r"`features` must hold at least one query"),
        (dict(features=jnp.full((3, 16), jnp.inf)), r"`features` must be finite"),
        (dict(features=jnp.zeros((3, 8))), r"one width.*\(3, 8\).*\(60, 16\)"),
        (dict(template_weight=-1.0), r"`template_weight` must be.*-1.0"),
    ],
)
def test_bad_queries_are_one_line(options, message):
    template = make_template(jnp.float32(POINTS[:60]), jnp.asarray(LABELS))
    arguments = dict(features=jnp.float32(POINTS[60:]), num_classes=4) | options
    features, classes = arguments.pop("features"), arguments.pop("num_classes")
    with pytest.raises(InputError, match=message) as caught:
        interpolate(features, template, classes, **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_neighbors=0), r"`num_neighbors` must be"),
        (dict(bandwidth_rank=16), r"`bandwidth_rank` must lie in \[2, 15\].*16"),
        (dict(bandwidth_rank=1), r"`bandwidth_rank` must lie in \[2, 15\].*1"),
        (dict(bandwidth=0.0), r"`bandwidth` must be"),
    ],
)
def test_bad_similarities_are_one_line(options, message):
    with pytest.raises(InputError, match=message):
        Similarity(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(method="lu"), r"`method` must be one of"),
        (dict(dtype="float16"), r"`dtype` must be one of"),
        (dict(tolerance=0.0), r"`tolerance` must be"),
        (dict(max_iterations=0), r"`max_iterations` must be"),
    ],
)
def test_bad_solvers_are_one_line(options, message):
    with pytest.raises(InputError, match=message):
        Solver(**options)


def test_diagnostics_report_the_recall(monkeypatch):
    key = jax.random.key(5)
    points, labels = jax.random.normal(key, (60, 4)), jnp.arange(60) % 3
    asked = Similarity(num_neighbors=5, bandwidth_rank=3, recall=0.5)

    def report(similarity):
        template = make_template(points[:50], labels[:50], similarity)
        found = interpolate_with_diagnostics(points[50:], template, 3)
        return float(found[1].recall)

    assert report(dataclasses.replace(asked, recall=None)) == 1
    assert report(asked) >= 0.5
    approximate = jax.lax.approx_min_k

    def careless(operand, k, **options):
        """Looks only at every other point."""
        place = jnp.arange(operand.shape[1])[None]
        return approximate(jnp.where(place % 2 == 0, operand, jnp.inf), k, **options)

    with monkeypatch.context() as patch:
        patch.setattr(jax.lax, "approx_min_k", careless)
        jax.clear_caches()  # the search is traced anew
        assert 0.1 < report(asked) < 0.9
    jax.clear_caches()
