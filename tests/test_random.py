import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import InputError, _random


def words(keys):
    return np.asarray(jax.random.key_data(keys))


def test_a_scalar_key_is_folded_with_the_position():
    keys = _random.per_image_keys(jax.random.key(3), 4)
    longer = _random.per_image_keys(jax.random.key(3), 9)
    assert len(np.unique(words(longer), axis=0)) == 9
    np.testing.assert_array_equal(words(keys), words(longer)[:4])
    third = jax.random.fold_in(jax.random.key(3), 2)
    np.testing.assert_array_equal(words(keys)[2], words(third))


def test_keys_per_image_pass_through():
    given = jax.random.split(jax.random.key(0), 3)
    kept = _random.per_image_keys(given, 3)
    np.testing.assert_array_equal(words(kept), words(given))


def test_fold_in_is_per_key():
    keys = jax.random.split(jax.random.key(0), 3)
    folded = _random.fold_in(keys, 7)
    one = _random.fold_in(keys[1], jnp.int32(7))
    np.testing.assert_array_equal(words(folded)[1], words(one))
    assert not np.array_equal(words(folded), words(keys))


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (jnp.uint32([0, 1]), "typed key.* got uint32"),
        (7, "typed key.* got int"),
        (jax.random.split(jax.random.key(0), 3), r"\[4\], got shape \(3,\)"),
        (jax.random.split(jax.random.key(0), (4, 1)), r"\[4\], got shape \(4, 1\)"),
    ],
)
def test_errors(key, message):
    with pytest.raises(InputError, match=message):
        _random.per_image_keys(key, 4)
