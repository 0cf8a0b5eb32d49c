import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import InputError, _random, attacks, objectives, threats

WEIGHTS = jax.random.normal(jax.random.key(0), (6, 8))
HEAD = jax.random.normal(jax.random.key(1), (8, 4))
X = jax.random.uniform(jax.random.key(2), (16, 6))
Y = jnp.arange(16) % 4


def logits_fn(x):
    return jnp.sin(6 * (x @ WEIGHTS)) @ HEAD


@pytest.mark.parametrize("objective", [objectives.cross_entropy, objectives.margin])
def test_restarts_keep_the_worst_of_a_python_loop(objective):
    once = attacks.pgd(threats.l2(0.2), step_size=0.05, num_steps=2)
    attack = attacks.restarts(once, 5, objective=objective)
    x_adv = jax.jit(lambda k: attack(k, logits_fn, X, Y))(jax.random.key(3))
    keys = _random.per_image_keys(jax.random.key(3), 16)
    run = jax.jit(lambda k, i: once(_random.fold_in(k, i), logits_fn, X, Y))
    points = np.stack([run(jax.random.clone(keys), i) for i in range(5)])
    chosen = []
    for image in range(16):
        logits = logits_fn(jnp.asarray(points[:, image]))
        label = jnp.full(5, Y[image])
        wrong = np.asarray(logits.argmax(1) != label)
        value = np.asarray(objective(logits, label))
        chosen.append(max(range(5), key=lambda r: (wrong[r], value[r])))
    expected = points[chosen, np.arange(16)]
    np.testing.assert_allclose(x_adv, expected, atol=1e-5)
    assert len(set(chosen)) > 1


def test_misclassified_comes_before_a_larger_loss():
    def attack(key, logits_fn, x, y):
        return jax.random.randint(key[0], x.shape, 0, 2).astype(x.dtype)

    # 0: right, with cross-entropy log 3; 1: wrong, with the smaller log 2 + 0.05.
    table = jnp.log(jnp.array([[0.334, 0.333, 0.333], [0.475, 0.525, 1e-9]]))
    x_adv = attacks.restarts(attack, 16)(
        jax.random.key(0),
        lambda x: table[x[:, 0].astype(int)],
        jnp.zeros((1, 1)),
        jnp.array([0]),
    )
    np.testing.assert_array_equal(x_adv, [[1.0]])


def test_one_restart_is_the_attack():
    once = attacks.pgd(threats.linf(0.1), step_size=0.05, num_steps=2)
    keys = _random.per_image_keys(jax.random.key(3), 16)
    alone = once(_random.fold_in(jax.random.clone(keys), 0), logits_fn, X, Y)
    wrapped = attacks.restarts(once, 1)(keys, logits_fn, X, Y)
    np.testing.assert_allclose(wrapped, alone, atol=1e-6)


def test_nan_logits_count_as_broken():
    def attack(key, logits_fn, x, y):
        return jax.random.randint(key[0], x.shape, 0, 2).astype(x.dtype)

    def fragile(x):
        return jnp.where(x > 0.5, jnp.nan, 1.0) * jnp.array([[2.0, 1.0]])

    x_adv = attacks.restarts(attack, 16)(
        jax.random.key(0), fragile, jnp.zeros((1, 1)), jnp.array([0])
    )
    np.testing.assert_array_equal(x_adv, [[1.0]])


def counted(attack, counts):
    """The attack, which notes each of its runs."""

    def run(key, logits_fn, x, y):
        jax.debug.callback(lambda rows: counts.append(len(rows)), x)
        return attack(key, logits_fn, x, y)

    return run


def moved(amount):
    return lambda key, logits_fn, x, y: x + amount


def broken(x, y=Y):
    return np.asarray(logits_fn(jnp.asarray(x)).argmax(1) != y)


RIGHT = logits_fn(X).argmax(1).at[0].add(1) % 4  # wrong about the first


@pytest.mark.parametrize("at_once", [pytest.param(1, marks=pytest.mark.slow), 2, 3])
def test_fewer_restarts_at_once_are_the_same(at_once):
    once = attacks.pgd(threats.linf(0.1), step_size=0.05, num_steps=2)
    for objective in (objectives.cross_entropy, lambda logits, y: 0 * logits[:, 0]):
        results = [
            attacks.restarts(once, 6, objective=objective, at_once=size)(
                jax.random.key(3), logits_fn, X, RIGHT
            )
            for size in (at_once, None)
        ]
        np.testing.assert_allclose(*results, atol=1e-6)  # ties included


