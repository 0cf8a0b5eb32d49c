"""DeepFool against closed forms and a float64 reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import InputError, threats
from robustjax.attacks.deepfool import deepfool

UNBOUNDED = {"linf": threats.linf(1.0), "l2": threats.l2(jnp.inf)}
DUAL = {"linf": 1, "l2": 2}
every_norm = pytest.mark.parametrize("norm", UNBOUNDED)

RNG = np.random.default_rng(0)
HIDDEN, HEAD = RNG.normal(size=(12, 7)), RNG.normal(size=(7, 5))
X = np.clip(RNG.uniform(-0.1, 1.1, (6, 3, 2, 2)), 0, 1)


def logits_fn(x):
    hidden = jnp.asarray(HIDDEN, x.dtype), jnp.asarray(HEAD, x.dtype)
    return jnp.tanh((x.reshape(x.shape[0], -1) - 0.5) @ hidden[0]) @ hidden[1]


def numpy_logits(x):
    return np.tanh((x.ravel() - 0.5) @ HIDDEN) @ HEAD


def numpy_jacobian(x):
    slope = 1 - np.tanh((x.ravel() - 0.5) @ HIDDEN) ** 2
    return (HIDDEN * slope @ HEAD).T.reshape(5, *x.shape)


Y = np.array([numpy_logits(x).argmax() for x in X])
Y[2] = (Y[2] + 1) % 5  # misclassified as it is


def numpy_deepfool(norm, x, y, overshoot, num_candidates, num_steps, extra=1e-4):
    """All points on the way, the paper's loop with the overshoot inside."""
    ranked = [k for k in np.argsort(-numpy_logits(x)) if k != y]
    total, points = np.zeros_like(x), [x]
    while numpy_logits(points[-1]).argmax() == y and len(points) <= num_steps:
        z, jacobian = numpy_logits(points[-1]), numpy_jacobian(points[-1])
        steps = []
        for k in ranked[: num_candidates - 1]:
            w = jacobian[k] - jacobian[y]
            if norm == "l2":
                length = np.sqrt((w**2).sum())
                steps.append((abs(z[k] - z[y]) / length + extra) * w / length)
            else:
                length = np.abs(w).sum()
                steps.append((abs(z[k] - z[y]) / length + extra) * np.sign(w))
        order = 2 if norm == "l2" else np.inf
        total = total + min(steps, key=lambda r: np.linalg.norm(r.ravel(), order))
        points.append(np.clip(x + (1 + overshoot) * total, 0, 1))
    return points


@every_norm
@pytest.mark.parametrize("num_candidates", [2, 4, 10])
def test_float64_reference(norm, num_candidates):
    attack = deepfool(
        UNBOUNDED[norm], num_steps=12, overshoot=0.05, num_candidates=num_candidates
    )

    def follow(x, y):
        def step(state, _):
            return attack.step(state, logits_fn, x, y), state.x_adv

        state = attack.init(jax.random.key(0), logits_fn, x, y)
        state, points = jax.lax.scan(step, state, length=12)
        return points, attack.finish(state, logits_fn, x, y)

    with jax.enable_x64(True):
        points, x_adv = jax.jit(follow)(jnp.asarray(X), jnp.asarray(Y))
    assert x_adv.dtype == jnp.float64
    lengths = set()
    for i in range(len(X)):
        expected = numpy_deepfool(norm, X[i], Y[i], 0.05, num_candidates, 12)
        lengths.add(len(expected))
        # Frozen at the first misclassified point, which comes back.
        expected += expected[-1:] * (12 - len(expected))
        np.testing.assert_allclose(points[:, i], expected[:12], atol=1e-9)
        assert numpy_logits(expected[-1]).argmax() != Y[i]
        np.testing.assert_allclose(x_adv[i], expected[-1], atol=1e-9)
    assert len(lengths) > 2


