import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustjax import InputError, attacks, data, models, threats, training
from robustjax.data import Dataset
from robustjax.evaluation import (
    NamedAttack,
    evaluate,
    robustness_curve,
    wilson_interval,
)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits").test.take(slice(0, 45))


@pytest.fixture(scope="module")
def predict():
    """A network with a few steps of training, so that accuracies lie in between."""
    model = models.from_linen(models.small_cnn(stages=((8,),), dense=16))
    train = data.load("digits").train
    x, y = jnp.asarray(train.images), jnp.asarray(train.labels)
    params, state = model.init(jax.random.key(0), x[:1])

    def loss(params):
        log_probs = jax.nn.log_softmax(model.apply(params, state, x).logits)
        return -jnp.take_along_axis(log_probs, y[:, None], 1).mean()

    @jax.jit
    def step(params):
        return jax.tree.map(lambda p, g: p - 0.5 * g, params, jax.grad(loss)(params))

    for _ in range(30):
        params = step(params)
    return models.logits_fn(model, params, state)


def pgd(eps):
    return attacks.pgd(threats.linf(eps), step_size=eps / 2, num_steps=3)


PGD = NamedAttack("PGD-3", pgd(0.1))  # one function, compiled once


def run(predict, dataset, named=None, devices=1, seed=0, **rest):
    mesh = training.data_mesh(jax.devices()[:devices])
    key = jax.random.key(seed)
    return evaluate(
        predict, dataset, [PGD] if named is None else named, key=key, mesh=mesh, **rest
    )


def flags(result):
    return [result.clean_correct, *(attack.correct for attack in result.attacks)]


def same(a, b):
    for left, right in zip(flags(a), flags(b), strict=True):
        np.testing.assert_array_equal(left, right)


def test_the_worst_case_is_taken_per_example():
    x = np.array([0.3, 0.6, 0.7, 0.1], np.float32).reshape(4, 1, 1, 1)
    dataset = Dataset(x, np.int32([0, 1, 1, 1]), np.arange(4), ("low", "high"))

    def logits_fn(z):
        return jnp.concatenate([0.5 - z, z - 0.5], -1).reshape(-1, 2)

    def shift(amount):
        return lambda key, logits_fn, x, y: jnp.clip(x + amount, 0, 1)

    named = [NamedAttack("up", shift(0.25)), NamedAttack("down", shift(-0.15))]
    result = run(logits_fn, dataset, named)
    assert result.clean_correct.tolist() == [True, True, True, False]
    up, down = result.attacks
    assert up.correct.tolist() == [False, True, True, False]
    assert down.correct.tolist() == [True, False, True, False]
    assert result.worst_case_correct.tolist() == [False, False, True, False]
    np.testing.assert_allclose(up.distance["linf"], 0.25, rtol=1e-6)
    np.testing.assert_allclose(down.distance["l1"], [0.15, 0.15, 0.15, 0.1], rtol=1e-5)
    assert (up.lowest, up.highest) == (pytest.approx(0.35), pytest.approx(0.95))
    assert not run(logits_fn, dataset, []).worst_case_correct[3]


def test_nothing_depends_on_batches_padding_or_devices(predict, digits):
    whole = run(predict, digits, batch_size=512, keep_adversarial=True)
    assert 0 < whole.worst_case_correct.sum() < whole.clean_correct.sum()
    for sizes in (dict(batch_size=7), dict(batch_size=16, devices=8)):
        other = run(predict, digits, keep_adversarial=True, **sizes)
        same(whole, other)
        np.testing.assert_allclose(
            other.attacks[0].x_adv, whole.attacks[0].x_adv, atol=1e-5
        )
    first = run(predict, digits, num_examples=10)
    assert first.index.tolist() == digits.index[:10].tolist()
    for part, all_of_it in zip(flags(first), flags(whole), strict=True):
        np.testing.assert_array_equal(part, all_of_it[:10])
    order = np.random.default_rng(0).permutation(45)
    shuffled = run(predict, digits.take(order))
    for mixed, sorted_ in zip(flags(shuffled), flags(whole), strict=True):
        np.testing.assert_array_equal(mixed, sorted_[order])


def test_the_same_seed_gives_the_same_images(predict, digits):
    one, two, other = (
        run(predict, digits, seed=seed, keep_adversarial=True).attacks[0].x_adv
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, two)
    assert (one != other).any()


def test_images_are_kept_on_request_and_lie_in_the_ball(predict, digits):
    assert run(predict, digits).attacks[0].x_adv is None
    found = run(predict, digits, keep_adversarial=True).attacks[0]
    delta = found.x_adv - digits.images
    assert np.abs(delta).max() <= 0.1 + 1e-6
    assert found.x_adv.min() >= 0
    assert found.x_adv.max() <= 1
    flat = delta.reshape(45, -1)
    np.testing.assert_allclose(found.distance["l2"], np.linalg.norm(flat, axis=1), 1e-4)
    right = predict(jnp.asarray(found.x_adv)).argmax(1) == digits.labels
    np.testing.assert_array_equal(found.correct, right)


