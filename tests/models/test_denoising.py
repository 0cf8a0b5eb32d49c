"""Operations against loops in float64, the block around them, networks with blocks."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import InputError, models
from robustjax.config.networks import build_model
from robustjax.models import DenoisingBlock, denoising

RNG = np.random.default_rng(0)
MAPS = {
    "more positions": RNG.normal(size=(2, 3, 4, 5)),
    "more channels": RNG.normal(size=(1, 2, 3, 8)),
}
BLOCKS: dict[str, dict[str, Any]] = {
    "gaussian": dict(op="gaussian"),
    "gaussian of maps": dict(op="gaussian", embed=False),
    "dot product": dict(op="dot_product"),
    "bilateral": dict(op="bilateral"),
    "bilateral, 5": dict(op="bilateral", window=5),
    "bilateral of maps": dict(op="bilateral", embed=False),
    "bilateral, dot": dict(op="bilateral", weighting="dot_product"),
    "bilateral, dot, 5": dict(op="bilateral", weighting="dot_product", window=5),
    "mean": dict(op="mean"),
    "mean, 5": dict(op="mean", window=5),
    "mean, zeros": dict(op="mean", border="zeros"),
    "mean, zeros, 5": dict(op="mean", border="zeros", window=5),
    "median": dict(op="median"),
    "median, 5": dict(op="median", window=5),
    "median, edge": dict(op="median", border="edge"),
    "median, edge, 5": dict(op="median", border="edge", window=5),
    "null": dict(op="null"),
}
WINDOW_3 = [name for name in BLOCKS if not name.endswith("5")]
WRONG: Any = "box"


def weighted(x, place, others, score, softmax):
    """The sum over places that a position looks at, of one image [H, W, C]."""
    scores = np.array([score(place, other) for other in others])
    if softmax:
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
    else:
        weights = scores / len(others)
    return sum(w * x[other] for w, other in zip(weights, others, strict=True))


def mirrored(i, side):
    """0 1 2 1 0 1 2 ... from any integer."""
    i = i % (2 * side - 2)
    return min(i, 2 * side - 2 - i)


def around(place, shape, window, border):
    """The places of a window; None where it holds nothing."""
    reach = range(-(window // 2), window // 2 + 1)
    for i, j in ((place[0] + a, place[1] + b) for a in reach for b in reach):
        if border == "reflect":
            yield mirrored(i, shape[0]), mirrored(j, shape[1])
        elif border == "edge":
            yield min(max(i, 0), shape[0] - 1), min(max(j, 0), shape[1] - 1)
        elif 0 <= i < shape[0] and 0 <= j < shape[1]:
            yield i, j


def smoothed(
    x, params, op, embed=True, weighting="gaussian", window=3, border="default"
):
    """op(x) of one image [H, W, C]."""
    out, sides = np.zeros_like(x), x.shape[:2]
    softmax = op == "gaussian" or (op == "bilateral" and weighting == "gaussian")
    theta = phi = x
    if softmax and embed:
        theta, phi = (x @ params[k]["kernel"][0, 0] for k in ("theta", "phi"))
        theta = theta / np.sqrt(x.shape[2] // 2)
    score = lambda p, q: float(theta[p] @ phi[q])
    for place in np.ndindex(*sides):
        if op in ("gaussian", "dot_product"):
            out[place] = weighted(x, place, list(np.ndindex(*sides)), score, softmax)
        elif op == "bilateral":
            near = list(around(place, sides, window, "inside"))
            out[place] = weighted(x, place, near, score, softmax)
        elif op == "mean":
            near = [x[p] for p in around(place, sides, window, "inside")]
            out[place] = sum(near) / (window**2 if border == "zeros" else len(near))
        elif op == "median":
            border = "reflect" if border == "default" else border
            near = [x[p] for p in around(place, sides, window, border)]
            out[place] = np.median(near, axis=0)
        else:
            out[place] = x[place]
    return out


def block_of(name, x, **kwargs) -> Any:
    """(block, variables away from their start): the embeddings' size is of order 1."""
    block = DenoisingBlock(**BLOCKS[name], **kwargs)
    start = block.init(jax.random.key(0), jnp.asarray(x, kwargs.get("dtype")))
    rng = np.random.default_rng(1)
    size = lambda a: 0.5 + rng.random(a.shape)
    signed = lambda a: jnp.asarray(size(a) * rng.choice([-1, 1], a.shape))
    return block, {
        "params": jax.tree.map(signed, start["params"]),
        "batch_stats": jax.tree.map(
            lambda a: jnp.asarray(size(a)), start["batch_stats"]
        ),
    }


