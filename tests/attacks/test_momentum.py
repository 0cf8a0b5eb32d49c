"""The transferable family: each option on its own, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import InputError, attacks, threats
from robustjax.attacks import momentum
from robustjax.attacks.input_diversity import (
    gaussian_kernel,
    resize_and_pad,
    smoothed,
)
from robustjax.attacks.transferable import transferable

KEYS = jax.random.split(jax.random.key(3), 6)
X = jax.random.uniform(KEYS[0], (3, 6, 5, 2), minval=0.2, maxval=0.8)
Y = jnp.array([0, 1, 2])
HIDDEN = jax.random.normal(KEYS[1], (60, 7)) * 0.5
HEAD = jax.random.normal(KEYS[2], (7, 3))
EPS, STEPS, STEP = 0.1, 3, 0.04


def logits_fn(x):
    return jnp.tanh(x.reshape(x.shape[0], -1) @ HIDDEN) @ HEAD


def numpy_gradient(x):
    """Of the cross-entropy of `logits_fn`, by hand, in float64."""
    hidden, head = np.asarray(HIDDEN, np.float64), np.asarray(HEAD, np.float64)
    out = np.empty_like(x)
    for i, image in enumerate(x):
        activity = np.tanh(image.ravel() @ hidden)
        scores = np.exp(activity @ head)
        wrong = scores / scores.sum()
        wrong[int(Y[i])] -= 1
        out[i] = (hidden @ ((1 - activity**2) * (head @ wrong))).reshape(image.shape)
    return out


def run(attack, x=X, keys=None):
    key = jax.random.key(5) if keys is None else keys
    return jax.jit(lambda k, x: attack(k, logits_fn, x, Y))(key, x)


def numpy_attack(direction, step=STEP):
    """Signed steps along what `direction(x_adv, g)` accumulates."""
    clean = np.asarray(X, np.float64)
    x, g = clean.copy(), np.zeros_like(clean)
    for _ in range(STEPS):
        g = direction(x, g)
        x = np.clip(x + step * np.sign(g), clean - EPS, clean + EPS)
    return x


def unit(grad):
    return grad / np.abs(grad).sum(axis=(1, 2, 3), keepdims=True)


@pytest.mark.parametrize("name", ["linf", "l2", "l1"])
def test_with_everything_off_it_is_mi_fgsm(name):
    threat = {"linf": threats.linf, "l2": threats.l2, "l1": threats.l1}[name](0.2)
    options = {"num_steps": 3, "step_size": 0.1, "momentum": 0.9}
    ours = run(transferable(threat, **options))
    np.testing.assert_array_equal(ours, run(attacks.mi_fgsm(threat, **options)))
    # Options that do nothing: a kernel of one point, no resizing, one scale.
    idle = transferable(
        threat,
        **options,
        smoothing_kernel=gaussian_kernel(1),
        diversity=resize_and_pad(probability=0.0),
    )
    np.testing.assert_allclose(run(idle), ours, atol=1e-6)


def test_the_released_settings_of_namid_resize_nothing():
    threat = threats.linf(EPS)
    options = {"num_steps": 3, "step_size": 0.007, "momentum": 0.1}
    released = run(momentum.ti_dim(threat, **options, low=1.0, high=1.0))
    smooth = transferable(threat, **options, smoothing_kernel=gaussian_kernel(15, 3.0))
    np.testing.assert_allclose(released, run(smooth), atol=1e-6)


def test_nesterov_looks_ahead_by_the_momentum():
    def direction(x, g):
        # The authors accumulate gradients of mean absolute value 1.
        ahead = x + STEP * 0.8 * g * g[0].size
        return 0.8 * g + unit(numpy_gradient(ahead))

    attack = momentum.ni_fgsm(
        threats.linf(EPS), num_steps=STEPS, step_size=STEP, momentum=0.8
    )
    np.testing.assert_allclose(run(attack), numpy_attack(direction), atol=1e-5)


def test_scales_average_the_gradients_of_darker_copies():
    def direction(x, g):
        grads = [numpy_gradient(x / 2**i) / 2**i for i in range(3)]
        return g + unit(sum(grads))

    attack = transferable(
        threats.linf(EPS), num_steps=STEPS, step_size=STEP, num_scales=3
    )
    np.testing.assert_allclose(run(attack), numpy_attack(direction), atol=1e-5)


def test_smoothing_is_a_convolution_of_each_channel():
    kernel = np.asarray(gaussian_kernel(5, 2.0), np.float64)
    grad = np.asarray(jax.random.normal(KEYS[3], X.shape), np.float64)
    wide = np.pad(grad, ((0, 0), (2, 2), (2, 2), (0, 0)))
    expected = sum(
        kernel[i] * kernel[j] * wide[:, i : i + 6, j : j + 5]
        for i in range(5)
        for j in range(5)
    )
    ours = smoothed(jnp.asarray(grad, jnp.float32), gaussian_kernel(5, 2.0))
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_smoothing_shapes_the_step():
    kernel = np.asarray(gaussian_kernel(3, 1.0), np.float64)
    band = lambda n: sum(kernel[1 + d] * np.eye(n, k=d) for d in (-1, 0, 1))

    def direction(x, g):
        grad = np.einsum("hi,wj,bijc->bhwc", band(6), band(5), numpy_gradient(x))
        return g + unit(grad)

    attack = transferable(
        threats.linf(EPS),
        num_steps=STEPS,
        step_size=STEP,
        smoothing_kernel=gaussian_kernel(3, 1.0),
    )
    np.testing.assert_allclose(run(attack), numpy_attack(direction), atol=1e-5)


def test_variance_tuning_on_a_linear_model_changes_nothing():
    # The margin of a linear model has one gradient everywhere.
    weights = jax.random.normal(KEYS[4], (60, 2))
    linear = lambda x: x.reshape(x.shape[0], -1) @ weights
    objective = lambda logits, y: logits[:, 1] - logits[:, 0]
    y = jnp.zeros(3, jnp.int32)
    threat = threats.l2(0.5)
    options = {"num_steps": 3, "objective": objective}
    tuned = momentum.vmi_fgsm(threat, **options, num_neighbors=3)
    plain = attacks.mi_fgsm(threat, **options)
    pair = [
        jax.jit(lambda k, a=a: a(k, linear, X, y))(jax.random.key(1))
        for a in (tuned, plain)
    ]
    np.testing.assert_allclose(*pair, atol=1e-5)


def test_variance_is_the_neighbours_mean_less_the_gradient():
    # One step of the state by hand: of x^2 / 2 the gradient is x, so the variance is
    # the neighbours' mean offset, which many neighbours take to zero.
    square = lambda x: jnp.stack(
        [-(x**2).sum((1, 2, 3)) / 2, jnp.zeros(x.shape[0])], axis=1
    )
    objective = lambda logits, y: -logits[:, 0]

    def variance(count, neighborhood):
        attack = transferable(
            threats.linf(0.1),
            num_neighbors=count,
            neighborhood=neighborhood,
            objective=objective,
        )

        def first(key):
            state = attack.init(key, square, X, Y * 0)
            return attack.step(state, square, X, Y * 0).variance

        return np.asarray(jax.jit(first)(jax.random.key(0)))

    one = variance(1, 2.0)
    assert np.abs(one).max() <= 0.2 + 1e-6
    assert np.abs(one).max() > 0.17
    assert np.abs(one.mean()) < 0.03
    many = variance(400, 2.0)
    # Uniform in [-0.2, 0.2]: a standard deviation of 0.2 / sqrt(3 * 400) = 0.0058.
    assert 0.004 < many.std() < 0.008
    np.testing.assert_allclose(variance(2, 0.0), 0, atol=1e-6)


def test_diversity_draws_per_image_and_per_step():
    seen = []

    def diversity(key, x):
        draws = jax.vmap(jax.random.uniform)(key)
        jax.debug.callback(lambda d: seen.append(np.asarray(d)), draws)
        return x * (1 + 0 * draws[:, None, None, None])

    attack = transferable(
        threats.linf(0.1), num_steps=2, num_scales=2, diversity=diversity
    )
    run(attack)
    jax.effects_barrier()
    draws = np.concatenate(seen)
    assert draws.size == 2 * 2 * 3  # steps, scales, images
    assert np.unique(draws).size == draws.size


@pytest.mark.parametrize("threat", [threats.linf(0.1), threats.l2(0.5)])
def test_a_zero_gradient_leaves_the_images_as_they_are(threat):
    attack = transferable(
        threat,
        num_steps=2,
        nesterov=True,
        num_scales=2,
        num_neighbors=2,
        smoothing_kernel=gaussian_kernel(3),
        diversity=resize_and_pad(),
    )
    constant = lambda x: 0 * x.reshape(3, -1)[:, :3]
    x_adv = jax.jit(lambda k: attack(k, constant, X, Y))(jax.random.key(0))
    np.testing.assert_allclose(x_adv, X, atol=1e-7)


def test_a_convolution_runs_in_every_option():
    kernel = jax.random.normal(KEYS[5], (3, 3, 2, 3))

    def convolutional(x):
        dims = ("NHWC", "HWIO", "NHWC")
        out = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=dims
        )
        return jnp.tanh(out).mean((1, 2)) * 20

    attack = transferable(
        threats.linf(0.1),
        num_steps=3,
        nesterov=True,
        smoothing_kernel=gaussian_kernel(3),
        diversity=resize_and_pad(0.7, 1.3, size=(7, 8)),  # another size than x's
        num_scales=2,
        num_neighbors=2,
    )
    y = convolutional(X).argmax(1)
    x_adv = jax.jit(lambda k: attack(k, convolutional, X, y))(jax.random.key(0))
    score = lambda x: jax.nn.log_softmax(convolutional(x))[jnp.arange(3), y]
    assert (score(x_adv) < score(X)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_scales": 0}, "`num_scales` .* got 0"),
        ({"num_neighbors": -1}, "`num_neighbors` .* got -1"),
        ({"neighborhood": -1.0}, r"`neighborhood` .* got -1\.0"),
        ({"momentum": -0.5}, r"`momentum` .* got -0\.5"),
        ({"step_size": -0.5}, r"`step_size` .* got -0\.5"),
        ({"smoothing_kernel": jnp.ones(4)}, r"`smoothing_kernel` .* shape \(4,\)"),
        ({"smoothing_kernel": jnp.ones((3, 3))}, r"`smoothing_kernel` .* \(3, 3\)"),
    ],
)
def test_errors(options, message):
    with pytest.raises(InputError, match=message):
        transferable(threats.linf(0.1), **options)
