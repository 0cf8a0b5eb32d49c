"""CW: distance to a plane, second implementations, the search, frozen images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import InputError, threats
from robustjax.attacks.carlini_wagner import carlini_wagner
from robustjax.attacks.carlini_wagner_fixed import carlini_wagner_fixed
from robustjax.attacks.carlini_wagner_linf import carlini_wagner_linf

KEYS = jax.random.split(jax.random.key(0), 4)
WEIGHTS = np.asarray(jax.random.normal(KEYS[0], (12, 2)))
X = jax.random.uniform(KEYS[1], (5, 3, 4, 1), minval=0.3, maxval=0.7)
FREE_L2, FREE_LINF = threats.l2(jnp.inf), threats.linf(1.0)


def plane(x):
    return x.reshape(x.shape[0], -1) @ WEIGHTS.astype(x.dtype)


Y = plane(X).argmax(1).astype(jnp.int32)
NORMAL = WEIGHTS[:, 1] - WEIGHTS[:, 0]
GAP = np.abs(np.asarray(X).reshape(5, -1) @ NORMAL)

# A curved model of four classes for the comparisons, in double precision.
RNG = np.random.default_rng(0)
HIDDEN, HEAD = RNG.normal(size=(12, 6)), RNG.normal(size=(6, 4))
CURVED_X = RNG.uniform(size=(6, 12))
CURVED_Y = (np.tanh(CURVED_X @ HIDDEN) @ HEAD).argmax(1)
CURVED_Y[0] = (CURVED_Y[0] + 1) % 4  # misclassified as it is


def curved(z):
    return jnp.tanh(z.reshape(z.shape[0], -1) @ HIDDEN) @ HEAD


def margin_and_slope(pixels, goal, targeted):
    """The margin of one image and its gradient, by hand."""
    features = np.tanh(pixels @ HIDDEN)
    logits = features @ HEAD
    rival = max((k for k in range(4) if k != goal), key=lambda k: logits[k])
    direction = HEAD[:, rival] - HEAD[:, goal]
    sign = -1.0 if targeted else 1.0
    slope = HIDDEN @ ((1 - features**2) * direction)
    return sign * (logits[rival] - logits[goal]), sign * slope


class Adam:
    def __init__(self, rate):
        self.rate, self.count, self.first, self.second = rate, 0, 0.0, 0.0

    def move(self, slope):
        self.count += 1
        self.first = 0.9 * self.first + 0.1 * slope
        self.second = 0.999 * self.second + 0.001 * slope * slope
        top = self.first / (1 - 0.9**self.count)
        return self.rate * top / (np.sqrt(self.second / (1 - 0.999**self.count)) + 1e-8)


def norms(delta, order=2.0):
    flat = np.asarray(delta).reshape(len(delta), -1)
    return np.linalg.norm(flat, axis=1, ord=order)


def run(attack, logits_fn=plane, x=X, y=Y):
    return jax.jit(lambda k: attack(k, logits_fn, x, y))(jax.random.key(3))


def run_wide(attack, target=None):
    with jax.enable_x64(True):
        goal = None if target is None else jnp.asarray(target)
        images = jnp.asarray(CURVED_X).reshape(6, 3, 4, 1)
        return run(attack(goal), curved, images, jnp.asarray(CURVED_Y)).reshape(6, 12)


def test_l2_ends_just_behind_a_plane():
    x_adv = run(carlini_wagner(FREE_L2, num_steps=400))
    true = GAP / np.linalg.norm(NORMAL)
    assert (plane(x_adv).argmax(1) != Y).all()
    assert (norms(x_adv - X) >= true * (1 - 1e-4)).all()
    assert (norms(x_adv - X) <= true * 1.01).all()


def test_linf_ends_behind_a_plane():
    x_adv = run(carlini_wagner_linf(FREE_LINF, num_steps=200))
    true = GAP / np.abs(NORMAL).sum()
    assert (plane(x_adv).argmax(1) != Y).all()
    assert (norms(x_adv - X, np.inf) >= true * (1 - 1e-4)).all()
    # tau falls by tenths, and a penalty is no bound.
    assert (norms(x_adv - X, np.inf) <= true * 1.2).all()


def reference_l2(x, goal, targeted, rounds, steps, constant, kappa, rate):
    """The L2 attack on one image; no step is skipped."""
    best, best_norm, low, high = x, np.inf, 0.0, np.inf
    value, _ = margin_and_slope(x, goal, targeted)
    if value > 0 and value >= kappa:
        return x
    least, kappa = kappa + 1e-4 * abs(value), kappa + 2e-4 * abs(value)
    for index in range(rounds):
        if rounds >= 10 and index == rounds - 1:
            constant = min(high, 1e10)
        w, adam, fooled = np.arctanh((2 * x - 1) * 0.999999), Adam(rate), False
        before = np.inf
        for i in range(steps):
            pixels = 0.5 + 0.5 * np.tanh(w)
            value, slope = margin_and_slope(pixels, goal, targeted)
            if value >= least:
                fooled = True
                if np.linalg.norm(pixels - x) < best_norm:
                    best, best_norm = pixels, np.linalg.norm(pixels - x)
            total = ((pixels - x) ** 2).sum() + constant * max(kappa - value, 0)
            if i % max(1, steps // 10) == 0:
                if total > 0.9999 * before:
                    break
                before = total
            pull = 2 * (pixels - x) - (constant * slope if value < kappa else 0)
            w = w - adam.move(pull * 0.5 * (1 - np.tanh(w) ** 2))
        if fooled:
            high = min(high, constant)
        else:
            low = max(low, constant)
        constant = (low + high) / 2 if np.isfinite(high) else 10 * constant
    return best


@pytest.mark.parametrize(
    ("rounds", "kappa", "use_target"),
    [(4, 0.0, False), (11, 0.5, False), (4, 0.3, True)],
)
def test_l2_is_the_reference(rounds, kappa, use_target):
    target = (CURVED_Y + 2) % 4 if use_target else None
    found = run_wide(
        lambda goal: carlini_wagner(
            FREE_L2,
            num_steps=20,
            search_steps=rounds,
            initial_constant=0.1,
            confidence=kappa,
            step_size=0.05,
            target=goal,
        ),
        target,
    )
    goals = CURVED_Y if target is None else target
    for i in range(6):
        expected = reference_l2(
            CURVED_X[i], goals[i], use_target, rounds, 20, 0.1, kappa, 0.05
        )
        np.testing.assert_allclose(found[i], expected, atol=1e-8)
    assert not np.array_equal(found, CURVED_X)


def reference_linf(x, goal, rounds, steps, constant, rate, abort):
    value, _ = margin_and_slope(x, goal, False)
    if value > 0:
        return x
    slack = 1e-4 * abs(value)
    best, best_norm, tau = x, np.inf, 1.0
    w = np.arctanh((2 * x - 1) * 0.999999)
    for _ in range(rounds):
        if tau <= 1 / 255 or constant >= 20:
            break
        adam, nearer = Adam(rate), False
        start = np.minimum(np.maximum(0.5 + 0.5 * np.tanh(w), x - tau), x + tau)
        w = np.arctanh((2 * start - 1) * 0.999999)
        for _ in range(steps):
            pixels = 0.5 + 0.5 * np.tanh(w)
            value, slope = margin_and_slope(pixels, goal, False)
            offset = pixels - x
            if value >= slack and abs(offset).max() < best_norm:
                best, best_norm, nearer = pixels, abs(offset).max(), True
            total = np.maximum(abs(offset) - tau, 0).sum() + constant * max(
                2 * slack - value, 0
            )
            if abort and total < 1e-4 * constant:
                break
            pull = np.sign(offset) * (abs(offset) > tau)
            pull = pull - (constant * slope if value < 2 * slack else 0)
            w = w - adam.move(pull * 0.5 * (1 - np.tanh(w) ** 2))
        if nearer:
            tau = 0.9 * min(tau, best_norm)
        else:
            constant = 2 * constant
    return best


@pytest.mark.parametrize("abort", [False, True])
def test_linf_is_the_reference(abort):
    found = run_wide(
        lambda goal: carlini_wagner_linf(
            FREE_LINF,
            num_steps=15,
            search_steps=12,
            initial_constant=0.5,
            step_size=0.05,
            abort_early=abort,
            target=goal,
        )
    )
    for i in range(6):
        expected = reference_linf(CURVED_X[i], CURVED_Y[i], 12, 15, 0.5, 0.05, abort)
        np.testing.assert_allclose(found[i], expected, atol=1e-8)
    assert not np.array_equal(found, CURVED_X)


def test_pixels_that_went_to_the_other_end_of_the_box_come_back():
    """Long steps send them where tanh has no gradient in single precision."""
    attack = carlini_wagner_linf(
        FREE_LINF, num_steps=100, step_size=0.3, initial_constant=1.0, abort_early=False
    )
    x_adv = run(attack, lambda z: 10 * plane(z))
    true = GAP / np.abs(NORMAL).sum()
    assert (norms(x_adv - X, np.inf) <= true * 1.2).all()


def reference_fixed(x, goal, steps, constant, rate, scale):
    pixels, adam, best, best_rank = x, Adam(rate), x, (False, -np.inf)
    if margin_and_slope(x, goal, False)[0] > 0:
        return x
    for _ in range(steps + 1):
        value, slope = margin_and_slope(pixels, goal, False)
        total = ((pixels - x) ** 2).sum() + constant * max(-value, 0)
        if (value > 0, -total) > best_rank:
            best, best_rank = pixels, (value > 0, -total)
        pixels = pixels - adam.move(
            2 * (pixels - x) - (constant * slope if value < 0 else 0)
        )
    return np.clip(x + scale * (best - x), 0, 1)


@pytest.mark.parametrize("scale", [1.0, 0.031])
def test_the_fixed_constant_is_the_reference(scale):
    found = run_wide(
        lambda goal: carlini_wagner_fixed(
            FREE_L2,
            constant=2.0,
            num_steps=12,
            step_size=0.05,
            scale=scale,
            target=goal,
        )
    )
    for i in range(6):
        expected = reference_fixed(CURVED_X[i], CURVED_Y[i], 12, 2.0, 0.05, scale)
        np.testing.assert_allclose(found[i], expected, atol=1e-8)
    assert not np.array_equal(found, CURVED_X)


def test_more_rounds_are_never_worse():
    attack = carlini_wagner(FREE_L2, num_steps=40, initial_constant=0.1)
    state = attack.init(jax.random.key(0), plane, X, Y)
    step = jax.jit(lambda state: attack.step(state, plane, X, Y))
    distances = [state.found.distance]
    for _ in range(7):
        state = step(state)
        distances.append(state.found.distance)
    assert (np.diff(np.minimum(distances, 9.0), axis=0) <= 0).all()
    assert (distances[-1] < 0.99 * distances[3]).any()


@pytest.mark.parametrize("abort_early", [True, False])
def test_images_do_not_see_each_other(abort_early):
    attack = carlini_wagner(
        FREE_L2,
        num_steps=30,
        search_steps=4,
        initial_constant=1.0,
        step_size=0.05,
        abort_early=abort_early,
    )
    together = jax.jit(lambda x, y: attack(jax.random.key(0), plane, x, y))
    x_adv = together(X, Y)
    # One neighbour converges at once, another is misclassified as it is.
    others = together(X.at[3:].set(0.5), Y.at[4].set(1 - Y[4]))
    np.testing.assert_allclose(others[:3], x_adv[:3], atol=1e-6)
    assert (plane(x_adv).argmax(1) != Y).any()


def test_a_round_ends_when_all_images_have_converged():
    """A flat model makes no progress: two checks, and the round is over."""
    calls = []

    def flat(x):
        jax.debug.callback(lambda: calls.append(1))
        return 0 * x.reshape(x.shape[0], -1)[:, :2]

    for abort_early, expected in ((True, 1 + 3 * 11), (False, 1 + 3 * 100)):
        calls.clear()
        attack = carlini_wagner(
            FREE_L2, num_steps=100, search_steps=3, abort_early=abort_early
        )
        run(attack, flat, X, jnp.zeros(5, jnp.int32))
        jax.effects_barrier()
        assert len(calls) == expected


@pytest.mark.parametrize(
    ("attack", "order"),
    [
        (lambda t: carlini_wagner(t(jnp.inf), num_steps=60, initial_constant=1.0), 2),
        (lambda t: carlini_wagner_linf(t(1.0), num_steps=60), np.inf),
    ],
)
def test_only_points_within_eps_count(attack, order):
    make = {2: threats.l2, np.inf: threats.linf}[order]
    free = run(attack(make))
    distance = norms(free - X, order)
    eps = float(np.median(distance)) * 1.001
    limited = run(attack(lambda _: make(eps)))
    inside = distance <= eps
    assert 0 < inside.sum() < 5
    expected = np.where(inside[:, None, None, None], free, X)
    np.testing.assert_array_equal(limited, expected)


def test_pixels_at_the_bounds_and_other_bounds():
    x = 4 * jnp.round(X) - 1  # -1 and 3
    model = lambda z: plane((z + 1) / 4)
    y = model(x).argmax(1).astype(jnp.int32)
    wide_l2 = threats.l2(jnp.inf, bounds=(-1.0, 3.0))
    wide_linf = threats.linf(4.0, bounds=(-1.0, 3.0))
    for attack in (  # far out tanh is flat, and Adam's steps are what counts
        carlini_wagner(wide_l2, num_steps=100, step_size=0.1, abort_early=False),
        carlini_wagner_linf(wide_linf, num_steps=100, step_size=0.1),
    ):
        x_adv = run(attack, model, x, y)
        assert (model(x_adv).argmax(1) != y).all()
        assert x_adv.min() >= -1
        assert x_adv.max() <= 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: carlini_wagner(FREE_LINF), "`threat.name` .* 'l2'; got 'linf'"),
        (lambda: carlini_wagner_linf(FREE_L2), "`threat.name` .* 'linf'; got 'l2'"),
        (lambda: carlini_wagner(FREE_L2, search_steps=0), "`search_steps` .* got 0"),
        (lambda: carlini_wagner(FREE_L2, confidence=-1.0), "`confidence` .* got -1"),
        (lambda: carlini_wagner_linf(FREE_LINF, tau_factor=2.0), "`tau_factor` .* 2"),
        (lambda: carlini_wagner_fixed(FREE_L2, scale=-1.0), "`scale` .* got -1"),
        (lambda: run(carlini_wagner(FREE_L2, target=Y)), "`target` must differ"),
    ],
)
def test_errors(make, message):
    with pytest.raises(InputError, match=message):
        make()
