"""Universal perturbations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import InputError, attacks, objectives, threats
from robustjax.attacks.universal import (
    apply_perturbation,
    universal,
    universal_perturbation,
)

KEYS = jax.random.split(jax.random.key(0), 3)
X = jax.random.uniform(KEYS[0], (11, 6, 5, 1), minval=0.3, maxval=0.7)
HIDDEN = jax.random.normal(KEYS[1], (30, 8)) * 0.4
HEAD = jax.random.normal(KEYS[2], (8, 3))
THREATS = {
    "linf": threats.linf(0.1),
    "l2": threats.l2(0.5),
    "l1": threats.l1(2.0, sparsity=0.2),
}


def logits_fn(x):
    return jnp.tanh((x.reshape(x.shape[0], -1) - 0.5) @ HIDDEN) @ HEAD


Y = logits_fn(X).argmax(1)


def train(threat, x=X, y=Y, model=logits_fn, **options):
    options = {"num_epochs": 4, "batch_size": 4, "step_size": threat.eps / 4} | options
    return jax.jit(
        lambda k, x, y: universal_perturbation(k, model, x, y, threat=threat, **options)
    )(jax.random.key(1), x, y)


@pytest.mark.parametrize("name", THREATS)
def test_one_delta_in_the_ball_that_raises_the_loss(name):
    threat = THREATS[name]
    delta = train(threat)
    assert delta.shape == X.shape[1:]
    assert threat.norm(delta[None])[0] <= threat.eps + 1e-5
    attack = apply_perturbation(threat, delta)
    x_adv = attack(jax.random.key(0), logits_fn, X, Y)
    np.testing.assert_allclose(x_adv, np.clip(X + delta[None], 0, 1), atol=1e-6)
    loss = lambda x: objectives.cross_entropy(logits_fn(x), Y).mean()
    assert loss(x_adv) > loss(X)


def test_the_attack_trains_on_its_batch_and_adds_one_delta():
    threat = threats.linf(0.1)
    attack = universal(threat, num_steps=5, step_size=0.04)
    run = lambda x: jax.jit(lambda k: attack(k, logits_fn, x, Y))(jax.random.key(0))
    added = np.asarray(run(X) - X)
    np.testing.assert_allclose(
        added, np.broadcast_to(added[:1], added.shape), atol=1e-6
    )
    assert np.abs(added).max() <= 0.1 + 1e-6
    # In the box where the delta would leave it.
    edge = X.at[0].set(0.0).at[1].set(1.0)
    x_adv = run(edge)
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1


def test_on_one_image_it_is_bim():
    threat = threats.linf(0.1)
    options = {"num_steps": 4, "step_size": 0.03}
    pair = [
        jax.jit(lambda k, a=a: a(k, logits_fn, X[:1], Y[:1]))(jax.random.key(0))
        for a in (universal(threat, **options), attacks.bim(threat, **options))
    ]
    np.testing.assert_allclose(*pair, atol=1e-6)


def test_one_step_follows_the_mean_gradient():
    x, hidden, head = (np.asarray(a, np.float64) for a in (X, HIDDEN, HEAD))
    grads = []
    for image, label in zip(x, np.asarray(Y), strict=True):
        activity = np.tanh((image.ravel() - 0.5) @ hidden)
        scores = np.exp(activity @ head)
        wrong = scores / scores.sum()
        wrong[label] -= 1
        grads.append(hidden @ ((1 - activity**2) * (head @ wrong)))
    mean = np.mean(grads, axis=0).reshape(X.shape[1:])
    # The whole set at once: batches of 11, larger than what 100 asks for.
    delta = train(threats.l2(0.5), num_epochs=1, batch_size=100, step_size=0.3)
    np.testing.assert_allclose(delta, 0.3 * mean / np.linalg.norm(mean), atol=1e-5)


def test_every_image_counts_once_an_epoch():
    # The gradient of a linear objective counts images: 11 in batches of 4, 4, 3.
    objective = lambda logits, y: logits[:, 0]
    identity = lambda x: x.reshape(x.shape[0], -1)
    images = jnp.eye(11)[:, :, None, None] * 0.5 + 0.25
    threat = threats.l1(3.0, sparsity=11)
    # Where only one coordinate of one image is rewarded, its minibatch alone moves.
    marked = lambda z: identity(z)[:, :1] * (identity(z)[:, :1] > 0.5)
    delta = train(
        threat, images, Y, marked, objective=objective, num_epochs=3, step_size=0.1
    )
    # One step of length 0.1 along the only coordinate with a gradient, per epoch.
    np.testing.assert_allclose(delta[0, 0, 0], 0.3, atol=1e-5)
    np.testing.assert_allclose(delta[1:], 0, atol=1e-7)


def test_images_above_the_ceiling_do_not_count():
    delta = train(threats.linf(0.1), ceiling=-1.0)  # cross-entropy is above 0
    np.testing.assert_array_equal(delta, 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: universal(
                threats.linf(jnp.array([0.1, 0.2])), num_steps=1, step_size=0.1
            ),
            r"`threat\.eps` must be one radius .* \(2,\)",
        ),
        (
            lambda: universal(
                threats.linf(0.1)._replace(name="l0"), num_steps=1, step_size=0.1
            ),
            r"`threat\.name` .* 'l0'",
        ),
        (
            lambda: universal(threats.linf(0.1), num_steps=0, step_size=0.1),
            "`num_steps` .* got 0",
        ),
        (
            lambda: apply_perturbation(threats.linf(0.1), jnp.zeros((2, 2)))(
                jax.random.key(0), logits_fn, X, Y
            ),
            r"`delta` \(2, 2\), `image` \(6, 5, 1\)",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(InputError, match=message):
        call()
