import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import _random, attacks, objectives, threats

WEIGHTS = jax.random.normal(jax.random.key(0), (6, 8))
HEAD = jax.random.normal(jax.random.key(1), (8, 4))
X = jax.random.uniform(jax.random.key(2), (16, 6))
Y = jnp.arange(16) % 4

pytestmark = pytest.mark.usefixtures("compile_quickly")


def logits_fn(x):
    return jnp.sin(6 * (x @ WEIGHTS)) @ HEAD


@pytest.mark.parametrize("objective", [objectives.cross_entropy, objectives.margin])
def test_restarts_keep_the_worst_of_a_python_loop(objective):
    once = attacks.pgd(threats.l2(0.2), step_size=0.05, num_steps=2)
    attack = attacks.restarts(once, 5, objective=objective)
    x_adv = jax.jit(lambda k: attack(k, logits_fn, X, Y))(jax.random.key(3))
    keys = _random.per_image_keys(jax.random.key(3), 16)
    run = jax.jit(lambda k, i: once(_random.fold_in(k, i), logits_fn, X, Y))
    points = np.stack([run(jax.random.clone(keys), i) for i in range(5)])
    chosen = []
    for image in range(16):
        logits = logits_fn(jnp.asarray(points[:, image]))
        label = jnp.full(5, Y[image])
        wrong = np.asarray(logits.argmax(1) != label)
        value = np.asarray(objective(logits, label))
        chosen.append(max(range(5), key=lambda r: (wrong[r], value[r])))
    expected = points[chosen, np.arange(16)]
    np.testing.assert_allclose(x_adv, expected, atol=1e-5)
    assert len(set(chosen)) > 1


def test_misclassified_comes_before_a_larger_loss():
    def attack(key, logits_fn, x, y):
        return jax.random.randint(key[0], x.shape, 0, 2).astype(x.dtype)

    # 0: right, with cross-entropy log 3; 1: wrong, with the smaller log 2 + 0.05.
    table = jnp.log(jnp.array([[0.334, 0.333, 0.333], [0.475, 0.525, 1e-9]]))
    x_adv = attacks.restarts(attack, 16)(
        jax.random.key(0),
        lambda x: table[x[:, 0].astype(int)],
        jnp.zeros((1, 1)),
        jnp.array([0]),
    )
    np.testing.assert_array_equal(x_adv, [[1.0]])


def test_one_restart_is_the_attack():
    once = attacks.pgd(threats.linf(0.1), step_size=0.05, num_steps=2)
    keys = _random.per_image_keys(jax.random.key(3), 16)
    alone = once(_random.fold_in(jax.random.clone(keys), 0), logits_fn, X, Y)
    wrapped = attacks.restarts(once, 1)(keys, logits_fn, X, Y)
    np.testing.assert_allclose(wrapped, alone, atol=1e-6)


def test_nan_logits_count_as_broken():
    def attack(key, logits_fn, x, y):
        return jax.random.randint(key[0], x.shape, 0, 2).astype(x.dtype)

    def fragile(x):
        return jnp.where(x > 0.5, jnp.nan, 1.0) * jnp.array([[2.0, 1.0]])

    x_adv = attacks.restarts(attack, 16)(
        jax.random.key(0), fragile, jnp.zeros((1, 1)), jnp.array([0])
    )
    np.testing.assert_array_equal(x_adv, [[1.0]])
