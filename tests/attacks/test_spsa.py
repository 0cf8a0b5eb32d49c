"""Gradient estimates against exact gradients, and what the attacks do with them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from robustjax import InputError, objectives, threats
from robustjax.attacks.spsa import estimate_gradient, nes, spsa

RNG = np.random.default_rng(0)
W = np.float32(RNG.normal(size=(6, 2)))
X = np.float32(RNG.uniform(0.3, 0.7, (4, 6)))
SLOPE = np.float32(RNG.normal(size=6))


def linear(z):
    return (z - 0.5) @ jnp.asarray(W)


Y = np.asarray(linear(X).argmax(1))


def keys(n=4, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def slope(z):
    return (z @ jnp.asarray(SLOPE)[:, None])[:, 0]


def test_a_pair_of_signs_gives_the_slope_along_them():
    """E over all signs is the gradient exactly; one pair is (g . v) v."""
    found = estimate_gradient(
        slope,
        keys(1),
        jnp.zeros((1, 6)),
        sampler=jax.random.rademacher,
        num_samples=2,
        delta=0.25,
    )
    options = [
        np.dot(SLOPE, signs) * np.array(signs)
        for signs in itertools.product((1, -1), repeat=6)
    ]
    assert min(np.abs(found[0] - option).max() for option in options) < 1e-5
    np.testing.assert_allclose(np.mean(options, axis=0), SLOPE, atol=1e-6)


@pytest.mark.parametrize(
    ("sampler", "own"), [(jax.random.rademacher, 0), (jax.random.normal, 2)]
)
def test_the_estimate_is_unbiased_and_its_variance_is_known(sampler, own):
    """Var of (g . v) v_i over n pairs: (|g|^2 - g_i^2 + own g_i^2) / n."""
    estimate = jax.jit(
        lambda k: estimate_gradient(
            slope, k, jnp.zeros((4000, 6)), sampler=sampler, num_samples=10, delta=0.1
        )
    )
    found = np.float64(estimate(keys(4000)))
    variance = ((SLOPE**2).sum() - SLOPE**2 + own * SLOPE**2) / 5
    error = np.sqrt(variance / 4000)
    assert (np.abs(found.mean(0) - SLOPE) < 5 * error).all()
    np.testing.assert_allclose(found.var(0), variance, rtol=0.15)


def test_it_differentiates_the_smoothed_function():
    """Central differences of a cubic: 3 x^2 + delta^2 in one dimension."""
    x = jnp.array([[0.5], [-1.0]])
    found = estimate_gradient(
        lambda z: (z**3)[:, 0],
        keys(2),
        x,
        sampler=jax.random.rademacher,
        num_samples=4,
        delta=0.2,
    )
    np.testing.assert_allclose(found, 3 * x**2 + 0.04, atol=1e-5)


def test_chunks_do_not_change_the_estimate():
    run = lambda size: estimate_gradient(
        slope,
        keys(),
        jnp.asarray(X),
        sampler=jax.random.normal,
        num_samples=14,  # 7 pairs: whole chunks, one short chunk, more than enough
        delta=0.1,
        chunk_size=size,
    )
    expected = run(7)
    for size in (1, 3, 50):
        np.testing.assert_allclose(run(size), expected, atol=1e-5)


@pytest.mark.parametrize("make", [spsa, nes])
def test_many_samples_reach_the_optimum_of_a_linear_model(make):
    """The signs are right, so that L-inf ends in the corner of the ball."""
    eps, y = 0.1, jnp.asarray(Y)
    never_wrong = lambda z: linear(z) + 100 * jax.nn.one_hot(y, 2)
    attack = make(
        threats.linf(eps),
        num_steps=30,
        num_samples=64,
        step_size=0.02,
        objective=objectives.margin,
    )
    x_adv = jax.jit(lambda k: attack(k, never_wrong, jnp.asarray(X), y))(keys())
    ascent = (W[:, 1 - Y] - W[:, Y]).T
    fall = (ascent * (np.asarray(x_adv) - X)).sum(1)
    assert (fall >= 0.97 * eps * np.abs(ascent).sum(1)).all()


def test_spsa_is_optax_adam_on_the_estimates():
    """By hand, in a loop: two Adam steps with the exact gradient of one direction."""
    attack = spsa(threats.linf(0.5), num_steps=3, num_samples=4, step_size=0.01)
    y = jnp.asarray(Y)
    never_wrong = lambda z: linear(z) + 100 * jax.nn.one_hot(y, 2)
    state = attack.init(keys(), never_wrong, jnp.asarray(X), y)
    adam = optax.adam(0.01)
    z, memory = jnp.asarray(X), adam.init(jnp.asarray(X))
    for i in range(3):
        grad = estimate_gradient(
            lambda z: objectives.margin(never_wrong(z), y),
            jax.vmap(jax.random.fold_in, (0, None))(keys(), i + 1),
            z,
            sampler=jax.random.rademacher,
            num_samples=4,
            delta=0.01,
        )
        steps, memory = adam.update(-grad, memory)
        z = jnp.clip(z + steps, 0, 1)
        state = attack.step(state, never_wrong, jnp.asarray(X), y)
    np.testing.assert_allclose(state.x_adv, z, atol=1e-5)


def test_a_step_size_per_image():
    attack = spsa(
        threats.linf(0.5),
        num_steps=1,
        num_samples=4,
        step_size=jnp.array([0.01, 0.02, 0.03, 0.04]),
    )
    y = jnp.asarray(Y)
    never_wrong = lambda z: linear(z) + 100 * jax.nn.one_hot(y, 2)
    moved = attack(keys(), never_wrong, jnp.asarray(X), y) - X
    expected = np.broadcast_to(np.array([[0.01], [0.02], [0.03], [0.04]]), X.shape)
    np.testing.assert_allclose(np.abs(moved), expected, atol=1e-4)


@pytest.mark.parametrize("make", [spsa, nes])
def test_a_misclassified_image_stops(make):
    attack = make(threats.linf(0.5), num_steps=6, num_samples=32, step_size=0.05)
    y = jnp.asarray(Y).at[0].set(1 - Y[0])  # the first is wrong from the beginning
    state = attack.init(keys(), linear, jnp.asarray(X), y)
    step = jax.jit(lambda s: attack.step(s, linear, jnp.asarray(X), y))
    seen = np.zeros(4, bool)
    for _ in range(6):
        new = step(state)
        np.testing.assert_array_equal(new.broken, linear(new.x_adv).argmax(1) != y)
        same = np.all(new.x_adv == state.x_adv, axis=1)
        np.testing.assert_array_equal(same, state.broken)
        seen |= np.asarray(state.broken)
        state = new
    assert seen.sum() > 1
    np.testing.assert_array_equal(state.x_adv[0], X[0])


def test_bad_arguments():
    with pytest.raises(InputError, match=r"`num_samples` must be even.* got 5"):
        spsa(threats.linf(0.1), num_samples=5)
    with pytest.raises(InputError, match=r"`delta` .* got 0"):
        nes(threats.linf(0.1), delta=0)
    with pytest.raises(InputError, match=r"`momentum` .* got 2"):
        nes(threats.linf(0.1), momentum=2)
