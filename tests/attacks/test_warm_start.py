"""Warm starts, drift, penalties of pairs, joint surrogates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from robustjax import InputError, attacks, objectives, pairing, threats
from robustjax.attacks import PairingPenalty, WithPenalty
from robustjax.types import ModelOutput

X = jax.random.uniform(jax.random.key(0), (5, 4, 4, 1))
WEIGHTS = jax.random.normal(jax.random.key(1), (16, 3))
LINF = threats.linf(0.1)


def logits_fn(z):
    return jnp.tanh(z.reshape(len(z), -1) @ WEIGHTS)


Y = logits_fn(X).argmax(axis=1)


def pgd_from(start):
    return attacks.pgd(LINF, step_size=0.02, num_steps=6, random_start=start)


def test_an_attack_goes_on_from_anothers_result():
    first = attacks.grey(LINF)
    attack = attacks.warm_start(first, pgd_from)
    found = jax.jit(lambda k: attack(k, logits_fn, X, Y))(jax.random.key(2))
    begun = first(jax.random.key(2), logits_fn, X, Y)
    expected = pgd_from(lambda key, x: begun)(jax.random.key(3), logits_fn, X, Y)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert float(jnp.abs(found - X).max()) <= 0.1 + 1e-6


def test_a_warm_start_lets_no_gradient_through_and_keeps_images_apart():
    attack = attacks.warm_start(
        attacks.drift(LINF, step_size=0.05, num_steps=2), pgd_from
    )
    keys = jax.random.split(jax.random.key(4), 5)
    whole = attack(jax.random.clone(keys), logits_fn, X, Y)
    part = attack(jax.random.clone(keys)[1:3], logits_fn, X[1:3], Y[1:3])
    np.testing.assert_allclose(part, whole[1:3], atol=1e-6)
    total = lambda w: attack(jax.random.key(5), lambda z: w * logits_fn(z), X, Y).sum()
    assert jax.grad(total)(2.0) == 0


def test_drift_leaves_the_clean_logits_behind():
    start = threats.linf(0.01).sample
    attack = attacks.drift(LINF, step_size=0.02, num_steps=10, random_start=start)
    x_adv = attack(jax.random.key(6), logits_fn, X, Y)
    off = lambda z: jnp.square(logits_fn(z) - logits_fn(X)).sum(axis=1)
    noise = attacks.sign_noise(LINF)(jax.random.key(7), logits_fn, X, Y)
    assert (off(x_adv) > off(noise)).all()
    other = attack(jax.random.key(6), logits_fn, X, (Y + 1) % 3)
    np.testing.assert_array_equal(x_adv, other)  # whatever the label
    with pytest.raises(InputError, match="`step_size`"):
        attacks.drift(LINF, step_size=0.0, num_steps=2)


def model_fn(x, *, capture=(), taps=None):
    del taps
    a = jnp.concatenate([jnp.sin(3 * x), x**2], axis=3)
    return ModelOutput(logits_fn(x), dict.fromkeys(capture, a), {})


@pytest.mark.parametrize(
    ("attention", "logits"), [(2.0, 0.0), (-1.0, 0.5), (0.0, -3.0)]
)
def test_a_penalty_of_pairs_is_climbed_with_the_objective(attention, logits):
    penalty = Partial(PairingPenalty(attention, logits, ("a",)), Partial(model_fn))
    attack = attacks.penalised(
        attacks.bim(
            LINF, step_size=0.05, num_steps=1, objective=WithPenalty(objectives.margin)
        ),
        penalty,
    )
    moved = jnp.clip(X + 0.01, 0, 1)  # at x itself no distance has a derivative

    def whole(z):
        one, other = (model_fn(v, capture=("a",)).features for v in (X, z))
        maps = pairing.attention_distance(one, other)
        square = jnp.square(logits_fn(z) - logits_fn(X)).sum(axis=1)
        margins = objectives.margin(logits_fn(z), Y)
        return margins + attention * maps + logits * square

    found = penalty(X, moved, logits_fn(X), logits_fn(moved))
    expected = whole(moved) - objectives.margin(logits_fn(moved), Y)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)
    x_adv = attack(jax.random.key(0), logits_fn, X, Y)
    slope = jax.grad(lambda z: whole(z).sum())(X)
    np.testing.assert_allclose(
        x_adv, jnp.clip(X + 0.05 * jnp.sign(slope), 0, 1), atol=1e-6
    )


def test_a_penalty_of_maps_needs_layers():
    with pytest.raises(InputError, match="set evaluation"):
        PairingPenalty(attention=1.0)


def test_several_models_are_attacked_jointly():
    sources = [logits_fn, lambda z: 2 - logits_fn(z), lambda z: 3 * logits_fn(z)]
    np.testing.assert_allclose(
        attacks.ensemble(sources)(X), (3 * logits_fn(X) + 2) / 3, atol=1e-6
    )
    with pytest.raises(InputError, match="at least one"):
        attacks.ensemble([])
    with pytest.raises(InputError, match="classes"):
        attacks.ensemble([logits_fn, lambda z: logits_fn(z)[:, :2]])(X)


def test_one_key_is_that_of_each_image_folded_with_its_place():
    start = attacks.uniform_noise(LINF)
    attack = attacks.warm_start(start, pgd_from, jitter=attacks.around(LINF, 0.5))
    key = jax.random.key(8)
    each = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.clone(key), jnp.arange(5))
    one, other = (attack(k, logits_fn, X, Y) for k in (key, each))
    np.testing.assert_array_equal(one, other)
