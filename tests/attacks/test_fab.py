"""FAB against closed forms and a float64 reference; its guarantees."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import InputError, threats
from robustjax.attacks.fab import _start, fab, fab_target, fab_targeted

UNBOUNDED = {
    "linf": threats.linf(1.0),
    "l2": threats.l2(jnp.inf),
    "l1": threats.l1(jnp.inf),
}
ORDER = {"linf": np.inf, "l2": 2, "l1": 1}
DUAL = {"linf": 1, "l2": 2, "l1": np.inf}
every_norm = pytest.mark.parametrize("norm", UNBOUNDED)

RNG = np.random.default_rng(0)
HIDDEN, HEAD = RNG.normal(size=(12, 7)), RNG.normal(size=(7, 4))
X = np.clip(RNG.uniform(-0.1, 1.1, (6, 3, 2, 2)), 0, 1)


def logits_fn(x):
    hidden = jnp.asarray(HIDDEN, x.dtype), jnp.asarray(HEAD, x.dtype)
    return jnp.tanh((x.reshape(x.shape[0], -1) - 0.5) @ hidden[0]) @ hidden[1]


def numpy_logits(x):
    return np.tanh((x.ravel() - 0.5) @ HIDDEN) @ HEAD


def numpy_jacobian(x):
    slope = 1 - np.tanh((x.ravel() - 0.5) @ HIDDEN) ** 2
    return (HIDDEN * slope @ HEAD).T.reshape(4, *x.shape)


Y = np.array([numpy_logits(x).argmax() for x in X])
Y[2] = (Y[2] + 1) % 4  # misclassified as it is


def numpy_projection(norm, q, w, b):
    """The offset to {u : w . u = b} in the unit box, by bisection or greedily."""
    excess = (w * q).sum() - b
    if excess < 0:
        w, b, excess = -w, -b, -excess
    room = np.where(w > 0, q, np.where(w < 0, 1 - q, 0.0))
    size = np.abs(w)
    if (size * room).sum() <= excess:
        return -np.sign(w) * room
    length = np.zeros_like(q)
    if norm == "l1":
        for i in np.argsort(-size.ravel()):
            step = min(room.flat[i], excess / size.flat[i])
            length.flat[i], excess = step, excess - size.flat[i] * step
    else:
        speed = np.ones_like(size) if norm == "linf" else size
        low, high = 0.0, 1e9
        for _ in range(200):
            t = (low + high) / 2
            length = np.minimum(t * speed, room)
            low, high = (t, high) if (size * length).sum() < excess else (low, t)
    return -np.sign(w) * length


def numpy_fab(norm, x, y, p, num_steps, target=None):
    """Search points and the closest misclassified point, from the paper's formulas."""
    size = lambda v, order=ORDER[norm]: np.linalg.norm(v.ravel(), order)
    points, best, distance = [], x, np.inf
    if numpy_logits(x).argmax() != y:
        distance = 0.0
    for _ in range(num_steps):
        z, jacobian = numpy_logits(p), numpy_jacobian(p)
        others = [k for k in range(4) if k != y] if target is None else [target]
        far = lambda k, z=z, j=jacobian: (
            abs(z[k] - z[y]) / size(j[k] - j[y], DUAL[norm])
        )
        k = min(others, key=far)
        h, w = z[k] - z[y], jacobian[k] - jacobian[y]
        b = (w * p).sum() - h
        d_p, d_x = numpy_projection(norm, p, w, b), numpy_projection(norm, x, w, b)
        a = min(size(d_p) / (size(d_p) + size(d_x)), 0.1)
        p = np.clip((1 - a) * (p + 1.05 * d_p) + a * (x + 1.05 * d_x), 0, 1)
        if numpy_logits(p).argmax() != y:
            if size(p - x) < distance:
                best, distance = p, size(p - x)
            p = x + 0.9 * (p - x)
        points.append(p)
    return np.array(points), best, distance


def follow(attack, x, y, start, num_steps):
    """Search points from a given start, and the state at the end."""
    state = attack.init(jax.random.key(0), logits_fn, x, y)
    state = state._replace(x_adv=start, index=state.index + 1)

    def step(state, _):
        state = attack.step(state, logits_fn, x, y)
        return state, state.x_adv

    return jax.lax.scan(step, state, length=num_steps)


@every_norm
@pytest.mark.parametrize("rank", [None, 2, 4])
def test_float64_reference_from_a_fixed_start(norm, rank):
    start = np.clip(X + 0.1 * RNG.normal(size=X.shape), 0, 1)
    threat = UNBOUNDED[norm]
    make = fab if rank is None else functools.partial(fab_target, rank=rank)
    attack = make(threat, num_steps=20)
    with jax.enable_x64(True):
        arguments = jnp.asarray(X), jnp.asarray(Y), jnp.asarray(start)
        run = jax.jit(lambda x, y, start: follow(attack, x, y, start, 12))
        state, points = run(*arguments)
    assert state.x_adv.dtype == jnp.float64
    for i in range(len(X)):
        target = None
        if rank is not None:
            others = [k for k in np.argsort(-numpy_logits(X[i])) if k != Y[i]]
            target = others[rank - 2]
        expected, best, distance = numpy_fab(norm, X[i], Y[i], start[i], 12, target)
        np.testing.assert_allclose(points[:, i], expected, atol=1e-9)
        np.testing.assert_allclose(state.found.x_adv[i], best, atol=1e-9)
        np.testing.assert_allclose(state.found.distance[i], distance, atol=1e-9)
    assert np.isfinite(state.found.distance).all()


