"""Estimates against a bank: loops in float64, the batch as its own bank, probes."""

import functools
import itertools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from robustjax import InputError, models
from robustjax.information import (
    donsker_varadhan,
    dv,
    estimates,
    estimates_against,
    f_divergence,
    info_nce,
    info_nce_released,
    mine,
    probe,
    smile,
)

N, R, U, L, M = 5, 7, 4, 3, 2
RNG = np.random.default_rng(0)
LOCAL, GLOBAL = RNG.normal(size=(N, U, L)), RNG.normal(size=(N, U, M))
BANK = RNG.normal(size=(R, U, L))
BY_ROW = {
    "dv": dv(),
    "dv removed": dv(diagonal="removed"),
    "info_nce": info_nce(),
    "info_nce_released": info_nce_released(),
    "jsd": f_divergence("jsd"),
    "kl": f_divergence("kl"),
    "w1": f_divergence("w1"),
}
POOLED = {
    "donsker_varadhan": donsker_varadhan(),
    "mine": mine(),
    "smile": smile(clip=1.5),
}
BOUNDS = BY_ROW | POOLED
every_bound = pytest.mark.parametrize("name", BOUNDS)
against = jax.jit(estimates_against, static_argnums=0, static_argnames="block_size")


def mean(values):
    values = list(values)
    return math.fsum(values) / len(values)


def softplus(u):
    return math.log1p(math.exp(-abs(u))) + max(u, 0.0)


def of_place(name, own, others):
    """The estimate at one place and multi, of R scores with others."""
    exps = [math.exp(u) for u in others]
    if name == "dv":
        return own - math.log((1 + sum(exps)) / R)
    if name == "dv removed":
        return own - math.log(sum(exps) / R)
    if name == "info_nce":
        return own - math.log((math.exp(own) + sum(exps)) / (R + 1))
    if name == "jsd":
        joint = math.log(2) - softplus(-own)
        return joint - mean(softplus(u) - math.log(2) for u in others)
    if name == "kl":
        return own - mean(math.exp(u - 1) for u in others)
    return own - mean(others)


def reference(name):
    """By the formulas, one Python number after the other."""
    result = []
    for i in range(N):
        own, others = {}, {}
        for place, multi in itertools.product(range(L), range(M)):
            sought = GLOBAL[i, :, multi]
            own[place, multi] = sought @ LOCAL[i, :, place]
            others[place, multi] = [sought @ BANK[r, :, place] for r in range(R)]
        if name in POOLED:
            limit = 1.5 if name == "smile" else math.inf
            every = [max(-limit, min(limit, u)) for us in others.values() for u in us]
            result.append(mean(own.values()) - math.log(mean(map(math.exp, every))))
        elif name == "info_nce_released":
            terms = []
            for (_, multi), u in own.items():
                there = [u for q in range(L) for u in others[q, multi]]
                rest = sum(map(math.exp, there)) + L * math.exp(-10)
                terms.append(u - math.log(math.exp(u) + rest))
            result.append(mean(terms))
        else:
            result.append(mean(of_place(name, own[c], others[c]) for c in own))
    return result


