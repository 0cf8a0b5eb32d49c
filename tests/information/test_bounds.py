"""Bounds against loops over pairs in float64, closed forms, and extreme scores."""

import functools
import itertools
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import InputError
from robustjax.information import (
    climbed,
    donsker_varadhan,
    dv,
    estimates,
    estimates_of_scores,
    f_divergence,
    info_nce,
    info_nce_released,
    mine,
    scores,
    smile,
)

N, U, L, M = 6, 5, 4, 3
RNG = np.random.default_rng(0)
LOCAL, GLOBAL = RNG.normal(size=(N, U, L)), RNG.normal(size=(N, U, M))
MEASURES = ("gan", "jsd", "chi_squared", "kl", "reverse_kl", "hellinger", "w1")
BOUNDS = {
    "dv": dv(),
    "dv removed": dv(diagonal="removed"),
    "donsker_varadhan": donsker_varadhan(),
    "mine": mine(),
    "smile": smile(clip=1.5),
    "info_nce": info_nce(),
    "info_nce_released": info_nce_released(),
    **{name: f_divergence(name) for name in MEASURES},
}
WRONG: Any = "both"
ONES = jnp.ones((3, 2, 1))
every_bound = pytest.mark.parametrize("name", BOUNDS)
SATURATING = ("kl", "reverse_kl", "hellinger")
of_features = jax.jit(estimates, static_argnums=0, static_argnames="block_size")
of_scores = jax.jit(estimates_of_scores, static_argnums=0)


def log1p_exp(u):
    return math.log1p(math.exp(-abs(u))) + max(u, 0.0)


POSITIVE = {
    "gan": lambda u: -log1p_exp(-u),
    "jsd": lambda u: math.log(2) - log1p_exp(-u),
    "chi_squared": lambda u: u * u,
    "kl": lambda u: u,
    "reverse_kl": lambda u: -math.exp(-u),
    "hellinger": lambda u: 1 - math.exp(-u),
    "w1": lambda u: u,
}
NEGATIVE = {
    "gan": lambda u: log1p_exp(-u) + u,
    "jsd": lambda u: log1p_exp(-u) + u - math.log(2),
    "chi_squared": lambda u: -0.5 * (abs(u) + 1) ** 2,
    "kl": lambda u: math.exp(u - 1),
    "reverse_kl": lambda u: u - 1,
    "hellinger": lambda u: math.exp(u) - 1,
    "w1": lambda u: u,
}


def reference(name, u):
    """Estimates by the formulas, one Python number after the other."""
    n, _, places, multis = u.shape
    cells = list(itertools.product(range(places), range(multis)))
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    mean = lambda values: math.fsum(values) / len(values)
    own = [mean([u[(i, i, *c)] for c in cells]) for i in range(n)]
    rest = [[j for j in range(n) if j != i] for i in range(n)]
    if name in POSITIVE:
        result = []
        for i in range(n):
            joint = [POSITIVE[name](u[(i, i, *c)]) for c in cells]
            apart = [NEGATIVE[name](u[(i, j, *c)]) for j in rest[i] for c in cells]
            result.append(mean(joint) - mean(apart))
        return result
    if name in ("donsker_varadhan", "mine", "smile"):
        limit = 1.5 if name == "smile" else math.inf
        cut = lambda v: max(-limit, min(limit, v))
        pooled = mean([math.exp(cut(u[(*p, *c)])) for p in pairs for c in cells])
        return [value - math.log(pooled) for value in own]
    result = []
    for i in range(n):
        terms = []
        for place, multi in cells:
            there = u[i, i, place, multi]
            others = [u[i, j, place, multi] for j in rest[i]]
            if name.startswith("dv"):
                extra = 0.0 if name == "dv removed" else 1.0
                total = extra + sum(map(math.exp, others))
                terms.append(there - math.log(total / (n - 1)))
            elif name == "info_nce":
                total = sum(map(math.exp, [there, *others]))
                terms.append(there - math.log(total / n))
            else:
                every = [u[i, j, q, multi] for j in rest[i] for q in range(places)]
                total = math.exp(there) + sum(map(math.exp, every))
                terms.append(there - math.log(total + places * math.exp(-10)))
        result.append(mean(terms))
    return result


