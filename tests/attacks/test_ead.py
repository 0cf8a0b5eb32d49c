"""EAD: distance to a plane, a second implementation, decision rules, the search."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import InputError, threats
from robustjax.attacks.ead import ead

KEYS = jax.random.split(jax.random.key(0), 4)
WEIGHTS = np.asarray(jax.random.normal(KEYS[0], (12, 2)))
X = jax.random.uniform(KEYS[1], (5, 3, 4, 1), minval=0.3, maxval=0.7)
FREE = threats.l1(jnp.inf)
NORMAL = WEIGHTS[:, 1] - WEIGHTS[:, 0]


def plane(x):
    return x.reshape(x.shape[0], -1) @ WEIGHTS.astype(x.dtype)


Y = plane(X).argmax(1).astype(jnp.int32)


def run(attack, logits_fn=plane, x=X, y=Y):
    return jax.jit(lambda k: attack(k, logits_fn, x, y))(jax.random.key(3))


def l1(delta):
    return np.abs(np.asarray(delta)).reshape(len(delta), -1).sum(1)


def l2(delta):
    return np.linalg.norm(np.asarray(delta).reshape(len(delta), -1), axis=1)


def l1_distance(x, y):
    """Of one image to the plane inside the box: the steepest pixels first."""
    slopes = NORMAL * (1 if y == 0 else -1)
    left, total = abs(x @ NORMAL), 0.0
    for pixel in np.argsort(-np.abs(slopes)):
        room = 1 - x[pixel] if slopes[pixel] > 0 else x[pixel]
        spent = min(room, left / abs(slopes[pixel]))
        total, left = total + spent, left - spent * abs(slopes[pixel])
    return total


def test_a_large_beta_comes_near_the_l1_distance():
    attack = ead(FREE, num_steps=300, beta=0.01, decision=FREE.norm)
    x_adv = run(attack)
    flat = np.asarray(X).reshape(5, -1)
    true = np.array([l1_distance(x, y) for x, y in zip(flat, Y, strict=True)])
    assert (plane(x_adv).argmax(1) != Y).all()
    assert (l1(x_adv - X) >= true * (1 - 1e-5)).all()
    assert (l1(x_adv - X) <= true * 1.25).all()


def test_without_beta_it_is_an_l2_attack():
    x_adv = run(ead(threats.l2(jnp.inf), num_steps=300, beta=0.0))
    gap = np.abs(np.asarray(X).reshape(5, -1) @ NORMAL)
    true = gap / np.linalg.norm(NORMAL)
    assert (plane(x_adv).argmax(1) != Y).all()
    assert (l2(x_adv - X) >= true * (1 - 1e-5)).all()
    assert (l2(x_adv - X) <= true * 1.05).all()


def reference(x, y, hidden, head, rounds, kappa, target, shrink_only, abort):
    """The same algorithm for one image, with derivatives by hand, EN rule."""
    goal, sign = (y, 1.0) if target is None else (target, -1.0)
    steps, constant, beta, rate = 20, 0.2, 0.02, 0.1

    def margin_and_slope(pixels):
        features = np.tanh(pixels @ hidden)
        logits = features @ head
        rival = np.where(np.arange(4) == goal, -np.inf, logits).argmax()
        direction = head[:, rival] - head[:, goal]
        slope = sign * hidden @ ((1 - features**2) * direction)
        return sign * (logits[rival] - logits[goal]), slope

    value, _ = margin_and_slope(x)
    if value > 0 and value >= kappa:
        return x
    least, kappa = kappa + 1e-4 * abs(value), kappa + 2e-4 * abs(value)
    best, best_rank, low, high = x, np.inf, 0.0, np.inf
    for index in range(rounds):
        if rounds >= 10 and index == rounds - 1:
            constant = min(high, 1e10)
        now = ahead = x
        fooled, before = False, np.inf
        for k in range(steps):
            value, slope = margin_and_slope(ahead)
            total = ((ahead - x) ** 2).sum() + constant * max(kappa - value, 0)
            if abort and k % 2 == 0:  # tenths of 20 steps
                if total > 0.9999 * before:
                    break
                before = total
            pull = 2 * (ahead - x) - (constant * slope if value < kappa else 0)
            moves = value <= kappa or not shrink_only
            z = ahead - moves * rate * np.sqrt(1 - k / steps) * pull
            shrunk = np.where(z - x > beta, np.minimum(z - beta, 1), x)
            shrunk = np.where(z - x < -beta, np.maximum(z + beta, 0), shrunk)
            ahead, now = shrunk + k / (k + 3) * (shrunk - now), shrunk
            value, _ = margin_and_slope(now)
            rank = ((now - x) ** 2).sum() + beta * np.abs(now - x).sum()
            if value >= least:
                fooled = True
                if rank < best_rank:
                    best, best_rank = now, rank
        if fooled:
            high = min(high, constant)
        else:
            low = max(low, constant)
        constant = (low + high) / 2 if np.isfinite(high) else 10 * constant
    return best


@pytest.mark.parametrize(
    ("rounds", "kappa", "use_target", "shrink_only", "abort"),
    [
        (4, 0.0, False, False, False),
        (10, 0.2, False, False, True),
        (4, 0.1, True, True, False),
        (4, 0.0, False, True, True),
    ],
)
def test_it_is_the_reference(rounds, kappa, use_target, shrink_only, abort):
    rng = np.random.default_rng(0)
    hidden, head = rng.normal(size=(12, 6)), rng.normal(size=(6, 4))
    x = rng.uniform(size=(6, 12))
    model = lambda z: jnp.tanh(z.reshape(z.shape[0], -1) @ hidden) @ head
    y = (np.tanh(x @ hidden) @ head).argmax(1)
    y[0] = (y[0] + 1) % 4  # misclassified as it is
    target = (y + 2) % 4 if use_target else None
    with jax.enable_x64(True):
        attack = ead(
            FREE,
            num_steps=20,
            search_steps=rounds,
            beta=0.02,
            initial_constant=0.2,
            step_size=0.1,
            confidence=kappa,
            shrink_only=shrink_only,
            abort_early=abort,
            target=None if target is None else jnp.asarray(target),
        )
        images = jnp.asarray(x).reshape(6, 3, 4, 1)
        found = run(attack, model, images, jnp.asarray(y)).reshape(6, 12)
        assert found.dtype == jnp.float64
    for i in range(6):
        goal = None if target is None else target[i]
        expected = reference(
            x[i], y[i], hidden, head, rounds, kappa, goal, shrink_only, abort
        )
        np.testing.assert_allclose(found[i], expected, atol=1e-9)
    assert not np.array_equal(found, x)


def test_each_decision_rule_is_best_at_its_own():
    attack = lambda decision: ead(
        FREE, num_steps=60, beta=0.02, initial_constant=0.1, decision=decision
    )
    elastic = lambda delta: l2(delta) ** 2 + 0.02 * l1(delta)
    by_net, by_l1 = run(attack(None)) - X, run(attack(FREE.norm)) - X
    assert (elastic(by_net) <= elastic(by_l1) + 1e-6).all()
    assert (l1(by_l1) <= l1(by_net) + 1e-6).all()
    assert (l1(by_l1) < l1(by_net) - 1e-3).any()


def test_more_rounds_are_never_worse():
    attack = ead(FREE, num_steps=40, initial_constant=0.1)
    state = attack.init(jax.random.key(0), plane, X, Y)
    step = jax.jit(lambda state: attack.step(state, plane, X, Y))
    distances = [state.found.distance]
    for _ in range(7):
        state = step(state)
        distances.append(state.found.distance)
    assert (np.diff(np.minimum(distances, 9.0), axis=0) <= 0).all()
    assert (distances[-1] < 0.99 * distances[3]).any()


def test_only_points_within_eps_count():
    """Not the best by the rule that happens to lie within, but the best within."""
    make = lambda threat: ead(threat, num_steps=60, beta=0.02, initial_constant=0.1)
    free = run(make(FREE))
    eps = float(np.median(l1(free - X))) * 0.8
    limited = run(make(threats.l1(eps)))
    moved = l1(limited - X) > 0
    assert moved.any()
    assert not moved.all()
    assert (l1(limited - X) <= eps + 1e-6).all()
    assert (plane(limited).argmax(1) != Y)[moved].all()
    inside = l1(free - X) <= eps
    np.testing.assert_array_equal(limited[inside], free[inside])
    assert (moved & ~inside).any()


def test_images_do_not_see_each_other():
    attack = ead(FREE, num_steps=30, search_steps=4, initial_constant=0.1)
    together = jax.jit(lambda x, y: attack(jax.random.key(0), plane, x, y))
    x_adv = together(X, Y)
    others = together(X.at[3:].set(0.5), Y.at[4].set(1 - Y[4]))
    np.testing.assert_allclose(others[:3], x_adv[:3], atol=1e-6)
    assert (plane(x_adv).argmax(1) != Y).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ead(threats.linf(0.1)), "`threat.name` .* 'l1', 'l2'; got 'linf'"),
        (lambda: ead(FREE, num_steps=0), "`num_steps` .* got 0"),
        (lambda: ead(FREE, beta=-1.0), r"`beta` .* got -1"),
        (lambda: ead(FREE, initial_constant=0.0), r"`initial_constant` .* got 0"),
        (lambda: run(ead(FREE, target=Y)), "`target` must differ"),
    ],
)
def test_errors(make, message):
    with pytest.raises(InputError, match=message):
        make()
