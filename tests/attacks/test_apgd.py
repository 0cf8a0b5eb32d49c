"""APGD against a float64 loop in numpy, one image at a time, and closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import InputError, objectives, threats
from robustjax.attacks import _apgd, _apgd_l1, _outcome
from robustjax.attacks.apgd import apgd, apgd_target, apgd_targeted

RNG = np.random.default_rng(0)
HIDDEN = RNG.normal(size=(12, 9))
HEAD = RNG.normal(size=(9, 5))
X = RNG.uniform(0, 1, (8, 12))
NOISE = RNG.normal(size=X.shape)
LOGITS = np.tanh(X @ HIDDEN) @ HEAD
Y = LOGITS.argmax(1)
Y[0] = (Y[0] + 1) % 5  # misclassified from the start
RADII = {"linf": 0.02, "l2": 0.05, "l1": 0.12}
RANKED = np.argsort(-LOGITS, axis=1)


def network(x):
    dtype = x.dtype
    return jnp.tanh(x @ jnp.asarray(HIDDEN, dtype)) @ jnp.asarray(HEAD, dtype)


def loss_and_slope(z, y, target, loss):
    """The objective of one image and its gradient with respect to the logits."""
    order, unit = np.argsort(-z), np.eye(len(z))
    if loss == "ce":
        weights = np.exp(z - z.max())
        return np.log(weights.sum()) + z.max() - z[y], weights / weights.sum() - unit[y]
    if target is None:
        goal, low = order[0] if order[0] != y else order[1], unit[order[2]]
    else:
        goal, low = target, (unit[order[2]] + unit[order[3]]) / 2
    rise, spread = unit[goal] - unit[y], unit[order[0]] - low
    top, bottom = rise @ z, spread @ z + 1e-12
    return top / bottom, rise / bottom - top / bottom**2 * spread


class Image:
    """One image, its label, and every point that was looked at."""

    def __init__(self, x, y, target, loss):
        self.x, self.y, self.target, self.loss = x, y, target, loss
        self.forget()

    def forget(self):
        self.values, self.points, self.slopes, self.wrong = [], [], [], []

    def look(self, point):
        hidden = np.tanh(point @ HIDDEN)
        z = hidden @ HEAD
        value, slope = loss_and_slope(z, self.y, self.target, self.loss)
        self.values.append(value)
        self.points.append(point)
        self.slopes.append(((HEAD @ slope) * (1 - hidden**2)) @ HIDDEN.T)
        self.wrong.append(z.argmax() != self.y)

    def best(self):
        return int(np.argmax(self.values))  # the first of equals


def climb(image, x0, norm, eps, num_steps):
    """Momentum and halving as in the paper's algorithm, from its description."""

    def back(v):
        if norm == "linf":
            return np.clip(image.x + np.clip(v - image.x, -eps, eps), 0, 1)
        length = np.linalg.norm(v - image.x)
        return np.clip(image.x + (v - image.x) * min(1, eps / length), 0, 1)

    image.look(x0)
    here, before, slope, steps = x0, x0, image.slopes[0], [2 * eps]
    window, since, was_halved, best_then = int(0.22 * num_steps), 0, True, None
    window = max(window, 1)
    best_then = image.values[0]
    rises = []
    for i in range(num_steps):
        unit = np.sign(slope) if norm == "linf" else slope / np.linalg.norm(slope)
        aim = back(here + steps[-1] * unit)
        if i:
            aim = back(0.75 * aim + 0.25 * (here + here - before))
        image.look(aim)
        earlier = image.values[-2] if i else 0.0
        rises.append(image.values[-1] > earlier)
        here, before, slope = aim, here, image.slopes[-1]
        since += 1
        size = steps[-1]
        if since == window:
            few = sum(rises[-window:]) <= 0.75 * window
            flat = not was_halved and max(image.values) <= best_then
            was_halved = few or flat
            best_then = max(image.values)
            if was_halved:
                size = size / 2
                here, slope = image.points[image.best()], image.slopes[image.best()]
            since = 0
            window = max(
                window - max(int(0.03 * num_steps), 1), max(int(0.06 * num_steps), 1)
            )
        steps.append(size)
    return steps[1:]


