"""Attacks whose class the model chooses, against closed forms and numpy in float64."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from robustjax import InputError, attacks, objectives, threats
from robustjax.attacks.chosen_class import towards

RNG = np.random.default_rng(0)
HIDDEN, HEAD = RNG.normal(size=(6, 7)), 2 * RNG.normal(size=(7, 5))
X = RNG.random((8, 6))
X[:, 0], X[:, 1] = 0, 1  # both bounds
KEYS = jax.random.split(jax.random.key(0), 8)
EPS = 0.2


def logits_fn(x):
    return jnp.tanh(x @ jnp.asarray(HIDDEN, x.dtype)) @ jnp.asarray(HEAD, x.dtype)


RANKS = np.argsort(-np.tanh(X @ HIDDEN) @ HEAD, axis=1)
# Right, wrong, and the least likely class of all.
LABELS = np.concatenate([RANKS[:4, 0], RANKS[4:6, 1], RANKS[6:, 4]])
LEAST = np.where(RANKS[:, 4] == LABELS, RANKS[:, 3], RANKS[:, 4])


def targeted_pgd(threat, choice: Any, **options: Any):
    options = dict(step_size=EPS / 4, num_steps=3) | options
    return attacks.pgd_targeted(threat, choice=choice, **options)


MAKERS = {
    "r_fgsm": attacks.r_fgsm,
    "step_ll": attacks.step_ll,
    "r_step_ll": lambda t: attacks.step_ll(t, random_step=t.eps / 4),
    **{
        choice: lambda t, choice=choice: targeted_pgd(t, choice)
        for choice in ("least_likely", "runner_up", "random", "every")
    },
    "unlabelled": lambda t: attacks.unlabelled(attacks.r_fgsm(t)),
}
UNLIKE = ("r_fgsm", "r_step_ll", "random", "unlabelled")  # the others are of these


def keys():
    return jax.random.clone(KEYS)


def attacked(attack, *, x=X, y=LABELS, f=logits_fn, key=None):
    """In float64, compiled."""
    with jax.enable_x64(True):
        run = jax.jit(lambda k, x, y: attack(k, f, x, y))
        key = keys() if key is None else key
        return np.asarray(run(key, jnp.asarray(x), jnp.asarray(y)))


def gradient(x, y):
    """d CE / dx of tanh(x A) B, by hand."""
    hidden = np.tanh(x @ HIDDEN)
    logits = hidden @ HEAD
    probs = np.exp(logits - logits.max(1, keepdims=True))
    probs /= probs.sum(1, keepdims=True)
    return ((probs - np.eye(5)[y]) @ HEAD.T * (1 - hidden**2)) @ HIDDEN.T


def signs_of(attack_of_random_step):
    """The draws of an attack, read off one that takes the random step alone."""
    moved = attacked(attack_of_random_step(EPS)) - X
    return np.where(moved == 0, np.where(X == 0, -1, 1), np.sign(moved))


@pytest.mark.parametrize("alpha", [None, 0.0, 0.05, EPS])
def test_r_fgsm_is_the_formula(alpha):
    threat = threats.linf(EPS)
    signs = signs_of(lambda size: attacks.r_fgsm(threat, random_step=size))
    assert set(np.unique(signs)) == {-1, 1}
    size = EPS / 2 if alpha is None else alpha
    start = np.clip(X + size * signs, 0, 1)
    step = (EPS - size) * np.sign(gradient(start, LABELS))
    x_adv = attacked(attacks.r_fgsm(threat, random_step=alpha))
    np.testing.assert_allclose(x_adv, np.clip(start + step, 0, 1), atol=1e-12)


@pytest.mark.parametrize("alpha", [None, 0.0, 0.05])
def test_step_ll_is_the_formula(alpha):
    threat, start, size = threats.linf(EPS), X, 0.0
    if alpha is not None:
        signs = signs_of(lambda size: attacks.step_ll(threat, random_step=size))
        start, size = np.clip(X + alpha * signs, 0, 1), alpha
    step = (EPS - size) * np.sign(gradient(start, LEAST))
    x_adv = attacked(attacks.step_ll(threat, random_step=alpha))
    np.testing.assert_allclose(x_adv, np.clip(start - step, 0, 1), atol=1e-12)


def test_pgd_descends_the_target_step_by_step():
    second = np.where(RANKS[:, 0] == LABELS, RANKS[:, 1], RANKS[:, 0])
    for choice, target in (("least_likely", LEAST), ("runner_up", second)):
        expected = X
        for _ in range(3):
            expected = expected - EPS / 4 * np.sign(gradient(expected, target))
            expected = np.clip(np.clip(expected, X - EPS, X + EPS), 0, 1)
        attack = targeted_pgd(threats.linf(EPS), choice, random_start=None)
        np.testing.assert_allclose(attacked(attack), expected, atol=1e-12)


def test_unlabelled_is_the_attack_on_the_models_own_answer():
    attack = attacks.r_fgsm(threats.linf(EPS))
    expected = attacked(attack, y=RANKS[:, 0])
    for y in (LABELS, RANKS[:, 0], (RANKS[:, 0] + 1) % 5, np.full((8, 5), 0.2)):
        found = attacked(attacks.unlabelled(attack), y=y)
        np.testing.assert_array_equal(found, expected)
    assert (attacked(attack) != expected)[4:].any()


# On an identity the cross-entropy of y falls in z_y and rises in all others.
IDENTITY = jnp.array([[0.5, 0.25, 0.625], [0.5, 0.25, 0.625]])
WRONG = jnp.array([0, 1])  # the model says 2 and likes 1 least


@pytest.mark.parametrize(
    ("make", "up", "down"),
    [  # what rises and what falls by the radius, of each image
        (lambda t: attacks.unlabelled(attacks.fgsm(t)), ([0, 1], [0, 1]), ([2], [2])),
        (attacks.step_ll, ([1], [0]), ([0, 2], [1, 2])),
        (MAKERS["least_likely"], ([1], [0]), ([0, 2], [1, 2])),
        (MAKERS["runner_up"], ([2], [2]), ([0, 1], [0, 1])),
        (lambda t: attacks.r_fgsm(t, random_step=0), ([1, 2], [0, 2]), ([0], [1])),
    ],
)
def test_by_hand(make, up, down):
    attack = make(threats.linf(0.0625))
    x_adv = attack(jax.random.key(0), lambda z: z, IDENTITY, WRONG)
    expected = np.array(IDENTITY)
    for image in (0, 1):
        expected[image, up[image]] += 0.0625
        expected[image, down[image]] -= 0.0625
    np.testing.assert_allclose(x_adv, expected, atol=1e-7)


def test_the_answer_of_a_random_classifier_is_that_of_its_mean_probabilities():
    draws = jnp.array([[[9.0, 0, 0]], [[0, 3.0, 0]], [[0, 3.0, 0]]])
    assert draws.mean(axis=0).argmax() == 0
    assert jax.nn.softmax(draws).mean(axis=0).argmax() == 1
    seen = []

    def spy(key, logits_fn, x, y):
        seen.append(y)
        return x

    f = lambda x: draws + 0 * x[None]
    for y in (jnp.array([2]), jnp.array([[0.5, 0.5, 0.0]])):
        attacks.unlabelled(spy)(jax.random.key(0), f, jnp.zeros((1, 3)), y)
    assert [y.tolist() for y in seen] == [[1], [1]]
    for name in ("step_ll", "every"):  # targets are chosen from draws as well
        attack, x = MAKERS[name](threats.linf(0.1)), jnp.zeros((1, 3))
        run = jax.jit(lambda k, x, y, attack=attack: attack(k, f, x, y))
        assert run(jax.random.key(0), x, jnp.array([0])).shape == (1, 3)


def test_random_targets_are_all_wrong_classes_equally_often():
    chosen = lambda target: lambda key, logits_fn, x, y: 0 * x + target[:, None]
    attack = towards(chosen, "random")
    x = jax.random.uniform(jax.random.key(1), (5000, 6))
    y = jnp.arange(5000) % 5
    run = jax.jit(lambda k, x, y: attack(k, logits_fn, x, y)[:, 0].astype(int))
    many = jax.random.split(jax.random.key(2), 5000)
    target = run(jax.random.clone(many), x, y)
    shift = np.asarray((target - y) % 5)
    for label in range(5):
        counts = np.bincount(shift[np.asarray(y) == label], minlength=5)
        assert counts[0] == 0
        assert scipy.stats.chisquare(counts[1:]).pvalue > 0.01
    some = jax.random.permutation(jax.random.key(3), 5000)[:7]
    np.testing.assert_array_equal(run(many[some], x[some], y[some]), target[some])
    other = run(jax.random.key(4), x, y)  # one key: other draws for each image
    assert 0.2 < (other == target).mean() < 0.3


def test_two_classes_have_one_wrong_one():
    f = lambda x: logits_fn(x)[:, :2]
    y = np.arange(8) % 2
    found = [
        attacked(
            targeted_pgd(threats.linf(EPS), choice, random_start=None),
            f=f,
            y=y,
        )
        for choice in ("least_likely", "runner_up", "random")
    ]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


@pytest.mark.parametrize("at_once", [2, 4, 9])
def test_targets_at_once_are_the_same(at_once):
    one, several = (
        attacked(targeted_pgd(threats.linf(0.05), "every", at_once=size))
        for size in (1, at_once)
    )
    np.testing.assert_allclose(one, several, atol=1e-12)
    np.testing.assert_array_equal(one[4:], X[4:])  # misclassified as they are


def test_every_wrong_class_is_tried_however_many_there_are():
    tried = []

    def attack_towards(target):
        def attack(key, logits_fn, x, y):
            jax.debug.callback(lambda t: tried.append(int(t[0])), target)
            return x

        return attack

    f = lambda x: jnp.linspace(1.0, 0.0, 120)[None] + 0 * x.sum()
    x, y = jnp.zeros((1, 3)), jnp.array([0])
    attacks.each_target(attack_towards, None)(jax.random.key(0), f, x, y)
    jax.effects_barrier()
    assert sorted(tried) == list(range(1, 120))


@pytest.mark.parametrize("name", UNLIKE)
def test_one_trace_jit_is_eager_and_images_are_apart(name):
    chex.clear_trace_counter()
    attack = MAKERS[name](threats.linf(0.1))
    x, y = jnp.float32(X), jnp.asarray(LABELS)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(keys, x, y):
        return attack(keys, logits_fn, x, y)

    x_adv = run(keys(), x, y)
    run(keys()[jnp.arange(8)[::-1]], 0.5 * x, y[::-1])
    np.testing.assert_allclose(attack(keys(), logits_fn, x, y), x_adv, atol=1e-5)
    np.testing.assert_allclose(
        attack(keys()[3:5], logits_fn, x[3:5], y[3:5]), x_adv[3:5], atol=1e-5
    )


NORMS = {"linf": threats.linf, "l2": threats.l2}


@pytest.fixture(scope="module")
def runners():
    """The attacks under a norm in one program, of a radius per image."""

    def compiled(norm):
        def run(eps, keys, x, y):
            threat = NORMS[norm](eps)
            found = [
                make(threat)(jax.random.clone(keys), logits_fn, x, y)
                for make in (MAKERS[name] for name in UNLIKE)
            ]
            return jnp.stack(found), jnp.stack([threat.norm(z - x) for z in found])

        return jax.jit(run)

    return {norm: compiled(norm) for norm in NORMS}


@settings(max_examples=15)
@given(
    seed=st.integers(0, 2**31 - 1),
    largest=st.sampled_from([0.0, 1e-3, 0.1, 1.0]),
    norm=st.sampled_from(list(NORMS)),
)
def test_results_lie_in_ball_and_box(runners, seed, largest, norm):
    rng = np.random.default_rng(seed)
    x = jnp.float32(rng.random((8, 6)).round(1))
    eps = jnp.float32(largest * rng.random(8).round(1))
    y = jnp.asarray(rng.integers(0, 5, 8))
    keys = jax.random.split(jax.random.key(seed), 8)
    found, distance = runners[norm](eps, keys, x, y)
    assert (distance <= eps[None] + 1e-6).all()
    assert found.min() >= 0
    assert found.max() <= 1
    still = np.asarray(eps) == 0
    np.testing.assert_array_equal(
        found[:, still], np.broadcast_to(x[still], found[:, still].shape)
    )


def test_a_random_start_may_differ_per_image():
    size = jnp.array([0.0, 0.1, 0.2, 0.3])
    x = jnp.full((4, 2, 2, 1), 0.5)
    moved = attacks.sign_start(threats.linf(0.5), size)(jax.random.key(0), x)
    distance = jnp.abs(moved - x)
    np.testing.assert_allclose(
        distance, np.broadcast_to(size[:, None, None, None], x.shape), atol=1e-6
    )
    unit = attacks.sign_start(threats.l2(0.5), 0.25)(jax.random.key(0), x)
    np.testing.assert_allclose(threats.l2(0.5).norm(unit - x), 0.25, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["step_ll", "least_likely", "runner_up", "random", "every"]
)
def test_of_a_distribution_the_label_is_its_likeliest_class(name):
    soft = np.full((8, 5), 0.1)
    soft[np.arange(8), LABELS] = 0.6
    attack = MAKERS[name](threats.linf(EPS))
    np.testing.assert_array_equal(attacked(attack, y=soft), attacked(attack))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda t: attacks.r_fgsm(t, random_step=0.3),
            r"`random_step` must be at most `eps` 0\.2, got 0\.3",
        ),
        (lambda t: attacks.r_fgsm(t, random_step=-0.1), r"`random_step` .* got -0\.1"),
        (lambda t: attacks.step_ll(t, random_step=0.3), r"`random_step` .* got 0\.3"),
        (lambda t: attacks.step_ll(t, random_step=-1), "`random_step` .* got -1"),
        (lambda t: attacks.sign_start(t, -0.1), r"`size` .* got -0\.1"),
        (lambda t: targeted_pgd(t, "first"), "`choice`.*'first'"),
        (lambda t: attacks.towards(lambda target: None, "every"), "`choice`.*'every'"),
        (
            lambda t: targeted_pgd(t, "random", step_size=0.0),
            r"`step_size` .* got 0\.0",
        ),
        (
            lambda t: targeted_pgd(t, "random", num_steps=0),
            "`num_steps` .* got 0",
        ),
        (
            lambda t: targeted_pgd(t, "every", num_targets=0),
            "`num_targets` .* got 0",
        ),
        (
            lambda t: targeted_pgd(t, "every", at_once=0),
            "`at_once` .* got 0",
        ),
    ],
)
def test_errors_name_the_argument_and_the_value(make, message):
    with pytest.raises(InputError, match=message) as error:
        make(threats.linf(EPS))
    assert "\n" not in str(error.value)


def test_any_objective_goes_towards_the_target():
    for objective in (objectives.margin, objectives.dlr):
        options = dict(step_size=0.1, num_steps=10, objective=objective)
        attack = targeted_pgd(threats.linf(0.4), "runner_up", **options)
        y = RANKS[:, 0]
        answers = np.tanh(attacked(attack, y=y) @ HIDDEN) @ HEAD
        assert (answers.argmax(1) == RANKS[:, 1]).mean() > 0.6