@pytest.mark.parametrize(
    ("name", "size"),
    [(name, "more positions") for name in BLOCKS]
    + [(name, "more channels") for name in ("gaussian", "dot product", "median, 5")],
)
def test_a_block_is_its_formula(name, size):
    x = MAPS[size]
    with jax.enable_x64(True):
        block, variables = block_of(name, x, dtype=jnp.float64)
        out = block.apply(variables, jnp.asarray(x))
        assert out.dtype == jnp.float64
    params, stats = (
        jax.tree.map(np.asarray, variables[name]) for name in ("params", "batch_stats")
    )
    norm = params["norm"] | stats["norm"]
    found = np.stack([smoothed(image, params, **BLOCKS[name]) for image in x])
    found = found @ params["conv"]["kernel"][0, 0]
    found = (found - norm["mean"]) / np.sqrt(norm["var"] + 1e-5)
    expected = x + found * norm["scale"] + norm["bias"]
    np.testing.assert_allclose(out, expected, rtol=1e-10, atol=1e-12)
    embedded = name in ("gaussian", "bilateral", "bilateral, 5")
    assert set(params) == {"conv", "norm"} | ({"theta", "phi"} if embedded else set())
    assert all(
        params[k]["kernel"].shape[3] == x.shape[3] // 2
        for k in params
        if k in ("theta", "phi")
    )


def test_worked_example():
    """Example C of the specification's section 10."""
    with jax.enable_x64(True):
        x = jnp.array([1.0, 3.0]).reshape(1, 1, 2, 1)
        for found, expected in (
            (denoising.dot_product(x), [5, 15]),
            (denoising.non_local(x), [2.761594, 2.995055]),
            (denoising.local_mean(x), [2, 2]),
            (denoising.local_mean(x, border="zeros"), [0.444444, 0.444444]),
            (denoising.local_median(x, border="edge"), [1, 3]),
        ):
            np.testing.assert_allclose(found.ravel(), expected, atol=1e-6)


@pytest.mark.parametrize("name", WINDOW_3)
def test_a_block_starts_as_the_identity(name):
    x = jnp.asarray(MAPS["more positions"], jnp.float32)
    block = DenoisingBlock(**BLOCKS[name])
    variables: Any = block.init(jax.random.key(0), x)
    for train in (False, True):
        block = DenoisingBlock(**BLOCKS[name], train=train)
        out, _ = block.apply(variables, x, mutable=["batch_stats"])
        np.testing.assert_array_equal(out, x)
    params = variables["params"]
    for layer in {"conv", "theta", "phi"} & set(params):
        assert set(params[layer]) == {"kernel"}
        assert (params[layer]["kernel"].std() < 0.03) == (layer != "conv")


def test_one_position_has_nothing_to_smooth():
    x = jnp.asarray(RNG.normal(size=(2, 1, 1, 3)), jnp.float32)
    for smooth in (
        denoising.non_local,
        denoising.bilateral,
        denoising.local_mean,
        denoising.local_median,
        lambda x: denoising.local_median(x, border="edge"),
    ):
        np.testing.assert_allclose(smooth(x), x, rtol=1e-6)


@pytest.mark.parametrize("name", WINDOW_3)
def test_gradients_are_finite_differences(name):
    x = MAPS["more positions"]
    with jax.enable_x64(True):
        block, variables = block_of(name, x, dtype=jnp.float64)
        rng = np.random.default_rng(2)
        weights, stats = rng.normal(size=x.shape), variables["batch_stats"]

        @jax.jit
        def total(given):
            params, x = given
            out = block.apply({"params": params, "batch_stats": stats}, x)
            return (weights * out).sum()

        at = (variables["params"], jnp.asarray(x))
        grad = jax.grad(total)(at)
        step = jax.tree.map(lambda a: rng.normal(size=a.shape), at)
        products = jax.tree.map(lambda a, b: (a * b).sum(), grad, step)
        inner, h = sum(jax.tree.leaves(products)), 1e-6
        ends = [
            total(jax.tree.map(lambda a, d, h=h: a + h * d, at, step)) for h in (h, -h)
        ]
        np.testing.assert_allclose(inner, (ends[0] - ends[1]) / (2 * h), rtol=1e-6)


