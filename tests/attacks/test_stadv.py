"""Flows: reading, smoothness, and which flow is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from robustjax import InputError
from robustjax.attacks import _warp
from robustjax.attacks.stadv import _read, _roughness, stadv

KEYS = jax.random.split(jax.random.key(0), 3)
X = jax.random.uniform(KEYS[0], (4, 6, 5, 2))
WEIGHTS = jax.random.normal(KEYS[1], (60, 3))


def logits_fn(x):
    return x.reshape(x.shape[0], -1) @ WEIGHTS


Y = logits_fn(X).argmax(1)
WRONG = (Y + 1) % 3


def run(attack, x=X, y=Y, model=logits_fn):
    return np.asarray(
        jax.jit(lambda k, x, y: attack(k, model, x, y))(jax.random.key(0), x, y)
    )


def test_no_flow_is_the_image_exactly():
    np.testing.assert_array_equal(_read(X, jnp.zeros((4, 6, 5, 2))), X)


def test_a_flow_of_whole_pixels_is_a_shift():
    flow = jnp.broadcast_to(jnp.array([1.0, -2.0]).reshape(1, 1, 1, 2), (4, 6, 5, 2))
    read = np.asarray(_read(X, flow))
    np.testing.assert_array_equal(read[:, :5, 2:], X[:, 1:, :3])
    assert not read[:, 5].any()  # black beyond the edge
    assert not read[:, :, :2].any()


def test_reading_between_pixels_is_bilinear():
    at = np.random.default_rng(0).uniform(-1.5, 6.5, (2, 4, 3, 4))
    ours = _warp.sample(X, jnp.float32(at[0]), jnp.float32(at[1]))
    x = np.asarray(X, np.float64)
    # Each pixel weighs what is left of 1 after its distance along each axis.
    near = lambda p, n: np.maximum(1 - np.abs(p[..., None] - np.arange(n)), 0)
    expected = np.einsum("bhwi,bhwj,bijc->bhwc", near(at[0], 6), near(at[1], 5), x)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_roughness_counts_each_pair_from_both_ends():
    flow = np.random.default_rng(1).normal(size=(2, 3, 4, 2))
    expected = np.zeros(2)
    for i in range(3):
        for j in range(4):
            for k, m in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
                if 0 <= k < 3 and 0 <= m < 4:
                    expected += np.linalg.norm(flow[:, i, j] - flow[:, k, m], axis=1)
    ours = _roughness(jnp.asarray(flow, jnp.float32))
    np.testing.assert_allclose(ours, expected, rtol=1e-3)
    assert not _roughness(jnp.ones((1, 3, 3, 2))).any()  # the same everywhere


def test_its_gradient_is_finite_at_rest():
    grad = jax.grad(lambda f: _roughness(f).sum())(jnp.zeros((1, 3, 3, 2)))
    np.testing.assert_array_equal(grad, 0)


def test_it_fools_a_linear_model_and_stays_in_range():
    x_adv = run(stadv(num_steps=40, step_size=0.1))
    assert (np.asarray(logits_fn(x_adv)).argmax(1) != Y).all()
    assert x_adv.min() >= 0
    assert x_adv.max() <= X.max()


def test_a_shift_invariant_model_is_not_broken_and_x_comes_back():
    # Of images that are one colour with a margin of it, any flow of less than the
    # margin leaves the centre as it is.
    x = jnp.full_like(X, 0.5)
    centre = lambda z: jnp.stack(
        [z[:, 2:4, 2].mean((1, 2)), 0.4 + 0 * z[:, 0, 0, 0]], 1
    )
    attack = stadv(num_steps=10, step_size=0.5, max_flow=1.9)
    np.testing.assert_array_equal(run(attack, x, Y * 0, centre), x)
    # And what no flow can change at all.
    constant = lambda z: jnp.stack([1 + 0 * z[:, 0, 0, 0], 0 * z[:, 0, 0, 0]], 1)
    np.testing.assert_array_equal(run(attack, X, Y * 0, constant), X)


def test_an_image_that_is_wrong_already_comes_back_as_it_is():
    x_adv = run(stadv(num_steps=5, step_size=0.1), y=WRONG)
    np.testing.assert_array_equal(x_adv, X)


def test_the_smallest_flow_is_kept():
    # From the run by hand: every flow met, and the smallest that fools.
    attack = stadv(num_steps=25, step_size=0.1)
    step = jax.jit(lambda s: attack.step(s, logits_fn, X, Y))
    state = attack.init(jax.random.key(0), logits_fn, X, Y)
    met = []
    for _ in range(25):
        wrong = np.asarray(logits_fn(state.x_adv)).argmax(1) != Y
        size = np.sqrt((np.asarray(state.flow, np.float64) ** 2).sum((1, 2, 3)))
        met.append(np.where(wrong, size, np.inf))
        state = step(state)
    np.testing.assert_allclose(state.found.distance, np.min(met, axis=0), rtol=1e-5)
    assert np.isfinite(state.found.distance).any()


def test_smoother_flows_for_a_larger_weight():
    def flow(weight):
        attack = stadv(num_steps=15, step_size=0.1, smoothness=weight)
        state = attack.init(jax.random.key(0), logits_fn, X, Y)
        step = jax.jit(lambda s: attack.step(s, logits_fn, X, Y))
        for _ in range(15):
            state = step(state)
        return np.asarray(_roughness(state.flow))

    assert (flow(0.5) < flow(0.0)).all()


def test_confidence_target_and_limit():
    target = WRONG
    attack = stadv(
        num_steps=60, step_size=0.1, confidence=0.5, target=target, smoothness=0.0
    )
    x_adv = run(attack)
    logits = np.asarray(logits_fn(x_adv))
    moved = (x_adv != np.asarray(X)).any((1, 2, 3))
    assert moved.any()
    rest = np.where(np.eye(3, dtype=bool)[np.asarray(target)], -np.inf, logits)
    lead = logits[np.arange(4), np.asarray(target)] - rest.max(1)
    assert (lead[moved] >= 0.5 - 1e-4).all()
    held = stadv(num_steps=3, step_size=1.0, max_flow=0.25)
    state = held.init(jax.random.key(0), logits_fn, X, Y)
    state = jax.jit(lambda s: held.step(s, logits_fn, X, Y))(state)
    np.testing.assert_allclose(np.abs(state.flow).max(), 0.25)


def test_another_optimizer():
    attack = stadv(num_steps=40, optimizer=optax.sgd(0.02, momentum=0.9))
    assert (np.asarray(logits_fn(run(attack))).argmax(1) != Y).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "`num_steps` .* got 0"),
        ({"step_size": 0.0}, r"`step_size` .* got 0\.0"),
        ({"smoothness": -1.0}, r"`smoothness` .* got -1\.0"),
        ({"confidence": -1.0}, r"`confidence` .* got -1\.0"),
    ],
)
def test_errors(options, message):
    with pytest.raises(InputError, match=message):
        stadv(**options)


def test_only_images():
    flat = lambda x: x[:, :3]
    with pytest.raises(InputError, match=r"`x` must be images .* \(4, 60\)"):
        stadv()(jax.random.key(0), flat, X.reshape(4, -1), Y)