def nearest_l1(v, x, eps):
    """Projection onto ball and box, by trying every break point of the threshold."""
    size, room = np.abs(v - x), np.where(v > x, 1 - x, x)
    total = lambda lam: np.clip(size - lam, 0, room).sum()
    if total(0) <= eps:
        return x + np.sign(v - x) * np.clip(size, 0, room)
    knots = np.unique(np.maximum(np.concatenate([[0], size, size - room]), 0))
    last = max(i for i, lam in enumerate(knots) if total(lam) >= eps)
    low, high = knots[last], knots[min(last + 1, len(knots) - 1)]
    fall = total(low) - total(high)
    lam = low + (high - low) * (total(low) - eps) / fall if fall else low
    return x + np.sign(v - x) * np.clip(size - lam, 0, room)


def climb_l1(image, x0, eps, num_steps, *, inherits):
    """Adaptive sparsity; `inherits` takes the sparsity of the start."""
    changed = lambda point: int((np.abs(point - image.x) > 1e-13).sum())
    image.look(x0)
    here, slope, size, steps = x0, image.slopes[0], eps, []
    then, count = len(x0), len(x0) - int(0.8 * len(x0))
    if inherits:
        then, count = changed(x0), math.ceil(changed(x0) * 2 / 3 - 1e-9)
    for i in range(num_steps):
        least = np.sort(np.abs(slope))[::-1][max(count, 1) - 1]
        signs = np.where(np.abs(slope) >= least, np.sign(slope), 0)
        here = here + size * signs / np.abs(signs).sum()
        here = nearest_l1(here, image.x, eps)
        image.look(here)
        slope = image.slopes[-1]
        if (i + 1) % max(int(0.04 * num_steps), 1) == 0:
            now = changed(image.points[image.best()])
            size = max(size / 1.5, eps / 10)
            if now < 0.95 * then:
                size = eps
                here, slope = image.points[image.best()], image.slopes[image.best()]
            then, count = now, math.ceil(now * 2 / 3 - 1e-9)
        steps.append(size)
    return steps


def reference(norm, loss, num_steps, *, rank=None, phases=False):
    """Steps [N, B], largest objectives [B], flags [B]."""
    steps, values, flags = [], [], []
    for i in range(len(X)):
        target = None
        if rank is not None:
            target = [k for k in RANKED[i] if k != Y[i]][rank - 2]
        image, eps = Image(X[i], Y[i], target, loss), RADII[norm]
        if norm == "linf":
            x0 = np.clip(X[i] + eps * NOISE[i] / np.abs(NOISE[i]).max(), 0, 1)
            steps.append(climb(image, x0, norm, eps, num_steps))
        elif norm == "l2":
            x0 = np.clip(X[i] + eps * NOISE[i] / np.linalg.norm(NOISE[i]), 0, 1)
            steps.append(climb(image, x0, norm, eps, num_steps))
        elif not phases:
            x0 = nearest_l1(X[i] + NOISE[i], X[i], eps)
            steps.append(climb_l1(image, x0, eps, num_steps, inherits=False))
        else:
            early = math.ceil(0.3 * num_steps)
            x0, sizes = X[i] + NOISE[i], []
            for multiple, length in (
                (3, early),
                (2, early),
                (1, num_steps - 2 * early),
            ):
                x0 = nearest_l1(x0, X[i], multiple * eps)
                image.forget()
                sizes += [multiple * eps] if sizes else []
                sizes += climb_l1(image, x0, multiple * eps, length, inherits=True)
                x0 = image.points[image.best()]
            steps.append(sizes)
        values.append(max(image.values))
        flags.append(any(image.wrong))
    return np.transpose(steps), np.array(values), np.array(flags)


def reference_start(norm):
    def start(key, x):
        if norm == "l1":
            return x + NOISE
        size = np.abs(NOISE).max if norm == "linf" else None
        size = size(axis=1) if size else np.linalg.norm(NOISE, axis=1)
        return jnp.clip(x + RADII[norm] * NOISE / size[:, None], 0, 1)

    return start


def trajectory(attack, x, y, f=network):
    """The last state, and the step sizes after every step, [N, B]."""

    @jax.jit
    def run(key, x, y):
        def body(state, _):
            state = attack.step(state, f, x, y)
            return state, state.step_size

        state = attack.init(key, f, x, y)
        return jax.lax.scan(body, state, length=attack.num_steps)

    return run(jax.random.key(0), x, y)