def test_low_precision_weighs_in_float32():
    """Scores near 100, of which bfloat16 knows the half."""
    v = RNG.normal(size=(1, 3, 4, 1))
    x = jnp.asarray(np.concatenate([np.full_like(v, 10.0), v], axis=3), jnp.bfloat16)
    for name in WINDOW_3:
        block = DenoisingBlock(**BLOCKS[name], dtype=jnp.bfloat16)
        out, variables = jax.eval_shape(block.init_with_output, jax.random.key(0), x)
        assert out.dtype == jnp.bfloat16
        for leaf in jax.tree.leaves(variables):
            assert leaf.dtype == jnp.float32
    exact = np.asarray(x, np.float64)
    for how in (dict(op="gaussian"), dict(op="bilateral", window=5)):
        given: Any = how | dict(embed=False)
        block = DenoisingBlock(**given, dtype=jnp.bfloat16)
        variables: Any = block.init(jax.random.key(0), x)
        variables["params"]["conv"]["kernel"] = jnp.eye(2).reshape(1, 1, 2, 2)
        variables["params"]["norm"]["scale"] = jnp.ones(2)
        out = np.asarray(block.apply(variables, x), np.float64)
        expected = exact[0] + smoothed(exact[0], None, **given)
        np.testing.assert_allclose(out[0], expected, rtol=0.01, atol=0.01)


IMAGES = jnp.asarray(RNG.random((2, 6, 4, 3)), jnp.float32)


def small(depths=(2, 1), **kwargs):
    return models.small_resnet(
        depths=depths, widths=(4, 6)[: len(depths)], num_classes=3, **kwargs
    )


def initialised(module, **kwargs):
    """(model, params, model_state) of the network with blocks."""
    model = models.from_linen(models.denoised(module, **kwargs))
    return model, *jax.jit(model.init)(jax.random.key(0), IMAGES)


def without_blocks(tree):
    if not isinstance(tree, dict):
        return tree
    kept = {k: v for k, v in tree.items() if not k.startswith("denoise")}
    return {k: without_blocks(v) for k, v in kept.items()}


PLACES = {
    "stages": {"stage1/denoise", "stage2/denoise"},
    "blocks": {"stage1/denoise1", "stage1/denoise2", "stage2/denoise1"},
    ("stage2",): {"stage2/denoise"},
    "stage1": {"stage1/denoise"},
}


@pytest.mark.parametrize("after", PLACES)
def test_places_of_the_blocks(after):
    module = models.denoised(small(), after=after)
    start = jax.eval_shape(models.from_linen(module).init, jax.random.key(0), IMAGES)
    found = {
        f"{stage}/{name}"
        for stage in ("stage1", "stage2")
        for name in start[0][stage]
        if not name.startswith("block")
    }
    assert found == PLACES[after]
    plain = models.from_linen(small())
    expected = jax.eval_shape(plain.init, jax.random.key(0), IMAGES)
    assert tuple(map(without_blocks, start)) == expected


def test_networks_start_as_they_are_without_blocks():
    model, params, state = initialised(small((2,)), op="dot_product", after="blocks")
    plain = models.from_linen(small((2,)))
    run = lambda model, *weights: model.apply(*weights, IMAGES, mode="train").logits
    bare = run(plain, without_blocks(params), without_blocks(state))
    np.testing.assert_allclose(run(model, params, state), bare, atol=1e-6)


def test_a_stage_ends_after_its_block():
    model, params, state = initialised(small(), op="mean")
    for stage in ("stage1", "stage2"):
        params[stage]["denoise"]["norm"]["scale"] += 1.0
    names = ("stage1", "stage1/denoise", "stage1/block2", "stage2", "maps")
    seen = model.apply(params, state, IMAGES, capture=names).features
    np.testing.assert_array_equal(seen["stage1"], seen["stage1/denoise"])
    np.testing.assert_array_equal(seen["stage2"], seen["maps"])
    assert not np.allclose(seen["stage1"], seen["stage1/block2"], atol=0.01)
    weights = params["stage1"]["denoise"]
    block = DenoisingBlock("mean")
    stats = state["batch_stats"]["stage1"]["denoise"]
    variables = {"params": weights, "batch_stats": stats}
    found: Any = block.apply(variables, seen["stage1/block2"])
    np.testing.assert_allclose(found, seen["stage1"], atol=1e-6)


