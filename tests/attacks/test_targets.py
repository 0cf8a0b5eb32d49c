"""The ranking of wrong classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import InputError
from robustjax.attacks._targets import ranked_class

LOGITS = np.random.default_rng(0).normal(size=(20, 5))


def test_every_wrong_class_once_and_the_plain_ranking_where_the_label_leads():
    y = np.arange(20) % 5
    ranked = jax.vmap(lambda r: ranked_class(jnp.float32(LOGITS), jnp.asarray(y), r))
    found = np.asarray(ranked(jnp.arange(2, 6)))  # a traced rank
    for i, label in enumerate(y):
        order = [k for k in np.argsort(-LOGITS[i]) if k != label]
        assert found[:, i].tolist() == order
    first = LOGITS.argmax(1)
    plain = ranked_class(jnp.float32(LOGITS), jnp.asarray(first), 3)
    np.testing.assert_array_equal(plain, np.argsort(-LOGITS, axis=1)[:, 2])


def test_infinite_and_equal_logits_never_give_the_label():
    logits = jnp.array([[-jnp.inf, -jnp.inf, 0.0], [1.0, 1.0, 1.0]])
    y = jnp.array([0, 1])
    for rank in (2, 3, 9):
        ranked = jax.jit(lambda logits, y, rank=rank: ranked_class(logits, y, rank))
        assert (ranked(logits, y) != y).all()


def test_samples_rank_by_mean_probability_and_ranks_may_differ_per_image():
    samples = jnp.array([[[9.0, 0.0, 0.0]], [[0.0, 0.0, 1.0]], [[0.0, 0.0, 1.0]]])
    samples = jnp.tile(samples, (1, 2, 1))
    found = ranked_class(samples, jnp.array([0, 0]), jnp.array([2, 3]))
    assert found.tolist() == [2, 1]


@pytest.mark.parametrize(
    ("logits", "y", "rank", "message"),
    [
        (np.zeros((1, 3)), np.array([0]), 1, "`rank` must be at least 2.* got 1"),
        (np.zeros((1, 1)), np.array([0]), 2, "at least 2 classes, got 1"),
        (np.zeros((1, 3)), np.eye(3)[:1], 2, r"`y` .* got shape \(1, 3\)"),
    ],
)
def test_errors(logits, y, rank, message):
    with pytest.raises(InputError, match=message):
        ranked_class(jnp.float32(logits), jnp.asarray(y), rank)