@pytest.mark.parametrize("num_steps", [10, 100])
@pytest.mark.parametrize(
    ("norm", "loss", "rank", "phases"),
    [
        ("linf", "ce", None, False),
        ("linf", "dlr", None, False),
        ("linf", "dlr", 3, False),
        ("l2", "ce", None, False),
        ("l1", "ce", None, False),
        ("l1", "dlr", 2, True),
    ],
)
def test_every_step_of_a_float64_reference(norm, loss, rank, phases, num_steps):
    objective = {"ce": objectives.cross_entropy, "dlr": objectives.dlr}[loss]
    options = {
        "num_steps": num_steps,
        "objective": objective,
        "random_start": reference_start(norm),
        "large_eps_phases": phases,
    }
    threat = getattr(threats, norm)(RADII[norm])
    with jax.enable_x64(True):
        if rank is None:
            attack = apgd(threat, **options)
        else:
            attack = apgd_target(threat, rank=rank, **options)
        x, y = jnp.asarray(X), jnp.asarray(Y)
        state, steps = trajectory(attack, x, y)
        x_adv = attack.finish(state, network, x, y)
        now_broken = np.asarray(network(x_adv).argmax(1) != y)
    expected = reference(norm, loss, num_steps, rank=rank, phases=phases)
    np.testing.assert_allclose(steps, expected[0], rtol=1e-12)
    np.testing.assert_allclose(state.record.best.value, expected[1], atol=1e-8)
    np.testing.assert_array_equal(state.record.broken, expected[2])
    np.testing.assert_array_equal(now_broken, expected[2] | (LOGITS.argmax(1) != Y))
    assert 0 < expected[2].sum() < len(X)  # the comparison sees both cases


def test_checkpoints_of_100_steps():
    due = np.flatnonzero(_apgd._limits(100, 0.75) >= 0) + 1
    assert due.tolist() == [22, 41, 57, 70, 80, 87, 93, 99]
    assert _apgd._limits(100, 0.75)[21] == 16  # 16.5 of 22
    assert _apgd._limits(1, 0.75).tolist() == [0]


def test_phases_of_100_steps():
    schedule = _apgd_l1._schedule(100, large_eps_phases=True)
    assert schedule.radius.tolist() == [3] * 30 + [2] * 31 + [1] * 41
    assert np.flatnonzero(schedule.restart).tolist() == [30, 61]


@pytest.mark.parametrize("norm", RADII)
def test_the_start_of_the_reference(norm):
    threat = getattr(threats, norm)(0.05)
    start = _apgd.projected_start(threat, _apgd.reference_start(threat))
    x0 = start(jax.random.key(0), jnp.full((4, 30), 0.5))
    np.testing.assert_allclose(threat.norm(x0 - 0.5), 0.05, rtol=1e-5)
    assert not np.allclose(x0[0], x0[1])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_is_exact_on_a_linear_model(norm):
    weights = RNG.normal(size=(12, 2))
    x = RNG.uniform(0.3, 0.7, (4, 12))
    y = np.array([0, 1, 0, 1])
    ascent = (weights[:, 1 - y] - weights[:, y]).T
    unit = {
        "linf": np.sign(ascent),
        "l2": ascent / np.linalg.norm(ascent, axis=1, keepdims=True),
    }[norm]
    attack = apgd(getattr(threats, norm)(0.2), objective=objectives.margin)
    linear = lambda z: z @ jnp.float32(weights)
    run = jax.jit(lambda k, x, y: attack(k, linear, x, y))
    x_adv = run(jax.random.key(0), jnp.float32(x), jnp.asarray(y))
    gain = lambda z: ((z - x) * ascent).sum(1)
    np.testing.assert_allclose(gain(x_adv), gain(x + 0.2 * unit), rtol=1e-4)