@pytest.mark.parametrize(
    "op",
    [pytest.param(op, marks=pytest.mark.slow) for op in ("bilateral", "median")]
    + ["gaussian"],
)
def test_networks_are_attacked_in_a_loop(op):
    model, params, state = initialised(small((1,)), op=op)
    params["stage1"]["denoise"]["norm"]["scale"] += 1.0
    loss = lambda x: model.apply(params, state, x).logits[:, 0].sum()
    step = lambda x: x + 0.1 * jax.grad(loss)(x)
    loop = jax.jit(lambda x: jax.lax.scan(lambda x, _: (step(x), None), x, length=2)[0])
    found, once = loop(IMAGES), jax.jit(step)
    assert np.isfinite(found).all()
    assert not np.allclose(found, IMAGES, atol=1e-3)
    np.testing.assert_allclose(found, once(once(IMAGES)), atol=1e-5)


def test_other_residual_networks_and_low_precision():
    low = models.denoised(small(dtype="bfloat16"))
    out = jax.eval_shape(
        lambda key: models.from_linen(low).init(key, IMAGES), jax.random.key(0)
    )
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(out))
    for module in (models.wide_resnet28_10(), models.preact_resnet18()):
        model = models.from_linen(models.denoised(module, op="null"))
        params, _ = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
        for stage in (name for name in params if name.startswith("stage")):
            width = params[stage]["block1"]["conv2"]["kernel"].shape[3]
            kernel = params[stage]["denoise"]["conv"]["kernel"]
            assert kernel.shape == (1, 1, width, width)


def test_config_block():
    block: Any = dict(name="resnet20", denoise=dict(op="mean", after=["stage3"]))
    model = build_model(block, num_classes=7)
    params, _ = jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    assert set(params["stage3"]) == {"block1", "block2", "block3", "denoise"}
    assert set(params["stage3"]["denoise"]) == {"conv", "norm"}
    assert "denoise" not in params["stage2"]
    assert params["head"]["kernel"].shape == (64, 7)
    assert block["denoise"]["op"] == "mean"
    with pytest.raises(InputError, match=r"denoise does not fit.*'size'.*window"):
        build_model(block | dict(denoise=dict(size=3)), num_classes=7)


RESNET = models.resnet20()
BAD_CALLS = {
    "op": (lambda: models.denoised(RESNET, op=WRONG), "`op` .*'median'.*'box'"),
    "op of a block": (
        lambda: DenoisingBlock(WRONG).init(jax.random.key(0), jnp.ones((1, 2, 2, 1))),
        "`op` .*'median'.*'box'",
    ),
    "window": (lambda: models.denoised(RESNET, window=2), "`window` .*odd, got 2"),
    "no window": (lambda: models.denoised(RESNET, window=0), "`window` .*got 0"),
    "stage": (
        lambda: models.denoised(RESNET, after=("stage3", "stage4")),
        "`after` .*'stage3'; got 'stage4'",
    ),
    "border": (
        lambda: models.denoised(RESNET, op="mean", border="reflect"),
        "`border` .*'inside', 'zeros'; got 'reflect'",
    ),
    "border of none": (
        lambda: models.denoised(RESNET, border="edge"),
        "`border` is of the operations mean, median; gaussian has none, got 'edge'",
    ),
    "weighting of another operation": (
        lambda: models.denoised(RESNET, weighting="dot_product"),
        "`weighting` is of the operation bilateral; gaussian .*'dot_product'",
    ),
    "no stage": (lambda: models.denoised(RESNET, after=()), r"`after` .*got \(\)"),
    "weighting": (
        lambda: models.denoised(RESNET, op="bilateral", weighting=WRONG),
        "`weighting` .*'gaussian', 'dot_product'; got 'box'",
    ),
    "weighting of a function": (
        lambda: denoising.bilateral(jnp.ones((1, 2, 2, 1)), weighting=WRONG),
        "`weighting` .*got 'box'",
    ),
    "even median": (
        lambda: denoising.local_median(jnp.ones((1, 2, 2, 1)), window=4),
        "`window` .*odd, got 4",
    ),
    "network": (
        lambda: models.denoised(WRONG),
        "`module` .*residual networks.*got str",
    ),
    "PyTorch": (
        lambda: models.from_pytorch({}, models.denoised(RESNET)),
        "`module` has denoising blocks",
    ),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_errors_name_the_argument_the_value_and_the_fix(name):
    call, message = BAD_CALLS[name]
    with pytest.raises(InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
