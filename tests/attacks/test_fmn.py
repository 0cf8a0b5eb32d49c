"""FMN: distance to a plane in three norms, a second implementation, its corners."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import InputError, threats
from robustjax.attacks.fmn import fmn

KEYS = jax.random.split(jax.random.key(0), 4)
WEIGHTS = np.asarray(jax.random.normal(KEYS[0], (12, 2)))
X = jax.random.uniform(KEYS[1], (5, 3, 4, 1), minval=0.3, maxval=0.7)
FREE = {
    "linf": threats.linf(1.0),
    "l2": threats.l2(jnp.inf),
    "l1": threats.l1(jnp.inf),
}
ORDER = {"linf": np.inf, "l2": 2, "l1": 1}
DUAL = {"linf": 1, "l2": 2, "l1": np.inf}


def plane(x):
    return x.reshape(x.shape[0], -1) @ WEIGHTS.astype(x.dtype)


Y = plane(X).argmax(1).astype(jnp.int32)
NORMAL = WEIGHTS[:, 1] - WEIGHTS[:, 0]
GAP = np.abs(np.asarray(X).reshape(5, -1) @ NORMAL)
EITHER_NORM = pytest.mark.parametrize("norm", ["linf", "l2", "l1"])


def run(attack, logits_fn=plane, x=X, y=Y):
    return jax.jit(lambda k: attack(k, logits_fn, x, y))(jax.random.key(3))


def norms(delta, norm):
    flat = np.asarray(delta).reshape(len(delta), -1)
    return np.linalg.norm(flat, axis=1, ord=ORDER[norm])


def l1_distance(x, y):
    """Of one image to the plane inside the box: the steepest pixels first."""
    slopes = NORMAL * (1 if y == 0 else -1)
    left, total = abs(x @ NORMAL), 0.0
    for pixel in np.argsort(-np.abs(slopes)):
        room = 1 - x[pixel] if slopes[pixel] > 0 else x[pixel]
        spent = min(room, left / abs(slopes[pixel]))
        total, left = total + spent, left - spent * abs(slopes[pixel])
    return total


@EITHER_NORM
def test_it_ends_just_behind_a_plane(norm):
    x_adv = run(fmn(FREE[norm], num_steps=200))
    true = GAP / np.linalg.norm(NORMAL, ord=DUAL[norm])
    if norm == "l1":
        flat = np.asarray(X).reshape(5, -1)
        true = np.array([l1_distance(x, y) for x, y in zip(flat, Y, strict=True)])
    assert (plane(x_adv).argmax(1) != Y).all()
    assert (norms(x_adv - X, norm) >= true * (1 - 1e-5)).all()
    assert (norms(x_adv - X, norm) <= true * 1.05).all()


def onto(offset, radius, x, norm):
    """Projection onto ball and box of one image, by bisection of its multiplier."""
    least, most = -x, 1 - x
    if norm == "linf":
        return np.clip(offset, np.maximum(least, -radius), np.minimum(most, radius))

    def point(multiplier):
        if norm == "l2":
            return np.clip(offset / (1 + multiplier), least, most)
        shrunk = np.sign(offset) * np.maximum(np.abs(offset) - multiplier, 0)
        return np.clip(shrunk, least, most)

    size = lambda z: np.linalg.norm(z, ord=ORDER[norm])
    if size(point(0.0)) <= radius:
        return point(0.0)
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if size(point(middle)) > radius else (low, middle)
    return point(high)


def reference(x, y, hidden, head, norm, num_steps, step_size, gamma, target):
    """The same algorithm for one image, with derivatives by hand."""
    size = lambda z: np.linalg.norm(z, ord=ORDER[norm])
    farthest = size(np.maximum(x, 1 - x))
    best, best_size, offset, radius = x, np.inf, np.zeros_like(x), np.inf
    at_x = 0.0
    goal, sign = (y, 1.0) if target is None else (target, -1.0)
    for i in range(num_steps):
        features = np.tanh((x + offset) @ hidden)
        logits = features @ head
        rival = np.where(np.arange(4) == goal, -np.inf, logits).argmax()
        value = sign * (logits[rival] - logits[goal])
        slope = sign * hidden @ ((1 - features**2) * (head[:, rival] - head[:, goal]))
        at_x = abs(value) if i == 0 else at_x
        fooled = value > 0 and (i == 0 or value >= 1e-4 * at_x)
        if fooled and size(offset) < best_size:
            best, best_size = x + offset, size(offset)
        wave = 0.5 + 0.5 * np.cos(np.pi * i / num_steps)
        rate = step_size * (0.01 + 0.99 * wave)
        change = 0.001 + (gamma - 0.001) * wave
        if fooled:
            radius = min(radius * (1 - change), best_size)
        elif np.isfinite(best_size):
            radius = radius * (1 + change)
        else:
            steepness = np.linalg.norm(slope, ord=DUAL[norm])
            radius = size(offset) * (1 + change) + abs(value) / steepness
        radius = min(radius, farthest)
        moved = offset + rate * slope / np.linalg.norm(slope)
        offset = onto(moved, radius, x, norm)
    return best


@pytest.mark.parametrize(
    ("norm", "use_target"),
    [("linf", False), ("l2", False), ("l1", False), ("l2", True)],
)
def test_it_is_the_reference(norm, use_target):
    rng = np.random.default_rng(0)
    hidden, head = rng.normal(size=(12, 6)), rng.normal(size=(6, 4))
    x = rng.uniform(size=(6, 12))
    model = lambda z: jnp.tanh(z.reshape(z.shape[0], -1) @ hidden) @ head
    y = (np.tanh(x @ hidden) @ head).argmax(1)
    y[0] = (y[0] + 1) % 4  # misclassified as it is
    target = (y + 2) % 4 if use_target else None
    with jax.enable_x64(True):
        attack = fmn(
            FREE[norm],
            num_steps=20,
            step_size=0.5,
            gamma=0.1,
            target=None if target is None else jnp.asarray(target),
        )
        images = jnp.asarray(x).reshape(6, 3, 4, 1)
        found = run(attack, model, images, jnp.asarray(y)).reshape(6, 12)
        assert found.dtype == jnp.float64
    for i in range(6):
        goal = None if target is None else target[i]
        expected = reference(x[i], y[i], hidden, head, norm, 20, 0.5, 0.1, goal)
        np.testing.assert_allclose(found[i], expected, atol=1e-8)
    if not use_target:
        np.testing.assert_array_equal(found[0], x[0])


@EITHER_NORM
def test_more_steps_keep_what_other_compilations_agree_with(norm):
    x_adv = run(fmn(FREE[norm], num_steps=1000))
    logits = np.asarray(x_adv, np.float64).reshape(5, -1) @ np.float64(WEIGHTS)
    gap = logits[np.arange(5), 1 - Y] - logits[np.arange(5), Y]
    assert (gap >= 0.5e-4 * GAP).all()
    assert (gap <= 1e-2 * GAP).all()  # and it is near


def test_only_points_within_eps_count():
    free = run(fmn(FREE["l2"], num_steps=50))
    distance = norms(free - X, "l2")
    eps = float(np.median(distance)) * 1.001
    limited = run(fmn(threats.l2(eps), num_steps=50))
    inside = distance <= eps
    assert 0 < inside.sum() < 5
    expected = np.where(inside[:, None, None, None], free, X)
    np.testing.assert_array_equal(limited, expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fmn(FREE["l2"]._replace(name="l3")), "`threat.name` .* got 'l3'"),
        (lambda: fmn(FREE["l2"], num_steps=0), "`num_steps` .* got 0"),
        (lambda: fmn(FREE["l2"], gamma=1.5), r"`gamma` .* got 1\.5"),
        (lambda: fmn(FREE["l2"], step_size=-1.0), r"`step_size` .* got -1"),
        (lambda: fmn(FREE["l2"], final_step_size=0.0), r"`final_step_size` .* got 0"),
        (lambda: run(fmn(FREE["l2"], target=Y)), "`target` must differ"),
    ],
)
def test_errors(make, message):
    with pytest.raises(InputError, match=message):
        make()
