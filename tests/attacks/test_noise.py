"""Noise and grey."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import InputError, attacks, threats
from robustjax.attacks import noise

X = jax.random.uniform(jax.random.key(0), (5, 6, 5, 3), minval=0.3, maxval=0.7)
Y = jnp.zeros(5, jnp.int32)


def logits_fn(x):
    return x.reshape(x.shape[0], -1)[:, :3] * 5


def run(attack, x=X, seed=1):
    return np.asarray(
        jax.jit(lambda k, x: attack(k, logits_fn, x, Y))(jax.random.key(seed), x)
    )


def test_at_half_grey_makes_all_images_one():
    x = jax.random.uniform(jax.random.key(2), X.shape)
    np.testing.assert_allclose(run(noise.grey(threats.linf(0.5)), x), 0.5, atol=1e-7)


def test_grey_is_the_clipped_step_to_the_middle():
    x = np.asarray(jax.random.uniform(jax.random.key(2), X.shape))
    expected = x + np.clip(0.5 - x, -0.1, 0.1)
    np.testing.assert_allclose(
        run(noise.grey(threats.linf(0.1)), x), expected, atol=1e-6
    )
    # Under L2 along the straight line.
    away = 0.5 - x
    length = np.sqrt((away**2).sum((1, 2, 3), keepdims=True))
    np.testing.assert_allclose(
        run(noise.grey(threats.l2(0.7)), x), x + 0.7 * away / length, atol=1e-6
    )


def test_signs_are_a_corner_of_the_ball():
    delta = run(noise.sign_noise(threats.linf(0.2))) - np.asarray(X)
    np.testing.assert_allclose(np.abs(delta), 0.2, atol=1e-6)
    assert abs(np.sign(delta).mean()) < 0.2
    assert not np.array_equal(np.sign(delta[0]), np.sign(delta[1]))
    for make in (threats.l2, threats.l1):
        delta = run(noise.sign_noise(make(0.5))) - np.asarray(X)
        np.testing.assert_allclose(make(0.5).norm(jnp.asarray(delta)), 0.5, atol=1e-4)


def test_uniform_noise_fills_the_ball():
    delta = run(noise.uniform_noise(threats.linf(0.2))) - np.asarray(X)
    assert np.abs(delta).max() <= 0.2 + 1e-6
    assert np.abs(delta).max() > 0.19
    np.testing.assert_allclose(delta.std(), 0.2 / 3**0.5, rtol=0.1)


def test_gaussian_noise_has_the_scale_where_the_ball_does_not_bind():
    delta = run(noise.gaussian_noise(threats.linf(1.0), scale=0.02)) - np.asarray(X)
    np.testing.assert_allclose(delta.std(), 0.02, rtol=0.1)
    short = run(noise.gaussian_noise(threats.l2(0.1), scale=0.5)) - np.asarray(X)
    np.testing.assert_allclose(threats.l2(0.1).norm(jnp.asarray(short)), 0.1, atol=1e-5)
    np.testing.assert_array_equal(
        run(noise.gaussian_noise(threats.linf(0.5), scale=0.0)), X
    )


def test_restarts_keep_the_best_of_several_draws():
    attack = noise.uniform_noise(threats.linf(0.2))
    best = run(attacks.restarts(attack, 20))
    log = lambda x: jax.nn.log_softmax(logits_fn(jnp.asarray(x)))[:, 0]
    assert (log(best) < log(run(attack))).mean() >= 0.8


def test_errors():
    with pytest.raises(InputError, match=r"`scale` .* got -1\.0"):
        noise.gaussian_noise(threats.linf(0.1), scale=-1.0)
