"""Parameter counts and maps from shapes alone; values on the smallest network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import InputError, models


@pytest.fixture(scope="module")
def resnet20():
    """A ResNet-20 with one buffer layer: (model, params, model_state, images)."""
    model = models.from_linen(models.resnet20(buffer=1))
    x = jax.random.uniform(jax.random.key(0), (4, 8, 8, 3))
    params, state = jax.jit(model.init)(jax.random.key(1), x)
    return model, params, state, x


def narrow_count(blocks, buffer=0):
    """CIFAR ResNets, by the text: counted layer by layer."""
    conv = lambda k, a, b: k * k * a * b + 2 * b
    total, width_in = conv(3, 3, 16), 16
    for width in (16, 32, 64):
        total += conv(3, width_in, width) + (2 * blocks - 1) * conv(3, width, width)
        total += conv(1, width_in, width) if width != width_in else 0
        width_in = width
    return total + buffer * (64 * 64 + 64) + 64 * 10 + 10


COUNTS = {
    "resnet20": (models.resnet20(), narrow_count(3)),
    "resnet20-buffer": (models.resnet20(buffer=1), narrow_count(3, 1)),
    "resnet32": (models.resnet32(), narrow_count(5)),
    "resnet44": (models.resnet44(), narrow_count(7)),
    "resnet56-buffer": (models.resnet56(buffer=2), narrow_count(9, 2)),
    "resnet110": (models.resnet110(), narrow_count(18)),
    # As the published PyTorch networks have them.
    "resnet18": (models.resnet18(), 11_173_962),
    "resnet50": (models.resnet50(), 25_557_032),
    "wide_resnet28_10": (models.wide_resnet28_10(), 36_479_194),
    "vgg19_bn": (models.vgg19_bn(), 20_040_522),
    # 11,171,146 without the last BatchNorm's 2 * 512.
    "preact_resnet18": (models.preact_resnet18(), 11_171_146 + 1024),
    # NAMID's file counts 48,262,586 with a block that is never used.
    "wide_resnet34_10": (models.wide_resnet34_10(), 48_262_586 - 2_102_112),
}


def shapes(module, capture=(), size=32):
    model = models.from_linen(module)
    x = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    params, state = jax.eval_shape(model.init, key, x)
    out = jax.eval_shape(
        lambda p, s, x: model.apply(p, s, x, capture=capture), params, state, x
    )
    return params, state, out


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name):
    module, expected = COUNTS[name]
    size = 224 if name == "resnet50" else 32
    params, state, out = shapes(module, ("features", "head"), size)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected
    assert out.logits.shape == (2, 1000 if name == "resnet50" else 10)
    assert out.features["features"].shape[1] == params["head"]["kernel"].shape[0]
    leaves = jax.tree.leaves((params, state, out.logits))
    assert all(leaf.dtype == jnp.float32 for leaf in leaves)


def side(module, names, size=32):
    features = shapes(module, names, size)[2].features
    return [features[name].shape[1:] for name in names]


STAGES = ("stage1", "stage2", "stage3", "stage4")


def test_stage_maps():
    names = ("stem", *STAGES)
    widths = (64, 64, 128, 256, 512)
    for module, sides in (
        (models.resnet18(), (32, 32, 16, 8, 4)),
        (models.preact_resnet18(), (32, 32, 16, 8, 4)),
        (models.resnet18(stem_padding=0), (30, 30, 15, 8, 4)),
    ):
        expected = [(s, s, w) for s, w in zip(sides, widths, strict=True)]
        assert side(module, names) == expected
    assert side(models.resnet50(), ("stem", *STAGES), 224) == [
        (56, 56, 64),
        (56, 56, 256),
        (28, 28, 512),
        (14, 14, 1024),
        (7, 7, 2048),
    ]
    assert side(models.wide_resnet28_10(), ("stem", *STAGES[:3], "maps")) == [
        (32, 32, 16),
        (32, 32, 160),
        (16, 16, 320),
        (8, 8, 640),
        (8, 8, 640),
    ]
    assert side(models.vgg19_bn(), ("stage1/layer2", "stage5", "flatten")) == [
        (32, 32, 64),
        (1, 1, 512),
        (512,),
    ]


def test_stages_end_in_their_last_block(resnet20):
    names = ("stage3", "stage3/block3", "maps", "pooled", "buffer", "features")
    model, params, state, x = resnet20
    run = jax.jit(lambda p, s: model.apply(p, s, x, capture=names))
    out = run(params, state)
    seen = {name: np.asarray(value) for name, value in out.features.items()}
    np.testing.assert_array_equal(seen["stage3"], seen["stage3/block3"])
    np.testing.assert_array_equal(seen["stage3"], seen["maps"])
    assert seen["stage3"].min() == 0
    np.testing.assert_allclose(seen["pooled"], seen["maps"].mean((1, 2)), atol=1e-5)
    fc = jax.tree.map(np.asarray, params["buffer"]["fc1"])
    hidden = np.maximum(seen["pooled"] @ fc["kernel"] + fc["bias"], 0)
    np.testing.assert_allclose(seen["features"], hidden, atol=1e-5)
    head = jax.tree.map(np.asarray, params["head"])
    logits = seen["features"] @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(out.logits, logits, atol=1e-5)


def test_initial_weights(resnet20):
    _, params, state, _ = resnet20
    kernel = params["stage3"]["block2"]["conv1"]["kernel"]
    assert np.std(kernel) == pytest.approx(np.sqrt(2 / (9 * 64)), rel=0.02)
    # The shape change tells fan-out from fan-in.
    kernel = params["stage3"]["block1"]["conv1"]["kernel"]
    assert np.std(kernel) == pytest.approx(np.sqrt(2 / (9 * 64)), rel=0.03)
    norm = params["stage1"]["block1"]["norm1"]
    assert (norm["scale"] == 1).all()
    assert (norm["bias"] == 0).all()
    assert (state["batch_stats"]["stem"]["norm"]["var"] == 1).all()


def test_strided_convolutions_pad_both_sides(resnet20):
    """The first pixel meets the kernel's centre; with "SAME" it meets its corner."""
    model, params, state, x = resnet20
    conv = "stage2/block1/conv1"
    kernel = params["stage2"]["block1"]["conv1"]["kernel"]
    read = jax.jit(
        lambda tap: model.apply(
            params, state, x, capture=(conv,), taps={"stage1": tap}
        ).features[conv]
    )
    impulse = jnp.zeros((4, 8, 8, 16)).at[0, 0, 0, 0].set(1.0)
    reached = read(impulse) - read(jnp.zeros_like(impulse))
    np.testing.assert_allclose(reached[0, 0, 0], kernel[1, 1, 0], atol=1e-5)
    np.testing.assert_allclose(reached[0, 1, 1], np.zeros(32), atol=1e-6)


