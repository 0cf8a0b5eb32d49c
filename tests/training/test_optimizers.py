import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustjax import InputError, training

PARAMS = {
    "kernel": jnp.array([[1.0, -2.0], [0.5, 4.0]]),
    "bias": jnp.array([3.0, -1.0]),
}
GRADS = {"kernel": jnp.array([[0.1, 0.2], [-0.3, 0.4]]), "bias": jnp.array([0.5, -0.6])}


def updated(optimizer, steps=1, params=PARAMS, grads=GRADS):
    state = optimizer.init(params)
    for _ in range(steps):
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_adds_decay_to_the_gradient_before_momentum(nesterov):
    rate, momentum, decay = 0.1, 0.9, 0.01
    optimizer = training.sgd(
        training.constant(rate),
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=decay,
    )
    expected, trace = dict(PARAMS), jax.tree.map(jnp.zeros_like, PARAMS)
    for _ in range(3):
        for name in expected:
            grad = GRADS[name] + decay * expected[name]
            trace[name] = momentum * trace[name] + grad
            step = grad + momentum * trace[name] if nesterov else trace[name]
            expected[name] = expected[name] - rate * step
    result = updated(optimizer, 3)
    for name in expected:
        np.testing.assert_allclose(result[name], expected[name], rtol=1e-6)


@pytest.mark.parametrize("make", [training.sgd, training.adam, training.adamw])
def test_decay_can_leave_biases_and_norms_alone(make):
    schedule = training.constant(0.1)
    plain = updated(make(schedule, weight_decay=0.0))
    matrices = updated(make(schedule, weight_decay=0.1, decay_all=False))
    everything = updated(make(schedule, weight_decay=0.1, decay_all=True), 2)
    twice = updated(make(schedule, weight_decay=0.0), 2)
    np.testing.assert_array_equal(matrices["bias"], plain["bias"])
    if make is not training.adam:  # whose first step is the sign of the gradient
        assert (matrices["kernel"] != plain["kernel"]).all()
    assert (everything["bias"] != twice["bias"]).all()


def test_adamw_decays_beside_the_step():
    plain = updated(training.adamw(training.constant(0.1), weight_decay=0.0))
    decayed = updated(training.adamw(training.constant(0.1), weight_decay=0.5))
    expected = plain["kernel"] - 0.1 * 0.5 * PARAMS["kernel"]
    np.testing.assert_allclose(decayed["kernel"], expected, rtol=1e-6)


def test_adam_is_the_textbooks():
    rate, b1, b2 = 0.1, 0.8, 0.95
    result = updated(training.adam(training.constant(rate), b1=b1, b2=b2), 3)
    param, first, second = np.float64(PARAMS["bias"]), 0.0, 0.0
    grad = np.float64(GRADS["bias"])
    for t in (1, 2, 3):
        first = b1 * first + (1 - b1) * grad
        second = b2 * second + (1 - b2) * grad**2
        param -= rate * first / (1 - b1**t) / (np.sqrt(second / (1 - b2**t)) + 1e-8)
    np.testing.assert_allclose(result["bias"], param, rtol=1e-5)


@pytest.mark.parametrize("make", [training.sgd, training.adam, training.adamw])
def test_clipping_bounds_the_global_norm_before_decay(make):
    clipped = make(training.constant(0.1), clip_norm=0.5, weight_decay=0.01)
    plain = make(training.constant(0.1), weight_decay=0.01)
    share = 0.5 / float(optax.global_norm(GRADS))
    assert share < 1
    scaled = jax.tree.map(lambda g: share * g, GRADS)
    for a, b in zip(
        jax.tree.leaves(updated(clipped)),
        jax.tree.leaves(updated(plain, grads=scaled)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    loose = make(training.constant(0.1), clip_norm=100.0, weight_decay=0.01)
    np.testing.assert_array_equal(updated(loose)["bias"], updated(plain)["bias"])


def test_freezing_leaves_everything_alone_even_decay():
    optimizer = training.adamw(training.constant(0.1), weight_decay=0.1, decay_all=True)
    frozen = training.freeze(optimizer, {"kernel": True, "bias": False})
    result = updated(frozen, 3)
    np.testing.assert_array_equal(result["bias"], PARAMS["bias"])
    assert (result["kernel"] != PARAMS["kernel"]).all()
    nested = {"a": PARAMS, "b": PARAMS}
    prefix = training.freeze(optimizer, {"a": False, "b": True})
    grads = {"a": GRADS, "b": GRADS}
    result = updated(prefix, 2, nested, grads)
    np.testing.assert_array_equal(result["a"]["kernel"], PARAMS["kernel"])
    assert (result["b"]["bias"] != PARAMS["bias"]).all()


@given(step=st.integers(0, 200), value=st.floats(1e-3, 1.0))
def test_schedules_have_their_closed_forms(step, value):
    total = 200
    drops = training.piecewise(value, total_steps=total, drops=(0.5, 0.75), factor=0.2)
    expected = value * 0.2 ** (int(step >= 100) + int(step >= 150))
    assert float(drops(step)) == pytest.approx(expected, rel=1e-5)
    cosine = training.cosine(value, total_steps=total)
    expected = value * (1 + np.cos(np.pi * step / total)) / 2
    assert float(cosine(step)) == pytest.approx(expected, rel=1e-4, abs=1e-7)
    cycle = training.one_cycle(value, total_steps=total, peak=0.25)
    expected = value * (step / 50 if step <= 50 else (total - step) / 150)
    assert float(cycle(step)) == pytest.approx(expected, rel=1e-5, abs=1e-8)
    assert float(training.constant(value)(step)) == pytest.approx(value)


def test_warmup_rises_to_the_peak_and_cosine_falls_from_it():
    schedule = training.cosine(1.0, total_steps=100, warmup=0.1)
    values = [float(schedule(step)) for step in (0, 5, 10, 55, 100)]
    np.testing.assert_allclose(values, [0.0, 0.5, 1.0, 0.5, 0.0], atol=1e-6)


@pytest.mark.parametrize(
    ("build", "word"),
    [
        (lambda: training.constant(0.0), "`value`"),
        (lambda: training.cosine(0.1, total_steps=0), "`total_steps`"),
        (lambda: training.cosine(0.1, total_steps=9, warmup=2.0), "`warmup`"),
        (lambda: training.one_cycle(0.1, total_steps=9, peak=-0.1), "`peak`"),
        (lambda: training.piecewise(0.1, total_steps=9, drops=(75,)), "`drops`"),
        (lambda: training.sgd(training.constant(1.0), momentum=1.5), "`momentum`"),
        (
            lambda: training.sgd(training.constant(1.0), weight_decay=-1.0),
            "`weight_decay`",
        ),
        (
            lambda: training.adamw(training.constant(1.0), weight_decay=-1.0),
            "`weight_decay`",
        ),
        (lambda: training.adam(training.constant(1.0), clip_norm=0.0), "`clip_norm`"),
        (lambda: training.adam(training.constant(1.0), b2=3), "`b2`"),
    ],
)
def test_arguments_out_of_range_are_refused(build, word):
    with pytest.raises(InputError, match=word):
        build()
