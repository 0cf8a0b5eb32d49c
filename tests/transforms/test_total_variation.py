"""Total variation against an independent solver, its invariants, and its gradients."""

import functools
import itertools
import pathlib

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

import robustjax as rj
from robustjax import InputError
from robustjax.transforms import (
    chain,
    minimise_total_variation,
    random_mask,
    total_variation,
)

GOLDEN = np.load(pathlib.Path(__file__).parent / "golden" / "total_variation.npz")
DATA_TERMS = ("norm", "squared")
PENALTIES = ("rows_columns", "isotropic", "anisotropic")
X = np.random.default_rng(0).random((3, 8, 8, 3))
SINGLE = jnp.asarray(X, jnp.float32)
MASK = np.random.default_rng(1).random((3, 8, 8, 3)) < 0.5


combinations = pytest.mark.parametrize(
    ("masked", "data_term", "penalty"),
    list(itertools.product((False, True), DATA_TERMS, PENALTIES)),
)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


@functools.cache
def program(data_term, penalty):
    """One per kind of problem: weight and tolerance are data."""
    return jax.jit(
        lambda x, mask, weight, tolerance, start: minimise_total_variation(
            x,
            mask=mask,
            weight=weight,
            data_term=data_term,
            penalty=penalty,
            tolerance=tolerance,
            max_steps=20_000,
            start=start,
        )
    )


def minimise(
    data_term, penalty, x, mask=None, *, weight=0.03, tolerance=1e-4, start=None
):
    weight, tolerance = jnp.asarray(weight, x.dtype), jnp.asarray(tolerance, x.dtype)
    mask = None if mask is None else jnp.asarray(mask)
    return program(data_term, penalty)(jnp.asarray(x), mask, weight, tolerance, start)


def objective(z, x, mask, weight, data_term, penalty):
    """NumPy, from the definition: [B]."""
    z, x = np.asarray(z, np.float64), np.asarray(x, np.float64)
    down, right = np.zeros_like(z), np.zeros_like(z)
    down[:, :-1], right[:, :, :-1] = np.diff(z, axis=1), np.diff(z, axis=2)
    if penalty == "rows_columns":
        total = np.sqrt((down**2).sum(2)).sum((1, 2))
        total = total + np.sqrt((right**2).sum(1)).sum((1, 2))
    elif penalty == "isotropic":
        total = np.sqrt(down**2 + right**2).sum((1, 2, 3))
    else:
        total = (abs(down) + abs(right)).sum((1, 2, 3))
    error = z - x if mask is None else np.where(mask, z - x, 0)
    square = (error**2).sum((1, 2, 3))
    data = np.sqrt(square) if data_term == "norm" else square / 2
    return data + weight * total


# --- the independent solver -----------------------------------------------------------


@combinations
def test_minima_of_an_independent_solver(float64, masked, data_term, penalty):
    x, mask = GOLDEN["x"], GOLDEN["mask"] if masked else None
    name = f"{'mask' if masked else 'full'}_{data_term}_{penalty}"
    for row, weight in enumerate(GOLDEN["weights"]):
        found = minimise(*(data_term, penalty, x, mask), weight=weight, tolerance=5e-7)
        expected = GOLDEN[f"{name}_objective"][row]
        np.testing.assert_allclose(found.objective, expected, rtol=1e-6)
        own = objective(found.image, x, mask, weight, data_term, penalty)
        np.testing.assert_allclose(found.objective, own, rtol=1e-10)
        assert (found.gap <= 5e-7).all()
        if f"{name}_image" in GOLDEN:
            image = GOLDEN[f"{name}_image"][row]
            np.testing.assert_allclose(found.image, image, atol=2e-3)


