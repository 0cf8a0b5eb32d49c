"""The saliency map attack picks what the formula picks, within its budget."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import InputError
from robustjax.attacks.jsma import _best_pair, jsma

RNG = np.random.default_rng(0)
HIDDEN, HEAD = RNG.normal(size=(12, 7)), RNG.normal(size=(7, 4))
X = np.clip(RNG.uniform(-0.1, 1.1, (6, 3, 2, 2)), 0, 1)


def logits_fn(x):
    hidden = jnp.asarray(HIDDEN, x.dtype), jnp.asarray(HEAD, x.dtype)
    return jnp.tanh((x.reshape(x.shape[0], -1) - 0.5) @ hidden[0]) @ hidden[1]


def numpy_logits(x):
    return np.tanh((x - 0.5) @ HIDDEN) @ HEAD


Y = np.array([numpy_logits(x.ravel()).argmax() for x in X])
Y[2] = (Y[2] + 1) % 4  # misclassified as it is


def run(attack, x, y, f=logits_fn):
    x, y = jnp.asarray(x), jnp.asarray(y)
    return jax.jit(lambda x, y: attack(jax.random.key(0), f, x, y))(x, y)


def numpy_jsma(x, y, theta, num_steps, pairs, target=None):
    """One image, by going through all pairs with the rules of algorithm 3."""
    x, sign = x.ravel().copy(), np.sign(theta)
    ranked = [k for k in np.argsort(-numpy_logits(x)) if k != y]
    t = ranked[0] if target is None else target
    for _ in range(num_steps):
        prediction = numpy_logits(x).argmax()
        if prediction != y if target is None else prediction == target:
            break
        slope = 1 - np.tanh((x - 0.5) @ HIDDEN) ** 2
        jacobian = (HIDDEN * slope @ HEAD).T
        alpha = sign * jacobian[t]
        beta = sign * sum(jacobian[k] for k in range(4) if k != t)
        domain = [i for i in range(12) if (x[i] < 1 if theta > 0 else x[i] > 0)]
        sets = [(i,) for i in domain]
        if pairs:
            sets = [(i, j) for i in domain for j in domain if i < j]
        best, chosen = 0.0, ()
        for some in sets:
            a, b = sum(alpha[i] for i in some), sum(beta[i] for i in some)
            if a > 0 and b < 0 and -a * b > best:
                best, chosen = -a * b, some
        for i in chosen:
            x[i] = np.clip(x[i] + theta, 0, 1)
    return x


@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.parametrize("theta", [0.3, -1.0])
@pytest.mark.parametrize("with_target", [False, True])
def test_float64_reference(pairs, theta, with_target):
    target = (Y + 2) % 4 if with_target else None
    attack = jsma(theta=theta, gamma=0.7, pairs=pairs, target=target)
    with jax.enable_x64(True):
        x_adv = np.asarray(run(attack, X, Y))
    assert x_adv.dtype == np.float64
    for i in range(6):
        expected = numpy_jsma(
            X[i],
            Y[i],
            theta,
            4 if pairs else 8,
            pairs,
            target[i] if with_target else None,
        )
        np.testing.assert_allclose(x_adv[i].ravel(), expected, atol=1e-12)
    assert (x_adv != X).any(axis=(1, 2, 3)).sum() >= 4


@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.parametrize("gamma", [0.17, 0.5, 1.0])
def test_budget_box_and_stopping(pairs, gamma):
    x = jnp.float32(X)
    x_adv = run(jsma(theta=0.4, gamma=gamma, pairs=pairs), x, Y)
    changed = (x_adv != x).sum(axis=(1, 2, 3))
    assert (changed <= gamma * 12).all()
    assert (changed > 0).sum() >= 4
    assert changed[2] == 0  # misclassified already
    assert ((x_adv >= 0) & (x_adv <= 1)).all()


def test_a_linear_model_with_a_target():
    # Raising 0 and 3 together helps class 2 most; 1 helps too but also class 0.
    weight = jnp.array(
        [[-1.0, 0, 2], [1, 0, 3], [0, 0, 0], [0, -2, 1], [0.5, 0.5, -1], [-0.1, 0, 0.1]]
    )
    x, y = jnp.zeros((1, 6)) + 0.1, jnp.array([0])
    attack = jsma(gamma=0.4, target=jnp.array([2]))
    x_adv = run(attack, x, y, lambda z: z @ weight - jnp.array([[0.0, 0.0, 3.0]]))
    np.testing.assert_allclose(x_adv, [[1, 0.1, 0.1, 1, 0.1, 0.1]])


def test_lowering_is_raising_in_the_mirror():
    x = jnp.float32(X)
    raised = run(jsma(theta=0.5, gamma=0.5), 1 - x, Y, lambda z: logits_fn(1 - z))
    lowered = run(jsma(theta=-0.5, gamma=0.5), x, Y)
    np.testing.assert_allclose(lowered, 1 - raised, atol=1e-6)


def test_nothing_to_gain_changes_nothing():
    x = jnp.float32(X)
    # Raising any coordinate helps the label alone.
    stubborn = lambda z: jnp.stack([z.sum((1, 2, 3)), -z.sum((1, 2, 3))], axis=1)
    y = jnp.zeros(6, jnp.int32)
    np.testing.assert_array_equal(run(jsma(gamma=0.5), x, y, stubborn), x)
    constant = lambda z: jnp.array([[1.0, 0.0]]) + 0 * z.sum((1, 2, 3))[:, None]
    np.testing.assert_array_equal(run(jsma(gamma=0.5), x, y, constant), x)


@pytest.mark.parametrize("at_once", [1, 40, 10**6])
def test_pairs_in_chunks(monkeypatch, at_once):
    monkeypatch.setitem(_best_pair.__globals__, "_PAIRS_AT_ONCE", at_once)
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(20, 30)), rng.normal(size=(20, 30))
    a[:, ::5] = -np.inf
    masks = jax.vmap(lambda a, b: _best_pair(a, b, None))(*map(jnp.float32, (a, b)))
    for i in range(20):
        total = (a[i] + a[i][:, None], b[i] + b[i][:, None])
        allowed = (total[0] > 0) & (total[1] < 0) & ~np.eye(30, dtype=bool)
        scores = np.where(allowed, -np.where(allowed, total[0], 0) * total[1], 0)
        best = np.unravel_index(scores.argmax(), scores.shape)
        assert sorted(np.flatnonzero(masks[i])) == sorted(best)


def test_candidates_bound_the_search():
    x = jnp.float32(X)
    full = run(jsma(theta=0.5, gamma=0.5), x, Y)
    np.testing.assert_array_equal(
        run(jsma(theta=0.5, gamma=0.5, num_candidates=12), x, Y), full
    )
    few = run(jsma(theta=0.5, gamma=0.5, num_candidates=4), x, Y)
    assert ((few != x).sum(axis=(1, 2, 3)) <= 6).all()
    assert (few != x).any()
    # Most coordinates are of no use: the few that are get found.
    a, b = jnp.full(100, -1.0).at[jnp.array([7, 60])].set(2.0), jnp.full(100, -1.0)
    mask = _best_pair(a, b, 5)
    np.testing.assert_array_equal(jnp.flatnonzero(mask), [7, 60])


def test_soft_labels_samples_and_other_bounds():
    x, y = jnp.float32(X), jnp.asarray(Y)
    attack = jsma(theta=0.5, gamma=0.5)
    expected = run(attack, x, y)
    soft = 0.8 * jax.nn.one_hot(y, 4) + 0.05
    np.testing.assert_array_equal(run(attack, x, soft), expected)
    wide = jsma(theta=1.0, gamma=0.5, bounds=(-1.0, 1.0))
    scaled = run(wide, 2 * x - 1, y, lambda z: logits_fn((z + 1) / 2))
    np.testing.assert_allclose(scaled, 2 * expected - 1, atol=1e-6)
    same = lambda z: jnp.stack([logits_fn(z)] * 2)
    assert np.isfinite(run(attack, x, y, same)).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: jsma(theta=0.0), "`theta` must not be 0"),
        (lambda: jsma(gamma=0.0), r"`gamma` .* got 0\.0"),
        (lambda: jsma(gamma=1.5), r"`gamma` .* got 1\.5"),
        (lambda: jsma(num_candidates=1), "`num_candidates` must be at least 2"),
        (lambda: jsma(bounds=(1.0, 0.0)), "`bounds` .* low < high"),
        (
            lambda: run(jsma(gamma=0.1), jnp.float32(X), Y),
            r"`gamma` must allow 2 of the 12 coordinates .* 0\.17, got 0\.1",
        ),
        (
            lambda: jsma(gamma=0.5, target=jnp.asarray(Y))(
                jax.random.key(0), logits_fn, jnp.float32(X), jnp.asarray(Y)
            ),
            "`target` must differ from the label",
        ),
    ],
)
def test_errors_name_the_argument_the_value_and_the_fix(call, message):
    with pytest.raises(InputError, match=message):
        call()
