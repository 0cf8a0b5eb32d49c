"""The boundary attack against exact distances and a step in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import InputError, threats
from robustjax.attacks import _decision
from robustjax.attacks.boundary import Rate, _count, boundary

RNG = np.random.default_rng(0)
SIZE = 12
W = RNG.normal(size=(SIZE, 2))
X = np.float32(RNG.uniform(0.35, 0.65, (5, SIZE)))
NORMAL = W[:, 1] - W[:, 0]
NO_LIMIT = threats.l2(jnp.inf)


def linear(z):
    return (z - 0.5) @ jnp.asarray(W, z.dtype)


Y = np.asarray(linear(X).argmax(1))
DISTANCE = np.abs((X - 0.5) @ NORMAL) / np.linalg.norm(NORMAL)


def keys():
    return jax.random.split(jax.random.key(1), 5)


def run(attack, y=Y, f=linear):
    call = jax.jit(lambda k: attack(k, f, jnp.asarray(X), jnp.asarray(y)))
    return np.asarray(call(keys()))


def test_it_converges_to_the_hyperplane():
    attack = boundary(
        NO_LIMIT, num_steps=1500, side_step=0.1, source_step=0.1, check_every=2
    )
    x_adv = run(attack)
    assert (linear(x_adv).argmax(1) != Y).all()
    found = np.linalg.norm(x_adv - X, axis=1)
    assert (found >= DISTANCE - 1e-6).all()
    assert (found <= 1.05 * DISTANCE).all()


def test_always_adversarial_and_ever_closer():
    attack = boundary(NO_LIMIT, num_steps=40)
    x, y = jnp.asarray(X), jnp.asarray(Y)
    state = attack.init(keys(), linear, x, y)
    first = state.distance
    step = jax.jit(lambda s: attack.step(s, linear, x, y))
    for _ in range(40):
        new = step(state)
        assert (linear(new.x_adv).argmax(1) != Y).all()
        assert (new.distance <= state.distance).all()
        found = np.linalg.norm(new.x_adv - X, axis=1)
        np.testing.assert_allclose(new.distance, found, rtol=1e-5)
        state = new
    assert (state.distance < first).all()


def test_a_step_against_numpy():
    attack = boundary(NO_LIMIT, num_steps=1, side_step=0.2, source_step=0.05)
    with jax.enable_x64(True):
        x, y = jnp.asarray(X, jnp.float64), jnp.asarray(Y)
        state = attack.init(keys(), linear, x, y)
        new = attack.step(state, linear, x, y)
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys(), 1)
        noise = jax.vmap(lambda k: jax.random.normal(k, (SIZE,), jnp.float64))(
            step_keys
        )
    kept = 0
    for i in range(5):
        v = np.asarray(state.x_adv[i]) - X[i]
        d = np.linalg.norm(v)
        n = np.asarray(noise[i])
        n = n - (n @ v) * v / d**2
        sphere = v + 0.2 * d * n / np.linalg.norm(n)
        sphere *= d / np.linalg.norm(sphere)  # back onto the sphere
        sphere = np.clip(X[i] + sphere, 0, 1) - X[i]
        r = np.linalg.norm(sphere)
        shorter = sphere * (1 - max(0.05 * d + r - d, 0) / r)
        trial = np.clip(X[i] + shorter, 0, 1)
        keep = ((trial - 0.5) @ W).argmax() != Y[i] and np.linalg.norm(shorter) < d
        kept += keep
        expected = trial if keep else np.asarray(state.x_adv[i])
        np.testing.assert_allclose(new.x_adv[i], expected, atol=1e-12)
    assert kept > 0


def test_rates_decide_at_full_windows():
    rate = Rate(jnp.array([0, 3, 3, 3]), jnp.array([0, 3, 0, 1]))
    passed = jnp.array([True, False, False, True])
    rate, up, down = _count(rate, passed, window=4, low=0.2, high=0.5)
    # 1 of 1: not full. 3, 0 and 2 of 4: grow, shrink, stay.
    assert rate.tried.tolist() == [1, 0, 0, 0]
    assert rate.passed.tolist() == [1, 0, 0, 0]
    assert up.tolist() == [False, True, False, False]
    assert down.tolist() == [False, False, True, False]


def test_steps_adapt_per_image():
    """Steps grow where all but x is adversarial, and shrink where only the start is."""
    x = jnp.array([[0.2, 0.5, 0.5], [0.8, 0.5, 0.5]])
    start = jnp.array([[0.2, 0.5, 0.9], [0.8, 0.5, 0.9]])

    def worlds(z):
        everywhere = jnp.abs(z - x[:1]).sum(1) > 1e-6
        nowhere_else = jnp.abs(z - start[1:]).sum(1) < 1e-6
        is_adv = jnp.where(z[:, 0] < 0.5, everywhere, nowhere_else)
        return jnp.where(is_adv[:, None], jnp.array([[0.0, 9.0]]), 1.0)

    attack = boundary(NO_LIMIT, num_steps=10, check_every=1, start=start)
    state = attack.init(keys()[:2], worlds, x, jnp.zeros(2, jnp.int32))
    step = jax.jit(lambda s: attack.step(s, worlds, x, jnp.zeros(2, jnp.int32)))
    for _ in range(10):
        state = step(state)
    # Once in 10 points on the sphere, and twice in 5 steps.
    np.testing.assert_allclose(state.side_step, [0.01 * 1.5, 0.01 / 1.5], rtol=1e-5)
    factors = np.array([1.5**3, 1.5**-3])
    np.testing.assert_allclose(state.source_step, 0.01 * factors, rtol=1e-5)
    np.testing.assert_array_equal(state.x_adv[1], start[1])


def test_starts_targets_and_failures():
    # Nothing within eps, or never adversarial: x comes back.
    short = boundary(threats.l2(0.5 * DISTANCE.min()), num_steps=3)
    np.testing.assert_array_equal(run(short), X)
    never = lambda z: linear(z) * 0 + jax.nn.one_hot(jnp.asarray(Y), 2)
    few = boundary(NO_LIMIT, num_steps=3, num_start_draws=3)
    np.testing.assert_array_equal(run(few, f=never), X)
    # Wrong already: distance 0.
    np.testing.assert_array_equal(run(few, y=1 - Y), X)
    # A start is used, and it alone.
    start = jnp.clip(jnp.asarray(X + np.outer(1 - 2 * Y, NORMAL)), 0, 1)
    start = start.at[0].set(X[0])  # not adversarial
    given = run(boundary(NO_LIMIT, num_steps=3, start=start))
    np.testing.assert_array_equal(given[0], X[0])
    assert (linear(given[1:]).argmax(1) != Y[1:]).all()
    # Towards a class: the other one, since there are two.
    aimed = run(boundary(NO_LIMIT, num_steps=3, target=jnp.asarray(1 - Y)))
    assert (linear(aimed).argmax(1) == 1 - Y).all()


@pytest.mark.parametrize("threat", [NO_LIMIT, threats.linf(1.0)])
def test_bisection_ends_at_the_boundary(threat):
    decide = _decision.decision(linear, jnp.asarray(Y))
    start = jnp.clip(jnp.asarray(X + np.outer(1 - 2 * Y, NORMAL)), 0, 1)
    assert decide(start).all()
    found = _decision.to_boundary(decide, threat, jnp.asarray(X), start, 15)
    assert decide(found).all()
    radius, most = threat.norm(found - X), threat.norm(start - X)
    inside = radius - most * 2.0**-14
    if threat.name == "l2":
        nearer = X + (start - X) * (inside / most)[:, None]
    else:
        nearer = X + jnp.clip(start - X, -inside[:, None], inside[:, None])
    assert not decide(nearer).any()


def test_bad_arguments():
    with pytest.raises(InputError, match=r"`threat\.name` .* 'l2'.* got 'linf'"):
        boundary(threats.linf(0.1))
    with pytest.raises(InputError, match=r"`step_adaptation` .* above 1, got 1\.0"):
        boundary(NO_LIMIT, step_adaptation=1.0)