@hypothesis.settings(max_examples=15)
@hypothesis.given(
    seed=st.integers(0, 1000),
    weight=st.floats(0.003, 1.0),
    masked=st.booleans(),
    data_term=st.sampled_from(DATA_TERMS),
    penalty=st.sampled_from(PENALTIES),
)
def test_the_gap_bounds_the_suboptimality(seed, weight, masked, data_term, penalty):
    # Next to the test above, and of its shapes, for a process to compile them once.
    with jax.enable_x64(True):
        rng = np.random.default_rng(seed)
        x = jnp.asarray(rng.random((2, 8, 8, 3)))
        mask = rng.random(x.shape) < 0.5 if masked else None
        solve = functools.partial(minimise, data_term, penalty, x, mask, weight=weight)
        rough, exact = solve(tolerance=0.3), solve(tolerance=1e-6)
        bound = rough.objective * (1 - rough.gap)
        assert (bound <= exact.objective * (1 + 1e-9)).all()
        assert (exact.objective * (1 - exact.gap) <= rough.objective).all()
        assert (rough.gap >= 0).all()


# --- invariants -----------------------------------------------------------------------


@combinations
def test_float32_reaches_its_gap(masked, data_term, penalty):
    found = minimise(data_term, penalty, SINGLE, MASK if masked else None)
    assert (found.gap <= 1e-4).all()
    assert (found.steps <= 2000).all()
    assert found.image.dtype == jnp.float32
    assert found.steps.dtype == jnp.int32
    chex.assert_shape((found.objective, found.gap, found.steps), (3,))
    kept = MASK if masked else None
    own = objective(found.image, X, kept, 0.03, data_term, penalty)
    np.testing.assert_allclose(found.objective, own, rtol=1e-5)
    assert (own <= objective(X, X, kept, 0.03, data_term, penalty) + 1e-6).all()
    kept_pixels = np.where(MASK | (not masked), X, np.nan)
    low, high = (f(kept_pixels, (1, 2, 3)) for f in (np.nanmin, np.nanmax))
    z = np.asarray(found.image)
    assert (z >= low[:, None, None, None] - 1e-6).all()
    assert (z <= high[:, None, None, None] + 1e-6).all()


@combinations
def test_weight_zero_returns_kept_pixels(masked, data_term, penalty):
    mask = MASK if masked else None
    found = minimise(data_term, penalty, SINGLE, mask, weight=0.0)
    wrong = np.where(MASK | (not masked), np.asarray(found.image) - X, 0.0)
    np.testing.assert_allclose(wrong, 0, atol=1e-6)
    assert (found.gap <= 1e-4).all()


@combinations
def test_constant_images_stay(masked, data_term, penalty):
    x = jnp.full((3, 8, 8, 3), 0.3, jnp.float32)
    found = minimise(data_term, penalty, x, MASK if masked else None)
    np.testing.assert_array_equal(found.image, x)
    np.testing.assert_array_equal(found.objective, jnp.zeros(3))
    np.testing.assert_array_equal(found.gap, jnp.zeros(3))


def test_a_step_loses_its_closed_form_amount():
    x = jnp.zeros((3, 8, 8, 3)).at[:, :, 4:].set(1.0)
    moved = {"anisotropic": 0.4 / 4, "isotropic": 0.4 / 4}
    moved["rows_columns"] = 0.4 / 4 / np.sqrt(8)  # one norm for the whole edge
    for penalty in PENALTIES:
        found = minimise("squared", penalty, x, weight=0.4, tolerance=1e-6)
        expected = np.abs(np.asarray(x) - moved[penalty])
        np.testing.assert_allclose(found.image, expected, atol=1e-4)


def test_few_steps_keep_to_their_limit_and_their_gap():
    for limit in (4, 10):  # too few for the cheap ones, and both kinds
        found = jax.jit(
            functools.partial(
                minimise_total_variation,
                data_term="squared",
                penalty="isotropic",
                tolerance=1e-9,
                max_steps=limit,
            )
        )(SINGLE)
        np.testing.assert_array_equal(found.steps, np.full(3, limit))
        exact = minimise("squared", "isotropic", SINGLE).objective
        assert (found.objective * (1 - found.gap) <= exact).all()
        own = objective(found.image, X, None, 0.03, "squared", "isotropic")
        np.testing.assert_allclose(found.objective, own, rtol=1e-5)


def test_the_paper_fills_in_and_leaves_kept_pixels_alone():
    found = minimise("norm", "rows_columns", SINGLE, MASK)
    wrong = np.where(MASK, np.asarray(found.image) - X, 0)
    np.testing.assert_allclose(wrong, 0, atol=1e-6)
    other = jnp.where(MASK, SINGLE, 0.5)  # dropped pixels are not looked at
    again = minimise("norm", "rows_columns", other, MASK)
    np.testing.assert_array_equal(again.image, found.image)