def test_the_strongest_is_the_worst_point_of_all_and_not_the_first_success():
    amounts = (0.02, -0.15, 0.15, 0.3)
    attack = attacks.strongest([moved(amount) for amount in amounts])
    x_adv = jax.jit(lambda x, y: attack(jax.random.key(0), logits_fn, x, y))(X, RIGHT)
    points = np.stack([np.asarray(X) + np.float32(amount) for amount in amounts])
    logits = np.stack([logits_fn(jnp.asarray(p)) for p in points]).astype(np.float64)
    labels = np.asarray(RIGHT)
    wrong = logits.argmax(axis=2) != labels
    each = np.take_along_axis(logits, labels[None, :, None], axis=2)[..., 0]
    loss = np.log(np.exp(logits).sum(axis=2)) - each
    chosen = [max(range(4), key=lambda a: (wrong[a, i], loss[a, i])) for i in range(16)]
    np.testing.assert_allclose(x_adv, points[chosen, np.arange(16)], atol=1e-6)
    assert len(set(chosen)) > 1
    with pytest.raises(InputError, match="at least one attack"):
        attacks.strongest([])


def test_restarts_at_once_must_divide():
    with pytest.raises(InputError, match=r"`at_once` must divide .* 4 and 6"):
        attacks.restarts(moved(0.1), 6, at_once=4)
    with pytest.raises(InputError, match="`at_once`"):
        attacks.restarts(moved(0.1), 6, at_once=0)


def test_the_first_success_is_kept_and_no_more_than_needed_runs():
    amounts, counts = (0.02, -0.15, 0.15, 0.3), []
    sequence = [counted(moved(amount), counts) for amount in amounts]
    attack = jax.jit(
        lambda x, y: attacks.worst_case(sequence)(jax.random.key(0), logits_fn, x, y)
    )
    x_adv = np.asarray(attack(X, RIGHT))
    jax.effects_barrier()
    runs = len(counts)
    expected, done = np.array(X), broken(X, RIGHT)
    assert done.sum() == 1
    used = 0
    for amount in amounts:
        used += not done.all()
        expected[~done] = (X + amount)[~done]
        done = broken(expected, RIGHT)
    np.testing.assert_allclose(x_adv, expected, atol=1e-6)
    assert runs == used
    assert len({round(float(d), 2) for d in (expected - np.asarray(X)).mean(1)}) > 3

    counts.clear()  # all wrong: nothing runs
    np.testing.assert_array_equal(attack(X, (logits_fn(X).argmax(1) + 1) % 4), X)
    jax.effects_barrier()
    assert not counts


def test_a_later_attack_does_not_run_once_all_images_are_broken():
    ends, counts = moved(100.0), []  # far away one class wins everywhere
    blank = lambda x: jnp.where(x[:, :1] > 10, jnp.eye(4)[3:], jnp.eye(4)[:1])
    attack = attacks.worst_case([ends, counted(moved(0.1), counts)])
    run = jax.jit(lambda y: attack(jax.random.key(0), blank, X, y))
    run(jnp.zeros(16, jnp.int32))
    jax.effects_barrier()
    assert not counts
    run(jnp.zeros(16, jnp.int32).at[2].set(3))  # which ends where it began to be right
    jax.effects_barrier()
    assert not counts
    np.testing.assert_array_equal(run(jnp.full(16, 3)), X)


@pytest.mark.parametrize("num_targets", [1, 2, 9])
def test_targets_are_the_likeliest_wrong_classes_in_order(num_targets):
    traces, targets = [], []

    def towards(target):
        traces.append(target)
        jax.debug.callback(lambda t: targets.append(np.array(t)), target)
        return lambda key, logits_fn, x, y: x + 0.001  # breaks nothing

    attack = attacks.each_target(towards, num_targets)
    robust = lambda x: logits_fn(jnp.round(x, 1))
    x = jnp.round(X, 1)
    y = robust(x).argmax(1)
    x_adv = jax.jit(lambda k: attack(k, robust, x, y))(jax.random.key(0))
    jax.effects_barrier()
    ranking = np.argsort(-np.asarray(robust(x)), axis=1)
    np.testing.assert_array_equal(targets, ranking.T[1 : 1 + num_targets])
    assert len(targets) == min(num_targets, 3)
    assert len(traces) == 1
    np.testing.assert_allclose(x_adv, x + 0.001, atol=1e-6)


def test_each_target_keeps_the_first_success():
    threat = threats.linf(0.1)

    def towards(target):
        objective = objectives.targeted(objectives.margin, target)
        return attacks.bim(threat, step_size=0.05, num_steps=3, objective=objective)

    ranking = np.argsort(-np.asarray(logits_fn(X)), axis=1)
    y = jnp.asarray(ranking[:, 0]).at[5].set(ranking[5, 2])
    run = lambda attack: jax.jit(lambda k: attack(k, logits_fn, X, y))(
        jax.random.key(0)
    )
    x_adv = run(attacks.each_target(towards, 3))
    labelled = list(zip(ranking, np.asarray(y), strict=True))
    expected, done = np.array(X), broken(X, y)
    for rank in range(3):
        target = [row[row != label][rank] for row, label in labelled]
        point = np.asarray(run(towards(jnp.asarray(target))))
        expected[~done] = point[~done]
        done = broken(expected, y)
    np.testing.assert_array_equal(x_adv[5], X[5])
    np.testing.assert_allclose(x_adv, expected, atol=1e-5)