@every_norm
@pytest.mark.parametrize("targeted", [False, True])
def test_a_linear_classifier_gives_the_exact_distance(norm, targeted):
    rng = np.random.default_rng(1)
    weight, x = rng.normal(size=(8, 5)), rng.uniform(0.3, 0.7, (16, 8))
    # Boundaries so near that the box is out of the way.
    linear = lambda z: (z - 0.5) @ jnp.asarray(weight, z.dtype)
    x = 0.5 + (0.02 if norm == "l1" else 0.2) * (x - 0.5)
    y = ((x - 0.5) @ weight).argmax(axis=1)
    gaps = (x - 0.5) @ weight
    distances = [
        min(
            (gaps[i, y[i]] - gaps[i, k])
            / np.linalg.norm(weight[:, k] - weight[:, y[i]], DUAL[norm])
            for k in range(5)
            if k != y[i]
        )
        for i in range(16)
    ]
    attack = (fab_targeted if targeted else fab)(UNBOUNDED[norm], num_steps=6)
    x, y = jnp.float32(x), jnp.asarray(y)
    x_adv = jax.jit(lambda x, y: attack(jax.random.key(0), linear, x, y))(x, y)
    found = UNBOUNDED[norm].norm(x_adv - x) / np.array(distances)
    assert (linear(x_adv).argmax(axis=1) != y).all()
    assert (found > 1 - 1e-4).all()
    assert (found < 1.05 + 1e-3).all()


def test_all_targets_are_the_single_targets_together():
    x, y, threat = jnp.float32(X), jnp.asarray(Y), UNBOUNDED["l2"]
    whole = fab_targeted(threat, num_targets=9, num_steps=4)
    assert whole.num_steps == 36  # of which 12 do something
    together = jax.jit(lambda: whole(jax.random.key(0), logits_fn, x, y))()

    @jax.jit  # the rank is an argument: one compilation
    def single(rank):
        return fab_target(threat, rank=rank, num_steps=4)(
            jax.random.key(0), logits_fn, x, y
        )

    points = np.stack([single(rank) for rank in (2, 3, 4)])
    np.testing.assert_array_equal(single(5), x)
    flips = np.array([logits_fn(p).argmax(axis=1) != y for p in points])
    distance = np.array([threat.norm(p - x) for p in points])
    best = np.where(flips, distance, np.inf).argmin(axis=0)
    np.testing.assert_allclose(together, points[best, np.arange(len(x))], atol=1e-6)
    mapped = jax.vmap(single)(jnp.array([2, 3, 4]))
    np.testing.assert_allclose(mapped, points, atol=1e-6)


@every_norm
def test_only_what_lies_within_eps_counts(norm):
    x, y = jnp.float32(X), jnp.asarray(Y)
    threat = UNBOUNDED[norm]

    @jax.jit
    def run(eps):
        return fab(threat.with_eps(eps), num_steps=8)(
            jax.random.key(0), logits_fn, x, y
        )

    free = run(1.0 if norm == "linf" else jnp.inf)
    distance = threat.norm(free - x)
    assert distance[2] == 0  # misclassified already
    assert (jnp.delete(distance, 2) > 0).all()
    assert (logits_fn(free).argmax(axis=1) != y).all()
    eps = jnp.sort(distance)[3:5].mean()
    some = run(eps)
    within = (distance <= eps).reshape(-1, 1, 1, 1)
    np.testing.assert_array_equal(some, jnp.where(within, free, x))
    per_image = run(jnp.where(jnp.arange(6) % 2 == 0, 10.0, 0.0))
    np.testing.assert_array_equal(per_image[::2], free[::2])
    np.testing.assert_array_equal(per_image[1::2], x[1::2])


@every_norm
def test_results_are_clear_of_rounding_where_eps_leaves_the_room(norm):
    x, y = jnp.float32(X), jnp.asarray(Y)
    threat = UNBOUNDED[norm].with_eps(1.0 if norm == "linf" else jnp.inf)
    attack = fab(threat, num_steps=8)

    @jax.jit
    def run(eps):
        held = fab(threat.with_eps(eps), num_steps=8)
        state = attack.init(jax.random.key(0), logits_fn, x, y)
        for _ in range(8):
            state = attack.step(state, logits_fn, x, y)
        return state.found, held.finish(state, logits_fn, x, y)

    found, free = run(threat.eps)
    # Coordinates that end on the box stay there.
    expected = np.clip(x + 1.00001 * (found.x_adv - x), 0, 1)
    np.testing.assert_allclose(free, expected, rtol=0, atol=1e-7)
    assert (threat.norm(free - x) >= found.distance * (1 - 1e-6)).all()
    _, tight = run(found.distance)
    np.testing.assert_array_equal(tight, found.x_adv)


