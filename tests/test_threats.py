"""Threats against the equations, in float64 and in other words than the code."""

import functools

import cases
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from robustjax import InputError, threats

every_threat = pytest.mark.parametrize("name", cases.THREATS)
SIZE = {"linf": np.inf, "l2": 2, "l1": 1}


def length(name, delta):
    flat = np.asarray(delta, np.float64).reshape(len(delta), -1)
    return np.linalg.norm(flat, SIZE[name], axis=1)


@functools.cache
def projector(name):
    """One compilation per threat and shape: the radius is an argument."""
    return jax.jit(lambda eps, v, x: cases.THREATS[name][0](eps).project(v, x))


def box_projection(name, v, x, eps):
    """The projection by its dual: the ball's constraint moves into the objective.

    For a multiplier m the minimiser over the box alone is coordinate-wise,
      L2: clip((v + m x) / (1 + m));   L1: clip(x + soft(v - x, m)),
    and its norm falls with m: bisection on m, in float64.
    """
    delta = v - x
    if name == "linf":
        return np.clip(np.clip(v, x - eps, x + eps), 0, 1)

    def at(m):
        if name == "l2":
            return np.clip(x + delta / (1 + m), 0, 1)
        return np.clip(x + np.sign(delta) * np.maximum(np.abs(delta) - m, 0), 0, 1)

    norm = lambda z: np.linalg.norm(z - x, SIZE[name])
    low, high = 0.0, 1.0
    if norm(at(0.0)) <= eps:
        return at(0.0)
    while norm(at(high)) > eps:
        high *= 2
        if high > 1e30:
            return x
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if norm(at(middle)) > eps else (low, middle)
    return at(high)


def problems(seed, rows, columns):
    """Rows of every nasty kind: far, near, at bounds, tied, constant, x itself."""
    rng = np.random.default_rng(seed)
    x = rng.random((rows, columns))
    kind = np.arange(rows) % 8
    x[kind == 1] = rng.integers(0, 2, x[kind == 1].shape)  # all at bounds
    x[kind == 2] = 0.5
    v = x + rng.normal(size=x.shape) * 10.0 ** rng.uniform(-3, 1, (rows, 1))
    v[kind == 2] = 0.5 + rng.choice([-0.4, 0.0, 0.1, 0.1, 3.0], v[kind == 2].shape)
    v[kind == 3] = x[kind == 3]
    v[kind == 4] = np.round(v[kind == 4], 1)
    v[kind == 5] = x[kind == 5] + np.sign(v[kind == 5] - x[kind == 5])
    some = rng.random(x.shape) < 0.5
    v = np.where((kind == 6)[:, None] & some, x, v)
    v[kind == 7] = np.where(v[kind == 7] > 0.5, 1.0, 0.0)
    return v, x


@every_threat
@pytest.mark.parametrize("columns", [1, 2, 7, 60])
def test_projection_solves_its_dual(name, columns):
    with jax.enable_x64(True):
        v, x = problems(columns, 160, columns)
        reach = length(name, v - x).max()
        for eps in (1e-6, 0.05, 0.3, 1.0, min(3.0, max(reach, 1.0))):
            eps = min(eps, 1.0) if name == "linf" else eps
            z = np.asarray(projector(name)(eps, v, x))
            assert z.dtype == np.float64
            expected = np.stack(
                [box_projection(name, a, b, eps) for a, b in zip(v, x, strict=True)]
            )
            np.testing.assert_allclose(z, expected, atol=1e-9)


@every_threat
def test_projection_satisfies_the_variational_inequality(name):
    # z is nearest to v in a convex set iff <v - z, w - z> <= 0 for every w in the set.
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        v, x = problems(1, 64, 12)
        for eps in (0.1, 0.7):
            z = np.asarray(projector(name)(eps, v, x))
            for _ in range(20):
                w = rng.random(x.shape) - x  # any point of the box, pulled in the ball
                w *= np.minimum(1, eps / length(name, w))[:, None] * rng.random()
                assert ((v - z) * (x + w - z)).sum(1).max() <= 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_searches_end_on_thousands_of_rows(seed):
    # A `while_loop` runs until the last row is done; here every row is an edge case.
    v, x = problems(seed, 4096, 48)
    rng = np.random.default_rng(seed)
    v = np.round(v, seed).astype(np.float32)  # duplicates
    v[::5] *= 10.0 ** rng.uniform(-30, 30, v[::5].shape)
    eps = (10.0 ** rng.uniform(-9, 1.5, 4096)).astype(np.float32)
    for name in ("l2", "l1"):
        z = projector(name)(eps, v, x.astype(np.float32))
        assert np.isfinite(z).all()
        assert (length(name, z - x.astype(np.float32)) <= eps * (1 + 1e-5) + 1e-5).all()


