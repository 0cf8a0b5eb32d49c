import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import InputError, models
from robustjax.models import layers

DIGITS = jax.random.uniform(jax.random.key(0), (3, 8, 8, 1))
MNIST = jax.random.uniform(jax.random.key(0), (2, 28, 28, 1))


def run(module, x, **kwargs):
    model = models.from_linen(module)
    params, state = model.init(jax.random.key(0), x)
    return params, model.apply(params, state, x, **kwargs)


def test_small_cnn_is_the_network_it_says():
    params, out = run(models.small_cnn(), DIGITS, capture=("flatten", "features"))

    def by_hand(x):
        for name in ("conv1_1", "conv1_2"):
            x = jax.lax.conv_general_dilated(
                x,
                params[name]["kernel"],
                (1, 1),
                ((1, 1), (1, 1)),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            x = jnp.maximum(x + params[name]["bias"].reshape(1, 1, 1, -1), 0)
        flat = x.reshape(3, 4, 2, 4, 2, 32).max((2, 4)).reshape(3, -1)
        bias = lambda name: params[name]["bias"].reshape(1, -1)
        hidden = jnp.maximum(flat @ params["dense"]["kernel"] + bias("dense"), 0)
        return flat, hidden, hidden @ params["head"]["kernel"] + bias("head")

    flat, hidden, logits = by_hand(DIGITS)
    np.testing.assert_allclose(out.features["flatten"], flat, atol=1e-5)
    np.testing.assert_allclose(out.features["features"], hidden, atol=1e-5)
    np.testing.assert_allclose(out.logits, logits, atol=1e-5)
    assert flat.shape == (3, 512)


def test_pooling_is_the_window_reduction_ties_and_all():
    x = jax.random.randint(jax.random.key(0), (2, 7, 8, 3), 0, 3).astype(float)
    weights = jax.random.uniform(jax.random.key(1), (2, 3, 4, 3))

    def both(pool):
        return jax.value_and_grad(lambda z: (weights * pool(z)).sum())(x)

    windows = lambda z: nn.max_pool(z, (2, 2), (2, 2))
    ours, reference = map(both, (layers.max_pool2, windows))
    np.testing.assert_allclose(ours[0], reference[0], rtol=1e-6)
    np.testing.assert_array_equal(ours[1], reference[1])
    for place in np.ndindex(2, 2):
        pooled = layers.max_pool2(jnp.zeros((1, 2, 2, 1)).at[0, *place].set(jnp.nan))
        assert np.isnan(pooled).all()


def test_every_documented_path_of_small_cnn():
    module = models.small_cnn(stages=((2,), (3, 4)), dense=5, kernel_size=5)
    shapes = {
        "normalise": (2, 28, 28, 1),
        "conv1_1": (2, 28, 28, 2),
        "relu1_1": (2, 28, 28, 2),
        "stage1": (2, 14, 14, 2),
        "conv2_2": (2, 14, 14, 4),
        "stage2": (2, 7, 7, 4),
        "flatten": (2, 196),
        "dense": (2, 5),
        "features": (2, 5),
        "head": (2, 10),
    }
    _, out = run(module, MNIST, capture=tuple(shapes))
    assert {name: a.shape for name, a in out.features.items()} == shapes


def test_normalise_is_the_first_layer():
    statistics = ((0.3,), (0.5,))
    params, out = run(models.small_cnn(normalise=statistics), DIGITS)
    plain = models.from_linen(models.small_cnn())
    expected = plain.apply(params, {}, (DIGITS - 0.3) / 0.5).logits
    np.testing.assert_allclose(out.logits, expected, atol=1e-5)


def test_wnll_mnist_cnn():
    shapes = {
        "stage1": (2, 12, 12, 32),
        "relu2_2": (2, 8, 8, 64),
        "flatten": (2, 1024),
        "dense": (2, 200),
        "pooled": (2, 200),
        "buffer": (2, 200),
        "features": (2, 200),
    }
    params, out = run(models.wnll_mnist_cnn(), MNIST, capture=tuple(shapes))
    assert {name: a.shape for name, a in out.features.items()} == shapes
    assert not params["head"]["kernel"].any()
    assert not out.logits.any()
    kernel = np.asarray(params["conv2_2"]["kernel"])
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 64)), rel=0.03)
    assert params["buffer"]["fc1"]["kernel"].shape == (200, 200)
    bound = 1 / np.sqrt(1024)
    assert np.abs(params["dense"]["kernel"]).max() <= bound


def test_wnll_mnist_cnn_without_buffer_needs_a_key_for_dropout():
    model = models.from_linen(models.wnll_mnist_cnn(buffer=0))
    params, state = jax.eval_shape(model.init, jax.random.key(0), MNIST)
    assert "buffer" not in params
    with pytest.raises(InputError, match="`key`"):
        jax.eval_shape(
            lambda p, s: model.apply(p, s, MNIST, mode="train"), params, state
        )


def test_bfloat16_computes_and_float32_comes_out():
    params, exact = run(models.small_cnn(), DIGITS)
    low, out = run(models.small_cnn(dtype="bfloat16"), DIGITS, capture=("conv1_2",))
    assert out.features["conv1_2"].dtype == jnp.bfloat16
    assert out.logits.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(low))
    np.testing.assert_allclose(out.logits, exact.logits, atol=0.1)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), params, low))


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("num_classes", 0),
        ("kernel_size", 4),
        ("dense", 1.5),
        ("stages", ((0,),)),
        ("stages", (16, 32)),
        ("normalise", ((0.5,), (0.0,))),
        ("normalise", ((0.5, 0.5), (1.0,))),
        ("normalise", 0.5),
        ("dtype", "float16"),
        ("dtype", "wide"),
    ],
)
def test_small_cnn_checks_its_arguments(argument, value):
    with pytest.raises(InputError, match=f"`{argument}`"):
        models.small_cnn(**{argument: value})


@pytest.mark.parametrize(
    ("argument", "value"), [("dropout", 1.5), ("buffer", -1), ("buffer", True)]
)
def test_wnll_mnist_cnn_checks_its_arguments(argument, value):
    with pytest.raises(InputError, match=f"`{argument}`"):
        models.wnll_mnist_cnn(**{argument: value})


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (jnp.zeros((2, 8, 8, 1), jnp.uint8), "floating point"),
        (jnp.zeros((2, 64)), r"\[B, H, W, C\]"),
        (jnp.zeros((2, 8, 8, 1)), "3 channels"),
        (jnp.zeros((2, 1, 1, 3)), "too small"),
    ],
)
def test_models_check_their_images(x, message):
    module = models.small_cnn(normalise=((0.5,) * 3, (0.2,) * 3))
    with pytest.raises(InputError, match=message):
        models.from_linen(module).init(jax.random.key(0), x)
