"""Key areas against a reference written as loops, Grad-CAM against its equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustjax import InputError, evaluation, models
from robustjax.evaluation import _pictures
from robustjax.types import ModelOutput

RNG = np.random.default_rng(0)
HEAD = RNG.normal(size=(4, 3))


def model_fn(x, *, capture=(), taps=None):
    """Two channels of squares and products; logits of means and of their squares."""
    taps = taps or {}
    a = jnp.concatenate([x**2, 1 - x, x * (1 - x), x], axis=3)[:, ::2, ::2]
    a = a + taps.get("a", 0)
    pooled = a.mean(axis=(1, 2))
    logits = (pooled + pooled**2) @ jnp.asarray(HEAD, x.dtype)
    found = {"a": a, "pooled": pooled}
    return ModelOutput(logits, {name: found[name] for name in capture}, {})


def key_area_by_hand(m, mask):
    """key_mean, key_share and ratio of one map, pixel by pixel of a fine grid."""
    (h, w), (height, width) = m.shape, mask.shape
    fine = np.kron(mask, np.ones((h, w)))  # each pixel in h x w parts
    covered = np.array(
        [
            [
                fine[i * height : (i + 1) * height, j * width : (j + 1) * width].mean()
                for j in range(w)
            ]
            for i in range(h)
        ]
    )
    scaled = (m - m.min()) / (m.max() - m.min())
    mean = sum(s * c for s, c in zip(scaled.flat, covered.flat, strict=True)) / sum(
        covered.flat
    )
    share = sum(v * c for v, c in zip(m.flat, covered.flat, strict=True)) / m.sum()
    return mean, share, share / mask.mean()


@given(
    *(st.integers(1, 4) for _ in range(2)),
    *(st.integers(4, 7) for _ in range(2)),
    st.integers(0, 10**6),
)
def test_key_areas(h, w, height, width, seed):
    rng = np.random.default_rng(seed)
    maps = rng.random((2, h, w)) + np.arange(h * w).reshape(1, h, w)
    masks = rng.random((2, height, width)) < 0.5
    masks[:, 0, 0] = True
    found = evaluation.key_area(maps, masks)
    if h * w == 1:  # a map of one cell has no largest and smallest
        assert (found.mean == 0).all()
        assert np.allclose(found.ratio, 1)
        return
    for i in range(2):
        expected = key_area_by_hand(maps[i], masks[i].astype(float))
        np.testing.assert_allclose([part[i] for part in found], expected, rtol=1e-9)


def test_what_has_no_key_area_is_nan_and_left_out():
    maps = np.stack([np.zeros((2, 2)), np.eye(2), np.eye(2)])
    masks = np.stack([np.ones((2, 2)), np.zeros((2, 2)), np.eye(2)])
    found = evaluation.key_area(maps, masks)
    np.testing.assert_array_equal(found.share, [np.nan, np.nan, 1.0])
    np.testing.assert_array_equal(found.mean[1:], [np.nan, 1.0])
    np.testing.assert_array_equal(found.ratio[2], 2.0)


def test_diffuse_maps_have_a_large_mean_and_no_share():
    """The caution of the definition: scaling rewards what is large everywhere."""
    diffuse = np.full((1, 4, 4), 1.0)
    diffuse[0, 3, 3] = 0.9
    mask = np.zeros((1, 4, 4))
    mask[0, :2, :2] = 1
    found = evaluation.key_area(diffuse, mask)
    assert found.mean[0] == 1
    assert abs(found.ratio[0] - 1) < 0.02


def test_grad_cam_is_its_equations():
    x = RNG.random((3, 4, 6, 1))
    y = np.array([0, 2, 1])
    with jax.enable_x64(True):
        found = evaluation.grad_cam(model_fn, jnp.asarray(x), jnp.asarray(y), layer="a")
    a = np.concatenate([x**2, 1 - x, x * (1 - x), x], axis=3)[:, ::2, ::2]
    places = a.shape[1] * a.shape[2]
    for i in range(3):
        pooled = a[i].mean(axis=(0, 1))
        weights = (1 + 2 * pooled) * HEAD[:, y[i]] / places  # the same at every place
        cam = np.maximum(np.einsum("hwc,c->hw", a[i], weights), 0)
        np.testing.assert_allclose(found[i], cam, atol=1e-12)


def test_grad_cam_of_a_real_network():
    model = models.from_linen(models.small_resnet(depths=(1, 1), widths=(4, 8)))
    x = jnp.asarray(RNG.random((2, 8, 8, 3)), jnp.float32)
    weights = model.init(jax.random.key(0), x)
    fun = models.model_fn(model, *weights)
    cam = evaluation.grad_cam(fun, x, jnp.array([1, 2]), layer="stage2")
    assert cam.shape == (2, 4, 4)
    assert (cam >= 0).all()
    logit = lambda t: fun(x, taps={"stage2": t}).logits[
        jnp.arange(2), jnp.array([1, 2])
    ]
    slope = jax.grad(lambda t: logit(t).sum())(jnp.zeros((2, 4, 4, 8)))
    a = fun(x, capture=("stage2",)).features["stage2"]
    expected = (slope.mean(axis=(1, 2), keepdims=True) * a).sum(axis=3)
    np.testing.assert_allclose(cam, np.maximum(expected, 0), atol=1e-6)


def test_reference_masks_are_the_largest_quarter():
    maps = np.arange(16.0).reshape(1, 4, 4)
    mask = evaluation.reference_masks(maps, (8, 8))
    assert mask.sum() == 16
    assert mask[0, 6:].all()
    few = evaluation.reference_masks(RNG.random((2, 3, 3)), (6, 6))
    assert (few.sum(axis=(1, 2)) == 3 * 4).all()  # 2.25 cells, rounded up


def test_an_image_without_a_box_is_left_out():
    boxes = np.array([[0, 0, 2, 2], [np.nan] * 4, [0, 2, 2, 4]])
    masks = evaluation.box_masks(boxes, (4, 4))
    assert masks.sum(axis=(1, 2)).tolist() == [4, 0, 4]
    x = RNG.random((3, 4, 4, 1), dtype=np.float32)
    subject = evaluation.Subject(model_fn, "a", {"clean": x})
    labels = np.arange(3)
    found = evaluation.attention_of_models({"m": subject}, labels, masks)
    kept = evaluation.Subject(model_fn, "a", {"clean": x[::2]})
    alone = evaluation.attention_of_models({"m": kept}, labels[::2], masks[::2])
    assert found["rows"] == alone["rows"]
    assert {row["count"] for row in found["rows"]} == {2}
    with pytest.raises(InputError, match="or NaN for none"):
        evaluation.box_masks(np.array([[0, np.nan, 2, 2]]), (4, 4))


def test_models_side_by_side(tmp_path):
    x = RNG.random((5, 8, 8, 1)).astype(np.float32)
    y = np.array([0, 1, 2, 0, 1])
    masks = evaluation.box_masks(np.tile([2, 2, 6, 6], (5, 1)), (8, 8))
    masks[4] = False
    images = {"clean": x, "PGD": np.clip(x + 0.1, 0, 1)}
    subject = evaluation.Subject(model_fn, "a", images)
    found = evaluation.attention_of_models(
        {"one": subject, "other": subject}, y, masks, batch_size=2
    )
    assert len(found["rows"]) == 2 * 2 * 2
    row = found["rows"][0]
    maps = evaluation.attention_of(model_fn, jnp.asarray(x), layer="a")
    area = evaluation.key_area(np.asarray(maps), masks)
    assert row["count"] == 4
    assert row["key_share"] == pytest.approx(np.nanmean(area.share), rel=1e-5)
    half = 1.96 * np.nanstd(area.share, ddof=1) / 2
    assert row["key_share_half_width"] == pytest.approx(half, rel=1e-4)
    assert found["shares"][0]["values"][4] is None
    _pictures.draw_attention(tmp_path / "attention.png", found)
    _pictures.draw_shares(tmp_path / "key_share.png", found)
    assert {p.name for p in tmp_path.iterdir()} == {"attention.png", "key_share.png"}


def passes(x, *, capture=(), taps=None):
    """A layer that is the image."""
    return ModelOutput(x.mean(axis=(1, 2)), dict.fromkeys(capture, x), {})


def test_a_map_that_vanishes_counts_as_0_and_leaves_no_share_to_compare():
    x = RNG.random((4, 8, 8, 1)).astype(np.float32)
    dead = x.copy()
    dead[1] = 0  # no activation, no map
    masks = evaluation.box_masks(np.tile([2, 2, 6, 6], (4, 1)), (8, 8))
    subjects = {
        "one": evaluation.Subject(passes, "a", {"clean": x}),
        "other": evaluation.Subject(passes, "a", {"clean": dead}),
    }
    found = evaluation.attention_of_models(
        subjects, np.arange(4), masks, maps=("attention",)
    )
    first, second = found["rows"]
    assert (first["count"], first["compared"]) == (4, 3)
    assert (second["count"], second["compared"]) == (4, 3)
    assert first["key_share"] == pytest.approx(second["key_share"])
    areas = [
        evaluation.key_area(
            np.asarray(evaluation.attention_of(passes, z, layer="a")), masks
        )
        for z in (jnp.asarray(x), jnp.asarray(dead))
    ]
    assert areas[1].mean[1] == 0
    for row, area in zip((first, second), areas, strict=True):
        assert row["key_mean"] == pytest.approx(area.mean.mean(), rel=1e-5)


X, LABELS, ONES = jnp.ones((2, 8, 8, 1)), jnp.zeros(2, int), np.ones((2, 4, 4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: evaluation.attention_of(model_fn, X, layer="pooled"),
            "must have outp",
        ),
        (
            lambda: evaluation.grad_cam(model_fn, X, jnp.zeros(2, int), layer="pooled"),
            "h",
        ),
        (
            lambda: evaluation.key_area(np.ones((2, 2, 2)), np.ones((3, 4, 4))),
            "one for",
        ),
        (
            lambda: evaluation.key_area(np.ones((2, 4, 4)), np.ones((2, 3, 4))),
            "smaller",
        ),
        (lambda: evaluation.cover(np.ones((4, 4)), (2, 2)), r"\[B, H, W\]"),
        (lambda: evaluation.box_masks(np.array([[0, 0, 9, 2]]), (8, 8)), "inside"),
        (lambda: evaluation.box_masks(np.array([[3, 0, 3, 2]]), (8, 8)), "inside"),
        (lambda: evaluation.box_masks(np.ones(4), (8, 8)), r"\[B, 4\]"),
        (
            lambda: evaluation.reference_masks(np.ones((1, 2, 2)), (4, 4), share=0),
            "abov",
        ),
        (lambda: compared(np.ones((2, 4, 4))), "`masks` must be"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()


def compared(masks):
    subject = evaluation.Subject(model_fn, "a", {"clean": np.ones((2, 8, 8, 1))})
    return evaluation.attention_of_models({"m": subject}, np.zeros(2, int), masks)
