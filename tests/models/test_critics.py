"""Critics against NumPy, their sizes, and the start of their shortcut."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import InputError
from robustjax.models import GlobalCritic, InternalCritic, LocalCritic, mi_estimator

UNITS = 12
WRONG: Any = "test"
ESTIMATOR = mi_estimator(LocalCritic(UNITS, widths=(3, 5)), GlobalCritic(UNITS))
RNG = np.random.default_rng(0)
X, Z = RNG.normal(size=(4, 8, 8, 2)), RNG.normal(size=(4, 3))


def conv(z, kernel, stride, pad):
    """A sum over the kernel's offsets."""
    z = np.pad(z, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    size = kernel.shape[0]
    side = (z.shape[1] - size) // stride + 1
    out = 0.0
    for i, j in np.ndindex(size, size):
        rows = slice(i, i + stride * side, stride)
        columns = slice(j, j + stride * side, stride)
        out = out + z[:, rows, columns] @ kernel[i, j]
    return out


def norm(z, params, state, train, moved):
    mean, var = state["mean"], state["var"]
    if train:
        batch_mean, batch_var = z.mean((0, 1, 2)), z.var((0, 1, 2))
        moved.append((0.9 * mean + 0.1 * batch_mean, 0.9 * var + 0.1 * batch_var))
        mean, var = batch_mean, batch_var
    return (z - mean) / np.sqrt(var + 1e-5) * params["scale"] + params["bias"]


def head(z, params, state, train, moved):
    main = conv(z, params["conv1"]["kernel"], 1, 0)
    main = np.maximum(norm(main, params["norm1"], state["norm1"], train, moved), 0)
    main = conv(main, params["conv2"]["kernel"], 1, 0) + params["conv2"]["bias"]
    total = main + conv(z, params["shortcut"]["kernel"], 1, 0)
    total = total - total.mean(-1, keepdims=True)
    total = total / np.sqrt((total**2).mean(-1, keepdims=True) + 1e-5)
    return total * params["layer_norm"]["scale"] + params["layer_norm"]["bias"]


def perturbed(tree):
    """Weights and statistics away from their special start."""
    leaves, structure = jax.tree.flatten(tree)
    rng = np.random.default_rng(1)
    moved = [np.asarray(a, float) + 0.2 * rng.random(a.shape) for a in leaves]
    return jax.tree.unflatten(structure, moved)


@pytest.mark.parametrize("mode", ["eval", "train", "batch"])
def test_both_nets_against_numpy(mode):
    with jax.enable_x64(True):
        made = ESTIMATOR.init(jax.random.key(0), jnp.asarray(X), jnp.asarray(Z))
        params, state = perturbed(made[0]), perturbed(made[1])
        as_jax = lambda tree: jax.tree.map(jnp.asarray, tree)
        given: Any = (as_jax(params), as_jax(state), jnp.asarray(X), jnp.asarray(Z))
        local, glob, new = ESTIMATOR.features(*given, mode=mode)
        assert local.dtype == glob.dtype == jnp.float64
    train, moved = mode != "eval", []
    weights, running = params["local"], state["local"]["batch_stats"]
    h = X
    for layer in ("1", "2"):
        h = conv(h, weights[f"conv{layer}"]["kernel"], 2, 1)
        name = f"norm{layer}"
        h = np.maximum(norm(h, weights[name], running[name], train, moved), 0)
    h = head(h, weights["head"], running["head"], train, moved)
    np.testing.assert_allclose(local, np.moveaxis(h.reshape(4, 4, UNITS), 2, 1))
    there = state["global"]["batch_stats"]["head"]
    g = head(Z[:, None, None], params["global"]["head"], there, train, [])
    np.testing.assert_allclose(glob, g.reshape(4, UNITS, 1), rtol=1e-6)
    if mode == "train":
        found = new["local"]["batch_stats"]
        for name, (mean, var) in zip(("norm1", "norm2"), moved, strict=False):
            np.testing.assert_allclose(found[name]["mean"], mean)
            np.testing.assert_allclose(found[name]["var"], var)
    else:
        jax.tree.map(np.testing.assert_array_equal, new, state)


@pytest.mark.parametrize(
    ("net", "shape", "count", "out"),
    [
        (LocalCritic(), (2, 32, 32, 3), 4_863_360, (2, 8, 8, 2048)),
        (GlobalCritic(), (2, 10), 4_245_504, (2, 1, 1, 2048)),
        (InternalCritic(), (2, 8, 8, 256), 75_510_784, (2, 1, 1, 2048)),
        (InternalCritic(depth=2), (2, 4, 4, 512), 67_121_152, (2, 1, 1, 2048)),
    ],
)
def test_sizes(net, shape, count, out):
    sample = jax.ShapeDtypeStruct(shape, jnp.float32)
    found, variables = jax.eval_shape(net.init_with_output, jax.random.key(0), sample)
    assert found.shape == out
    sizes = jax.tree.map(lambda a: a.size, variables["params"])
    assert sum(jax.tree.leaves(sizes)) == count


@pytest.mark.parametrize("depth", [2, 3])
def test_inner_layers_are_vectors_of_mean_zero(depth):
    net = InternalCritic(units=16, depth=depth)
    z = jax.random.normal(jax.random.key(0), (3, 2**depth, 2**depth, 4))
    out, _ = net.init_with_output(jax.random.key(1), z)
    assert out.shape == (3, 1, 1, 16)
    np.testing.assert_allclose(out.mean(axis=-1), 0, atol=1e-5)
    with pytest.raises(InputError, match="`z` must be maps"):
        net.init(jax.random.key(1), z[:, 1:])


def test_the_shortcut_starts_as_the_identity():
    params, _ = ESTIMATOR.init(jax.random.key(0), jnp.asarray(X), jnp.asarray(Z))
    kernel: Any = params["global"]["head"]["shortcut"]["kernel"][0, 0]
    np.testing.assert_array_equal(np.diag(kernel), 1)
    rest = np.asarray(kernel)[~np.eye(3, UNITS, dtype=bool)]
    assert 0 < np.abs(rest).max() <= 0.01
    narrow = GlobalCritic(2)  # fewer units than classes: an ordinary start
    kernel: Any = narrow.init(jax.random.key(0), jnp.asarray(Z))["params"]["head"]
    kernel = kernel["shortcut"]["kernel"]
    assert 0.01 < np.abs(kernel).max() <= 1 / np.sqrt(3)


def test_estimators_start_apart_and_jit():
    x, z = jnp.float32(X), jnp.float32(Z)
    params, state = ESTIMATOR.init(jax.random.key(0), x, z)
    other, _ = ESTIMATOR.init(jax.random.key(1), x, z)
    assert (
        np.abs(
            params["local"]["conv1"]["kernel"] - other["local"]["conv1"]["kernel"]
        ).max()
        > 0
    )
    eager = ESTIMATOR.features(params, state, x, z)
    jitted = jax.jit(ESTIMATOR.features)(params, state, x, z)
    for one, two in zip(eager[:2], jitted[:2], strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)
    with pytest.raises(InputError, match="mode"):
        ESTIMATOR.features(params, state, x, z, mode=WRONG)
