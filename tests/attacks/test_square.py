"""Square against its schedule, a loop in NumPy, and the bounds of a linear model."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import InputError, threats
from robustjax.attacks import _square_windows
from robustjax.attacks.square import _stages, square

SHAPE = (4, 8, 6, 2)
RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(np.prod(SHAPE[1:]), 3))
X = RNG.uniform(0.2, 0.8, SHAPE)
KEYS = jax.random.split(jax.random.key(5), 4)
NORMS = pytest.mark.parametrize("norm", ["l2", "l1"])


def linear(z):
    return (z - 0.5).reshape(z.shape[0], -1) @ jnp.asarray(WEIGHT, z.dtype)


Y = np.asarray(linear(jnp.float32(X)).argmax(1))
THREATS = {"linf": threats.linf(0.02), "l2": threats.l2(0.3), "l1": threats.l1(1.5)}


def keys():
    return jax.random.clone(KEYS)


def margins(logits, y):
    """z_y minus the best other, as the paper writes it."""
    logits = np.array(logits)
    own = logits[np.arange(len(y)), y].copy()
    logits[np.arange(len(y)), y] = -np.inf
    return own - logits.max(1)


def halved(i):
    """The schedule of the paper as a chain of questions."""
    for times, last in enumerate((10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)):
        if i <= last:
            return times
    return 9


def test_the_schedule_changes_after_its_break_points():
    stages = _stages(9000, rescale_schedule=False)
    assert [int(stages[i]) for i in (0, 10, 11, 50, 51, 200, 201)] == [
        *(0, 0, 1, 1, 2, 2, 3)
    ]
    assert stages.tolist() == [halved(i) for i in range(9000)]
    short = _stages(500, rescale_schedule=True)
    assert short.tolist() == [halved(int(i / 500 * 10_000)) for i in range(500)]


@pytest.mark.parametrize("shape", [(32, 32), (28, 28), (8, 6), (3, 50), (1, 1), (2, 9)])
def test_sides_follow_the_share_and_fit_the_image(shape):
    height, width = shape
    sides = _square_windows.sides(height, width, 0.8)
    odd = _square_windows.odd_sides(height, width, 0.8)
    for i in range(10):
        side = round(math.sqrt(0.8 / 2**i * height * width))
        assert sides[i] == min(max(side, 1), height, width)
        assert odd[i] % 2 == 1
        assert odd[i] <= min(height, width)
        larger = max(side, 3) + (max(side, 3) % 2 == 0)
        if larger <= min(height, width):
            assert odd[i] == larger


def test_windows_are_squares_and_never_touch_the_last_place():
    draws = jax.random.uniform(jax.random.key(0), (400, 2))
    corners = jax.vmap(lambda u: _square_windows.corner(u, (8, 6), jnp.int32(3)))(draws)
    # [0, 5) and [0, 3), each place.
    assert sorted(set(corners[:, 0].tolist())) == [0, 1, 2, 3, 4]
    assert sorted(set(corners[:, 1].tolist())) == [0, 1, 2]
    highest = jnp.float32(1 - 2**-23) * jnp.ones(2)
    for side, expected in ((1, [6, 4]), (6, [1, 0]), (8, [0, 0])):
        found = _square_windows.corner(highest, (8, 6), jnp.int32(side))
        assert found.tolist() == expected
    expected = np.zeros((8, 6, 1), bool)
    expected[2:5, 1:4] = True
    found = _square_windows.window(jnp.array([2, 1]), (8, 6), jnp.int32(3))
    np.testing.assert_array_equal(found, expected)


def rings(height, width, power):
    """A bump as a sum of growing squares around (H // 2, W // 2)."""
    bump = np.zeros((height, width))
    for k in range(max(height, width)):
        if k > max(height // 2, width // 2):
            break
        top, left = max(height // 2 - k, 0), max(width // 2 - k, 0)
        bump[top : height // 2 + k + 1, left : width // 2 + k + 1] += (k + 1) ** -power
    return bump


def length(values, norm):
    return np.sqrt((values**2).sum()) if norm == "l2" else np.abs(values).sum()


def reference_pattern(side, norm):
    power = {"l2": 2.0, "l1": 4.0}[norm]
    upper, lower = rings(side // 2, side, power), rings(side - side // 2, side, power)
    if side > 1:
        upper /= length(upper, norm)
    whole = np.vstack([upper, -lower / length(lower, norm)])
    return whole / length(whole, norm)


@NORMS
@pytest.mark.parametrize("side", [1, 2, 3, 6, 7, 25])
def test_patterns_are_two_bumps_of_norm_one(norm, side):
    power = _square_windows.NORMS[norm].power
    found = _square_windows.pattern(side, power)
    np.testing.assert_allclose(found, reference_pattern(side, norm), atol=1e-14)
    np.testing.assert_allclose(length(found, norm), 1, atol=1e-14)


@NORMS
@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3), (12, 7, 2), (3, 4, 1)])
def test_the_start_is_a_tiling_of_signed_patterns(norm, shape):
    height, width, channels = shape
    start = np.array(
        _square_windows.tiling(
            jax.random.key(1), shape, jnp.float32, _square_windows.NORMS[norm]
        )
    )
    side = max(height // 5, 1)
    first = max((height - 5 * side) // 2, 0)
    pattern = reference_pattern(side, norm)
    tiles, signs, turns = 0, set(), set()
    for top in range(first, height - side + 1, side):
        for left in range(first, width - side + 1, side):
            tile = start[top : top + side, left : left + side]
            options = {
                (sign, turn): sign * (pattern.T if turn else pattern)
                for sign in (1, -1)
                for turn in (False, True)
            }
            for c in range(channels):
                (match, *_) = [
                    k for k, v in options.items() if np.allclose(tile[..., c], v)
                ]
                signs.add(match[0])
                turns.add(match[1])
            tiles += 1
            start[top : top + side, left : left + side] = 0
    assert not start.any()  # nothing beside the tiles
    assert signs == {1, -1}
    assert turns == ({False, True} if side > 1 else {False})
    assert tiles == ((height - first) // side) * ((width - first) // side)


@NORMS
def test_moving_mass_against_slices_in_numpy(norm):
    eps, side = 0.7, 3
    delta = RNG.normal(size=(8, 6, 2)) * 0.03
    key = jax.random.key(3)
    uniform = np.asarray(jax.random.uniform(jax.random.clone(key), (7,), jnp.float32))
    (r1, c1), (r2, c2) = (
        np.int32(np.floor(u * (np.array([8, 6]) - side)))
        for u in (uniform[:2], uniform[2:4])
    )
    pattern = reference_pattern(side, norm)
    placed = pattern if uniform[4] < 0.5 else pattern.T
    expected = delta.copy()
    union = np.zeros((8, 6), bool)
    union[r1 : r1 + side, c1 : c1 + side] = union[r2 : r2 + side, c2 : c2 + side] = True
    held = length(delta[union], norm)
    expected[r2 : r2 + side, c2 : c2 + side] = 0
    for c in range(2):
        old = delta[r1 : r1 + side, c1 : c1 + side, c]
        new = (1 if uniform[5 + c] < 0.5 else -1) * placed + old / length(old, norm)
        new /= length(new, norm)
        if norm == "l2":
            new *= math.sqrt(max(eps**2 - length(delta, norm) ** 2, 0) / 2 + held**2)
        else:
            new *= max(eps - length(delta, norm), 0) + 2 * held
        expected[r1 : r1 + side, c1 : c1 + side, c] = new
    with jax.enable_x64(True):
        padded = np.zeros((5, 5))
        padded[:side, :side] = pattern
        found = _square_windows.move_mass(
            key,
            jnp.asarray(delta),
            jnp.float64(eps),
            jnp.int32(side),
            jnp.asarray(padded),
            _square_windows.NORMS[norm],
        )
    np.testing.assert_allclose(found, expected, atol=1e-11)


@pytest.mark.parametrize("norm", THREATS)
def test_margins_rise_within_the_ball_and_stop_where_broken(norm):
    threat = THREATS[norm]
    attack = square(threat, num_queries=15)
    x, y = jnp.float32(X), jnp.asarray(Y)
    state = attack.init(keys(), linear, x, y)
    step = jax.jit(lambda state: attack.step(state, linear, x, y))
    changed = frozen = 0
    for _ in range(15):
        new = step(state)
        assert (threat.norm(new.x_adv - x) <= threat.eps + 1e-6).all()
        assert new.x_adv.min() >= 0
        assert new.x_adv.max() <= 1
        found = -margins(linear(new.x_adv), Y)
        np.testing.assert_allclose(new.value, found, atol=1e-5)
        same = np.all(new.x_adv == state.x_adv, axis=(1, 2, 3))
        assert same[np.asarray(state.broken)].all()
        # A change either raised the value or broke the image.
        assert (same | (new.value > state.value) | new.broken).all()
        np.testing.assert_array_equal(new.broken, linear(new.x_adv).argmax(1) != Y)
        changed, frozen = changed + (~same).sum(), frozen + state.broken.sum()
        state = new
    assert changed > 0
    assert frozen > 0


def test_linf_against_slices_in_numpy():
    """The same numbers through the reference's arithmetic: +-2 eps, then two clips."""
    eps, queries = 0.004, 60
    x = np.float32(X)
    attack = square(threats.linf(eps), num_queries=queries)
    state = attack.init(keys(), linear, jnp.asarray(x), jnp.asarray(Y))
    best = np.array(state.x_adv)
    # The start: one sign per column and channel.
    signs = np.sign(best - x)
    assert (signs == signs[:, :1]).all()
    np.testing.assert_allclose(np.abs(best - x), eps, atol=1e-6)
    best_margin = margins(linear(best), Y)
    sides = [max(round(math.sqrt(0.8 / 2**i * 48)), 1) for i in range(10)]
    for i in range(queries):
        for b in range(4):
            if best_margin[b] < 0:
                continue
            key = jax.random.fold_in(keys()[b], i + 1)
            u = np.asarray(jax.random.uniform(key, (4,), jnp.float32))
            s = min(sides[halved(i)], 6)
            r, c = int(u[0] * (8 - s)), int(u[1] * (6 - s))
            trial = best[b].copy()
            trial[r : r + s, c : c + s] += 2 * eps * np.where(u[2:] < 0.5, 1, -1)
            trial = np.clip(np.clip(trial, x[b] - eps, x[b] + eps), 0, 1)
            (margin,) = margins(linear(trial[None]), Y[b : b + 1])
            if margin < best_margin[b]:
                best[b], best_margin[b] = trial, margin
    x_adv = jax.jit(lambda k: attack(k, linear, jnp.asarray(x), jnp.asarray(Y)))(keys())
    np.testing.assert_allclose(x_adv, best, atol=1e-5)


def test_linf_reaches_almost_the_optimum_of_a_linear_model():
    weight = np.random.default_rng(1).normal(size=(5, 5))
    weight[-1] = weight[:, -1] = 0  # small windows never touch the last place

    def never_wrong(z):
        score = (z[..., 0] * weight[None]).sum((1, 2))
        return jnp.stack([10 + score, jnp.zeros_like(score)], axis=1)

    x, y = jnp.full((2, 5, 5, 1), 0.5), jnp.zeros(2, jnp.int32)
    attack = square(threats.linf(0.1), num_queries=400, rescale_schedule=True)
    x_adv = jax.jit(lambda k: attack(k, never_wrong, x, y))(jax.random.key(0))
    fall = never_wrong(x)[:, 0] - never_wrong(x_adv)[:, 0]
    assert (fall >= 0.95 * 0.1 * np.abs(weight).sum()).all()


def test_l2_keeps_the_whole_length():
    threat = threats.l2(0.1)  # from the middle of the box nothing is clipped
    x, y = jnp.full(SHAPE, 0.5), jnp.asarray(Y)
    far = lambda z: 1e3 * jax.nn.one_hot(y, 3) + linear(z)
    attack = square(threat, num_queries=15)
    x_adv = jax.jit(lambda k: attack(k, far, x, y))(keys())
    np.testing.assert_allclose(threat.norm(x_adv - x), 0.1, atol=1e-6)


def test_a_query_is_one_forward_pass():
    passes = []

    def counted(z):
        jax.debug.callback(lambda _: passes.append(1), z.sum())
        return linear(z)

    attack = square(THREATS["linf"], num_queries=7)
    jax.jit(lambda k: attack(k, counted, jnp.float32(X), jnp.asarray(Y)))(keys())
    jax.effects_barrier()
    assert len(passes) == 7 + 2


def test_bad_arguments():
    with pytest.raises(InputError, match=r"`initial_share` .* got 1\.5"):
        square(threats.linf(0.1), initial_share=1.5)
    with pytest.raises(InputError, match=r"`threat.eps` must be finite .* inf"):
        square(threats.l2(jnp.inf))
    with pytest.raises(InputError, match=r"`num_queries` .* got 0"):
        square(threats.linf(0.1), num_queries=0)
    flat = jnp.float32(X).reshape(4, -1)
    with pytest.raises(InputError, match=r"`x` .* \[B, H, W, C\].* \(4, 96\)"):
        square(threats.linf(0.1))(keys(), linear, flat, jnp.asarray(Y))