def test_nothing_kept_gives_grey():
    found = minimise("norm", "rows_columns", SINGLE, np.zeros(X.shape, bool))
    np.testing.assert_array_equal(found.image, jnp.full(X.shape, 0.5))


def test_unique_minimisers_do_not_depend_on_the_start(float64):
    x = GOLDEN["x"]
    first = minimise("squared", "isotropic", x, tolerance=1e-8)
    other = minimise("squared", "isotropic", x[::-1], weight=0.1)
    again = minimise("squared", "isotropic", x, tolerance=1e-8, start=other)
    np.testing.assert_allclose(again.image, first.image, atol=2e-4)


# --- batches, programs, starts --------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True])
def test_an_image_does_not_depend_on_its_batch(masked):
    solve = functools.partial(minimise, "squared", "isotropic")
    mask = MASK if masked else None
    base = solve(SINGLE, mask)
    # A constant image is done at once, the others go on.
    changed = solve(SINGLE.at[0].set(0.5), mask)
    np.testing.assert_array_equal(changed.image[1:], base.image[1:])
    np.testing.assert_array_equal(changed.steps[1:], base.steps[1:])
    assert changed.steps[0] < changed.steps[1:].min()
    order = np.array([2, 0, 1])
    shuffled = solve(SINGLE[order], mask if mask is None else mask[order])
    np.testing.assert_array_equal(shuffled.image, base.image[order])
    alone = solve(SINGLE[:1], mask if mask is None else mask[:1])
    np.testing.assert_allclose(alone.image, base.image[:1], atol=1e-5)


def test_jit_is_eager_and_traces_once():
    run = functools.partial(minimise_total_variation, max_steps=8)
    traced = jax.jit(chex.assert_max_traces(lambda x: run(x), n=1))
    eager = run(SINGLE)
    for _ in range(2):
        chex.assert_trees_all_close(traced(SINGLE), eager, atol=1e-5)


def test_a_path_of_weights_in_one_program():
    weights = jnp.array([0.01, 0.1])
    one = functools.partial(minimise, "squared", "rows_columns", SINGLE)
    path = jax.jit(jax.vmap(lambda weight: one(weight=weight).objective))(weights)
    for row, weight in zip(path, weights, strict=True):
        expected = one(weight=weight).objective
        np.testing.assert_allclose(row, expected, rtol=1e-4)


@pytest.mark.parametrize("data_term", DATA_TERMS)
def test_a_warm_start_takes_fewer_steps(data_term):
    solve = functools.partial(minimise, data_term, "isotropic", SINGLE, MASK)
    cold = solve()
    same, near = solve(start=cold), solve(weight=0.031, start=cold)
    assert (same.steps <= 8).all()
    assert near.steps.sum() < cold.steps.sum()
    assert (near.gap <= 1e-4).all()


def test_a_start_may_come_from_another_kind_of_problem():
    full = minimise("squared", "isotropic", SINGLE)
    masked = minimise("norm", "isotropic", SINGLE, MASK, start=full)
    assert (masked.gap <= 1e-4).all()
    again = minimise("squared", "isotropic", SINGLE, start=masked)
    assert (again.gap <= 1e-4).all()


# --- the transform --------------------------------------------------------------------


def test_masks_are_drawn_per_image():
    keys = jax.random.split(jax.random.key(0), 3)
    mask = random_mask(keys, (3, 32, 32, 3), 0.25)
    assert abs(mask.mean() - 0.75) < 0.02
    alone = random_mask(jax.random.clone(keys)[1:2], (1, 32, 32, 3), 0.25)
    np.testing.assert_array_equal(mask[1], alone[0])
    shared = random_mask(jax.random.key(0), (2, 8, 8, 3), 0.5, shared=True)
    np.testing.assert_array_equal(shared[..., 0], shared[..., 2])
    assert random_mask(jax.random.key(0), (2, 8, 8, 3), 0.0).all()


def apply(transform, x, key=0):
    return transform.apply((), jax.random.key(key), lambda x: x, x)


@jax.jit
def paper(x):
    return apply(total_variation(), x)


