"""One suite for both adapters, over modules of ours and of flax alone."""

import dataclasses

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from robustjax import InputError
from robustjax.models import from_linen, from_nnx
from robustjax.types import Model

X = jax.random.uniform(jax.random.key(0), (4, 6, 6, 2))


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(4, (3, 3), name="conv")(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x)
        return nn.Dropout(0.5, deterministic=not train)(nn.relu(x))


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        for index in range(2):
            x = LinenBlock(name=f"block{index}")(x, train)
        return nn.Dense(3, name="head")(x.mean((1, 2)))


class NnxBlock(nnx.Module):
    def __init__(self, width, rngs):
        self.conv = nnx.Conv(width, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(nnx.relu(self.norm(self.conv(x))))


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List([NnxBlock(2, rngs), NnxBlock(4, rngs)])
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


def pool(x):
    return x.mean((1, 2))


def stock_linen():
    return nn.Sequential([nn.Conv(4, (3, 3)), nn.relu, pool, nn.Dense(3)])


def stock_nnx(rngs):
    return nnx.Sequential(
        nnx.Conv(2, 4, (3, 3), rngs=rngs), nnx.relu, pool, nnx.Linear(4, 3, rngs=rngs)
    )


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    model: Model
    layer: str
    head: str
    random: bool
    norm: str | None = None


CASES = (
    Case("linen", from_linen(LinenNet()), "block1/conv", "head", True, "block0"),
    Case("nnx", from_nnx(NnxNet), "blocks/1/conv", "head", True, "blocks/0"),
    Case(
        "nnx-instance",
        from_nnx(NnxNet(nnx.Rngs(1))),
        "blocks/1",
        "head",
        True,
        "blocks/0",
    ),
    Case(
        "stock-linen",
        from_linen(stock_linen(), call_kwargs=lambda mode: {}),
        "layers_0",
        "layers_3",
        False,
    ),
    Case("stock-nnx", from_nnx(stock_nnx), "layers/0", "layers/3", False),
)
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
random_cases = pytest.mark.parametrize(
    "case", [c for c in CASES if c.random], ids=lambda case: case.name
)


def weights(case):
    return case.model.init(jax.random.key(3), X)


def numbers(tree):
    """Typed keys, which nnx keeps among its variables, as their words."""
    is_key = lambda a: jnp.issubdtype(a.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda a: jax.random.key_data(a) if is_key(a) else a, tree)


def at(tree, path):
    for part in path.split("/"):
        tree = tree[part]
    return tree


@every_case
@pytest.mark.parametrize("mode", ["train", "batch", "eval"])
def test_jit_equals_eager_and_traces_once(case, mode):
    # chex counts by the function's name, across parameters.
    chex.clear_trace_counter()
    params, state = weights(case)

    def apply(params, state, x, key):
        return case.model.apply(
            params, state, x, mode=mode, capture=(case.layer,), key=key
        )

    run = jax.jit(chex.assert_max_traces(apply, n=1))
    for seed in range(3):
        out = run(params, state, X + 0.1 * seed, jax.random.key(seed))
    eager = apply(params, state, X + 0.2, jax.random.key(2))
    chex.assert_trees_all_close(numbers(out), numbers(eager), atol=1e-5)
    assert out.logits.shape == (4, 3)
    assert out.logits.dtype == jnp.float32
    chex.assert_trees_all_equal_structs(out.model_state, state)


@every_case
def test_weights_are_nested_dicts_with_string_keys(case):
    for tree in weights(case):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            assert all(isinstance(entry.key, str) for entry in path)
            assert isinstance(leaf, jax.Array)


@every_case
def test_only_train_mode_returns_new_statistics(case):
    params, state = weights(case)
    key = jax.random.key(1)
    for mode in ("batch", "eval"):
        out = case.model.apply(params, state, X, mode=mode, key=key)
        assert out.model_state is state
    if case.norm:
        out = case.model.apply(params, state, X, mode="train", key=key)
        old, new = (tree_mean(case, tree) for tree in (state, out.model_state))
        assert np.abs(new - old).max() > 1e-4


def tree_mean(case, state):
    return np.asarray(norm_statistics(case, state)["mean"])


def norm_statistics(case, state):
    return at(state.get("batch_stats", state), f"{case.norm}/norm")


@random_cases
def test_running_statistics_match_numpy(case):
    params, state = weights(case)
    conv = f"{case.norm}/conv"
    out = case.model.apply(
        params, state, X, mode="train", capture=(conv,), key=jax.random.key(0)
    )
    maps = np.asarray(out.features[conv], np.float64)
    new = norm_statistics(case, out.model_state)
    np.testing.assert_allclose(new["mean"], 0.1 * maps.mean((0, 1, 2)), atol=1e-6)
    # Both start at 0 and 1; flax keeps the biased variance.
    np.testing.assert_allclose(new["var"], 0.9 + 0.1 * maps.var((0, 1, 2)), atol=1e-6)


@random_cases
def test_batch_mode_normalises_by_the_batch(case):
    params, state = weights(case)
    conv, norm = f"{case.norm}/conv", f"{case.norm}/norm"
    seen = case.model.apply(
        params, state, X, mode="batch", capture=(conv, norm), key=jax.random.key(0)
    ).features
    maps = np.asarray(seen[conv], np.float64)
    expected = (maps - maps.mean((0, 1, 2))) / np.sqrt(maps.var((0, 1, 2)) + 1e-5)
    np.testing.assert_allclose(seen[norm], expected, atol=1e-4)


@every_case
def test_eval_leaves_examples_independent(case):
    params, state = weights(case)
    apply = lambda x: case.model.apply(params, state, x).logits
    one_by_one = jnp.concatenate([apply(X[i : i + 1]) for i in range(len(X))])
    np.testing.assert_allclose(apply(X), one_by_one, atol=1e-6)


@every_case
def test_tap_comes_before_capture(case):
    params, state = weights(case)
    layers = (case.layer, case.head)
    plain = case.model.apply(params, state, X, capture=layers)
    tap = jax.random.normal(jax.random.key(9), plain.features[case.layer].shape)
    out = case.model.apply(params, state, X, capture=layers, taps={case.layer: tap})
    np.testing.assert_allclose(
        out.features[case.layer], plain.features[case.layer] + tap, atol=1e-6
    )
    np.testing.assert_allclose(out.features[case.head], out.logits, atol=1e-6)
    assert np.abs(out.logits - plain.logits).max() > 1e-3


@every_case
def test_a_tap_may_be_shared_by_the_batch(case):
    params, state = weights(case)
    tap = jnp.array([[1.0, -2.0, 0.5]])
    plain = case.model.apply(params, state, X).logits
    out = case.model.apply(params, state, X, taps={case.head: tap}).logits
    np.testing.assert_allclose(out, plain + tap, atol=1e-6)


@every_case
def test_lower_and_upper_half_make_the_whole(case):
    params, state = weights(case)
    there = X[::-1]
    read = lambda x: case.model.apply(params, state, x, capture=(case.layer,))
    difference = read(there).features[case.layer] - read(X).features[case.layer]
    out = case.model.apply(params, state, X, taps={case.layer: difference})
    np.testing.assert_allclose(out.logits, read(there).logits, atol=1e-5)


@every_case
def test_works_in_vmap_and_in_grad_in_scan(case):
    params, state = weights(case)
    keys = jax.random.split(jax.random.key(5), 2)

    def loss(params, state, key):
        out = case.model.apply(params, state, X, mode="train", key=key)
        return (out.logits**2).mean(), out.model_state

    def step(carry, key):
        grads, new_state = jax.grad(loss, has_aux=True)(*carry, key)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, carry[0], grads)
        return (params, new_state), norm_of(grads)

    _, norms = jax.jit(lambda c: jax.lax.scan(step, c, keys))((params, state))
    assert np.isfinite(norms).all()
    assert (norms > 0).all()
    taps = jnp.stack([jnp.zeros((4, 3)), jnp.ones((4, 3))])
    logits = jax.vmap(
        lambda tap: case.model.apply(params, state, X, taps={case.head: tap}).logits
    )(taps)
    np.testing.assert_allclose(logits[1], logits[0] + 1, atol=1e-6)


