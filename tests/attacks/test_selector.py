"""The attack on a choice, the smallest PGD, and the way to another image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import InputError, attacks, threats
from robustjax.attacks.selector import (
    Candidates,
    chosen,
    pack_candidates,
    unpack_candidates,
)

KEY = jax.random.key(0)


def test_what_is_packed_comes_back():
    scores = jax.random.normal(jax.random.key(0), (4, 3))
    logits = jax.random.normal(jax.random.key(1), (4, 3, 3))
    found = unpack_candidates(pack_candidates(Candidates(scores, logits)))
    np.testing.assert_array_equal(found.scores, scores)
    np.testing.assert_array_equal(found.logits, logits)
    best = np.argmax(scores, axis=1)
    np.testing.assert_array_equal(chosen(found), logits[np.arange(4), best])


def linear(seed=0, features=6, classes=3):
    """Scores and logits that are linear in the image, their matrices beside."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(features, classes)).astype(np.float32)
    logits = rng.normal(size=(features, classes, classes)).astype(np.float32)

    def fun(x):
        return pack_candidates(
            Candidates(x @ scores, jnp.einsum("bi,ick->bck", x, logits))
        )

    return fun, scores, logits


@pytest.mark.parametrize("weight", [0.5, 10.0])
def test_one_step_is_the_sign_of_the_lead_towards_some_wrong_class(weight):
    fun, scores, logits = linear()
    x = jnp.full((8, 6), 0.5) + 0.1 * jax.random.normal(jax.random.key(2), (8, 6))
    y = jnp.arange(8) % 3
    attack = attacks.selector(
        threats.linf(0.1),
        step_size=0.1,
        num_steps=1,
        weight=weight,
        random_start=None,
    )
    got = np.asarray(attack(jax.random.key(0), fun, x, y))
    for image, label, moved in zip(np.asarray(x), np.asarray(y), got, strict=True):
        answer = lambda z: int(
            np.einsum("i,ick->ck", z, logits)[np.argmax(z @ scores)].argmax()
        )
        reached = {}
        for t in set(range(3)) - {int(label)}:
            lead = weight * (scores[:, t] - scores[:, label])
            lead = lead + logits[:, t, t] - logits[:, t, label]
            z = np.clip(image + 0.1 * np.sign(lead), 0, 1)
            reached[t] = z
        found = [image, *reached.values()]  # the first iterate counts too
        assert any(np.allclose(moved, z, atol=1e-6) for z in found)
        if any(answer(z) != label for z in found):
            assert answer(moved) != label
        else:
            assert not np.allclose(moved, image)


def test_targets_side_by_side_are_targets_in_turn():
    fun, _, _ = linear(1)
    x = jax.random.uniform(jax.random.key(3), (5, 6))
    y = jnp.zeros(5, int)

    def run(**options):
        attack = attacks.selector(
            threats.linf(0.2), step_size=0.05, num_steps=3, **options
        )
        return jax.jit(attack, static_argnums=1)(jax.random.key(0), fun, x, y)

    np.testing.assert_allclose(run(at_once=1), run(), atol=1e-6)
    assert jnp.abs(run(num_targets=1) - run()).max() >= 0


def test_a_classifier_is_no_defense_that_chooses():
    x, y = jnp.full((2, 3), 0.5), jnp.zeros(2, int)
    attack = attacks.selector(threats.linf(0.1), step_size=0.1, num_steps=1)
    with pytest.raises(InputError, match=r"\[B, K \+ K\^2\].*candidates.*\(2, 3\)"):
        attack(KEY, lambda z: z, x, y)
    with pytest.raises(InputError, match=r"`logits` must be \[B, K, K\]"):
        pack_candidates(Candidates(jnp.zeros((2, 3)), jnp.zeros((2, 3, 4))))
    with pytest.raises(InputError, match="`weight`"):
        attacks.selector(threats.linf(0.1), step_size=0.1, num_steps=1, weight=-1.0)


def test_the_smallest_radius_of_a_linear_model_is_its_distance():
    rng = np.random.default_rng(4)
    w, x = rng.normal(size=(6, 2)), rng.uniform(0.4, 0.6, size=(9, 6))
    slope = w[:, 1] - w[:, 0]
    y = ((x - 0.5) @ slope > 0).astype(int)
    exact = np.abs((x - 0.5) @ slope) / np.abs(slope).sum()
    weights = jnp.asarray(w, jnp.float32)
    logits_fn = lambda z: (z - 0.5) @ weights
    attack = attacks.pgd_minimal(threats.linf(0.4), num_steps=3, search_steps=12)
    images = jnp.asarray(x, jnp.float32)
    got = jax.jit(attack, static_argnums=1)(
        jax.random.key(0), logits_fn, images, jnp.asarray(y)
    )
    distance = np.abs(got - images).max(axis=1)
    np.testing.assert_allclose(distance, exact, atol=0.4 / 2**11, rtol=1e-3)
    assert (logits_fn(got).argmax(axis=1) != y).all()


def test_what_the_largest_radius_does_not_break_stays():
    attack = attacks.pgd_minimal(threats.linf(0.05))
    x, y = jnp.array([[0.9, 0.1], [0.52, 0.5]]), jnp.array([0, 0])
    got = attack(jax.random.key(0), lambda z: z, x, y)
    np.testing.assert_array_equal(got[0], x[0])
    assert float(got[1, 0]) < float(got[1, 1])
    with pytest.raises(InputError, match="`eps` must be finite"):
        attacks.pgd_minimal(threats.l2(float("inf")))


def test_the_nearest_other_image_that_is_another_to_the_model():
    images = jnp.array([[0.4, 0.6], [0.0, 1.0], [0.8, 0.2]])
    labels = jnp.array([1, 1, 1])  # the model calls the last one 0
    x, y = jnp.array([[0.7, 0.3], [0.2, 0.8]]), jnp.array([0, 1])
    got = attacks.towards_other(images, labels)(jax.random.key(0), lambda z: z, x, y)
    np.testing.assert_allclose(got[0], [0.5, 0.5], atol=1e-3)
    np.testing.assert_array_equal(got[1], x[1])  # there is no image of class 0
    with pytest.raises(InputError, match="`images` must have the shape"):
        attacks.towards_other(images, labels)(
            jax.random.key(0), lambda z: z, jnp.zeros((1, 3)), jnp.array([0])
        )
