"""What is the nnx adapter's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from robustjax import InputError
from robustjax.models import _nnx_hooks, from_nnx

X = jax.random.uniform(jax.random.key(0), (4, 5))


class Net(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(5, 5, rngs=rngs) for _ in range(2)])
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(self.dropout(x))


class Shared(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.Linear(5, 5, rngs=rngs)
        self.unused = nnx.Linear(5, 5, rngs=rngs)

    def __call__(self, x):
        return self.layer(self.layer(x))


class Remat(nnx.Module):
    def __init__(self, rngs):
        self.inner = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        return nnx.remat(lambda inner, x: inner(x))(self.inner, x)


def test_equals_the_module_called_by_hand():
    module = Net(nnx.Rngs(0))
    model = from_nnx(module)
    params, state = model.init(jax.random.key(0), X)
    module.eval()
    np.testing.assert_allclose(
        model.apply(params, state, X).logits, module(X), atol=1e-6
    )


def test_the_users_module_never_changes():
    module = Net(nnx.Rngs(0))
    before = jax.tree.leaves(nnx.state(module, nnx.Param))
    model = from_nnx(module)
    params, state = model.init(jax.random.key(0), X)
    run = jax.jit(
        lambda p, s: model.apply(p, s, X, mode="train", capture=("layers/0",))
    )
    run(params, state)
    assert type(module.layers[0]) is nnx.Linear
    assert int(module.dropout.rngs.count[...]) == 0
    # `init` hands out copies, so donating them cannot delete the module's arrays.
    jax.tree.map(lambda leaf: leaf.delete(), params)
    assert not any(leaf.is_deleted() for leaf in before)


def test_hooks_leave_no_trace():
    module = Net(nnx.Rngs(0))
    graphdef, _ = nnx.split(module)
    with _nnx_hooks.hooked(module, ("layers/1",), {"head": jnp.ones((1, 3))}) as seen:
        module(X)
    assert seen["layers/1"][0].shape == (4, 5)
    assert nnx.split(module)[0] == graphdef
    assert not _nnx_hooks._HOOKS.get()
    with pytest.raises(ZeroDivisionError), _nnx_hooks.hooked(module, ("head",), {}):
        raise ZeroDivisionError
    assert nnx.split(module)[0] == graphdef


def test_random_streams_with_and_without_a_key():
    model = from_nnx(Net)
    params, state = model.init(jax.random.key(0), X)
    keyed = model.apply(params, state, X, mode="train", key=jax.random.key(7))
    assert jax.tree.all(jax.tree.map(same, keyed.model_state, state))
    first = model.apply(params, state, X, mode="train")
    count = lambda tree: int(tree["dropout"]["rngs"]["count"])
    assert count(first.model_state) == count(state) + 1
    second = model.apply(params, first.model_state, X, mode="train")
    assert np.abs(first.logits - second.logits).max() > 1e-3
    later = model.apply(
        params, first.model_state, X, mode="train", key=jax.random.key(7)
    )
    np.testing.assert_array_equal(keyed.logits, later.logits)


def same(a, b):
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    return bool((a == b).all())


def test_layers_out_of_reach_are_named():
    shared = from_nnx(Shared)
    params, state = shared.init(jax.random.key(0), X)
    with pytest.raises(InputError, match="calls 2 times"):
        shared.apply(params, state, X, capture=("layer",))
    with pytest.raises(InputError, match=r"names 'unused'.*Layers: layer"):
        shared.apply(params, state, X, capture=("unused",))
    remat = from_nnx(Remat)
    params, state = remat.init(jax.random.key(0), X)
    with pytest.raises(InputError, match="`taps` names 'inner'"):
        remat.apply(params, state, X, taps={"inner": jnp.ones((1, 3))})


def test_init_works_under_jit_and_follows_the_key():
    model = from_nnx(Net)
    init = jax.jit(model.init)
    one, _ = init(jax.random.key(0), X)
    two, _ = init(jax.random.key(1), X)
    assert np.abs(one["head"]["kernel"] - two["head"]["kernel"]).max() > 1e-3
