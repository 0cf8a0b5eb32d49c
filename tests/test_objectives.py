"""Objectives against float64 formulas written from the papers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import InputError, objectives

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(9, 5)) * 4
LABELS = RNG.integers(0, 5, 9)
TARGETS = (LABELS + RNG.integers(1, 5, 9)) % 5
SOFT = RNG.dirichlet(np.ones(5), 9)
SOFT[0], SOFT[1] = np.eye(5)[2], [0.5, 0.5, 0, 0, 0]


def log_probs(z):
    return z - z.max() - np.log(np.exp(z - z.max()).sum())


def others(z, y):
    return np.delete(z, y)


def dlr(z, y):
    first, second, third = np.sort(z)[::-1][:3]
    competitor = second if z.argmax() == y else first
    return -(z[y] - competitor) / (first - third + 1e-12)


def targeted_dlr(z, y, t):
    s = np.sort(z)[::-1]
    return -(z[y] - z[t]) / (s[0] - (s[2] + s[3]) / 2 + 1e-12)


def smooth(q, s):
    return (1 - s) * q + s / len(q)


ONE_HOT = np.eye(5)
REFERENCES = {
    "cross_entropy": (
        objectives.cross_entropy,
        LABELS,
        lambda z, y, t: -log_probs(z)[y],
    ),
    "cross_entropy-smoothed": (
        functools.partial(objectives.cross_entropy, label_smoothing=0.2),
        LABELS,
        lambda z, y, t: -smooth(ONE_HOT[y], 0.2) @ log_probs(z),
    ),
    "cross_entropy-soft": (
        objectives.cross_entropy,
        SOFT,
        lambda z, q, t: -q @ log_probs(z),
    ),
    "cross_entropy-soft-smoothed": (
        functools.partial(objectives.cross_entropy, label_smoothing=0.3),
        SOFT,
        lambda z, q, t: -smooth(q, 0.3) @ log_probs(z),
    ),
    "margin": (objectives.margin, LABELS, lambda z, y, t: others(z, y).max() - z[y]),
    "margin-confidence": (
        functools.partial(objectives.margin, confidence=1.5),
        LABELS,
        lambda z, y, t: min(others(z, y).max() - z[y], 1.5),
    ),
    "dlr": (objectives.dlr, LABELS, lambda z, y, t: dlr(z, y)),
    "kl": (
        objectives.kl,
        SOFT,
        lambda z, q, t: sum(
            p * (np.log(p) - r) for p, r in zip(q, log_probs(z), strict=True) if p > 0
        ),
    ),
    "kl-labels": (objectives.kl, LABELS, lambda z, y, t: -log_probs(z)[y]),
    "targeted-cross_entropy": (
        objectives.targeted(objectives.cross_entropy, jnp.asarray(TARGETS)),
        LABELS,
        lambda z, y, t: log_probs(z)[t],
    ),
    "targeted-margin": (
        objectives.targeted(objectives.margin, jnp.asarray(TARGETS)),
        LABELS,
        lambda z, y, t: z[t] - others(z, t).max(),
    ),
    "targeted-dlr": (
        objectives.targeted(objectives.dlr, jnp.asarray(TARGETS)),
        LABELS,
        targeted_dlr,
    ),
}
every_objective = pytest.mark.parametrize("name", REFERENCES)


@every_objective
@pytest.mark.parametrize("jit", [False, True])
def test_values(name, jit):
    objective, y, formula = REFERENCES[name]
    expected = [
        formula(*row) for row in zip(LOGITS, np.asarray(y), TARGETS, strict=True)
    ]
    run = jax.jit(objective) if jit else objective
    with jax.enable_x64(True):
        values = run(jnp.asarray(LOGITS), jnp.asarray(y))
        assert values.dtype == jnp.float64
        np.testing.assert_allclose(values, expected, rtol=1e-10, atol=1e-12)
    single = run(jnp.asarray(LOGITS, jnp.float32), _narrow(y))
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, expected, rtol=2e-5, atol=2e-5)


def _narrow(y):
    return jnp.asarray(y, jnp.int32 if y.ndim == 1 else jnp.float32)


@every_objective
def test_low_precision_logits_give_float32(name):
    objective, y, _ = REFERENCES[name]
    low = jnp.asarray(LOGITS, jnp.bfloat16)
    values = objective(low, _narrow(y))
    assert values.dtype == jnp.float32
    # Nothing is lost after the logits: the same as on their float32 values.
    wide = objective(low.astype(jnp.float32), _narrow(y))
    np.testing.assert_array_equal(values, wide)


@every_objective
def test_gradients_are_finite_differences(name):
    objective, y, _ = REFERENCES[name]
    with jax.enable_x64(True):
        z, y = jnp.asarray(LOGITS), jnp.asarray(y)
        total = jax.jit(lambda z: objective(z, y).sum())
        grad = jax.grad(total)(z)
        direction = np.random.default_rng(1).normal(size=z.shape)
        h = 1e-6
        slope = (total(z + h * direction) - total(z - h * direction)) / (2 * h)
        np.testing.assert_allclose((grad * direction).sum(), slope, rtol=1e-6)


def test_kl_gradient_of_both_arguments():
    with jax.enable_x64(True):
        z, q = jnp.asarray(LOGITS[2:]), jnp.asarray(SOFT[2:])
        total = jax.jit(lambda z, q: objectives.kl(z, q).sum())
        grads = jax.grad(total, (0, 1))(z, q)
        h = 1e-7
        for i, grad in enumerate(grads):
            step = np.random.default_rng(i).normal(size=z.shape) * np.asarray(q)
            plus = [a + h * step if j == i else a for j, a in enumerate((z, q))]
            minus = [a - h * step if j == i else a for j, a in enumerate((z, q))]
            slope = (total(*plus) - total(*minus)) / (2 * h)
            np.testing.assert_allclose((grad * step).sum(), slope, rtol=1e-5)
        assert np.isfinite(jax.grad(total, 1)(jnp.asarray(LOGITS), SOFT)).all()


@pytest.mark.parametrize("targets", [None, TARGETS])
def test_dlr_does_not_see_shift_and_scale(targets):
    objective = objectives.dlr
    if targets is not None:
        objective = objectives.targeted(objective, jnp.asarray(targets))
    with jax.enable_x64(True):
        plain = objective(jnp.asarray(LOGITS), jnp.asarray(LABELS))
        moved = objective(jnp.asarray(1e-3 * LOGITS + 70), jnp.asarray(LABELS))
    np.testing.assert_allclose(moved, plain, rtol=1e-7)


def test_zeros_and_signs():
    z, y = jnp.array([[2.0, 1.0, 0.0, -1.0]]), jnp.array([0])
    q = jax.nn.softmax(z)
    assert float(objectives.kl(z, q)[0]) == pytest.approx(0, abs=1e-6)
    for objective in (objectives.margin, objectives.dlr):
        assert objective(z, y) < 0 < objective(z, y + 1)
    # Two equal largest logits, then all equal: 0, and no NaN.
    for tied in (jnp.array([[2.0, 2.0, 0.0, 0.0]]), jnp.zeros((1, 4))):
        for objective in (
            objectives.margin,
            objectives.dlr,
            objectives.targeted(objectives.dlr, y + 1),
        ):
            assert float(objective(tied, y)[0]) == 0
            grad = jax.grad(lambda z, f=objective: f(z, y).sum())(tied)
            assert np.isfinite(grad).all()


def test_huge_logits_stay_finite():
    z, y = jnp.array([[3e38, 3e38, -3e38], [0.0, -jnp.inf, 1.0]]), jnp.array([0, 0])
    values = objectives.cross_entropy(z, y)
    # Beside 3e38 a log 2 is nothing.
    np.testing.assert_allclose(values, [0, np.log(1 + np.e)], rtol=1e-6)


@pytest.mark.parametrize("label", [-1, 5, 99])
def test_labels_out_of_range(label):
    z, y = jnp.zeros((1, 5)), jnp.array([label])
    for objective in (objectives.cross_entropy, objectives.margin, objectives.dlr):
        with pytest.raises(InputError, match=rf"`y` .* \[0, 4\], got {label}"):
            objective(z, y)
        assert np.isnan(jax.jit(objective)(z, y)).all()


@pytest.mark.parametrize(
    ("objective", "least"),
    [
        (objectives.margin, 2),
        (objectives.dlr, 3),
        (objectives.targeted(objectives.dlr, jnp.array([1, 1])), 4),
    ],
)
def test_too_few_classes_are_refused(objective, least):
    y = jnp.zeros(2, jnp.int32)
    message = f"`logits` must have at least {least} classes .* got {least - 1}"
    with pytest.raises(InputError, match=message):
        objective(jnp.zeros((2, least - 1)), y)
    assert objective(jnp.zeros((2, least)), y).shape == (2,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: objectives.cross_entropy(jnp.zeros(3), jnp.zeros(3, int)),
            r"`logits` must be \[B, K\], got shape \(3,\)",
        ),
        (
            lambda: objectives.kl(jnp.zeros((2, 3)), jnp.zeros(3, int)),
            r"same batch size, got `logits` \(2, 3\), `y` \(3,\)",
        ),
        (
            lambda: objectives.kl(jnp.zeros((2, 3)), jnp.zeros((2, 4))),
            r"`logits` \(2, 3\), `y` \(2, 4\)",
        ),
        (
            lambda: objectives.cross_entropy(jnp.zeros((2, 3)), jnp.zeros(2)),
            "`y` must be integer labels",
        ),
        (
            lambda: objectives.kl(jnp.zeros((2, 3)), jnp.zeros((2, 3), int)),
            "`y` .* must be probabilities",
        ),
        (
            lambda: objectives.dlr(jnp.zeros((2, 3)), jnp.zeros((2, 3))),
            "Distributions work with `cross_entropy` and `kl`",
        ),
        (
            lambda: objectives.cross_entropy(
                jnp.zeros((2, 3)), jnp.zeros(2, int), label_smoothing=1.5
            ),
            r"`label_smoothing` .* got 1\.5",
        ),
    ],
)
def test_errors_name_the_argument_the_value_and_the_fix(call, message):
    with pytest.raises(InputError, match=message):
        call()
