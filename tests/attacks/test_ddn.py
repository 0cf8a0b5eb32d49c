"""DDN: distance to a plane, levels, a second implementation, its corners."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import InputError, threats
from robustjax.attacks.ddn import ddn

KEYS = jax.random.split(jax.random.key(0), 4)
WEIGHTS = np.asarray(jax.random.normal(KEYS[0], (12, 2)))
X = jax.random.uniform(KEYS[1], (5, 3, 4, 1), minval=0.3, maxval=0.7)
UNLIMITED = threats.l2(jnp.inf)


def plane(x):
    return x.reshape(x.shape[0], -1) @ WEIGHTS.astype(x.dtype)


Y = plane(X).argmax(1).astype(jnp.int32)
NORMAL = WEIGHTS[:, 1] - WEIGHTS[:, 0]
TRUE = np.abs(np.asarray(X).reshape(5, -1) @ NORMAL) / np.linalg.norm(NORMAL)


def norms(x_adv, x=X):
    return np.linalg.norm(np.asarray(x_adv - x).reshape(len(x), -1), axis=1)


def run(attack, logits_fn=plane, x=X, y=Y):
    return jax.jit(lambda k: attack(k, logits_fn, x, y))(jax.random.key(3))


def test_it_ends_just_behind_a_plane():
    x_adv = run(ddn(UNLIMITED, num_steps=200, initial_radius=0.1, levels=None))
    assert (plane(x_adv).argmax(1) != Y).all()
    assert (norms(x_adv) >= TRUE * (1 - 1e-5)).all()
    assert (norms(x_adv) <= TRUE * 1.05).all()


@pytest.mark.parametrize("levels", [2, 16, 256])
def test_adversarial_pixels_are_on_levels(levels):
    x_adv = run(ddn(UNLIMITED, num_steps=20, levels=levels))
    moved = norms(x_adv) > 0
    assert moved.any()
    steps = np.asarray(x_adv)[moved] * (levels - 1)
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-4)


def test_levels_span_the_bounds():
    threat = threats.l2(jnp.inf, bounds=(-1.0, 3.0))
    x_adv = run(ddn(threat, num_steps=20, levels=5))
    moved = norms(x_adv) > 0
    assert moved.any()
    values = np.asarray(x_adv)[moved]
    np.testing.assert_allclose(values, np.round(values), atol=1e-5)


def reference(x, y, hidden, head, num_steps, start_radius, gamma, levels, target):
    """The same algorithm for one image, with derivatives by hand."""
    best, best_norm, offset, radius = x, np.inf, np.zeros_like(x), start_radius
    farthest = np.sqrt((np.maximum(x, 1 - x) ** 2).sum())
    for i in range(num_steps):
        features = np.tanh((x + offset) @ hidden)
        logits = features @ head
        goal, sign = (y, 1.0) if target is None else (target, -1.0)
        fooled = (logits.argmax() != goal) == (target is None)
        if fooled and np.linalg.norm(offset) < best_norm:
            best, best_norm = x + offset, np.linalg.norm(offset)
        probs = np.exp(logits - logits.max())
        probs /= probs.sum()
        probs[goal] -= 1.0
        slope = sign * hidden @ ((1 - features**2) * (head @ probs))
        rate = 0.01 + 0.99 * (1 + np.cos(np.pi * i / num_steps)) / 2
        offset = offset + rate * slope / np.linalg.norm(slope)
        radius = min(radius * (1 - gamma if fooled else 1 + gamma), farthest)
        offset = offset * radius / np.linalg.norm(offset)
        pixels = np.minimum(np.maximum(x + offset, 0), 1)
        if levels is not None:
            pixels = np.rint(pixels * (levels - 1)) / (levels - 1)
        offset = pixels - x
    return best


@pytest.mark.parametrize(
    ("levels", "use_target"), [(None, False), (32, False), (None, True)]
)
def test_it_is_the_reference(levels, use_target):
    rng = np.random.default_rng(0)
    hidden, head = rng.normal(size=(12, 6)), rng.normal(size=(6, 4))
    x = rng.uniform(size=(6, 12))
    model = lambda z: jnp.tanh(z.reshape(z.shape[0], -1) @ hidden) @ head
    y = (np.tanh(x @ hidden) @ head).argmax(1)
    y[0] = (y[0] + 1) % 4  # misclassified as it is
    target = (y + 2) % 4 if use_target else None
    with jax.enable_x64(True):
        attack = ddn(
            UNLIMITED,
            num_steps=25,
            initial_radius=0.7,
            gamma=0.1,
            levels=levels,
            target=None if target is None else jnp.asarray(target),
        )
        images = jnp.asarray(x).reshape(6, 3, 4, 1)
        found = run(attack, model, images, jnp.asarray(y)).reshape(6, 12)
        assert found.dtype == jnp.float64
    for i in range(6):
        goal = None if target is None else target[i]
        expected = reference(x[i], y[i], hidden, head, 25, 0.7, 0.1, levels, goal)
        np.testing.assert_allclose(found[i], expected, atol=1e-9)
    if not use_target:
        np.testing.assert_array_equal(found[0], x[0])


def test_only_points_within_eps_count():
    eps = float(np.median(TRUE)) * 1.05
    attack = lambda threat: ddn(threat, num_steps=100, initial_radius=0.1, levels=None)
    free, limited = run(attack(UNLIMITED)), run(attack(threats.l2(eps)))
    inside = norms(free) <= eps
    assert 0 < inside.sum() < 5
    np.testing.assert_array_equal(
        limited, np.where(inside[:, None, None, None], free, X)
    )


def test_noise_goes_where_there_is_no_gradient():
    # Flat until the mean leaves a band, so that only noise moves an image.
    def flat(x):
        away = jnp.abs(x.mean((1, 2, 3)) - 0.5) > 0.05
        return jnp.stack([jnp.ones(len(x)), 2.0 * away], 1).astype(x.dtype)

    x, y = jnp.full((4, 2, 2, 1), 0.5), jnp.zeros(4, jnp.int32)
    found = run(ddn(UNLIMITED, num_steps=30), flat, x, y)
    assert (flat(found).argmax(1) == 1).all()
    assert not np.allclose(found[0], found[1])  # every image draws its own


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ddn(threats.linf(0.1)), "`threat.name` must be one of 'l2'; got"),
        (lambda: ddn(UNLIMITED, num_steps=0), "`num_steps` .* got 0"),
        (lambda: ddn(UNLIMITED, gamma=1.5), r"`gamma` .* got 1\.5"),
        (lambda: ddn(UNLIMITED, initial_radius=-1.0), r"`initial_radius` .* got -1"),
        (lambda: ddn(UNLIMITED, levels=1), "`levels` must be None or .* got 1"),
        (lambda: run(ddn(UNLIMITED, target=Y)), "`target` must differ"),
    ],
)
def test_errors(make, message):
    with pytest.raises(InputError, match=message):
        make()
