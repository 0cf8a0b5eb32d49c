"""The defenses beside NIP, and states on disk."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import InputError, transforms
from robustjax.transforms import load_state, save_state
from robustjax.types import Batch, ModelOutput

WEIGHTS = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
BENIGN = Batch(jax.random.uniform(jax.random.key(0), (30, 4, 4, 1)), jnp.arange(30) % 3)
X = jax.random.uniform(jax.random.key(1), (5, 4, 4, 1))


def model_fn(x, *, capture=(), taps=None):
    a = x.reshape(x.shape[0], 16) + (taps or {}).get("flatten", 0)
    return ModelOutput((a - 0.5) @ WEIGHTS, {"flatten": a}, {})


def key():
    return jax.random.key(7)


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def test_votes_are_a_mean_of_probabilities_of_noisy_copies():
    defense = transforms.noise_voting(size=0.1, num_votes=2000)
    got = jax.jit(defense.apply, static_argnums=2)((), key(), model_fn, X)
    rng = np.random.default_rng(1)
    noisy = np.clip(X[None] + 0.1 * rng.normal(size=(2000, *X.shape)), 0, 1)
    expected = softmax((noisy.reshape(2000, 5, 16) - 0.5) @ WEIGHTS).mean(axis=0)
    np.testing.assert_allclose(np.exp(got), expected, atol=0.01)
    np.testing.assert_allclose(np.exp(got).sum(axis=1), 1, rtol=1e-5)
    alone = defense.apply((), jax.random.fold_in(key(), 2)[None], model_fn, X[2:3])
    np.testing.assert_allclose(alone[0], got[2], rtol=1e-4)


@pytest.mark.parametrize("name", ["hedge", "anti_adversary"])
def test_steps_of_a_linear_model_against_numpy(name):
    defense = getattr(transforms, name)(size=0.1, num_steps=5)
    got = defense.apply((), key(), model_fn, X)
    flat = np.asarray(X, np.float64).reshape(5, 16)
    label = ((flat - 0.5) @ WEIGHTS).argmax(axis=1)
    z = flat
    for _ in range(5):
        p = softmax((z - 0.5) @ WEIGHTS)
        # Of log p_label, or of minus the sum of log p.
        slope = np.eye(3)[label] - p if name == "anti_adversary" else 3 * p - 1
        step = 2.5 * 0.1 / 5 * np.sign(slope @ WEIGHTS.T)
        z = np.clip(np.clip(z + step, flat - 0.1, flat + 0.1), 0, 1)
    np.testing.assert_allclose(got, (z - 0.5) @ WEIGHTS, atol=1e-4)


def right_answers():
    return Batch(BENIGN.x, model_fn(BENIGN.x).logits.argmax(axis=1))


def test_the_nearest_mean_is_that_of_front_and_tail():
    batch = right_answers()
    defense = transforms.nearest_class_mean(front=3, tail=2)
    state = defense.fit(key(), model_fn, batch)
    got = defense.apply(state, key(), model_fn, X)
    a = np.asarray(batch.x, np.float64).reshape(30, 16)
    y = np.asarray(batch.y)
    deviation = np.maximum(a.std(axis=0), 0.1 * a.std(axis=0).mean())
    for c in range(3):
        chosen = np.asarray(state.masks[c]) != 0
        off = (np.asarray(X).reshape(5, 16) - a[y == c].mean(axis=0)) / deviation
        expected = -(off[:, chosen] ** 2).mean(axis=1)
        np.testing.assert_allclose(got[:, c], expected, rtol=1e-4)


@pytest.mark.parametrize("layer", [None, "flatten"])
def test_the_nearest_neighbor_and_its_softness(layer):
    make = lambda softness: transforms.nearest_neighbor(
        layer=layer, num_classes=3, softness=softness
    )
    defense = make(0.0)
    state = defense.fit(key(), model_fn, BENIGN)
    got = defense.apply(state, key(), model_fn, X)
    apart = ((X[:, None] - BENIGN.x[None]) ** 2).sum(axis=(2, 3, 4))
    expected = -np.stack(
        [np.asarray(apart)[:, np.asarray(BENIGN.y) == c].min(axis=1) for c in range(3)],
        axis=1,
    )
    np.testing.assert_allclose(got, expected, atol=1e-4)
    answer = lambda softness: jax.vjp(
        lambda z: make(softness).apply(state, key(), model_fn, z)[:, 0], X
    )
    values, pull_back = answer(1.0)
    np.testing.assert_allclose(values, expected[:, 0], atol=1e-4)
    near = BENIGN.x[np.asarray(BENIGN.y) == 0]
    scaled = ((X[:, None] - near[None]) ** 2).sum(axis=(2, 3, 4)) / state.scale
    weights = softmax(-scaled)
    mean = (weights[:, :, None, None, None] * near[None]).sum(axis=1)
    np.testing.assert_allclose(
        pull_back(jnp.ones(5))[0], 2 * (mean - X), rtol=1e-3, atol=1e-4
    )


def test_bad_input_says_so():
    with pytest.raises(InputError, match="no image of class 2"):
        transforms.nearest_neighbor(num_classes=3).fit(
            key(), model_fn, Batch(BENIGN.x[:2], jnp.array([0, 1]))
        )
    state = transforms.nearest_neighbor(num_classes=3).fit(key(), model_fn, BENIGN)
    with pytest.raises(InputError, match="`state` belongs to another model"):
        transforms.nearest_neighbor(num_classes=3).apply(
            state, key(), model_fn, X[:, :2]
        )
    for name in ("hedge", "anti_adversary", "noise_voting"):
        with pytest.raises(InputError, match="`size`"):
            getattr(transforms, name)(size=-1.0)
    with pytest.raises(InputError, match="what nearest_neighbor's `fit` returned"):
        transforms.nearest_neighbor(num_classes=3).apply((), key(), model_fn, X)
    with pytest.raises(InputError, match="`front` and `tail` must leave some"):
        transforms.nearest_class_mean(front=0, tail=0).fit(
            key(), model_fn, right_answers()
        )


@pytest.mark.parametrize(
    "name", ["hedge", "anti_adversary", "noise_voting", "nearest_neighbor"]
)
def test_what_are_no_images_says_so(name):
    classes = dict(num_classes=3) if name == "nearest_neighbor" else {}
    defense = getattr(transforms, name)(**classes)
    state = defense.fit(key(), model_fn, BENIGN)
    apply = lambda x: defense.apply(state, key(), model_fn, x)
    with pytest.raises(InputError, match=r"pixels in \[0, 1\], got .* to 255"):
        apply(255 * jnp.round(X))
    with pytest.raises(InputError, match="got dtype uint8"):
        apply(jnp.ones(X.shape, jnp.uint8))
    assert jax.jit(apply)(X).shape == (5, 3)


def test_a_state_on_disk_is_the_state(tmp_path):
    batch = right_answers()
    defense = transforms.nip(front=3, tail=2, size=0.05)
    state = defense.fit(key(), model_fn, batch)
    path = tmp_path / "deep" / "state.npz"
    save_state(path, state, WEIGHTS)
    like = jax.eval_shape(lambda k, b: defense.fit(k, model_fn, b), key(), batch)
    found = load_state(path, like, WEIGHTS)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, found, state)
    assert os.listdir(path.parent) == ["state.npz"]


def test_half_precision_keeps_its_name_on_disk(tmp_path):
    path = tmp_path / "state.npz"
    state = {"a": jnp.arange(3, dtype=jnp.bfloat16) / 3, "b": (jnp.bfloat16(2), X)}
    save_state(path, state, WEIGHTS)
    found = load_state(path, state, WEIGHTS)
    jax.tree.map(np.testing.assert_array_equal, found, state)
    assert [leaf.dtype for leaf in jax.tree.leaves(found)] == [
        leaf.dtype for leaf in jax.tree.leaves(state)
    ]
    wide = jax.tree.map(lambda a: a.astype(jnp.float16), state)
    with pytest.raises(InputError, match="of another defense"):
        load_state(path, wide, WEIGHTS)


def test_files_without_names_of_dtypes_are_read(tmp_path):
    path, state = tmp_path / "state.npz", {"a": np.arange(3), "b": np.ones(2)}
    save_state(path, state, WEIGHTS)
    with np.load(path) as found:
        older = {name: a for name, a in found.items() if name != "dtypes"}
    assert len(older) == 3
    np.savez(path, **older)
    found = load_state(path, state, WEIGHTS)
    np.testing.assert_array_equal(found["a"], state["a"])


def test_states_of_others_say_so(tmp_path):
    path, state = tmp_path / "state.npz", {"a": np.ones(3)}
    with pytest.raises(InputError, match="There is no state"):
        load_state(path, state, WEIGHTS)
    save_state(path, state, WEIGHTS)
    with pytest.raises(InputError, match="belongs to another model"):
        load_state(path, state, WEIGHTS + 1)
    with pytest.raises(InputError, match="of another defense"):
        load_state(path, {"a": np.ones(4)}, WEIGHTS)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(InputError, match="cannot be read"):
        load_state(path, state, WEIGHTS)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="Cannot write"):
        save_state(tmp_path / "file" / "state.npz", state, WEIGHTS)
