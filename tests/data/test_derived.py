"""Images computed once, and unions of data sets."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import InputError
from robustjax.data import Dataset, joined, mapped

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
IMAGES = RNG.integers(0, 256, (7, 4, 4, 1)).astype(np.uint8)
SEVEN = Dataset(IMAGES, np.arange(7, dtype=np.int32) % 2, np.arange(10, 17), ("a", "b"))


def noise(keys, x, y):
    drawn = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys)
    return x + 0.1 * drawn


def test_every_image_is_mapped_by_its_own_key():
    whole = mapped(SEVEN, noise, key=jax.random.key(0), batch_size=3)
    assert whole.images.dtype == np.uint8
    np.testing.assert_array_equal(whole.labels, SEVEN.labels)
    keys = [jax.random.fold_in(jax.random.key(0), i) for i in range(10, 17)]
    drawn = np.stack([jax.random.normal(key, (4, 4, 1)) for key in keys])
    expected = np.round(255 * np.clip(IMAGES / 255 + 0.1 * drawn, 0, 1))
    assert np.abs(whole.images - expected).max() <= 1
    part = mapped(SEVEN.take([5, 2]), noise, key=jax.random.key(0))
    np.testing.assert_array_equal(part.images, whole.images[[5, 2]])


def test_floats_stay_floats_and_labels_are_seen():
    floats = dataclasses.replace(SEVEN, images=np.float32(IMAGES / 255))
    result = mapped(floats, lambda k, x, y: 0 * x + y[:, None, None, None], key=KEY)
    assert result.images.dtype == np.float32
    np.testing.assert_array_equal(result.images[:, 0, 0, 0], SEVEN.labels)
    with pytest.raises(InputError, match="`result`"):
        mapped(floats, lambda k, x, y: jnp.ones((7, 2, 2, 1)), key=jax.random.key(0))


def test_unions_keep_order_and_refuse_what_differs():
    both = joined(SEVEN, SEVEN.take([3, 1]))
    np.testing.assert_array_equal(both.index[-3:], [16, 13, 11])
    assert (len(both), both.num_classes) == (9, 2)
    other = dataclasses.replace(SEVEN, class_names=("a", "b", "c"))
    with pytest.raises(InputError, match="same images and classes"):
        joined(SEVEN, other)
    with pytest.raises(InputError, match="at least one"):
        joined()
