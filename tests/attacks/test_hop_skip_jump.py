"""HopSkipJump against exact distances, directions and query counts."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import InputError, threats
from robustjax.attacks import _decision
from robustjax.attacks.hop_skip_jump import (
    _direction,
    _halvings,
    _jump,
    hop_skip_jump,
)

RNG = np.random.default_rng(0)
SIZE = 12
W = np.float32(RNG.normal(size=(SIZE, 2)))
X = np.float32(RNG.uniform(0.35, 0.65, (5, SIZE)))
NORMAL = W[:, 1] - W[:, 0]
THREATS = {"l2": threats.l2(jnp.inf), "linf": threats.linf(1.0)}
every_norm = pytest.mark.parametrize("norm", THREATS)


def linear(z):
    return (z - 0.5) @ jnp.asarray(W, z.dtype)


Y = np.asarray(linear(X).argmax(1))
HEIGHT = np.abs((X - 0.5) @ NORMAL)
DISTANCE = {
    "l2": HEIGHT / np.linalg.norm(NORMAL),
    "linf": HEIGHT / np.abs(NORMAL).sum(),
}


def keys(n=5):
    return jax.random.split(jax.random.key(1), n)


def run(attack, y=Y, f=linear):
    call = jax.jit(lambda k: attack(k, f, jnp.asarray(X), jnp.asarray(y)))
    return np.asarray(call(keys()))


@every_norm
def test_it_converges_to_the_hyperplane(norm):
    x_adv = run(hop_skip_jump(THREATS[norm], num_steps=15))
    assert (linear(x_adv).argmax(1) != Y).all()
    found = np.asarray(THREATS[norm].norm(jnp.asarray(x_adv - X)))
    assert (found >= DISTANCE[norm] - 1e-6).all()
    assert (found <= 1.05 * DISTANCE[norm]).all()


@every_norm
def test_always_adversarial_and_ever_closer(norm):
    threat = THREATS[norm]
    attack = hop_skip_jump(threat, num_steps=6, initial_samples=20)
    x, y = jnp.asarray(X), jnp.asarray(Y)
    state = attack.init(keys(), linear, x, y)
    first = state.found.distance
    step = jax.jit(lambda s: attack.step(s, linear, x, y))
    for _ in range(6):
        new = step(state)
        for z in (new.x_adv, new.found.x_adv):
            assert (linear(z).argmax(1) != Y).all()
            assert z.min() >= 0
            assert z.max() <= 1
        assert (new.found.distance <= state.found.distance).all()
        np.testing.assert_allclose(
            new.found.distance, threat.norm(new.found.x_adv - x), rtol=1e-6
        )
        state = new
    assert (state.found.distance < first).all()


@pytest.mark.parametrize("num_samples", [5, 8])
def test_the_direction_against_numpy(num_samples):
    """Eight rows of noise through the paper's estimate; only the first count."""
    z = jnp.full((5, SIZE), 0.5)
    decide = _decision.decision(linear, jnp.asarray(Y))
    found = _direction(
        decide,
        keys(),
        z,
        jnp.full(5, 0.1),
        jnp.int32(num_samples),
        THREATS["l2"],
        chunk_size=4,
    )
    found = found / num_samples
    for b in range(5):
        u = np.array(
            [
                jax.random.normal(jax.random.fold_in(keys()[b], i), (SIZE,))
                for i in range(num_samples)
            ]
        )
        u /= np.linalg.norm(u, axis=1, keepdims=True)
        phi = np.where((0.1 * u @ W).argmax(1) != Y[b], 1.0, -1.0)
        if abs(phi.mean()) < 1:
            phi = phi - phi.mean()
        v = (phi[:, None] * u).mean(0)
        np.testing.assert_allclose(found[b], v, atol=1e-5)


@every_norm
def test_many_samples_find_the_normal(norm):
    z = jnp.full((5, SIZE), 0.5)
    decide = _decision.decision(linear, jnp.asarray(Y))
    found = np.asarray(
        _direction(
            decide,
            keys(),
            z,
            jnp.full(5, 0.1),
            jnp.int32(3000),
            THREATS[norm],
            chunk_size=100,
        )
    )
    outward = np.outer(1 - 2 * Y, NORMAL)
    clear = np.abs(NORMAL) > 0.5
    np.testing.assert_array_equal(np.sign(found)[:, clear], np.sign(outward)[:, clear])
    cosine = (found * outward).sum(1) / np.linalg.norm(found, axis=1)
    assert (cosine / np.linalg.norm(NORMAL) > 0.98).all()


def test_decisions_that_agree_point_at_their_side():
    z = jnp.full((1, 4), 0.5)
    for sign in (1, -1):
        toward = _direction(
            lambda near, sign=sign: jnp.full(near.shape[:1], sign > 0),
            keys(1),
            z,
            jnp.full(1, 0.1),
            jnp.int32(1),
            THREATS["l2"],
            chunk_size=1,
        )
        noise = jax.random.normal(jax.random.fold_in(keys(1)[0], 0), (4,))
        expected = sign * noise / jnp.linalg.norm(noise)  # the mean of one
        np.testing.assert_allclose(toward[0], expected, atol=1e-5)