@every_threat
@pytest.mark.parametrize("far", [1e3, 1e6, 1e10, 1e20, np.inf])
def test_huge_offsets_stay_in_the_ball(name, far):
    # In float32 no threshold near 1e6 is close enough to 1e6 - eps.
    x = jnp.full((1, 4), 0.5)
    z = projector(name)(0.3, x + jnp.array([[far, 1.0, 0.0, -0.1]]), x)
    np.testing.assert_allclose(length(name, z - x), 0.3, atol=2e-5)
    assert z[0, 0] == pytest.approx(0.8, abs=2e-4)


@pytest.mark.parametrize("name", ["l2", "l1"])
def test_values_that_are_no_numbers_do_not_hang(name):
    x = jnp.full((3, 4), 0.5)
    v = x.at[0, 1].set(jnp.nan).at[1].set(2.0)
    z = projector(name)(0.1, v, x)
    np.testing.assert_allclose(length(name, z - x)[1], 0.1, atol=1e-6)
    projector(name)(jnp.nan, v, x).block_until_ready()
    projector(name)(0.1, v, x.at[2].set(jnp.nan)).block_until_ready()


pixels = st.one_of(
    st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1, width=32, allow_subnormal=False)
)
offsets = st.one_of(
    st.sampled_from([0.0, 0.1, -0.1, 1.0, -1.0, 5.0]),
    st.floats(-2, 2, width=32, allow_subnormal=False),
)
images = st.lists(
    st.lists(st.tuples(pixels, offsets, offsets), min_size=6, max_size=6),
    min_size=3,
    max_size=3,
)
radii = st.one_of(
    st.sampled_from([0.0, 8 / 255, 1.0]), st.floats(2.0**-20, 1, width=32)
)


@every_threat
@settings(max_examples=60)
@given(rows=images, eps=radii)
def test_guarantees_of_the_projection(name, rows, eps):
    array = np.asarray(rows, np.float32)
    x, to_v, to_w = np.moveaxis(array, 2, 0)
    v, w = x + to_v, x + to_w
    project = functools.partial(projector(name), np.float32(eps))
    z = project(v, x)
    # In the ball to the rounding of x + delta, in the box exactly.
    assert (length(name, z - x) <= eps + 1e-6).all()
    assert (z >= 0).all()
    assert (z <= 1).all()
    # Idempotent, and what is allowed stays.
    np.testing.assert_allclose(project(z, x), z, atol=1e-6)
    # Nonexpansive.
    gap = np.linalg.norm(project(w, x) - z, axis=1)
    assert (gap <= np.linalg.norm(w - v, axis=1) + 2e-6).all()
    # Per example.
    order = jnp.array([2, 0, 1])
    np.testing.assert_array_equal(project(v[order], x[order]), z[order])
    # Radius 0 is the identity, exactly.
    np.testing.assert_array_equal(projector(name)(np.float32(0.0), v, x), x)


@every_threat
def test_feasible_points_stay(name):
    make, eps = cases.THREATS[name]
    x = jax.random.uniform(jax.random.key(0), (32, 5, 5, 2))
    inside = jax.jit(make(eps).sample)(jax.random.key(1), x)
    np.testing.assert_allclose(projector(name)(eps, inside, x), inside, atol=1e-6)


@every_threat
def test_projection_of_an_image_as_large_as_cifar(name):
    keys = jax.random.split(jax.random.key(3))
    x = jax.random.uniform(keys[0], (4, 32, 32, 3))
    v = x + jax.random.normal(keys[1], x.shape)
    eps = {"linf": 8 / 255, "l2": 0.5}.get(name, 12.0)
    z = projector(name)(eps, v, x)
    # Rounding of 3072 sums x + delta, each to 2^-25.
    np.testing.assert_allclose(length(name, z - x), eps, atol=1e-6 * eps + 3e-6)
    expected = box_projection(
        name, np.float64(v[0]).ravel(), np.float64(x[0]).ravel(), eps
    )
    np.testing.assert_allclose(np.ravel(z[0]), expected, atol=2e-6)


@every_threat
def test_radius_may_be_traced_per_image_or_mapped(name):
    make, _ = cases.THREATS[name]
    keys = list(jax.random.split(jax.random.key(4), 3))
    x = jax.random.uniform(keys[0], (3, 4, 4, 2))
    v = x + 0.5 * jax.random.normal(keys[1], x.shape)
    eps = jnp.array([0.05, 0.2, 0.0])

    def run(radius):
        threat = make(0.5).with_eps(radius)
        return threat.project(v, x), threat.sample(jax.random.clone(keys[2]), x)

    compiled = jax.jit(run)
    loop = [compiled(e) for e in eps]
    mapped = jax.jit(jax.vmap(run))(eps)
    per_image = compiled(eps)
    for i in range(3):
        for j in (0, 1):
            np.testing.assert_allclose(mapped[j][i], loop[i][j], atol=1e-6)
            np.testing.assert_allclose(per_image[j][i], loop[i][j][i], atol=1e-6)
    np.testing.assert_allclose(run(0.2)[0], loop[1][0], atol=1e-6)  # jit = eager


