"""Projections onto a hyperplane in a box: feasible, optimal, and to the last digit."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import strategies as st

from robustjax.attacks import _hyperplane

NORMS = ("linf", "l2", "l1")
every_norm = pytest.mark.parametrize("norm", NORMS)
LENGTH = {
    "linf": lambda d: np.abs(d).max(axis=-1),
    "l2": lambda d: np.linalg.norm(d, axis=-1),
    "l1": lambda d: np.abs(d).sum(axis=-1),
}


@functools.cache
def compiled(norm, bounds=(0.0, 1.0)):
    return jax.jit(
        lambda q, w, height: _hyperplane.offset_to_plane(norm, q, w, height, bounds)
    )


def problems(seed, count=40, size=12):
    """Points partly at the bounds, planes from close by to out of reach."""
    rng = np.random.default_rng(seed)
    q = np.clip(rng.uniform(-0.2, 1.2, (count, size)), 0, 1)
    w = rng.normal(size=(count, size)) * np.exp(rng.normal(size=(count, size)))
    w[rng.uniform(size=w.shape) < 0.1] = 0
    reach = np.maximum(np.abs(w) * np.where(w > 0, q, 1 - q), 0).sum(axis=1)
    height = reach * rng.uniform(0.01, 1.2, count)
    flipped = rng.uniform(size=count) < 0.5  # the same problem in the mirror
    return q, np.where(flipped[:, None], -w, w), np.where(flipped, -height, height)


def linear_program(norm, q, w, height):
    """The least L1 or L-inf norm, by linear programming over (up, down) moves."""
    size = len(q)
    plane = np.concatenate([w, -w])
    limits = [(0, 1 - v) for v in q] + [(0, v) for v in q]
    if norm == "l1":
        return scipy.optimize.linprog(
            np.ones(2 * size), A_eq=plane[None], b_eq=[-height], bounds=limits
        )
    # One more variable bounds every move.
    rows = np.concatenate([np.eye(2 * size), -np.ones((2 * size, 1))], axis=1)
    cost = np.append(np.zeros(2 * size), 1)
    return scipy.optimize.linprog(
        cost,
        A_ub=rows,
        b_ub=np.zeros(2 * size),
        A_eq=np.append(plane, 0)[None],
        b_eq=[-height],
        bounds=[*limits, (0, None)],
    )


def quadratic_program(q, w, height):
    """The least L2 norm, from the dual: a root in one multiplier."""

    def rise(t):
        return w @ np.clip(-t * w, -q, 1 - q) + height

    far = 1e6 * np.sign(height)
    if rise(far) * height > 0:
        return None
    t = scipy.optimize.brentq(rise, 0, far, xtol=1e-15, rtol=1e-15, maxiter=1000)
    return np.linalg.norm(np.clip(-t * w, -q, 1 - q))


@every_norm
def test_norms_are_optimal(norm):
    q, w, height = problems(0)
    offsets = np.float64(compiled(norm)(*map(jnp.float32, (q, w, height))))
    assert (q + offsets >= -1e-6).all()
    assert (q + offsets <= 1 + 1e-6).all()
    reached = 0
    for i in range(len(q)):
        if norm == "l2":
            least = quadratic_program(q[i], w[i], height[i])
        else:
            solved = linear_program(norm, q[i], w[i], height[i])
            least = solved.fun if solved.status == 0 else None
        if least is None:  # out of reach: every coordinate that counts is at its end
            end = np.where(w[i] * height[i] > 0, 0.0, 1.0)
            moved = w[i] != 0
            np.testing.assert_allclose((q + offsets)[i][moved], end[moved], atol=1e-6)
            assert not offsets[i][~moved].any()
            continue
        reached += 1
        residual = height[i] + w[i] @ offsets[i]
        assert abs(residual) <= 1e-6 * np.abs(w[i]).sum()
        np.testing.assert_allclose(LENGTH[norm](offsets[i]), least, rtol=2e-5)
    assert 20 <= reached < len(q)


def by_sorting(norm, q, w, height):
    """One problem in float64: candidates at every break point, and the right one."""
    room = np.where(w * height > 0, q, 1 - q) * (w != 0)
    size, height_left, sign = np.abs(w), abs(height), -np.sign(w * height)
    if size @ room <= height_left:
        return sign * room
    if norm == "l1":
        length = np.zeros_like(q)
        for i in np.argsort(-size, kind="stable"):
            length[i] = min(room[i], height_left / size[i]) if size[i] else 0.0
            height_left -= size[i] * length[i]
        return sign * length
    speed = np.where(size > 0, 1.0 if norm == "linf" else size, 0.0)
    ends = np.sort(np.where(speed > 0, room / np.where(speed > 0, speed, 1), 0.0))
    use = lambda t: size @ np.minimum(t * speed, room)
    k = next(k for k in range(len(ends)) if use(ends[k]) >= height_left)
    left = ends[k - 1] if k else 0.0
    share = (height_left - use(left)) / (use(ends[k]) - use(left))
    return sign * np.minimum((left + share * (ends[k] - left)) * speed, room)


@every_norm
def test_float64_reference_by_sorting(norm):
    q, w, height = problems(1, count=60, size=50)
    expected = np.stack([by_sorting(norm, *p) for p in zip(q, w, height, strict=True)])
    with jax.enable_x64(True):
        run = compiled(norm)
        offsets = run(*map(jnp.asarray, (q, w, height)))
        assert offsets.dtype == jnp.float64
        np.testing.assert_allclose(offsets, expected, atol=1e-12)
    single = compiled(norm)(*map(jnp.float32, (q, w, height)))
    np.testing.assert_allclose(single, expected, atol=2e-5)


@every_norm
def test_other_bounds_are_a_change_of_scale(norm):
    q, w, height = problems(2)
    offsets = compiled(norm)(*map(jnp.float32, (q, w, height)))
    wider = compiled(norm, (-1.0, 3.0))(*map(jnp.float32, (4 * q - 1, w, 4 * height)))
    np.testing.assert_allclose(wider, 4 * offsets, atol=2e-5)


numbers = st.floats(-8, 8, width=32)


@every_norm
@hypothesis.given(
    points=st.lists(st.floats(0, 1, width=32), min_size=6, max_size=6),
    weights=st.lists(numbers, min_size=6, max_size=6),
    height=numbers,
    power=st.integers(-60, 60),
)
@hypothesis.example(  # a weight that the division by the largest one flushes to zero
    points=[0.0] * 6,
    weights=[0.0, 0.0, 0.0, 0.0, 1.1754943508222875e-38, -2.0],
    height=-1.0,
    power=0,
)
@hypothesis.settings(max_examples=150)
def test_any_problem_ends_feasible_and_scale_free(norm, points, weights, height, power):
    q, w = jnp.array([points]), jnp.array([weights]) * 2.0**power
    height = jnp.array([height]) * 2.0**power
    offset = np.float64(compiled(norm)(q, w, height))
    q, w, height = map(np.float64, (q, w, height))
    assert np.isfinite(offset).all()
    assert (q + offset >= -1e-6).all()
    assert (q + offset <= 1 + 1e-6).all()
    # Never beyond the plane, and short of it only with all the room used.
    before, after = height[0], height[0] + w[0] @ offset[0]
    slack = 1e-6 * np.abs(w).sum()
    assert after * before >= -slack * abs(before)
    assert abs(after) <= abs(before) + slack
    if abs(after) > slack:
        end = np.where(w * before > 0, 0.0, 1.0)
        stuck = np.abs(q + offset - end)[w != 0]
        assert (stuck < 1e-5).all()


@every_norm
def test_ties_zeros_and_numbers_that_are_none(norm):
    q = jnp.full((6, 3), 0.5)
    w = jnp.array([[1.0, 1, 1], [0, 0, 0], [1, 0, 0], [1, 1, 1], [jnp.nan, 1, 1]])
    w = jnp.concatenate([w, jnp.array([[1e-30, 2e-30, 0]])])
    height = jnp.array([0.75, 1.0, 0.25, jnp.inf, 1.0, 1e-30])
    offset = np.asarray(compiled(norm)(q, w, height))
    assert np.isfinite(offset).all()
    np.testing.assert_allclose(offset[0].sum(), -0.75, atol=1e-6)
    np.testing.assert_array_equal(offset[1], 0)  # no direction
    np.testing.assert_allclose(offset[2], [-0.25, 0, 0])
    np.testing.assert_array_equal(offset[3:5], 0)
    expected = {"linf": [-1 / 3, -1 / 3], "l2": [-0.2, -0.4], "l1": [0, -0.5]}[norm]
    np.testing.assert_allclose(offset[5], [*expected, 0], atol=1e-6)


@every_norm
def test_an_image_does_not_see_its_neighbours(norm):
    problem = [jnp.float32(a) for a in problems(3)]
    whole = compiled(norm)(*problem)
    for i in range(0, 40, 13):
        alone = compiled(norm)(*(a[i : i + 1] for a in problem))
        np.testing.assert_allclose(alone[0], whole[i], atol=1e-7)


def test_dual_norms_and_tiny_gradients():
    w = jnp.array([[3.0, -4.0], [3e-30, -4e-30], [0.0, 0.0]])
    for norm, expected in (("linf", 7.0), ("l2", 5.0), ("l1", 4.0)):
        lengths = _hyperplane.dual_norm(norm, w)
        np.testing.assert_allclose(lengths[:2], [expected, 1e-30 * expected], rtol=1e-6)
        assert lengths[2] == 0


@every_norm
def test_nearest_boundary_is_the_least_ratio(norm):
    rng = np.random.default_rng(4)
    logits, jacobian = rng.normal(size=(7, 5)), rng.normal(size=(7, 5, 2, 3))
    own = np.array([0, 1, 2, 3, 4, 0, 1])
    jacobian[5] = 0  # no gradient at all: some other class, no NaN
    height, normal = _hyperplane.nearest_boundary(
        norm, *map(jnp.float32, (logits, jacobian)), jnp.asarray(own)
    )
    dual = {"linf": 1, "l2": 2, "l1": np.inf}[norm]
    for i, y in enumerate(own):
        others = [k for k in range(5) if k != y]
        normals = {k: jacobian[i, k] - jacobian[i, y] for k in others}
        heights = {k: logits[i, k] - logits[i, y] for k in others}
        if i == 5:
            assert np.isclose(height[i], list(heights.values())).any()
            assert not normal[i].any()
            continue
        ratios = {
            k: abs(heights[k]) / np.linalg.norm(normals[k].ravel(), dual)
            for k in others
        }
        best = min(others, key=ratios.__getitem__)
        np.testing.assert_allclose(height[i], heights[best], rtol=1e-5)
        np.testing.assert_allclose(normal[i], normals[best], atol=1e-6)


def test_averaged_samples_decide_as_their_mean_probabilities():
    samples = jax.random.normal(jax.random.key(0), (3, 4, 5))
    logits = _hyperplane.averaged(lambda x: samples)(jnp.zeros((4, 1)))
    mean = jax.nn.softmax(samples).mean(axis=0)
    np.testing.assert_allclose(jnp.exp(logits), mean, rtol=1e-5)
    plain = lambda x: 2 * x
    x = jnp.ones((2, 3))
    np.testing.assert_array_equal(_hyperplane.averaged(plain)(x), plain(x))
