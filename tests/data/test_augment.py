import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustjax import InputError
from robustjax.data import as_float, chain, flip, random_crop, random_resized_crop

AUGMENTATIONS = {
    "random_crop": random_crop(3),
    "flip": flip(),
    "random_resized_crop": random_resized_crop(7),
    "chain": chain(random_crop(2), flip(), random_resized_crop(9)),
}
each = pytest.mark.parametrize("name", AUGMENTATIONS)


def pictures(*shape, seed=0):
    return jax.random.uniform(jax.random.key(seed), shape)


def test_as_float_divides_uint8_and_passes_floats():
    levels = np.arange(256, dtype=np.uint8)
    x = jax.jit(as_float)(levels)
    assert x.dtype == jnp.float32
    np.testing.assert_allclose(x, levels / 255, rtol=2e-7)
    assert (x[0], x[255]) == (0, 1)
    np.testing.assert_array_equal(as_float(x), x)
    assert as_float(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_as_float_refuses_other_integers():
    with pytest.raises(InputError, match=r"`x` .* int32"):
        as_float(jnp.zeros((1, 2, 2, 1), jnp.int32))


@each
def test_jit_is_eager_and_keeps_to_the_pixel_box(name):
    x = (pictures(5, 11, 8, 3) > 0.5).astype(jnp.float32)
    key = jax.random.key(1)
    eager = AUGMENTATIONS[name](key, x)
    np.testing.assert_allclose(jax.jit(AUGMENTATIONS[name])(key, x), eager, atol=1e-6)
    assert eager.dtype == x.dtype
    assert eager.min() >= 0
    assert eager.max() <= 1


@each
def test_traces_once(name):
    run = jax.jit(chex.assert_max_traces(AUGMENTATIONS[name], n=1))
    for seed in range(3):
        run(jax.random.key(seed), pictures(4, 8, 8, 1, seed=seed))


@each
def test_an_image_does_not_see_its_batch(name):
    x, keys = pictures(6, 8, 8, 3), jax.random.split(jax.random.key(2), 6)
    augment = jax.jit(AUGMENTATIONS[name])
    whole = augment(keys, x)
    rows = jnp.array([4, 1])
    part = augment(jax.random.clone(keys)[rows], x[rows])
    np.testing.assert_allclose(part, whole[rows], atol=1e-6)


@each
def test_one_key_gives_every_image_its_own_draw(name):
    x = jnp.broadcast_to(pictures(1, 16, 16, 1), (32, 16, 16, 1))
    augmented = np.asarray(jax.jit(AUGMENTATIONS[name])(jax.random.key(0), x))
    assert len({image.tobytes() for image in augmented}) > 1


@each
def test_vmaps_over_keys(name):
    x, keys = pictures(3, 8, 8, 1), jax.random.split(jax.random.key(5), 2)
    both = jax.jit(jax.vmap(AUGMENTATIONS[name], (0, None)))(keys, x)
    one = jax.jit(AUGMENTATIONS[name])(jax.random.clone(keys)[1], x)
    np.testing.assert_allclose(both[1], one, atol=1e-6)


@each
def test_refuses_a_single_image(name):
    with pytest.raises(InputError, match=r"\(8, 8, 3\)|\[8\]"):
        AUGMENTATIONS[name](jax.random.key(0), jnp.zeros((8, 8, 3)))


def test_random_crop_without_padding_is_the_identity():
    x = pictures(4, 8, 6, 3)
    np.testing.assert_array_equal(random_crop(0)(jax.random.key(0), x), x)


@settings(max_examples=15, deadline=None)
@given(padding=st.integers(1, 5), height=st.integers(4, 6), seed=st.integers(0, 99))
def test_random_crops_are_windows_of_the_padded_image(padding, height, seed):
    x = np.asarray(pictures(2, height, 5, 2, seed=seed))
    crops = np.asarray(random_crop(padding)(jax.random.key(seed), x))
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    for image, crop in zip(padded, crops, strict=True):
        windows = np.lib.stride_tricks.sliding_window_view(image, crop.shape)
        assert (windows == crop).all(axis=(-3, -2, -1)).any()


def test_random_crop_offsets_are_uniform():
    # One bright pixel in the middle shows the offset; 25 places are possible.
    x = jnp.zeros((5000, 9, 9, 1)).at[:, 4, 4].set(1)
    places = random_crop(2)(jax.random.key(0), x).mean(0).squeeze()
    # Five standard deviations of a share of 1/25 among 5,000.
    np.testing.assert_allclose(places[2:7, 2:7], 1 / 25, atol=5 * 0.0028)
    np.testing.assert_allclose(places.sum(), 1, atol=1e-5)


def test_random_crop_keeps_uint8():
    x = jnp.full((2, 8, 8, 3), 7, jnp.uint8)
    assert random_crop(2)(jax.random.key(0), x).dtype == jnp.uint8


def test_flip_twice_with_one_key_is_the_identity():
    x, key = pictures(8, 5, 4, 1), jax.random.key(3)
    once = flip()(key, x)
    np.testing.assert_array_equal(flip()(jax.random.clone(key), once), x)


def test_flip_mirrors_half_of_the_images_left_to_right():
    x = pictures(1, 3, 4, 2)
    flipped = flip()(jax.random.key(0), jnp.broadcast_to(x, (4000, 3, 4, 2)))
    same = (flipped == x).all((1, 2, 3))
    mirrored = (flipped == x[:, :, ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all()
    assert abs(same.mean() - 0.5) < 5 * 0.5 / 4000**0.5


@pytest.mark.parametrize("size", [8, 16])
def test_the_whole_image_resized(size):
    x = pictures(2, 16, 16, 3)
    whole = random_resized_crop(size, scale=(1, 1), ratio=(1, 1))
    expected = jax.image.resize(x, (2, size, size, 3), "linear", antialias=True)
    np.testing.assert_allclose(whole(jax.random.key(0), x), expected, atol=1e-5)


def test_resized_crops_of_a_ramp_are_ramps_of_the_drawn_area():
    # On f(row, column) = row, bilinear sampling without shrinking is exact, so the
    # result shows each rectangle: its slope per pixel is height / size.
    n, size = 600, 64
    crop = jax.jit(random_resized_crop(size, scale=(0.25, 0.5)))
    x = jnp.broadcast_to((jnp.arange(32) / 32)[:, None, None], (32, 32, 1))
    sides = []
    for ramp in (x, x.swapaxes(0, 1)):
        ramps = jnp.broadcast_to(ramp, (n, 32, 32, 1))
        crops = crop(jax.random.key(1), ramps)
        axis = 1 if ramp is x else 2
        middle = jnp.diff(crops, axis=axis).squeeze(-1)
        sides.append(np.median(np.asarray(middle), axis=(1, 2)) * size * 32)
    height, width = sides
    share, ratio = height * width / 32**2, width / height
    assert share.min() > 0.249
    assert share.max() < 0.501
    assert abs(share.mean() - 0.375) < 5 * 0.25 / 12**0.5 / n**0.5
    assert ratio.min() > 0.749
    assert ratio.max() < 1.334
    assert abs(np.log(ratio).mean()) < 5 * 2 * np.log(4 / 3) / 12**0.5 / n**0.5


def test_a_grey_image_stays_grey():
    x = jnp.full((16, 12, 20, 3), 0.3)
    crop = jax.jit(random_resized_crop(10, scale=(0.05, 1), ratio=(0.2, 5)))
    crops = crop(jax.random.key(0), x)
    np.testing.assert_allclose(crops, 0.3, atol=1e-6)


def test_chain_applies_in_order_and_nothing_is_the_identity():
    x, key = pictures(4, 8, 8, 1), jax.random.key(0)
    np.testing.assert_array_equal(chain()(key, x), x)

    def add(key, x):
        return x + jax.random.uniform(jax.random.key(7))

    def double(key, x):
        return 2 * x

    shift = jax.random.uniform(jax.random.key(7))
    np.testing.assert_allclose(chain(double, add)(key, x), 2 * x + shift, rtol=1e-6)
    np.testing.assert_allclose(chain(add, double)(key, x), 2 * (x + shift), rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: random_crop(-1), "`padding`"),
        (lambda: random_crop(1.5), "`padding`"),
        (lambda: random_resized_crop(0), "`size`"),
        (lambda: random_resized_crop(8, scale=(0.5, 1.5)), "`scale`"),
        (lambda: random_resized_crop(8, scale=(0.5, 0.1)), "`scale`"),
        (lambda: random_resized_crop(8, ratio=(0.0, 1.0)), "`ratio`"),
    ],
)
def test_factories_check_their_numbers(make, word):
    with pytest.raises(InputError, match=word):
        make()


def test_resized_crop_wants_floats():
    x = jnp.zeros((1, 8, 8, 1), jnp.uint8)
    with pytest.raises(InputError, match="floating point"):
        random_resized_crop(8)(jax.random.key(0), x)