def test_apply_is_mask_and_minimiser():
    x = SINGLE
    transform = total_variation(data_term="squared", penalty="isotropic")
    assert transform.fit({}, {}, jax.random.key(0), None) == ()
    mask = random_mask(jax.random.key(3), x.shape, 0.5)
    expected = minimise("squared", "isotropic", x, mask).image
    np.testing.assert_allclose(apply(transform, x, 3), expected, atol=1e-6)
    full = total_variation(p_drop=0.0, data_term="squared", penalty="isotropic")
    expected = minimise("squared", "isotropic", x).image
    np.testing.assert_allclose(apply(full, x), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_solved_in_float32(dtype):
    x = jnp.asarray(X, dtype)
    z = paper(x)
    assert z.dtype == dtype
    wide = paper(x.astype(jnp.float32))
    np.testing.assert_array_equal(z, wide.astype(dtype))


def test_zeros_count_as_kept_if_asked():
    x = SINGLE.at[:, :4].set(0.0)
    z = jax.jit(lambda x: apply(total_variation(keep_zeros=True), x))(x)
    np.testing.assert_allclose(z[:, :4], 0, atol=1e-6)


def test_identity_gradient():
    x = SINGLE
    pulled = jax.jit(jax.grad(lambda x: (paper(x) * X).sum()))(x)
    np.testing.assert_allclose(pulled, X, atol=1e-6)


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize(
    ("gradient", "data_term", "p_drop"),
    [
        ("implicit", "squared", 0),
        ("unrolled", "squared", 0),
        ("unrolled", "squared", 0.5),
        ("unrolled", "norm", 0.5),
    ],
)
def test_gradients_are_those_of_central_differences(
    float64, penalty, gradient, data_term, p_drop
):
    transform = total_variation(
        weight=0.1,
        p_drop=p_drop,
        data_term=data_term,
        penalty=penalty,
        gradient=gradient,
        tolerance=1e-14,
        max_steps=20_000,
        unrolled_steps=20,
    )
    rng = np.random.default_rng(4)
    x = jnp.asarray(X[:2, :6, :6, :2])
    along, towards = (jnp.asarray(rng.normal(size=x.shape)) for _ in range(2))
    # One program for all: compiling takes the time of this test.
    both = jax.jit(jax.value_and_grad(lambda x: jnp.sum(along * apply(transform, x))))
    exact = jnp.sum(both(x)[1] * towards)
    near = both(x + 1e-5 * towards)[0] - both(x - 1e-5 * towards)[0]
    np.testing.assert_allclose(exact, near / 2e-5, rtol=1e-5)


def test_implicit_gradient_in_the_weight(float64):
    @jax.jit
    @jax.value_and_grad
    def both(weight):
        transform = total_variation(
            weight=weight,
            p_drop=0,
            data_term="squared",
            penalty="isotropic",
            gradient="implicit",
            tolerance=1e-14,
            max_steps=20_000,
        )
        return jnp.sum(apply(transform, jnp.asarray(X)) * X[::-1])

    central = (both(0.1 + 1e-5)[0] - both(0.1 - 1e-5)[0]) / 2e-5
    np.testing.assert_allclose(both(0.1)[1], central, rtol=1e-5)


def test_an_attack_goes_through():
    transform = total_variation(max_steps=8)
    weights = jnp.asarray(np.random.default_rng(2).normal(size=(192, 10)), jnp.float32)
    logits_fn = rj.attacks.against(
        transform, (), jax.random.key(1), lambda x: x.reshape(len(x), -1) @ weights
    )
    attack = rj.attacks.fgsm(rj.threats.linf(0.1))
    x, y = SINGLE, jnp.array([0, 1, 2])
    x_adv = jax.jit(attack)(jax.random.key(2), logits_fn, x, y)
    loss = jax.jit(lambda x: rj.objectives.cross_entropy(logits_fn(x), y))
    assert (loss(x_adv) > loss(x)).all()


def test_chain_gives_each_its_own_key_and_state():
    def noisy(scale):
        return rj.types.InputTransform(
            fit=lambda params, model_state, key, batch: (scale, key),
            apply=lambda state, key, logits_fn, x: (
                x + state[0] * jax.random.normal(key, x.shape)
            ),
        )

    both = chain(noisy(1.0), noisy(1.0))
    x = jnp.zeros((2, 4, 4, 1))
    state = both.fit({}, {}, jax.random.key(0), None)
    assert len(state) == 2
    assert (jax.random.key_data(state[0][1]) != jax.random.key_data(state[1][1])).any()
    first = noisy(1.0).apply(state[0], jax.random.key(5), lambda x: x, x)
    assert (both.apply(state, jax.random.key(5), lambda x: x, x) != 2 * first).any()
    np.testing.assert_array_equal(chain().apply((), jax.random.key(0), None, x), x)
    with pytest.raises(InputError, match="`transforms` must be"):
        chain(lambda x: x)


# --- bad input ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(p_drop=1), r"`p_drop` must be below 1, got 1"),
        (dict(p_drop=1.5), r"`p_drop` must lie in \[0, 1\], got 1.5"),
        (dict(p_drop=float("nan")), r"`p_drop` must lie in \[0, 1\], got nan"),
        (dict(weight=-0.1), r"`weight` must be a number of at least 0, got -0.1"),
        (dict(weight=float("inf")), r"`weight` must be finite, got inf"),
        (dict(weight=jnp.ones(2)), r"`weight` must be a scalar.*\(2,\).*jax.vmap"),
        (dict(weight="much"), r"`weight` must be a number of at least 0, got 'much'"),
        (dict(tolerance=0), r"`tolerance` must be a number above 0, got 0"),
        (dict(max_steps=0), r"`max_steps` must be an integer of at least 1, got 0"),
        (dict(unrolled_steps=2.5), r"`unrolled_steps` must be an integer.*2.5"),
        (dict(data_term="l1"), r"`data_term` must be one of 'norm', 'squared'.*'l1'"),
        (dict(penalty="tv"), r"`penalty` must be one of 'rows_columns'.*'tv'"),
        (dict(gradient="bpda"), r"`gradient` must be one of 'identity'.*'bpda'"),
        (dict(gradient="implicit"), r"`gradient=\"implicit\"` needs.*'norm' and 0.5"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        total_variation(**options)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((2, 8, 8, 3), np.uint8), r"`x` must be floating.*uint8.*by 255"),
        (np.zeros((8, 8, 3), np.float32), r"`x` must be images \[B, H, W, C\].*8, 3"),
        (np.zeros((0, 8, 8, 3), np.float32), r"`x` must be images.*at least one"),
        (np.full((1, 2, 2, 1), np.nan, np.float32), r"`x` must be finite, got nan"),
        (np.full((1, 2, 2, 1), np.inf, np.float32), r"`x` must be finite, got inf"),
    ],
)
def test_bad_images(x, message):
    with pytest.raises(InputError, match=message):
        minimise_total_variation(jnp.asarray(x))
    with pytest.raises(InputError, match=message):
        apply(total_variation(), jnp.asarray(x))