@every_norm
@pytest.mark.parametrize("num_classes", [2, 5])
def test_a_linear_classifier_takes_one_step_of_the_exact_length(norm, num_classes):
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(8, num_classes))
    x = 0.5 + 0.05 * rng.normal(size=(16, 8))  # far from the box
    gaps = (x - 0.5) @ weight
    y = gaps.argmax(axis=1)
    distances = [
        min(
            (gaps[i, y[i]] - gaps[i, k])
            / np.linalg.norm(weight[:, k] - weight[:, y[i]], DUAL[norm])
            for k in range(num_classes)
            if k != y[i]
        )
        for i in range(16)
    ]
    linear = lambda z: (z - 0.5) @ jnp.asarray(weight, z.dtype)
    x, y = jnp.float32(x), jnp.asarray(y)
    attack = deepfool(UNBOUNDED[norm], num_steps=1, extra_step=0.0)
    x_adv = jax.jit(lambda: attack(jax.random.key(0), linear, x, y))()
    assert (linear(x_adv).argmax(axis=1) != y).all()
    found = UNBOUNDED[norm].norm(x_adv - x)
    np.testing.assert_allclose(found, 1.02 * np.array(distances), rtol=1e-4, atol=1e-7)


@every_norm
def test_results_are_misclassified_or_x_and_within_eps(norm):
    x, y = jnp.float32(X), jnp.asarray(Y)
    threat = UNBOUNDED[norm]

    @jax.jit
    def run(eps):
        attack = deepfool(threat.with_eps(eps), num_steps=15)
        return attack(jax.random.key(0), logits_fn, x, y)

    free = run(1.0 if norm == "linf" else jnp.inf)
    distance = threat.norm(free - x)
    assert (logits_fn(free).argmax(axis=1) != y).all()
    assert ((free >= 0) & (free <= 1)).all()
    assert distance[2] == 0
    eps = jnp.sort(distance)[3]
    within = (distance <= eps).reshape(-1, 1, 1, 1)
    np.testing.assert_array_equal(run(eps), jnp.where(within, free, x))


def test_a_step_too_few_gives_x_back():
    x, y = jnp.float32(X), jnp.asarray(Y)
    one = deepfool(UNBOUNDED["l2"], num_steps=1, overshoot=0.0, extra_step=0.0)
    x_adv = jax.jit(lambda: one(jax.random.key(0), logits_fn, x, y))()
    flipped = logits_fn(x_adv).argmax(axis=1) != y
    moved = (x_adv != x).any(axis=(1, 2, 3))
    assert not flipped.all()
    np.testing.assert_array_equal(moved, flipped.at[2].set(False))


def test_gradients_near_zero_and_none():
    y = jnp.array([0, 1, 0])
    x = jnp.array([[0.75, 0.25], [0.25, 0.75], [0.9, 0.1]])
    flat = lambda z: 1e-25 * z
    for norm in UNBOUNDED:
        attack = deepfool(UNBOUNDED[norm], num_steps=3)
        run = lambda f, a=attack: a(jax.random.key(0), f, x, y)
        np.testing.assert_allclose(run(flat), run(lambda z: 2 * z), atol=1e-5)
        constant = lambda z: jnp.array([[1.0, 1.0]]) + 0 * z
        np.testing.assert_array_equal(run(constant), x)


def test_soft_labels_and_samples():
    x, y = jnp.float32(X), jnp.asarray(Y)
    attack = deepfool(UNBOUNDED["l2"], num_steps=10)
    run = lambda f, y: attack(jax.random.key(0), f, x, y)
    soft = 0.8 * jax.nn.one_hot(y, 5) + 0.04
    expected = run(logits_fn, y)
    np.testing.assert_allclose(run(logits_fn, soft), expected, atol=1e-6)
    same = lambda z: jnp.stack([logits_fn(z)] * 2)
    np.testing.assert_allclose(run(same, y), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: deepfool(threats.l1(1.0)), r"`threat.name` .* got 'l1'"),
        (lambda: deepfool(threats.l2(1.0), num_steps=0), "`num_steps` .* got 0"),
        (lambda: deepfool(threats.l2(1.0), overshoot=-1), "`overshoot` .* got -1"),
        (
            lambda: deepfool(threats.l2(1.0), num_candidates=1),
            "`num_candidates` must be at least 2",
        ),
    ],
)
def test_errors_name_the_argument_the_value_and_the_fix(call, message):
    with pytest.raises(InputError, match=message):
        call()