def test_bfloat16_keeps_statistics_and_logits_in_float32(resnet20):
    exact, params, state, x = resnet20
    low = models.from_linen(models.resnet20(buffer=1, dtype=jnp.bfloat16))
    run = lambda model: jax.jit(
        lambda: model.apply(params, state, x, mode="train", capture=("stage1",))
    )()
    out, reference = run(low), run(exact)
    assert out.features["stage1"].dtype == jnp.bfloat16
    for leaf in jax.tree.leaves((out.logits, out.model_state)):
        assert leaf.dtype == jnp.float32
    np.testing.assert_allclose(out.logits, reference.logits, atol=0.15)


def test_wide_resnet_dropout_needs_a_key():
    model = models.from_linen(models.wide_resnet28_10(dropout=0.3))
    x = jnp.zeros((1, 32, 32, 3))
    key = jax.random.key(0)
    params, state = jax.eval_shape(model.init, key, x)
    train = lambda p, s, key: model.apply(p, s, x, mode="train", key=key)
    out = jax.eval_shape(train, params, state, key)
    assert out.logits.shape == (1, 10)
    with pytest.raises(InputError, match="`key`"):
        jax.eval_shape(lambda p, s: train(p, s, None), params, state)


@pytest.mark.parametrize(
    ("factory", "argument", "value"),
    [
        (models.resnet20, "num_classes", 0),
        (models.resnet20, "buffer", -1),
        (models.resnet18, "stem_padding", 0.5),
        (models.resnet50, "dtype", "int8"),
        (models.wide_resnet28_10, "dropout", -0.1),
        (models.vgg19_bn, "normalise", ((0.5,),)),
    ],
)
def test_factories_check_their_arguments(factory, argument, value):
    with pytest.raises(InputError, match=f"`{argument}`"):
        factory(**{argument: value})


def test_vgg_says_when_images_are_too_small():
    with pytest.raises(InputError, match="too small"):
        shapes(models.vgg19_bn(), size=16)