@every_bound
def test_float64_reference(name):
    expected = reference(name)
    with jax.enable_x64(True):
        found = against(BOUNDS[name], *map(jnp.asarray, (LOCAL, GLOBAL, BANK)))
        assert found.dtype == jnp.float64
        np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-12)
    single = against(BOUNDS[name], *map(jnp.float32, (LOCAL, GLOBAL, BANK)))
    np.testing.assert_allclose(single, expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", BY_ROW)
def test_the_batch_as_bank_without_the_sample(name):
    with jax.enable_x64(True):
        local, sought = jnp.asarray(LOCAL), jnp.asarray(GLOBAL)
        expected = estimates(BOUNDS[name], local, sought)
        for i in range(N):
            rest = jnp.asarray(np.delete(LOCAL, i, axis=0))
            found = against(BOUNDS[name], local[i : i + 1], sought[i : i + 1], rest)
            np.testing.assert_allclose(found[0], expected[i], rtol=1e-11)


def test_pooled_bounds_have_a_logarithm_for_each_sample():
    """Which is one of all pairs in the batch there: lower, by Jensen's inequality."""
    with jax.enable_x64(True):
        local, sought = jnp.asarray(LOCAL), jnp.asarray(GLOBAL)
        shared = estimates(donsker_varadhan(), local, sought).mean()
        apart = [
            against(
                donsker_varadhan(),
                *(local[i : i + 1], sought[i : i + 1]),
                jnp.asarray(np.delete(LOCAL, i, axis=0)),
            )[0]
            for i in range(N)
        ]
        assert mean(map(float, apart)) > float(shared)


@every_bound
def test_no_sample_sees_its_batch(name):
    local, sought, bank = map(jnp.float32, (LOCAL, GLOBAL, BANK))
    whole = against(BOUNDS[name], local, sought, bank)
    part = against(BOUNDS[name], local[2:3], sought[2:3], bank)
    np.testing.assert_allclose(part[0], whole[2], rtol=1e-5, atol=1e-6)
    other = against(BOUNDS[name], local.at[0].set(9.0), sought.at[0].set(9.0), bank)
    np.testing.assert_array_equal(other[1:], whole[1:])


@every_bound
def test_gradients_are_central_differences(name):
    with jax.enable_x64(True):
        weights = jnp.linspace(1.0, 2.0, N)
        fun = lambda *features: (against(BOUNDS[name], *features) * weights).sum()
        features = tuple(map(jnp.asarray, (LOCAL, GLOBAL, BANK)))
        check_grads(fun, features, order=1, modes=["rev"], rtol=1e-6, eps=1e-6)


@pytest.mark.parametrize("name", ["dv", "smile", "info_nce_released", "jsd", "kl"])
def test_blocks_change_nothing(name):
    features = tuple(map(jnp.float32, (LOCAL, GLOBAL, BANK)))

    @functools.partial(jax.jit, static_argnames="size")
    def both(*features, size):
        fun = lambda *fs: (
            estimates_against(BOUNDS[name], *fs, block_size=size) ** 2
        ).sum()
        return jax.value_and_grad(fun, argnums=(0, 1, 2))(*features)

    whole = both(*features, size=None)
    for size in (1, 2):  # 2 leaves a rest
        found = both(*features, size=size)
        chex.assert_trees_all_close(found, whole, rtol=1e-4, atol=1e-5)


@every_bound
@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("signs", [(1, 1), (1, -1), (-1, 1), (-1, -1)])
def test_extreme_scores_are_no_nan(name, count, signs):
    bound = f_divergence("kl", clip=20.0) if name == "kl" else BOUNDS[name]
    own, others = (500.0 * sign for sign in signs)
    local, sought = jnp.full((2, 1, L), own), jnp.ones((2, 1, 1))
    bank = jnp.full((count, 1, L), others)
    fun = lambda local, sought: estimates_against(bound, local, sought, bank).sum()
    found, slopes = jax.jit(jax.value_and_grad(fun, argnums=(0, 1)))(local, sought)
    assert np.isfinite(found)
    chex.assert_tree_all_finite(slopes)


@every_bound
def test_jit_is_eager(name):
    features = tuple(map(jnp.float32, (LOCAL, GLOBAL, BANK)))
    eager = estimates_against(BOUNDS[name], *features)
    np.testing.assert_allclose(
        eager, against(BOUNDS[name], *features), rtol=1e-5, atol=1e-6
    )


def test_halves_are_counted_in_float32():
    features = (jnp.bfloat16(values) for values in (LOCAL, GLOBAL, BANK))
    assert against(dv(), *features).dtype == jnp.float32


X = jnp.float32(RNG.random((3, 8, 8, 1)))
Z = jnp.float32(RNG.normal(size=(3, 4)))
SAMPLES = jnp.float32(RNG.random((6, 8, 8, 1)))
CRITIC = models.mi_estimator(
    models.LocalCritic(6, widths=(3, 5)), models.GlobalCritic(6)
)


@pytest.fixture(scope="module")
def weights():
    return jax.jit(CRITIC.init)(jax.random.key(0), X, Z)


def test_a_probe_is_the_critic_in_eval_mode(weights):
    params, state = weights
    local, sought, _ = CRITIC.features(params, state, X, Z)
    bank, _ = CRITIC.local_features(params, state, SAMPLES)
    expected = estimates_against(info_nce(), local, sought, bank)
    found = probe(CRITIC, params, state, SAMPLES, bound=info_nce())(X, Z)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_probes_share_their_code_and_bake_nothing_in(weights):
    params, state = weights
    bound = info_nce()
    run = jax.jit(chex.assert_max_traces(lambda f, x, z: f(x, z), n=1))
    one = probe(CRITIC, params, state, SAMPLES, bound=bound)
    moved = jax.tree.map(lambda leaf: leaf + 0.1, params)
    other = probe(CRITIC, moved, state, SAMPLES[::-1] / 2, bound=bound)
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert hash(jax.tree.structure(one)) == hash(jax.tree.structure(other))
    assert (run(one, X, Z) != run(other, X, Z)).all()
    default = [probe(CRITIC, params, state, SAMPLES) for _ in range(2)]
    assert jax.tree.structure(default[0]) == jax.tree.structure(default[1])
    made = jax.make_jaxpr(lambda f, x, z: f(x, z))(one, X, Z)
    assert not any(np.size(constant) > 1 for constant in made.consts)
    leaves = [*jax.tree.leaves((params, state)), jnp.zeros((6, 6, 4))]
    found = jax.tree.leaves(one)
    assert [leaf.shape for leaf in found] == [leaf.shape for leaf in leaves]


def test_a_probe_is_differentiable_in_samples_and_z(weights):
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), weights)
        information = probe(CRITIC, *wide, jnp.float64(SAMPLES))
        fun = jax.jit(lambda x, z: information(x, z).sum())
        arguments = (jnp.float64(X), jnp.float64(Z))
        check_grads(fun, arguments, order=1, modes=["rev"], rtol=1e-4, eps=1e-7)
        slopes = jax.grad(fun, argnums=(0, 1))(*arguments)
        assert all((slope != 0).any() for slope in slopes)


ONES = jnp.ones((3, 2, 4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: estimates_against(dv(), ONES[..., 0], ONES, ONES), "local_features"),
        (lambda: estimates_against(dv(), ONES, ONES[:2], ONES), "global_features"),
        (lambda: estimates_against(dv(), ONES, ONES, ONES[:, :1]), "`bank` .R, U, L"),
        (lambda: estimates_against(dv(), ONES, ONES, ONES[:, :, :1]), "`bank`"),
        (lambda: estimates_against(dv(), ONES, ONES, ONES[:0]), "at least 1 sample"),
        (
            lambda: estimates_against(dv(), ONES, ONES, ONES, block_size=0),
            "block_size",
        ),
        (lambda: probe(CRITIC, {}, {}, SAMPLES[:0]), "bank_samples"),
        (lambda: probe(CRITIC, {}, {}, SAMPLES, block_size=0), "block_size"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_samples_and_z_pair_up(weights):
    information = probe(CRITIC, *weights, SAMPLES)
    with pytest.raises(InputError, match="same batch size"):
        information(X, Z[:2])