def test_bad_masks_starts_and_shapes():
    x = SINGLE
    with pytest.raises(InputError, match=r"`mask` must be bool .*float32"):
        minimise_total_variation(x, mask=jnp.ones_like(x))
    with pytest.raises(InputError, match=r"`mask` must be bool \(3, 8, 8, 3\).*8, 1"):
        minimise_total_variation(x, mask=jnp.ones((3, 8, 8, 1), bool))
    with pytest.raises(
        InputError, match=r"`x` must be float32 or float64, got float16"
    ):
        minimise_total_variation(x.astype(jnp.float16))
    start = minimise("squared", "isotropic", x)
    with pytest.raises(InputError, match=r"`start` must be a result .*\(3, 8, 8, 3\)"):
        minimise_total_variation(x[:2], start=start)
    with pytest.raises(InputError, match=r"`shape` must be \(B, H, W, C\), got \(8,"):
        random_mask(jax.random.key(0), (8, 8, 3))


def test_nan_under_jit_stops_and_shows():
    found = minimise("squared", "isotropic", SINGLE.at[1, 0, 0, 0].set(jnp.nan))
    assert np.isnan(found.gap[1])
    assert found.steps[1] == 6
    base = minimise("squared", "isotropic", SINGLE)
    np.testing.assert_array_equal(found.image[2], base.image[2])