@every_norm
def test_later_searches_start_around_x_and_never_hurt(norm):
    x, y = jnp.float32(0.3 + 0.4 * X), jnp.asarray(Y)
    eps = {"linf": 0.2, "l2": 0.4, "l1": 0.8}[norm]
    threat = UNBOUNDED[norm].with_eps(eps)
    once, thrice = fab(threat, num_steps=4), fab(threat, num_steps=4, num_restarts=3)
    first = jax.jit(lambda: once(jax.random.key(0), logits_fn, x, y))()
    best = jax.jit(lambda: thrice(jax.random.key(0), logits_fn, x, y))()
    found = lambda z: jnp.where(
        logits_fn(z).argmax(axis=1) != y, threat.norm(z - x), jnp.inf
    )
    assert (found(best) <= found(first)).all()
    state = thrice.init(jax.random.key(0), logits_fn, x, y)
    near = jnp.array([jnp.inf, 0.1, 0.0, 0.05, 1.0, jnp.inf])
    state = state._replace(found=state.found._replace(distance=near))
    begin = lambda search, threat=threat: _start(
        threat, state, jnp.int32(search), jnp.int32(search), x
    )
    radius = jnp.minimum(near, eps) / 2
    np.testing.assert_array_equal(begin(0), x)
    np.testing.assert_allclose(threat.norm(begin(1) - x), radius, rtol=1e-3, atol=1e-7)
    assert (threat.norm(begin(1) - begin(2))[near > 0] > 0).all()
    # Without any limit the start still is a point of the box.
    anywhere = begin(1, UNBOUNDED[norm])
    assert np.isfinite(anywhere).all()
    assert ((anywhere >= 0) & (anywhere <= 1)).all()


@pytest.mark.parametrize("norm", ["linf", "l1"])
def test_other_bounds_are_a_change_of_scale(norm):
    x, y = jnp.float32(X), jnp.asarray(Y)
    make = {"linf": threats.linf, "l2": threats.l2, "l1": threats.l1}[norm]
    wide = make(2.0 if norm == "linf" else jnp.inf, bounds=(-1.0, 1.0))
    run = lambda threat, f, x: jax.jit(
        lambda: fab(threat, num_steps=3)(jax.random.key(0), f, x, y)
    )()
    expected = 2 * run(UNBOUNDED[norm], logits_fn, x) - 1
    scaled = run(wide, lambda z: logits_fn((z + 1) / 2), 2 * x - 1)
    np.testing.assert_allclose(scaled, expected, atol=1e-4)


def test_nothing_is_done_for_a_batch_that_is_lost():
    x, y = jnp.float32(X), jnp.asarray((Y + 1) % 4)
    y = jnp.where(jnp.arange(6) == 2, (y + 1) % 4, y)
    assert (logits_fn(x).argmax(axis=1) != y).all()
    attack = fab_targeted(UNBOUNDED["l2"], num_steps=2)
    state = attack.init(jax.random.key(0), logits_fn, x, y)
    after = jax.jit(lambda s: attack.step(s, logits_fn, x, y))(state)
    np.testing.assert_array_equal(after.x_adv, x)
    np.testing.assert_array_equal(attack.finish(after, logits_fn, x, y), x)


def test_samples_of_a_randomised_classifier_and_soft_labels():
    x, y = jnp.float32(X), jnp.asarray(Y)
    shifts = jnp.array([-0.05, 0.0, 0.05])
    sampled = lambda z: jax.vmap(lambda s: logits_fn(z + s))(shifts)
    mean = lambda z: jax.nn.softmax(sampled(z)).mean(axis=0)
    for make in (fab, fab_targeted):
        attack = make(UNBOUNDED["l2"], num_steps=5)
        run = jax.jit(
            lambda f, y, a=attack: a(jax.random.key(0), f, x, y), static_argnums=0
        )
        assert (mean(run(sampled, y)).argmax(axis=1) != y).all()
    soft = 0.8 * jax.nn.one_hot(y, 4) + 0.05
    np.testing.assert_allclose(run(logits_fn, soft), run(logits_fn, y), atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: fab(t, num_steps=0), "`num_steps` .* got 0"),
        (lambda t: fab(t, num_restarts=1.5), r"`num_restarts` .* got 1\.5"),
        (lambda t: fab(t, alpha_max=1.5), r"`alpha_max` .* got 1\.5"),
        (lambda t: fab(t, overshoot=0.0), r"`overshoot` .* got 0\.0"),
        (lambda t: fab(t, backward=-0.1), r"`backward` .* got -0\.1"),
        (lambda t: fab_targeted(t, num_targets=0), "`num_targets` .* got 0"),
        (lambda t: fab_target(t, rank=1), "`rank` must be at least 2"),
        (lambda t: fab(t._replace(name="l7")), r"`threat.name` .* 'l1'; got 'l7'"),
    ],
)
def test_errors_name_the_argument_the_value_and_the_fix(call, message):
    with pytest.raises(InputError, match=message):
        call(threats.linf(0.1))