def norm_of(tree):
    return jnp.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(tree)))


@random_cases
@pytest.mark.parametrize("mode", ["train", "batch"])
def test_dropout_is_a_function_of_the_key(case, mode):
    params, state = weights(case)
    run = lambda seed: case.model.apply(
        params, state, X, mode=mode, key=jax.random.key(seed)
    )
    chex.assert_trees_all_equal(numbers(run(0)), numbers(run(0)))
    assert np.abs(run(0).logits - run(1).logits).max() > 1e-3


@every_case
def test_unknown_layers_are_named_and_near_ones_listed(case):
    params, state = weights(case)
    wrong = case.layer + "x"
    for argument, call in (
        ("capture", {"capture": (wrong,)}),
        ("taps", {"taps": {wrong: X}}),
    ):
        message = f"`{argument}` names '{wrong}'.*Layers: .*{case.layer}"
        with pytest.raises(InputError, match=message):
            case.model.apply(params, state, X, **call)


@every_case
def test_wrong_arguments_are_named(case):
    params, state = weights(case)
    with pytest.raises(InputError, match=r"`taps`.*\(4, 3\).*got \(3,\)"):
        case.model.apply(params, state, X, taps={case.head: jnp.ones(3)})
    with pytest.raises(InputError, match="`mode`"):
        case.model.apply(params, state, X, mode="test")
    with pytest.raises(InputError, match="`capture` must be a sequence"):
        case.model.apply(params, state, X, capture=case.head)
    with pytest.raises(InputError, match="`key`"):
        case.model.apply(params, state, X, key=jnp.zeros(2, jnp.uint32))
    with pytest.raises(InputError, match="`key`"):
        case.model.init(0, X)