@pytest.mark.parametrize("phases", [False, True])
def test_l1_comes_close_to_the_optimum_of_a_linear_model(phases):
    weights, x = RNG.normal(size=(40, 2)), RNG.uniform(0, 1, (4, 40))
    y, eps = np.array([0, 1, 0, 1]), 1.5
    ascent = (weights[:, 1 - y] - weights[:, y]).T
    best = []
    for i in range(4):  # the room of the steepest pixels in order
        room = np.where(ascent[i] > 0, 1 - x[i], x[i])
        order = np.argsort(-np.abs(ascent[i]))
        used = np.minimum(np.cumsum(room[order]), eps)
        best.append((np.diff(used, prepend=0) * np.abs(ascent[i])[order]).sum())
    attack = apgd(threats.l1(eps), objective=objectives.margin, large_eps_phases=phases)
    linear = lambda z: z @ jnp.float32(weights)
    run = jax.jit(lambda k, x, y: attack(k, linear, x, y))
    x_adv = run(jax.random.key(0), jnp.float32(x), jnp.asarray(y))
    gain = ((x_adv - x) * ascent).sum(1)
    assert (gain > 0.98 * np.array(best)).all()
    assert (gain < np.array(best) + 1e-4).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_largest_values_are_found_exactly(dtype):
    values = np.abs(RNG.normal(size=(6, 50))).astype(dtype)
    values[0] = 0
    values[1, ::2] = values[1, 0]  # ties
    values[2, :3] = [np.inf, np.finfo(dtype).tiny, np.finfo(dtype).max]
    rank = np.array([1, 20, 1, 50, 7, 25])
    expected = np.sort(values, axis=1)[:, ::-1][np.arange(6), rank - 1]
    with jax.enable_x64(True):
        found = jax.jit(_apgd_l1._largest)(jnp.asarray(values), jnp.asarray(rank))
        np.testing.assert_array_equal(found, expected)


def test_a_misclassified_point_is_returned_though_another_has_a_larger_objective():
    towards_the_label = lambda logits, y: -objectives.margin(logits, y)
    two = lambda z: jnp.concatenate([z, 0.5 + 0 * z], axis=1) * 5
    x, y = jnp.array([[0.45]]), jnp.array([0])  # class 0 from 0.5 on
    for start in (None, lambda key, x: x + 0.1):  # the second never sees a wrong one
        attack = apgd(
            threats.linf(0.1),
            objective=towards_the_label,
            num_steps=3,
            random_start=start,
        )
        x_adv = jax.jit(lambda k, a=attack: a(k, two, x, y))(jax.random.key(0))
        assert x_adv[0, 0] < 0.5


@pytest.mark.parametrize("norm", RADII)
def test_a_constant_model(norm):
    constant = lambda x: jnp.tile(jnp.arange(5.0), (len(x), 1)) + 0 * x[:, :1]
    x, y = jnp.float32(X), jnp.asarray(Y).at[:3].set(4)
    threat = getattr(threats, norm)(RADII[norm])
    attack = apgd_targeted(threat, num_targets=2, num_steps=5)
    if norm == "l2":
        attack = apgd(threat, num_steps=5)
    run = jax.jit(lambda k: attack(k, constant, x, y))
    x_adv = run(jax.random.key(0))
    assert np.isfinite(x_adv).all()
    assert (threat.norm(x_adv - x) <= RADII[norm] + 1e-5).all()


def targeted_run(num_targets, keys, *, x=X, y=Y, f=network, norm="linf", eps=0.04):
    attack = apgd_targeted(
        getattr(threats, norm)(eps), num_targets=num_targets, num_steps=8
    )
    run = jax.jit(lambda k, x, y: attack(k, f, x, y))
    return np.asarray(run(keys, jnp.float32(x), jnp.asarray(y)))


def keys():
    return jax.random.split(jax.random.key(1), len(X))


def test_targets_one_by_one_are_the_targeted_attack():
    x, y = jnp.float32(X), jnp.asarray(Y)
    traces = []

    @jax.jit
    def one(keys, rank):
        traces.append(rank)
        attack = apgd_target(threats.linf(0.04), rank=rank, num_steps=8)
        return attack(keys, network, x, y)

    expected, done = X.astype(np.float32), LOGITS.argmax(1) != Y
    for rank in (2, 3, 4, 5):
        folded = jax.vmap(jax.random.fold_in, (0, None))(keys(), rank)
        x_adv = np.asarray(one(folded, rank))
        wrong = np.asarray(network(x_adv).argmax(1)) != Y
        expected = np.where((wrong & ~done)[:, None], x_adv, expected)
        done |= wrong
    assert len(traces) == 1
    found = targeted_run(4, keys())
    np.testing.assert_allclose(found[done], expected[done], atol=1e-5)
    still = np.asarray(network(found).argmax(1)) == Y
    np.testing.assert_array_equal(still, ~done)
    assert 0 < still.sum() < len(X) - 1


