import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import InputError, models

X = jax.random.uniform(jax.random.key(0), (2, 8, 8, 1))


def build():
    model = models.from_linen(models.small_cnn(stages=((4,),), dense=8))
    return model, model.init(jax.random.key(0), X), model.init(jax.random.key(1), X)


def test_weights_are_arguments_and_share_one_trace():
    chex.clear_trace_counter()
    model, one, two = build()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(logits_fn, x):
        return logits_fn(x)

    for weights in (one, two):
        f = models.logits_fn(model, *weights)
        expected = model.apply(*weights, X).logits
        np.testing.assert_allclose(run(f, X), expected, atol=1e-5)
        assert len(jax.tree.leaves(f)) == len(jax.tree.leaves(weights))
    jaxpr = jax.make_jaxpr(lambda f, x: f(x))(models.logits_fn(model, *one), X)
    assert not jaxpr.consts


def test_modes_are_told_apart():
    model, one, _ = build()
    trees = [
        jax.tree.structure(models.logits_fn(model, *one, mode=mode))
        for mode in ("eval", "batch", "eval")
    ]
    assert trees[0] == trees[2] != trees[1]
    with pytest.raises(InputError, match="`mode`"):
        models.logits_fn(model, *one, mode="test")


def test_model_fn_looks_inside():
    chex.clear_trace_counter()
    model, one, two = build()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(f, x, tap):
        return f(x, capture=("features",), taps={"features": tap})

    for weights in (one, two):
        out = run(models.model_fn(model, *weights), X, jnp.ones((2, 8)))
        plain = model.apply(*weights, X, capture=("features",))
        np.testing.assert_allclose(
            out.features["features"], plain.features["features"] + 1, atol=1e-5
        )