W1 = jnp.array([[1.0, -2.0, 0.5], [0.5, 3.0, -1.0]])
W2 = jnp.array([[1.0, -1.0], [2.0, 0.5], [-0.5, 1.5]])


def linen_two_layers():
    module = nn.Sequential([nn.Dense(3, use_bias=False), nn.tanh, nn.Dense(2)])
    params = {
        "layers_0": {"kernel": W1},
        "layers_2": {"kernel": W2, "bias": jnp.zeros(2)},
    }
    return from_linen(module, call_kwargs=lambda mode: {}), params, "layers_0"


def nnx_two_layers():
    rngs = nnx.Rngs(0)
    module = nnx.Sequential(
        nnx.Linear(2, 3, use_bias=False, rngs=rngs),
        nnx.tanh,
        nnx.Linear(3, 2, rngs=rngs),
    )
    params = {
        "layers": {"0": {"kernel": W1}, "2": {"kernel": W2, "bias": jnp.zeros(2)}}
    }
    return from_nnx(module), params, "layers/0"


@pytest.mark.parametrize("build", [linen_two_layers, nnx_two_layers])
def test_influence_is_gradient_times_activation(build):
    model, params, layer = build()
    x = jnp.array([[0.3, -0.2], [1.0, 0.4]])
    acts = model.apply(params, {}, x, capture=(layer,)).features[layer]

    def class_logit(tap):
        return model.apply(params, {}, x, taps={layer: tap}).logits[:, 1].sum()

    influence = jax.grad(class_logit)(jnp.zeros_like(acts)) * acts
    a = np.asarray(x, np.float64) @ np.asarray(W1, np.float64)
    expected = (1 - np.tanh(a) ** 2) * np.asarray(W2, np.float64)[:, 1] * a
    np.testing.assert_allclose(influence, expected, atol=1e-6)
