"""Estimates of what is known: Gaussians, independence, bad samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import InputError, information, models
from robustjax.information import (
    donsker_varadhan,
    estimate_mutual_information,
    info_nce,
    mine,
    smile,
)


def gaussians(dimension, correlation, count=8000, seed=0):
    """Pairs of vectors, and their mutual information in nats."""
    rng = np.random.default_rng(seed)
    x, noise = rng.normal(size=(2, count, dimension)).astype(np.float32)
    z = correlation * x + (1 - correlation**2) ** 0.5 * noise
    truth = -dimension / 2 * np.log(1 - correlation**2)
    return jnp.asarray(x), jnp.asarray(z), truth


def near(found, truth):
    assert abs(found - truth) <= max(0.1 * truth, 0.05), (found, truth)


@pytest.mark.parametrize(
    "bound", [donsker_varadhan(), mine(), smile(clip=10.0), info_nce()]
)
def test_gaussians_of_few_dimensions(bound):
    x, z, truth = gaussians(1, 0.8)
    found = estimate_mutual_information(
        jax.random.key(0), x, z, bound=bound, num_steps=1200
    )
    near(float(found.information), truth)
    assert 0 < float(found.standard_error) < 0.1
    assert found.climbed.shape == (1200,)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["donsker_varadhan", "mine", "info_nce"])
@pytest.mark.parametrize("dimension", [1, 5, 20])
@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.6, 0.9])
def test_gaussians_up_to_four_nats(name, dimension, correlation):
    if dimension == 20:
        correlation *= 0.95 * 0.574 / 0.9  # 4 nats at most
    elif dimension == 5:
        correlation = min(correlation, 0.89)
    x, z, truth = gaussians(dimension, correlation, count=80_000)
    batch_size = 512
    if name == "info_nce" and truth > np.log(batch_size) - 1:
        pytest.skip("beyond what InfoNCE can say with this batch")
    bound = getattr(information, name)()
    found = estimate_mutual_information(
        jax.random.key(0), x, z, bound=bound, num_steps=4000, batch_size=batch_size
    )
    near(float(found.information), truth)


def test_independent_samples_share_nothing():
    x, _, _ = gaussians(3, 0.5)
    z, _, _ = gaussians(3, 0.5, seed=1)
    found = estimate_mutual_information(jax.random.key(0), x, z, num_steps=200)
    assert abs(float(found.information)) < 0.05


def test_images_with_a_critic_of_ones_own():
    """Which of two brightnesses a picture has: log 2 nats in its label."""
    rng = np.random.default_rng(0)
    label = rng.integers(2, size=1200)
    x = 0.5 * rng.random((1200, 8, 8, 1)) + 0.5 * label.reshape(-1, 1, 1, 1)
    z = np.eye(2)[label]
    estimator = models.mi_estimator(
        models.LocalCritic(16, widths=(4, 8)), models.GlobalCritic(16)
    )
    found = estimate_mutual_information(
        jax.random.key(0),
        *(jnp.asarray(x, jnp.float32), jnp.asarray(z, jnp.float32)),
        estimator=estimator,
        bound=info_nce(),
        batch_size=64,
        num_steps=100,
    )
    assert float(found.information) == pytest.approx(np.log(2), abs=0.1)
    # The BatchNorm statistics that training moved are in the state.
    moved = found.state["local"]["batch_stats"]["norm1"]["mean"]
    assert np.abs(moved).max() > 0.01


def test_the_same_key_gives_the_same_estimate():
    x, z, _ = gaussians(1, 0.5, count=1000)
    run = lambda seed: estimate_mutual_information(
        jax.random.key(seed), x, z, num_steps=20, batch_size=64
    )
    assert float(run(0).information) == float(run(0).information)
    assert float(run(0).information) != float(run(1).information)


X = jnp.ones((100, 2))


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (X[:90], {}, "batch"),
        (X.at[0, 0].set(jnp.nan), {}, "`x` must be finite"),
        (X.astype(jnp.int32), {}, "`x` must be floats"),
        (X, dict(batch_size=64), "`x` must hold at least 192 samples"),
        (X, dict(batch_size=1), "batch_size"),
        (X, dict(held_out=0.5), "held_out"),
        (X, dict(num_steps=0), "num_steps"),
        (X[:, :, None], dict(batch_size=8), "vectors"),
    ],
)
def test_bad_samples(x, options, message):
    options = dict(batch_size=8) | options
    with pytest.raises(InputError, match=message):
        estimate_mutual_information(jax.random.key(0), x, X, **options)