@every_threat
def test_bounds_are_any_pair(name):
    make, eps = cases.THREATS[name]
    threat = make(4 * eps, bounds=(-1.0, 3.0))
    unit = make(eps)
    keys = jax.random.split(jax.random.key(5))
    x = jax.random.uniform(keys[0], (4, 6))
    v = x + jax.random.normal(keys[1], x.shape)
    scaled = jax.jit(threat.project)(4 * v - 1, 4 * x - 1)
    expected = 4 * jax.jit(unit.project)(v, x) - 1
    np.testing.assert_allclose(scaled, expected, atol=2e-5)
    assert threat.with_eps(0.5).bounds == (-1.0, 3.0)


@every_threat
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_steepest_direction(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        # L1 without sparsity: the k-sparse directions have their own test.
        threat = getattr(threats, name)(0.3)
        grad = np.random.default_rng(0).normal(size=(8, 3, 3, 2)).astype(dtype)
        grad[0], grad[1, 0] = 0.0, 0.0
        grad[2] *= 1e-30 if dtype == "float32" else 1e-150
        grad[3] *= 1e30 if dtype == "float32" else 1e150
        step = np.asarray(jax.jit(threat.steepest)(grad))
    assert step.dtype == dtype
    np.testing.assert_allclose(length(name, step), [0, 1, 1, 1, 1, 1, 1, 1], atol=1e-6)
    assert not step[0].any()
    dual = {"linf": 1, "l2": 2, "l1": np.inf}[name]
    rows = np.float64(grad).reshape(8, -1)
    gain = np.einsum("bi,bi->b", rows, np.float64(step).reshape(8, -1))
    np.testing.assert_allclose(gain, np.linalg.norm(rows, dual, axis=1), rtol=1e-5)


@pytest.mark.parametrize(
    ("sparsity", "expected"),
    [
        (1, [0, -1, 0, 0, 0]),
        (2, [0.5, -0.5, 0, 0, 0]),
        (0.4, [0.5, -0.5, 0, 0, 0]),
        (0.01, [0, -1, 0, 0, 0]),
        (99, [0.25, -0.25, 0, 0.25, -0.25]),  # the zero takes no share
        (1.0, [0.25, -0.25, 0, 0.25, -0.25]),
    ],
)
def test_sparse_directions_by_hand(sparsity, expected):
    grad = jnp.array([[3.0, -4.0, 0.0, 1.0, -1.0]])
    step = threats.l1(1.0, sparsity=sparsity).steepest(grad)
    np.testing.assert_array_equal(step[0], np.float32(expected))


def test_coordinates_tied_with_the_kth_share_the_step():
    step = threats.l1(1.0, sparsity=2).steepest(jnp.array([[-2.0, 1.0, 1.0, 0.5]]))
    np.testing.assert_allclose(step, [[-1 / 3, 1 / 3, 1 / 3, 0.0]], atol=1e-7)


@every_threat
def test_samples_lie_in_ball_and_box(name):
    make, eps = cases.THREATS[name]
    x = jnp.round(jax.random.uniform(jax.random.key(0), (64, 4, 4, 1)), 1)
    threat = make(eps)
    start = jax.jit(threat.sample)(jax.random.key(1), x)
    assert (length(name, start - x) <= eps + 1e-6).all()
    assert start.min() >= 0
    assert start.max() <= 1
    assert start.dtype == x.dtype
    np.testing.assert_allclose(
        threat.norm(start - x), length(name, start - x), atol=1e-5
    )
    still = jax.jit(make(0.0).sample)(jax.random.key(1), x)
    np.testing.assert_array_equal(still, x)


@every_threat
def test_samples_do_not_see_the_batch(name):
    sample = jax.jit(cases.THREATS[name][0](0.3).sample)
    x = jax.random.uniform(jax.random.key(0), (6, 3, 3, 1))
    keys = jax.random.split(jax.random.key(1), 6)
    whole = sample(jax.random.clone(keys), x)
    order = jnp.array([3, 0, 5, 1])
    part = sample(jax.random.clone(keys)[order], x[order])
    np.testing.assert_array_equal(part, whole[order])
    # A scalar key is folded with the position: a larger batch has the same start.
    key = jax.random.key(2)
    np.testing.assert_array_equal(
        sample(jax.random.clone(key), x[:2]), sample(key, x)[:2]
    )


def offsets_of(threat, *, count, shape, scale):
    """Samples around the middle of a box that they never reach."""
    x = jnp.full((count, *shape), 0.5)
    return np.asarray(jax.jit(threat.sample)(jax.random.key(7), x) - x) / scale


def test_l2_samples_are_uniform_in_the_ball():
    n = 6
    delta = offsets_of(threats.l2(0.3), count=20000, shape=(3, 2), scale=0.3)
    share = np.linalg.norm(delta.reshape(-1, n), axis=1) ** n  # uniform in [0, 1]
    for quantile in (0.1, 0.5, 0.9):
        assert np.mean(share <= quantile) == pytest.approx(quantile, abs=0.015)
    np.testing.assert_allclose(delta.mean(0), 0, atol=0.015)


def test_l1_samples_are_uniform_in_the_ball():
    n = 6
    delta = offsets_of(threats.l1(0.3), count=20000, shape=(3, 2), scale=0.3)
    np.testing.assert_allclose(np.abs(delta).mean(0), 1 / (n + 1), atol=0.004)
    np.testing.assert_allclose(delta.mean(0), 0, atol=0.01)
    share = np.abs(delta).sum((1, 2)) ** n
    for quantile in (0.1, 0.5, 0.9):
        assert np.mean(share <= quantile) == pytest.approx(quantile, abs=0.015)


def test_linf_samples_are_uniform_in_the_cube():
    delta = offsets_of(threats.linf(0.3), count=20000, shape=(2,), scale=0.3)
    for quantile in (0.1, 0.5, 0.9):
        np.testing.assert_allclose(
            (delta <= 2 * quantile - 1).mean(0), quantile, atol=0.015
        )


def test_gaussian_start():
    start = threats.gaussian_start(0.01)
    x = jnp.zeros((5000, 4))
    noise = start(jax.random.key(0), x)
    assert float(noise.std()) == pytest.approx(0.01, rel=0.03)
    assert noise.min() < 0  # unprojected
    still = threats.gaussian_start(0.0)(jax.random.key(0), x)
    np.testing.assert_array_equal(still, x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: threats.linf(8), r"`eps` .* \[0, 1\].* got 8\. Did you mean 8/255\?"),
        (lambda: threats.linf(np.float32(8)), r"`eps` .* Did you mean 8\.0/255\?"),
        (lambda: threats.linf(-0.1), r"`eps` .* got -0\.1"),
        (lambda: threats.l2(float("nan")), "`eps` .* got nan"),
        (lambda: threats.l1("8"), "`eps` .* got '8'"),
        (lambda: threats.l2(jnp.array([0.1, -1.0])), "`eps`"),
        (lambda: threats.l2(0.1, bounds=(1.0, 0.0)), "`bounds`"),
        (lambda: threats.l1(1.0, sparsity=0), "`sparsity` .* got 0"),
        (lambda: threats.l1(1.0, sparsity=1.5), r"`sparsity` .* \[0, 1\], got 1\.5"),
        (lambda: threats.l1(1.0, sparsity=0.0), "`sparsity` .* above 0, got 0"),
        (lambda: threats.gaussian_start(-1.0), r"`scale` .* got -1\.0"),
        (
            lambda: threats.linf(0.1).project(jnp.ones((2, 3)), jnp.ones((2, 4))),
            r"`x_adv` \(2, 3\), `x` \(2, 4\)",
        ),
        (
            lambda: threats.l2(0.1).project(
                jnp.ones((2, 3), int), jnp.ones((2, 3), int)
            ),
            "Divide integer images by 255",
        ),
        (lambda: threats.l1(0.1).project(jnp.ones(3), jnp.ones(3)), "batch axis"),
        (
            lambda: threats.l2(0.1).sample(jnp.uint32([0, 1]), jnp.ones((2, 3))),
            "`key` must be a typed key",
        ),
    ],
)
def test_errors_name_the_argument_the_value_and_the_fix(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_a_share_of_images_starts_where_it_is():
    x = jnp.full((4000, 3), 0.5)
    sample = threats.linf(0.1).sample
    for share in (0.0, 0.2, 1.0):
        start = threats.sometimes_clean(sample, share)
        still = (start(jax.random.key(0), x) == x).all(axis=1)
        assert abs(float(still.mean()) - share) < 0.02
    keys = jax.random.split(jax.random.key(1), 4000)
    start = threats.sometimes_clean(sample)
    whole = start(jax.random.clone(keys), x)
    np.testing.assert_array_equal(start(keys[5:9], x[5:9]), whole[5:9])
    with pytest.raises(InputError, match="`share`"):
        threats.sometimes_clean(sample, 1.5)