def test_there_are_no_more_targets_than_wrong_classes():
    np.testing.assert_array_equal(targeted_run(9, keys()), targeted_run(4, keys()))


def test_images_do_not_see_each_other():
    order = RNG.permutation(len(X))
    plain = targeted_run(4, keys())
    moved = targeted_run(4, keys()[order], x=X[order], y=Y[order])
    np.testing.assert_allclose(moved, plain[order], atol=1e-5)


def test_runs_are_skipped_once_all_are_broken():
    wrong = (LOGITS.argmax(1) + 1) % 5
    counted = []

    def counting(x):
        jax.debug.callback(lambda: counted.append(1))
        return network(x)

    np.testing.assert_array_equal(
        targeted_run(4, keys(), y=wrong, f=counting), np.float32(X)
    )
    jax.effects_barrier()
    assert len(counted) == 1  # the clean pass


def test_three_classes_are_refused_by_dlr_and_taken_by_the_margin():
    three = lambda x: network(x)[:, :3]
    x, y = jnp.float32(X), jnp.asarray(np.asarray(three(jnp.float32(X))).argmax(1))
    for attack in (
        apgd_targeted(threats.linf(0.1), num_steps=2),
        apgd_target(threats.linf(0.1), rank=2, num_steps=2),
    ):
        with pytest.raises(InputError, match=r"at least 4 classes .* got 3"):
            attack(jax.random.key(0), three, x, y)
    attack = apgd_targeted(threats.linf(0.3), num_steps=5, objective=objectives.margin)
    x_adv = jax.jit(lambda k: attack(k, three, x, y))(jax.random.key(0))
    assert (three(x_adv).argmax(1) != y).sum() > 2


def test_samples_of_a_randomised_classifier_are_averaged():
    shifts = jnp.array([-0.05, 0.0, 0.05])
    samples = lambda x: jax.vmap(lambda shift: network(x + shift))(shifts)
    mean = lambda x: jnp.log(jax.nn.softmax(samples(x)).mean(0))
    x, y = jnp.float32(X), mean(jnp.float32(X)).argmax(1)
    for attack in (
        apgd(threats.linf(0.08), num_steps=6),
        apgd_targeted(threats.linf(0.08), num_targets=2, num_steps=6),
    ):
        x_adv = jax.jit(lambda k, a=attack: a(k, samples, x, y))(jax.random.key(0))
        broken = _outcome.broken(mean(x_adv), y)
        assert broken.sum() > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: apgd(threats.linf(0.1), num_steps=0), "`num_steps` .* got 0"),
        (lambda: apgd(threats.linf(0.1), rho=1.5), r"`rho` .* got 1\.5"),
        (lambda: apgd(threats.l1(1.0), rho=0.5), "`rho` .* no role under L1.* 0.5"),
        (
            lambda: apgd(threats.l2(1.0), large_eps_phases=True),
            "`large_eps_phases` are for L1 .* 'l2'",
        ),
        (
            lambda: apgd(threats.l1(1.0), num_steps=4, large_eps_phases=True),
            "`num_steps` .* got 4. Use at least 5",
        ),
        (lambda: apgd(threats.l2(float("inf"))), r"`threat\.eps` must be finite"),
        (lambda: apgd_target(threats.linf(0.1), rank=1), "`rank` .* got 1"),
        (lambda: apgd_targeted(threats.l2(0.1), num_targets=0), "`num_targets` .* 0"),
        (
            lambda: apgd(threats.linf(0.1)._replace(name="lp")),
            r"`threat\.name` must be one of .*; got 'lp'",
        ),
    ],
)
def test_errors_name_the_argument_the_value_and_the_fix(call, message):
    with pytest.raises(InputError, match=message):
        call()
