"""Losses around images, on functions whose loss is known."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import InputError, attacks, evaluation, threats
from robustjax.data import Dataset

RNG = np.random.default_rng(0)
X = RNG.random((10, 3, 3, 1), dtype=np.float32)
WEIGHTS = jnp.asarray(RNG.normal(size=(9, 3)), jnp.float32)


def logits_fn(z):
    return jnp.tanh(2 * z.reshape(len(z), -1) @ WEIGHTS) * 3


Y = np.asarray(logits_fn(X).argmax(axis=1), np.int32)
DATA = Dataset(X, Y, np.arange(10), ("a", "b", "c"))
LINF = threats.linf(0.2)


def attack_at(step_size):
    return attacks.pgd(LINF, step_size=step_size, num_steps=8)


def test_a_curve_is_what_the_iterates_of_single_runs_say():
    sizes, steps = (0.05, 0.01), (1, 3, 8)
    key = jax.random.key(3)
    found = evaluation.step_curves(
        logits_fn, DATA, attack_at, sizes, steps, key=key, batch_size=4
    )
    assert found["steps"] == [1, 3, 8]
    assert found["num_examples"] == 10
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(10, dtype="uint32"))
    for row, size in enumerate(sizes):
        broken = []
        for column, count in enumerate(steps):
            attack = attacks.pgd(LINF, step_size=size, num_steps=count)
            x_adv = attack(jax.random.clone(keys), logits_fn, jnp.asarray(X), Y)
            z = np.asarray(logits_fn(x_adv), np.float64)
            loss = np.log(np.exp(z).sum(axis=1)) - z[np.arange(10), Y]
            broken.append(z.argmax(axis=1) != Y)
            assert found["loss"][row][column] == pytest.approx(loss.mean(), rel=1e-4)
            assert found["accuracy"][row][column] == pytest.approx(
                1 - broken[-1].mean()
            )
            ever = np.any(broken, axis=0).mean()
            assert found["worst"][row][column] == pytest.approx(1 - ever)


def test_restarts_of_a_curve_are_the_worst_per_image():
    steps, key = (1, 3), jax.random.key(3)

    def curve(restart, count=1):
        return evaluation.step_curves(
            logits_fn, DATA, attack_at, (0.05,), steps, key=restart, num_restarts=count
        )

    whole = curve(key, 4)
    assert whole["num_restarts"] == 4
    keys = [key, *(jax.random.fold_in(key, n) for n in (1, 2, 3))]
    each = [curve(k) for k in keys]
    lowest = np.min([c["worst"] for c in each], axis=0)
    assert (np.array(whole["worst"]) <= lowest).all()
    assert (np.array(whole["loss"]) >= each[0]["loss"]).all()
    x, number = jnp.asarray(X), jnp.arange(10, dtype="uint32")
    right, largest = np.ones((2, 10), bool), np.full((2, 10), -np.inf)
    for k in keys:
        images = jax.vmap(jax.random.fold_in, (None, 0))(k, number)
        stands = right.any(axis=0)  # at one of the looks
        for row, count in enumerate(steps):
            attack = attacks.pgd(LINF, step_size=0.05, num_steps=count)
            x_adv = attack(jax.random.clone(images), logits_fn, x, Y)
            z = np.asarray(logits_fn(x_adv), np.float64)
            right[row] &= z.argmax(axis=1) == Y
            loss = np.log(np.exp(z).sum(axis=1)) - z[np.arange(10), Y]
            worse = np.maximum(largest[row], loss)
            largest[row] = np.where(stands, worse, largest[row])
    np.testing.assert_allclose(whole["accuracy"][0], right.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(whole["loss"][0], largest.mean(axis=1), rtol=1e-4)
    with pytest.raises(InputError, match="`num_restarts`"):
        curve(key, 0)


def test_restarts_of_a_curve_do_not_depend_on_the_batch():
    def curve(batch_size):
        return evaluation.step_curves(
            *(logits_fn, DATA, attack_at, (0.05,), (3, 4)),
            key=jax.random.key(3),
            num_restarts=6,
            batch_size=batch_size,
        )

    one = curve(1)
    assert 0 < one["accuracy"][0][1] < 1  # some images stand, others do not
    for batch_size in (4, 10):
        other = curve(batch_size)
        for name in ("accuracy", "worst", "loss"):
            np.testing.assert_allclose(one[name], other[name], rtol=1e-5)


def test_step_sizes_do_not_compile_anew():
    chex.clear_trace_counter()
    traced = chex.assert_max_traces(attack_at, n=1)
    evaluation.step_curves(
        logits_fn, DATA, traced, (0.05, 0.02, 0.01), (2, 8), key=jax.random.key(0)
    )


def test_a_surface_is_the_loss_on_the_plane():
    x, y = jnp.asarray(X[:3]), jnp.asarray(Y[:3])
    key = jax.random.key(1)
    found = evaluation.loss_surface(
        logits_fn, x, y, key=jax.random.clone(key), radius=0.1, num=5
    )
    np.testing.assert_allclose(found.offsets, np.linspace(-0.1, 0.1, 5), atol=1e-7)
    signs = np.asarray(jax.random.rademacher(key, x.shape, x.dtype))
    assert set(np.unique(signs)) == {-1, 1}
    z = lambda point: np.asarray(logits_fn(jnp.asarray(point, jnp.float32)), np.float64)

    def loss(point):
        return np.log(np.exp(z(point)).sum(axis=1)) - z(point)[np.arange(3), Y[:3]]

    slope = np.zeros(X[:3].shape)
    for place in np.ndindex(3, 3):
        step = np.zeros((3, 3, 1))
        step[place] = 1e-3
        slope[:, *place, 0] = loss(X[:3] + step) - loss(X[:3] - step)
    for i, a in enumerate(found.offsets):
        for j, b in enumerate(found.offsets):
            point = X[:3] + float(a) * np.sign(slope) + float(b) * signs
            np.testing.assert_allclose(found.loss[:, i, j], loss(point), atol=1e-5)
            wrong = z(point).argmax(axis=1) != Y[:3]
            np.testing.assert_array_equal(found.broken[:, i, j], wrong)


def test_the_health_of_gradients():
    x, y = jnp.asarray(X), jnp.asarray(Y)
    sound = evaluation.gradient_health(logits_fn, x, y)
    assert not sound.vanished.any()
    assert sound.finite.all()
    assert float(sound.zero_share.max()) == 0
    half = lambda z: logits_fn(z.at[:, 0].set(0))
    np.testing.assert_allclose(evaluation.gradient_health(half, x, y).zero_share, 1 / 3)
    rounded = evaluation.gradient_health(lambda z: logits_fn(jnp.round(z)), x, y)
    assert rounded.vanished.all()
    sure = evaluation.gradient_health(lambda z: 1e6 * logits_fn(z), x, y)
    assert sure.vanished.all()
    broken = lambda z: logits_fn(jnp.sqrt(z - z))  # 0, whose root has no derivative
    assert not evaluation.gradient_health(broken, x, y).finite.any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: surface(radius=0.0), "`radius`"),
        (lambda: surface(radius=0.1, num=0), "`num`"),
        (lambda: curves(step_sizes=(0.0,)), "`step_sizes`"),
        (lambda: curves(steps=(3, 2)), "`steps`"),
        (lambda: curves(steps=(9,)), "`steps`"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()


def surface(**options):
    given = dict(key=jax.random.key(0)) | options
    return evaluation.loss_surface(logits_fn, jnp.asarray(X), jnp.asarray(Y), **given)


def curves(step_sizes=(0.1,), steps=(1,)):
    given = (logits_fn, DATA, attack_at, step_sizes, steps)
    return evaluation.step_curves(*given, key=jax.random.key(0))


def test_draws_have_the_mean_loss_and_the_verdict_of_their_mean():
    """The classifier's logits, and the same turned around, twice as sure."""
    both = lambda z: jnp.stack([logits_fn(z), -2 * logits_fn(z)])
    given = (jnp.asarray(X[:2]), jnp.asarray(Y[:2]))
    options = dict(key=jax.random.key(1), radius=0.1, num=3)
    found = evaluation.loss_surface(both, *given, **options)

    def loss(z, fun):
        one = np.asarray(fun(z), np.float64)
        return np.log(np.exp(one).sum(axis=1)) - one[np.arange(2), Y[:2]]

    own = (loss(X[:2], logits_fn) + loss(X[:2], lambda z: -2 * logits_fn(z))) / 2
    np.testing.assert_allclose(found.loss[:, 1, 1], own, rtol=1e-4)
    chances = np.mean([jax.nn.softmax(draw) for draw in both(X[:2])], axis=0)
    np.testing.assert_array_equal(
        found.broken[:, 1, 1], chances.argmax(axis=1) != Y[:2]
    )
    health = evaluation.gradient_health(both, *given)
    one = evaluation.gradient_health(lambda z: both(z)[0], *given)
    assert health.largest.shape == one.largest.shape == (2,)
    assert np.isfinite(health.largest).all()


@pytest.mark.parametrize("label", [0, 1])
def test_nan_among_logits_is_broken_whatever_the_label(label):
    nan = lambda z: jnp.full((len(z), 3), jnp.nan) + 0 * logits_fn(z)
    given = (jnp.asarray(X[:2]), jnp.full(2, label))
    options = dict(key=jax.random.key(1), radius=0.1, num=3)
    assert evaluation.loss_surface(nan, *given, **options).broken.all()
