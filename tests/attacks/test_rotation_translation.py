"""Rotations and translations on a grid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import InputError
from robustjax.attacks.rotation_translation import moved, rotation_translation

KEYS = jax.random.split(jax.random.key(0))
X = jax.random.uniform(KEYS[0], (5, 6, 7, 2))
WEIGHTS = jax.random.normal(KEYS[1], (84, 3))


def logits_fn(x):
    return x.reshape(x.shape[0], -1) @ WEIGHTS


Y = logits_fn(X).argmax(1)


def run(attack, model=logits_fn, y=Y):
    return np.asarray(jax.jit(lambda k: attack(k, model, X, y))(jax.random.key(0)))


def test_no_motion_is_the_identity():
    np.testing.assert_array_equal(moved(X, 0.0, 0.0, 0.0), X)


def test_a_translation_is_an_array_shift():
    read = np.asarray(moved(X, 0.0, 2.0, -1.0))
    np.testing.assert_array_equal(read[:, 2:, :6], X[:, :4, 1:])
    assert not read[:, :2].any()
    assert not read[:, :, 6].any()
    half = np.asarray(moved(X, 0.0, 0.5, 0.0))
    np.testing.assert_allclose(half[:, 1:], (X[:, 1:] + X[:, :-1]) / 2, atol=1e-6)


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_quarter_turns_are_those_of_numpy(quarters):
    square = X[:, :, :6]
    read = moved(square, 90.0 * quarters, 0.0, 0.0)
    np.testing.assert_allclose(read, np.rot90(square, quarters, axes=(1, 2)), atol=1e-5)


def test_it_turns_first_and_moves_then():
    square = X[:, :, :6]
    read = np.asarray(moved(square, 90.0, 1.0, 0.0))
    turned = np.rot90(square, axes=(1, 2))
    np.testing.assert_allclose(read[:, 1:], turned[:, :-1], atol=1e-5)


def test_the_worst_of_the_grid_is_returned():
    x_adv = run(rotation_translation(max_shift=1.0, num_angles=3, num_shifts=2))
    candidates = [np.asarray(X)] + [
        np.asarray(moved(X, d, i, j))
        for d in (-30.0, 0.0, 30.0)
        for i in (-1.0, 1.0)
        for j in (-1.0, 1.0)
    ]
    weights = np.asarray(WEIGHTS, np.float64)
    for n, label in enumerate(np.asarray(Y)):
        ranks = []
        for c in candidates:
            logits = c[n].ravel().astype(np.float64) @ weights
            loss = np.log(np.exp(logits - logits.max()).sum())
            loss += logits.max() - logits[label]
            ranks.append((logits.argmax() != label, loss))
        best = max(range(len(ranks)), key=ranks.__getitem__)
        np.testing.assert_allclose(x_adv[n], candidates[best][n], atol=1e-5)


def test_what_turns_and_moves_do_not_change_stays_right():
    constant = lambda x: jnp.stack([1 + 0 * x[:, 0, 0, 0], 0 * x[:, 0, 0, 0]], 1)
    attack = rotation_translation(max_shift=1.0, num_angles=3, num_shifts=3)
    x_adv = run(attack, constant, Y * 0)
    np.testing.assert_array_equal(x_adv, X)  # nothing is worse than x itself


def test_a_grid_of_one_point_is_the_identity():
    np.testing.assert_array_equal(
        run(rotation_translation(num_angles=1, num_shifts=1)), X
    )


def test_results_stay_in_range_and_may_be_mapped_over_angles():
    def at(degrees):
        attack = rotation_translation(
            max_degrees=degrees, max_shift=0.3, num_angles=2, num_shifts=1
        )
        return attack(jax.random.key(0), logits_fn, X, Y)

    mapped = jax.jit(jax.vmap(at))(jnp.array([0.0, 20.0]))
    np.testing.assert_array_equal(mapped[0], X)
    assert not np.array_equal(mapped[1], X)
    assert mapped.min() >= 0
    assert mapped.max() <= X.max()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_degrees": -1.0}, r"`max_degrees` .* got -1\.0"),
        ({"max_shift": -1.0}, r"`max_shift` .* got -1\.0"),
        ({"num_angles": 0}, "`num_angles` .* got 0"),
        ({"num_shifts": 2.0}, r"`num_shifts` .* got 2\.0"),
    ],
)
def test_errors(options, message):
    with pytest.raises(InputError, match=message):
        rotation_translation(**options)