def test_a_ragged_last_batch_and_other_weights_compile_nothing(predict, digits):
    traces = []
    inner = attacks.pgd(threats.linf(0.1), step_size=0.05, num_steps=1)

    def attack(key, logits_fn, x, y):
        traces.append(x.shape)
        return inner(key, logits_fn, x, y)

    named = [NamedAttack("counted", attack)]
    run(predict, digits, named, batch_size=16)
    assert traces == [(16, 8, 8, 1)]
    run(jax.tree.map(lambda w: 0.5 * w, predict), digits, named, batch_size=16)
    assert len(traces) == 1


def test_a_curve_compiles_once_and_never_rises(predict, digits):
    traces = []

    def attack_at(eps):
        traces.append(eps)
        return pgd(eps)

    radii = [0.0, 0.05, 0.1, 0.2]
    key, mesh = jax.random.key(0), training.data_mesh(jax.devices()[:1])
    correct = robustness_curve(
        predict, digits, attack_at, radii, key=key, batch_size=16, mesh=mesh
    )
    assert len(traces) == 1
    assert correct.shape == (4, 45)
    assert (np.diff(correct.astype(int), axis=0) <= 0).all()
    clean = run(predict, digits)
    np.testing.assert_array_equal(correct[0], clean.clean_correct)
    at_tenth = robustness_curve(
        predict, digits, attack_at, [0.1], key=key, mesh=training.data_mesh()
    )
    np.testing.assert_array_equal(at_tenth[0], clean.attacks[0].correct)


@pytest.mark.parametrize("eps", [[], [0.1, 0.1], [0.2, 0.1], [-0.1], [[0.1]]])
def test_a_curve_needs_ascending_radii(predict, digits, eps):
    with pytest.raises(InputError, match="`eps` must be ascending"):
        robustness_curve(predict, digits, pgd, eps, key=jax.random.key(0))


@pytest.mark.parametrize(
    "wrong", [dict(batch_size=0), dict(num_examples=0), dict(num_examples=46)]
)
def test_sizes_out_of_range_are_refused(predict, digits, wrong):
    with pytest.raises(InputError, match=f"`{next(iter(wrong))}`"):
        run(predict, digits, **wrong)


def test_an_attack_must_return_images(predict, digits):
    broken = NamedAttack("broken", lambda key, f, x, y: x[:, :4])
    with pytest.raises(InputError, match="`x_adv`"):
        run(predict, digits, [broken])


def test_logits_that_are_no_numbers_are_no_defense(digits):
    def logits_fn(x):
        return jnp.full((x.shape[0], 10), jnp.nan)

    assert not run(logits_fn, digits).clean_correct.any()


@given(st.integers(1, 10_000), st.data())
def test_wilson_intervals_solve_their_equation(total, draw):
    successes = draw.draw(st.integers(0, total))
    low, high = wilson_interval(successes, total)
    share, z = np.float64(successes) / total, np.float64(1.959964)
    assert 0 <= low <= share + 1e-12
    assert share - 1e-12 <= high <= 1
    for bound in (low, high):  # |share - p| = z sqrt(p (1 - p) / n), Wilson (1927)
        expected = z**2 * bound * (1 - bound) / total
        assert (share - bound) ** 2 == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_wilson_intervals_at_the_ends():
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert wilson_interval(0, 10)[0] == 0.0
    assert wilson_interval(10, 10)[1] == pytest.approx(1.0, abs=1e-15)
    z = 1.959964
    assert wilson_interval(10, 10)[0] == pytest.approx(10 / (10 + z**2), rel=1e-12)


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        (lambda key, logits_fn, x, y: (x, x), "`attack` must return .* got tuple"),
        (lambda key, logits_fn, x, y: None, "`attack` must return .* got NoneType"),
        (
            lambda key, logits_fn, x, y: np.asarray(x),
            "`attack` 'a', .* must be written",
        ),
    ],
)
def test_what_is_no_attack_says_so(attack, words):
    x = np.full((2, 1, 2, 1), 0.5, np.float32)
    dataset = Dataset(x, np.int32([0, 1]), np.arange(2), ("a", "b"))
    rows = [NamedAttack("a", attack)]
    by_pixel = lambda z: z[:, 0, :, 0]
    with pytest.raises(InputError, match=words):
        evaluate(by_pixel, dataset, rows, key=jax.random.key(0))


STAGED = attacks.StagedAttack("s", threats.linf(0.1), lambda _: ())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(repeats=0), "`repeats` must be an integer of at least 1, got 0"),
        (dict(repeats=1.5), "`repeats` must be an integer of at least 1, got 1.5"),
        (dict(attack=STAGED, repeats=2), "`repeats` of 'a' must be 1, got 2"),
        (dict(attack=lambda x: x), r"take \(key, logits_fn, x, y\), got <function"),
        (dict(attack=lambda k, f, x, y, eps: x), "which does not: wrap it"),
        (dict(source=3), "`source` of 'a' must be a function .* got 3"),
        (dict(judges=3), "`judges` of 'a' must be a tuple of functions .* got 3"),
        (dict(judges=(3,)), "`judges` of 'a' must be a tuple"),
        (dict(parameters=3), "`parameters` of 'a' must be a dict, got 3"),
    ],
)
def test_what_cannot_be_run_is_no_named_attack(changes, words):
    with pytest.raises(InputError, match=words):
        NamedAttack(
            **{"name": "a", "attack": attacks.fgsm(threats.linf(0.1))} | changes
        )