@pytest.mark.parametrize("momentum", [0.0, 0.4])
def test_directions_add_up(momentum):
    """From one step to the next, with the weight of `momentum`."""
    x, y = jnp.asarray(X), jnp.asarray(Y)
    attack = hop_skip_jump(THREATS["l2"], initial_samples=20, momentum=momentum)
    alone = hop_skip_jump(THREATS["l2"], initial_samples=20, momentum=0.0)
    state = attack.init(keys(), linear, x, y)
    assert not state.total.any()
    state = attack.step(state, linear, x, y)
    new, estimate = (a.step(state, linear, x, y).total for a in (attack, alone))
    assert jnp.abs(estimate).max() > 1  # a sum over samples
    np.testing.assert_allclose(new, momentum * state.total + estimate, atol=1e-4)


def test_a_step_goes_along_the_total_and_back_to_the_plane():
    """A jump along the normal, then the point where the way to x meets the plane."""
    x, y = jnp.asarray(X), jnp.asarray(Y)
    attack = hop_skip_jump(THREATS["l2"], initial_samples=4, momentum=1.0)
    state = attack.init(keys(), linear, x, y)
    outward = np.outer(1 - 2 * Y, NORMAL) / np.linalg.norm(NORMAL)
    state = state._replace(total=jnp.asarray(1e6 * outward), index=jnp.int32(3))
    new = attack.step(state, linear, x, y)
    for b in range(5):
        z = np.asarray(state.x_adv[b])
        jump = np.linalg.norm(z - X[b]) / np.sqrt(4)
        away = np.clip(z + jump * outward[b], 0, 1) - X[b]
        share = DISTANCE["l2"][b] / (away @ outward[b])
        limit = np.linalg.norm(away) / SIZE**1.5  # of the bisection
        np.testing.assert_allclose(new.x_adv[b], X[b] + share * away, atol=limit)


def test_the_jump_halves_until_it_lands_per_image():
    z = jnp.full((3, 1), 0.5)
    reach = jnp.array([0.4, 0.06, -1.0])  # beyond it the third is nowhere adversarial
    decide = lambda trial: jnp.abs(trial - z)[:, 0] <= reach
    jumped, landed = _jump(decide, z, jnp.ones((3, 1)), jnp.full(3, 0.4), (0.0, 1.0))
    np.testing.assert_allclose(jumped[:, 0], [0.9, 0.55, 0.5], atol=1e-6)
    assert landed.tolist() == [True, True, False]


def test_the_number_of_samples_grows_with_the_root_of_the_step():
    passes = []

    def counted(z):
        jax.debug.callback(lambda _: passes.append(1), z.sum())
        return linear(z)

    x, y = jnp.asarray(X), jnp.asarray(Y)
    attack = hop_skip_jump(THREATS["l2"], initial_samples=10, max_samples=25)
    call = jax.jit(lambda s: attack.step(s, counted, x, y))
    state = attack.init(keys(), linear, x, y)
    halvings = _halvings("l2", SIZE, 1.0)
    assert halvings == math.ceil(math.log2(SIZE**1.5))
    assert _halvings("linf", SIZE, 1.0) == math.ceil(math.log2(SIZE**2))
    for index in (0, 3, 8):
        passes.clear()
        call(state._replace(index=jnp.int32(index)))
        jax.effects_barrier()
        samples = min(10 * math.sqrt(index + 1), 25)
        estimate = 16 * math.ceil(samples / 16)  # whole chunks
        jumps = len(passes) - halvings - estimate
        assert 1 <= jumps <= 31


def test_starts_targets_and_failures():
    l2 = THREATS["l2"]
    quick = dict(num_steps=2, initial_samples=8)
    short = hop_skip_jump(threats.l2(0.5 * DISTANCE["l2"].min()), **quick)
    np.testing.assert_array_equal(run(short), X)
    never = lambda z: linear(z) * 0 + jax.nn.one_hot(jnp.asarray(Y), 2)
    few = hop_skip_jump(l2, num_start_draws=3, **quick)
    np.testing.assert_array_equal(run(few, f=never), X)
    np.testing.assert_array_equal(run(few, y=1 - Y), X)  # wrong already
    start = jnp.clip(jnp.asarray(X + np.outer(1 - 2 * Y, NORMAL)), 0, 1)
    start = start.at[0].set(X[0])  # not adversarial
    given = run(hop_skip_jump(l2, start=start, **quick))
    np.testing.assert_array_equal(given[0], X[0])
    assert (linear(given[1:]).argmax(1) != Y[1:]).all()
    aimed = run(hop_skip_jump(l2, target=jnp.asarray(1 - Y), **quick))
    assert (linear(aimed).argmax(1) == 1 - Y).all()


def test_bad_arguments():
    with pytest.raises(InputError, match=r"`threat\.name` .* got 'l1'"):
        hop_skip_jump(threats.l1(1.0))
    with pytest.raises(InputError, match=r"`gamma` .* got 0"):
        hop_skip_jump(THREATS["l2"], gamma=0)
    with pytest.raises(InputError, match=r"`momentum` .* got 2"):
        hop_skip_jump(THREATS["l2"], momentum=2)
    with pytest.raises(InputError, match=r"`chunk_size` .* got 0"):
        hop_skip_jump(THREATS["l2"], chunk_size=0)