def test_each_target_stops_when_all_are_broken():
    counts = []
    towards = lambda target: counted(moved(0.5), counts)
    run = jax.jit(
        lambda y: attacks.each_target(towards, 3)(jax.random.key(0), logits_fn, X, y)
    )
    np.testing.assert_array_equal(run((logits_fn(X).argmax(1) + 1) % 4), X)
    jax.effects_barrier()
    assert not counts


@pytest.mark.parametrize("num_targets", [2, 9])
def test_targets_at_once_are_those_one_after_the_other(num_targets):
    threat, counts = threats.linf(0.03), []

    def towards(target):
        objective = objectives.targeted(objectives.margin, target)
        once = attacks.pgd(threat, step_size=0.02, num_steps=2, objective=objective)
        return counted(once, counts)

    y, found, runs = RIGHT.at[5].add(2) % 4, {}, {}
    for at_once in (1, 2, 3, 9):
        attack = attacks.each_target(towards, num_targets, at_once=at_once)
        found[at_once] = jax.jit(lambda k, attack=attack: attack(k, logits_fn, X, y))(
            jax.random.key(3)
        )
        jax.effects_barrier()
        runs[at_once] = len(counts)
        counts.clear()
    for at_once in (2, 3, 9):
        np.testing.assert_allclose(found[at_once], found[1], atol=1e-6)
    np.testing.assert_array_equal(found[1][5], X[5])
    assert broken(found[1], y).sum() > broken(X, y).sum()
    assert not broken(found[1], y).all()  # so that all are tried
    count = min(num_targets, 3)  # there are no more wrong classes
    assert runs == {1: count, 2: -(-count // 2), 3: 1, 9: 1}


@pytest.mark.parametrize("at_once", [1, 2])
def test_targets_of_a_random_classifier_are_those_of_its_classes(at_once):
    counts = []
    draws = lambda x: jnp.stack([logits_fn(x), logits_fn(x)])
    towards = lambda target: counted(moved(0.0), counts)
    attack = attacks.each_target(towards, 9, at_once=at_once)
    y = logits_fn(X[:2]).argmax(1)  # fewer images than classes
    jax.jit(lambda k: attack(k, draws, X[:2], y))(jax.random.key(0))
    jax.effects_barrier()
    assert len(counts) == (3 if at_once == 1 else 2)


@pytest.mark.parametrize("chunk_size", [None, 1, 4, 8])
def test_what_is_misclassified_is_spared_in_whole_chunks(chunk_size):
    counts, wrong = [], np.zeros(16, bool)
    wrong[[0, 3, 4, 5, 9, 10, 15]] = True
    y = jnp.where(
        jnp.asarray(wrong), logits_fn(X).argmax(1) + 1, logits_fn(X).argmax(1)
    )
    y = y % 4
    pgd = attacks.pgd(threats.linf(0.1), step_size=0.05, num_steps=2)
    attack = attacks.masked(counted(pgd, counts), chunk_size=chunk_size)
    keys = jax.random.split(jax.random.key(4), 16)
    x_adv = jax.jit(lambda k: attack(k, logits_fn, X, y))(keys)
    jax.effects_barrier()
    size = chunk_size or 16
    assert counts == [size] * -(-9 // size)  # as few as hold the nine others
    plain = jax.jit(lambda k: pgd(k, logits_fn, X, y))(jax.random.clone(keys))
    np.testing.assert_array_equal(x_adv[wrong], X[wrong])
    # With its own key, wherever it was moved.
    np.testing.assert_allclose(x_adv[~wrong], plain[~wrong], atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: attacks.worst_case([]), "`attacks`"),
        (lambda: attacks.each_target(moved, 0), "`num_targets`"),
        (lambda: attacks.each_target(moved, 2, at_once=0), "`at_once`"),
        (lambda: attacks.masked(moved(0.1), chunk_size=0), "`chunk_size`"),
        (
            lambda: attacks.masked(moved(0.1), chunk_size=5)(
                jax.random.key(0), logits_fn, X, Y
            ),
            "`chunk_size` must divide the batch of 16, got 5",
        ),
    ],
)
def test_bad_arguments_are_one_line(make, message):
    with pytest.raises(InputError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
