"""Random resizing and padding, and the Gaussian kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import InputError
from robustjax.attacks import _warp
from robustjax.attacks.input_diversity import gaussian_kernel, resize_and_pad

X = jax.random.uniform(jax.random.key(0), (64, 6, 8, 2), minval=0.1, maxval=1.0)


def numpy_resized(line, side):
    """Bilinear, half-pixel centres, ends repeated, by definition."""
    out = []
    for i in range(side):
        at = min(max((i + 0.5) * len(line) / side - 0.5, 0), len(line) - 1)
        left = int(np.floor(at))
        right = min(left + 1, len(line) - 1)
        out.append((1 - (at - left)) * line[left] + (at - left) * line[right])
    return np.array(out)


def test_the_kernel_is_symmetric_sums_to_one_and_falls_like_a_gaussian():
    kernel = np.asarray(gaussian_kernel(15, 3.0), np.float64)
    assert kernel.shape == (15,)
    np.testing.assert_allclose(kernel.sum(), 1, atol=1e-6)
    np.testing.assert_allclose(kernel, kernel[::-1], atol=1e-7)
    # 3 standard deviations to the end, 7 points away.
    np.testing.assert_allclose(kernel[0] / kernel[7], np.exp(-4.5), rtol=1e-4)
    np.testing.assert_array_equal(gaussian_kernel(1), [1.0])


@pytest.mark.parametrize(("size", "side"), [(5, 5), (5, 9), (9, 4), (3, 1)])
def test_the_matrix_resizes(size, side):
    line = np.linspace(0, 1, size) ** 2
    ours = _warp.resizing_matrix(
        size, jnp.int32(side), jnp.int32(2), side + 3, jnp.float32
    )
    expected = np.concatenate([[0, 0], numpy_resized(line, side), [0]])
    np.testing.assert_allclose(ours @ jnp.float32(line), expected, atol=1e-6)


def test_each_image_is_untouched_or_resized_onto_black():
    diversity = resize_and_pad(0.5, 1.0, probability=0.5)
    out = np.asarray(jax.jit(diversity)(jax.random.key(1), X))
    assert out.shape == X.shape
    same = np.array([np.array_equal(a, b) for a, b in zip(out, X, strict=True)])
    assert 16 < same.sum() < 48
    corners = set()
    for image, clean in zip(out[~same], np.asarray(X)[~same], strict=True):
        rows, columns = (
            np.flatnonzero(image.sum((1, 2))),
            np.flatnonzero(image.sum((0, 2))),
        )
        tall, wide = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert 3 <= tall <= 6
        assert abs(wide - tall * 8 / 6) <= 0.5
        resized = np.apply_along_axis(numpy_resized, 0, clean, tall)
        resized = np.apply_along_axis(numpy_resized, 1, resized, wide)
        inside = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        np.testing.assert_allclose(inside, resized, atol=1e-5)
        corners.add((rows[0], columns[0]))
    assert len(corners) > 5


def test_a_canvas_larger_than_the_image_has_the_size_asked_for():
    diversity = resize_and_pad(1.5, 1.5, probability=1.0, size=(9, 12))
    out = np.asarray(jax.jit(diversity)(jax.random.key(1), X[:2]))
    resized = np.apply_along_axis(numpy_resized, 1, np.asarray(X[:2]), 9)
    resized = np.apply_along_axis(numpy_resized, 2, resized, 12)
    np.testing.assert_allclose(out, resized, atol=1e-5)
    # By default it is brought back to the image's.
    back = jax.jit(resize_and_pad(1.5, 1.5, probability=1.0))(jax.random.key(1), X[:2])
    assert back.shape == X[:2].shape
    assert not np.array_equal(back, X[:2])


def test_at_its_own_size_it_is_the_identity():
    diversity = jax.jit(resize_and_pad(1.0, 1.0, probability=1.0))
    np.testing.assert_array_equal(diversity(jax.random.key(1), X), X)


def test_an_image_does_not_see_its_neighbours():
    diversity = jax.jit(resize_and_pad(0.5, 1.0, probability=1.0))
    keys = jax.random.split(jax.random.key(1), 3)
    together = diversity(jax.random.clone(keys), X[:3])
    alone = diversity(keys[1:2], X[1:2])
    np.testing.assert_allclose(together[1:2], alone, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gaussian_kernel(4), "`size` .* odd .* 4"),
        (lambda: gaussian_kernel(3, 0.0), r"`span` .* got 0\.0"),
        (lambda: resize_and_pad(0.0), r"`low` .* got 0\.0"),
        (lambda: resize_and_pad(1.1, 1.0), r"`low` .* `high` = 1\.0, got 1\.1"),
        (lambda: resize_and_pad(probability=2), "`probability` .* got 2"),
        (
            lambda: resize_and_pad()(jax.random.key(0), jnp.zeros((2, 5))),
            r"`x` .* \(2, 5\)",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(InputError, match=message):
        call()
