"""Estimates of what is known: Gaussians, independence, bad samples."""

import importlib
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import InputError, models
from robustjax.information import (
    donsker_varadhan,
    estimate_mutual_information,
    info_nce,
    mine,
    smile,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "docs"))
make_information = importlib.import_module("make_information")

pytestmark = pytest.mark.usefixtures("compile_fully")


def gaussians(dimension, correlation, count=8000, seed=0):
    """Pairs of vectors, and their mutual information in nats."""
    rng = np.random.default_rng(seed)
    x, noise = rng.normal(size=(2, count, dimension)).astype(np.float32)
    z = correlation * x + (1 - correlation**2) ** 0.5 * noise
    return jnp.asarray(x), jnp.asarray(z), nats(dimension, correlation)


def nats(dimension, correlation):
    return -dimension / 2 * np.log(1 - correlation**2)


def near(found, truth):
    assert abs(found - truth) <= max(0.1 * truth, 0.05), (found, truth)


@pytest.mark.parametrize(
    "bound",
    [
        donsker_varadhan(),
        pytest.param(mine(), marks=pytest.mark.slow),
        pytest.param(smile(clip=10.0), marks=pytest.mark.slow),
        info_nce(),
    ],
)
def test_gaussians_of_few_dimensions(bound):
    x, z, truth = gaussians(1, 0.8)
    found = estimate_mutual_information(
        jax.random.key(0), x, z, bound=bound, num_steps=300
    )
    near(float(found.information), truth)
    assert 0 < float(found.standard_error) < 0.1
    assert found.climbed.shape == (300,)


@pytest.mark.slow
@pytest.mark.parametrize("name", make_information.GRADED)
@pytest.mark.parametrize(("dimension", "correlation"), make_information.CASES)
def test_gaussians_up_to_four_nats(name, dimension, correlation):
    found = make_information.fit(name, dimension, correlation)
    near(found["estimate"], nats(dimension, correlation))


def test_what_the_page_shows_is_near_the_truth():
    rows = make_information.kept()
    assert set(rows) == set(make_information.wanted())
    for name in make_information.GRADED:
        for case in make_information.CASES:
            near(rows[(name, *case)]["estimate"], nats(*case))


@pytest.mark.slow
def test_more_held_out_pairs_let_infonce_say_more():
    x, z, truth = gaussians(2, 0.99, count=4000)
    say = lambda size: (
        estimate_mutual_information(
            jax.random.key(0),
            *(x, z),
            bound=info_nce(),
            num_steps=400,
            batch_size=32,
            estimate_batch_size=size,
        ).information
    )
    few, default = say(7), say(None)  # of 800, 2 are left out, and 100 at a time
    assert few <= np.log(7) < truth - 1
    assert few + 0.5 < default < truth + 0.1


def test_independent_samples_share_nothing():
    x, _, _ = gaussians(3, 0.5)
    z, _, _ = gaussians(3, 0.5, seed=1)
    found = estimate_mutual_information(jax.random.key(0), x, z, num_steps=200)
    assert abs(float(found.information)) < 0.05


@pytest.mark.slow
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
        (X, dict(estimate_batch_size=1), "`estimate_batch_size`"),
        (X, dict(estimate_batch_size=17), r"lie in \[2, 16\]"),
        (X[:, :, None], dict(batch_size=8), "vectors"),
    ],
)
def test_bad_samples(x, options, message):
    options = dict(batch_size=8) | options
    with pytest.raises(InputError, match=message):
        estimate_mutual_information(jax.random.key(0), x, X, **options)
