"""Feature collision: which guides, and how near."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import InputError, threats
from robustjax.attacks._guides import nearest
from robustjax.attacks.feature_collision import (
    _of_runner_up,
    feature_collision,
)

KEYS = jax.random.split(jax.random.key(0), 4)
X = jax.random.uniform(KEYS[0], (4, 6, 5, 1), minval=0.3, maxval=0.7)
POOL = jax.random.uniform(KEYS[1], (8, 6, 5, 1))
FEATURES = jax.random.normal(KEYS[2], (30, 6)) * 0.3
HEAD = jax.random.normal(KEYS[3], (6, 3))


def features_fn(x):
    return jnp.tanh(x.reshape(x.shape[0], -1) @ FEATURES)


def logits_fn(x):
    return features_fn(x) @ HEAD


Y = logits_fn(X).argmax(1)
LABELS = jnp.arange(8) % 3


def run(attack, x=X, y=Y):
    return jax.jit(lambda k, x, y: attack(k, logits_fn, x, y))(jax.random.key(0), x, y)


def test_guides_are_the_nearest_of_other_classes():
    allowed = LABELS[None] != Y[:, None]
    ours = nearest(features_fn(X), features_fn(POOL), allowed, 3)
    features, pool = np.asarray(features_fn(X)), np.asarray(features_fn(POOL))
    for i in range(4):
        others = np.flatnonzero(np.asarray(LABELS) != int(Y[i]))
        distance = ((pool[others] - features[i]) ** 2).sum(1)
        np.testing.assert_array_equal(ours[i], others[np.argsort(distance)][:3])
    # Too few of other classes: the nearest stands in.
    few = jnp.array([0, 0, 0, 0, 0, 0, 0, 1])
    one = nearest(features_fn(X), features_fn(POOL), few[None] != 0 * Y[:, None], 3)
    np.testing.assert_array_equal(one, 7)


def test_guides_of_the_runner_up():
    order = np.argsort(-np.asarray(logits_fn(X)), axis=1)
    label = order[:, 0]
    others = LABELS[None] != label[:, None]
    allowed = _of_runner_up(logits_fn(X), jnp.asarray(label), LABELS, others)
    expected = np.asarray(LABELS)[None] == order[:, 1:2]
    np.testing.assert_array_equal(allowed, expected)
    # A misclassified image: what the classifier says now is the likeliest wrong class.
    wrong = jnp.asarray(order[:, 2])
    allowed = _of_runner_up(logits_fn(X), wrong, LABELS, LABELS[None] != wrong[:, None])
    np.testing.assert_array_equal(allowed, np.asarray(LABELS)[None] == order[:, :1])
    # Draws count by their mean; where no guide has the class, all others do.
    draws = jnp.stack([logits_fn(X), logits_fn(X)])
    few = jnp.where(order[0, 1] == LABELS, order[0, 2], LABELS)
    others = few[None] != label[:, None]
    allowed = _of_runner_up(draws, jnp.asarray(label), few, others)
    np.testing.assert_array_equal(allowed[0], others[0])
    options = dict(guides="runner_up", num_targets=2, num_steps=3, step_size=0.02)
    attack = feature_collision(threats.linf(0.05), features_fn, POOL, LABELS, **options)
    x_adv = run(attack)
    assert 0 < np.abs(x_adv - X).max() <= 0.05 + 1e-6


def test_in_a_large_ball_the_features_are_reached():
    # Of a linear map the features of a guide can be had exactly.
    attack = feature_collision(
        threats.l2(3.0),
        lambda x: x.reshape(x.shape[0], -1)[:, :4],
        POOL,
        LABELS,
        num_targets=1,
        num_steps=60,
        step_size=0.02,
    )
    x_adv = run(attack)
    flat = lambda x: np.asarray(x).reshape(x.shape[0], -1)[:, :4]
    gaps = np.abs(flat(x_adv)[:, None] - flat(POOL)[None]).max(-1).min(1)
    moved = (np.asarray(x_adv) != np.asarray(X)).any((1, 2, 3))
    assert moved.any()
    assert (gaps[moved] < 0.03).all()


def test_one_step_is_the_sign_of_the_pull():
    collide = feature_collision(
        threats.linf(0.1),
        features_fn,
        POOL,
        LABELS,
        num_targets=1,
        num_steps=1,
        step_size=0.1,
    )
    x_adv = np.asarray(run(collide), np.float64)
    weights = np.asarray(FEATURES, np.float64)
    others = LABELS[None] != Y[:, None]
    guides = nearest(features_fn(X), features_fn(POOL), others, 1)
    for i in range(4):
        clean = np.asarray(X[i], np.float64)
        activity = np.tanh(clean.ravel() @ weights)
        goal = np.asarray(features_fn(POOL), np.float64)[int(guides[i, 0])]
        pull = weights @ ((1 - activity**2) * (goal - activity))
        expected = clean + 0.1 * np.sign(pull).reshape(clean.shape)
        unchanged = np.array_equal(x_adv[i], clean)
        assert unchanged or np.allclose(x_adv[i], expected, atol=1e-6)
    assert (x_adv != np.asarray(X)).any()


def test_momentum_adds_up_unit_gradients():
    def weights(x):  # a linear map: the gradient by hand
        return x.reshape(x.shape[0], -1) @ FEATURES

    about = dict(num_targets=1, num_steps=4, step_size=0.03)
    attack = feature_collision(
        threats.linf(0.08), weights, POOL, LABELS, momentum=0.9, **about
    )
    found = run(attack, y=Y)
    plain = run(
        feature_collision(threats.linf(0.08), weights, POOL, LABELS, **about), y=Y
    )
    a, pool = np.asarray(FEATURES, np.float64), np.asarray(POOL).reshape(8, -1)
    for image in range(4):
        x = np.asarray(X[image], np.float64).reshape(-1)
        others = np.flatnonzero(np.asarray(LABELS) != int(Y[image]))
        distances = (((pool[others] - x) @ a) ** 2).sum(axis=1)
        goal = pool[others[distances.argmin()]] @ a
        z, total = x, np.zeros_like(x)
        for _ in range(4):
            slope = -2 * (z @ a - goal) @ a.T
            total = 0.9 * total + slope / np.abs(slope).sum()
            z = np.clip(np.clip(z + 0.03 * np.sign(total), x - 0.08, x + 0.08), 0, 1)
        if (found[image] != X[image]).any():  # else x itself was the better candidate
            np.testing.assert_allclose(found[image].reshape(-1), z, atol=1e-5)
    assert (np.abs(found - plain) > 1e-3).any()


def test_more_guides_are_no_weaker_and_the_ball_holds():
    def loss(count):
        attack = feature_collision(
            threats.linf(0.1),
            features_fn,
            POOL,
            LABELS,
            num_targets=count,
            num_steps=8,
            step_size=0.03,
        )
        x_adv = run(attack)
        assert np.abs(x_adv - X).max() <= 0.1 + 1e-6
        logits = logits_fn(x_adv)
        wrong = np.asarray(logits.argmax(1) != Y)
        return wrong, -np.asarray(jax.nn.log_softmax(logits)[jnp.arange(4), Y])

    (wrong_one, loss_one), (wrong_many, loss_many) = loss(1), loss(5)
    assert (wrong_many >= wrong_one).all()
    same = wrong_one == wrong_many
    assert (loss_many >= loss_one - 1e-5)[same].all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_targets": 9}, "`num_targets` .* 8, got 9"),
        ({"num_steps": 0}, "`num_steps` .* got 0"),
        ({"step_size": 0.0}, r"`step_size` .* got 0\.0"),
        ({"labels": jnp.zeros(8, jnp.int32)}, "`labels` .* two classes"),
        ({"labels": jnp.arange(7)}, r"`labels` \(7,\)"),
        ({"images": POOL.astype(int)}, "`images` .* 255"),
    ],
)
def test_errors(change, message):
    options = {"images": POOL, "labels": LABELS, "step_size": 0.1, "num_targets": 2}
    options |= change
    images, labels = options.pop("images"), options.pop("labels")
    with pytest.raises(InputError, match=message):
        feature_collision(threats.linf(0.1), features_fn, images, labels, **options)


def test_guides_must_look_like_the_images():
    attack = feature_collision(
        threats.linf(0.1), features_fn, POOL[:, :3], LABELS, step_size=0.1,
        num_targets=2,
    )  # fmt: skip
    with pytest.raises(InputError, match=r"`images` \(3, 5, 1\), `x` \(6, 5, 1\)"):
        run(attack)