@every_bound
def test_float64_reference(name):
    expected = reference(name, np.einsum("ium,jul->ijlm", GLOBAL, LOCAL))
    with jax.enable_x64(True):
        local, glob = jnp.asarray(LOCAL), jnp.asarray(GLOBAL)
        found = of_features(BOUNDS[name], local, glob)
        assert found.dtype == jnp.float64
        np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-12)
        again = of_scores(BOUNDS[name], scores(local, glob))
        np.testing.assert_allclose(again, expected, rtol=1e-11, atol=1e-12)
    single = of_features(BOUNDS[name], jnp.float32(LOCAL), jnp.float32(GLOBAL))
    np.testing.assert_allclose(single, expected, rtol=2e-4, atol=2e-4)


ZEROS = {
    "dv": -math.log(N / (N - 1)),
    "dv removed": 0.0,
    "donsker_varadhan": 0.0,
    "mine": 0.0,
    "smile": 0.0,
    "info_nce": 0.0,
    "info_nce_released": -math.log(1 + (N - 1) * L + L * math.exp(-10)),
    "gan": -2 * math.log(2),
    "jsd": 0.0,
    "chi_squared": 0.5,
    "kl": -math.exp(-1),
    "reverse_kl": 0.0,
    "hellinger": 0.0,
    "w1": 0.0,
}


@every_bound
def test_critics_that_know_nothing(name):
    found = of_features(BOUNDS[name], jnp.zeros((N, U, L)), jnp.zeros((N, U, M)))
    np.testing.assert_allclose(found, ZEROS[name], atol=1e-6)


@pytest.mark.parametrize("name", ["dv", "smile", "info_nce_released", "jsd", "kl"])
def test_blocks_change_nothing(name):
    local, glob = jnp.float32(LOCAL), jnp.float32(GLOBAL)

    @functools.partial(jax.jit, static_argnames="size")
    def both(local, glob, size):
        weigh = lambda *fs: (estimates(BOUNDS[name], *fs, block_size=size) ** 2).sum()
        return jax.value_and_grad(weigh, argnums=(0, 1))(local, glob)

    whole = both(local, glob, size=None)
    for size in (1, 4):  # 4 leaves a rest
        chex.assert_trees_all_close(
            both(local, glob, size=size), whole, rtol=1e-4, atol=1e-5
        )


@every_bound
def test_gradients_are_central_differences(name):
    with jax.enable_x64(True):
        local, glob = jnp.asarray(LOCAL), jnp.asarray(GLOBAL)
        weights = jnp.linspace(1.0, 2.0, N)
        fun = lambda *fs: (estimates(BOUNDS[name], *fs) * weights).sum()
        slope = jax.jit(jax.grad(fun, argnums=(0, 1)))(local, glob)
        aside = [jnp.asarray(RNG.normal(size=a.shape)) for a in (local, glob)]
        moved = jax.jit(lambda t: fun(local + t * aside[0], glob + t * aside[1]))
        difference = (moved(1e-6) - moved(-1e-6)) / 2e-6
        along = (slope[0] * aside[0]).sum() + (slope[1] * aside[1]).sum()
        np.testing.assert_allclose(difference, along, rtol=1e-6)


@every_bound
@pytest.mark.parametrize("count", [2, 5])
def test_extreme_scores_are_no_nan(name, count):
    signs = np.sign(np.random.default_rng(count).normal(size=(count, count, 3, 1)))
    for u in (500 * signs, 500 * np.abs(signs), -500 * np.abs(signs)):
        found = np.asarray(of_scores(BOUNDS[name], jnp.float32(u)))
        assert not np.isnan(found).any()
        if name not in SATURATING:
            assert np.isfinite(found).all()
    for name in SATURATING:
        clipped = f_divergence(name, clip=20.0)
        fun = lambda u, bound=clipped: estimates_of_scores(bound, u).sum()
        found, slope = jax.jit(jax.value_and_grad(fun))(jnp.float32(500 * signs))
        assert np.isfinite(found)
        assert np.isfinite(slope).all()


@pytest.mark.parametrize("name", ["dv", "gan", "jsd", "info_nce_released"])
def test_gradients_of_extreme_scores_are_finite(name):
    signs = np.sign(RNG.normal(size=(4, 4, 3, 1)))
    fun = lambda u: estimates_of_scores(BOUNDS[name], u).sum()
    assert np.isfinite(jax.jit(jax.grad(fun))(jnp.float32(500 * signs))).all()


def test_bounds_know_what_they_bound():
    """Sharp scores: InfoNCE meets its limit log N, the others are not capped there."""
    u = jnp.where(jnp.eye(N)[:, :, None, None] > 0, 30.0, -30.0)
    assert float(of_scores(info_nce(), u)[0]) == pytest.approx(math.log(N), abs=1e-5)
    for name in ("dv removed", "donsker_varadhan"):
        assert float(of_scores(BOUNDS[name], u)[0]) == pytest.approx(60, abs=1e-3)
    # Pooling the mean under the logarithm can only lower an estimate (Jensen).
    u = jnp.float32(RNG.normal(size=(N, N, L, 1)) * 3)
    pooled = of_scores(donsker_varadhan(), u).mean()
    assert float(pooled) <= float(of_scores(dv(diagonal="removed"), u).mean()) + 1e-5


def test_scale_and_activation_penalty():
    local, glob = jnp.float32(LOCAL), jnp.float32(GLOBAL)
    plain = of_features(dv(), local, glob)
    found = of_features(dv(), local, glob, scale=3.0, activation_penalty=0.5)
    size = (GLOBAL**2).sum(axis=1).mean(axis=1)
    np.testing.assert_allclose(found, 3 * plain - 0.5 * size, rtol=1e-4)


def test_mine_divides_by_a_moving_average():
    bound = mine(decay=0.9)

    def slope(state, shift):
        fun = lambda local: climbed(bound, local + shift, glob, state)
        return jax.jit(jax.grad(fun, has_aux=True))(local)

    with jax.enable_x64(True):
        local, glob = jnp.asarray(LOCAL), jnp.asarray(GLOBAL)
        u = np.einsum("ium,jul->ijlm", GLOBAL, LOCAL)
        mean = np.exp(u[~np.eye(N, dtype=bool)]).mean()
        first, state = slope(bound.state, 0.0)
        np.testing.assert_allclose(np.exp(state), mean)  # starts with the first batch
        plain = jax.jit(
            jax.grad(lambda f: estimates(donsker_varadhan(), f, glob).mean())
        )(local)
        np.testing.assert_allclose(first, plain, rtol=1e-9)
        # Later the batch's own mean counts a tenth.
        old = jnp.log(5 * mean)
        found, state = slope(old, 0.0)
        average = 0.9 * 5 * mean + 0.1 * mean
        np.testing.assert_allclose(np.exp(state), average)
        positive = jax.jit(
            jax.grad(lambda f: (jnp.einsum("ium,iul->ilm", glob, f)).mean() * 1.0)
        )(local)
        np.testing.assert_allclose(
            positive - found, (positive - plain) * mean / average, rtol=1e-9
        )


def test_smile_is_trained_by_jensen_shannon():
    local, glob = jnp.float32(LOCAL), jnp.float32(GLOBAL)
    found, state = climbed(smile(clip=1.0), local, glob)
    expected, _ = climbed(f_divergence("jsd"), local, glob)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert state == ()


def test_jit_is_eager_and_it_maps():
    local, glob = jnp.float32(LOCAL), jnp.float32(GLOBAL)
    eager = estimates(dv(), local, glob)
    np.testing.assert_allclose(eager, of_features(dv(), local, glob), rtol=1e-5)
    stacked = jnp.stack([glob, 2 * glob])
    mapped = jax.vmap(lambda g: estimates(dv(), local, g, block_size=4))
    found = jax.jit(mapped)(stacked)
    np.testing.assert_allclose(found[0], eager, rtol=1e-5)
    half = of_features(dv(), local.astype(jnp.bfloat16), glob.astype(jnp.bfloat16))
    assert half.dtype == jnp.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: estimates(dv(), ONES[..., 0], ONES), "local_features"),
        (lambda: estimates(dv(), ONES, jnp.ones((4, 2, 1))), "global_features"),
        (lambda: estimates(dv(), ONES[:1], ONES[:1]), "2 samples"),
        (lambda: estimates(dv(), ONES, ONES, block_size=0), "block_size"),
        (lambda: estimates_of_scores(dv(), jnp.ones((3, 2, 1, 1))), "`u`"),
        (lambda: f_divergence(WRONG), "measure"),
        (lambda: f_divergence("kl", clip=-1.0), "clip"),
        (lambda: mine(decay=1.0), "decay"),
        (lambda: smile(clip=0.0), "clip"),
        (lambda: dv(diagonal=WRONG), "diagonal"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()
