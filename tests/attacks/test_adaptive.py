"""Attacks on defended classifiers: surrogates, expectations, other models."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from robustjax import InputError, attacks, objectives, threats
from robustjax.attacks import _outcome
from robustjax.types import InputTransform

KEYS = jax.random.split(jax.random.key(0), 3)
X = jax.random.uniform(KEYS[0], (6, 9))
Y = jnp.arange(6) % 4
WEIGHTS = jax.random.normal(KEYS[1], (9, 4))
OTHER = jax.random.normal(KEYS[2], (9, 4))
LINF = threats.linf(0.1)


def _linear(w, x):
    return (x - 0.5) @ w


def _noise(keys, x):
    return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)


def _noisy(w, keys, x):
    return jnp.sin(4 * (x + 0.3 * _noise(keys, x))) @ w


def linear(weights):
    return Partial(_linear, weights)


def noisy(weights):
    """A randomised classifier, which adds noise to the pixels."""
    return Partial(_noisy, weights)


# --- surrogates ---------------------------------------------------------------------


def test_a_surrogate_lends_its_derivative_and_not_its_value():
    fun, surrogate = jnp.round, lambda x: jnp.sin(3 * x)
    swapped = attacks.with_surrogate(fun, surrogate)
    tangent = jnp.linspace(-1, 1, 54).reshape(6, 9)
    for run in (swapped, jax.jit(swapped)):
        np.testing.assert_array_equal(run(X), jnp.round(X))
        value, push = jax.jvp(run, (X,), (tangent,))
        np.testing.assert_array_equal(value, jnp.round(X))
        np.testing.assert_allclose(push, 3 * jnp.cos(3 * X) * tangent, rtol=1e-5)
        (grad,) = jax.vjp(run, X)[1](tangent)
        np.testing.assert_allclose(grad, 3 * jnp.cos(3 * X) * tangent, rtol=1e-5)


def test_a_value_is_exact_where_adding_and_subtracting_would_round():
    swapped = attacks.with_surrogate(lambda x: 1e-9 * x, lambda x: 1e9 * x)
    np.testing.assert_array_equal(swapped(X), 1e-9 * X)


def test_a_surrogate_of_another_shape_is_refused():
    swapped = attacks.with_surrogate(lambda x: x, lambda x: x[:, :3])
    with pytest.raises(InputError, match=r"`surrogate` .*\(6, 9\), got \(6, 3\)"):
        swapped(X)


# --- a rounding defense: gradients of zero ------------------------------------------


ROUNDING = InputTransform(
    fit=lambda *_: (), apply=lambda state, key, f, x: jnp.round(10 * x) / 10
)


@pytest.mark.parametrize("surrogate", [None, lambda x: x], ids=["exact", "bpda"])
def test_only_a_surrogate_sees_through_rounding(surrogate):
    bare = linear(WEIGHTS)
    y = bare(jnp.round(10 * X) / 10).argmax(1)
    defended = attacks.against(
        ROUNDING, (), jax.random.key(1), bare, surrogate=surrogate
    )
    np.testing.assert_array_equal(defended(X), bare(jnp.round(10 * X) / 10))
    bim = attacks.bim(threats.linf(0.3), step_size=0.1, num_steps=5)
    x_adv = jax.jit(bim)(jax.random.key(2), defended, X, y)
    if surrogate is None:  # its gradients are zero: nothing moves
        np.testing.assert_array_equal(x_adv, X)
    else:
        assert _outcome.broken(defended(x_adv), y).all()


def test_who_does_not_know_the_defense_attacks_another_function():
    # The defense inverts the image, so that the bare model's attack goes astray.
    inverting = InputTransform(fit=lambda *_: (), apply=lambda s, k, f, x: 1 - x)
    bare = linear(WEIGHTS)
    defended = attacks.against(inverting, (), jax.random.key(1), bare)
    y = defended(X).argmax(1)
    fgsm = attacks.fgsm(threats.linf(0.2))
    run = lambda attack: attack(jax.random.key(2), defended, X, y)
    astray, adaptive = run(attacks.oblivious(fgsm, bare)), run(fgsm)
    loss = lambda x: objectives.cross_entropy(defended(x), y)
    assert (loss(adaptive) > loss(X)).all()
    assert (loss(astray) < loss(X)).all()
    np.testing.assert_array_equal(astray, fgsm(jax.random.key(2), bare, X, y))


def test_a_random_transform_keeps_its_draws_along_an_attack():
    def jitter(state, key, f, x):
        return x + 0.1 * jax.random.normal(key, X.shape)[: len(x)]

    transform = InputTransform(fit=lambda *_: (), apply=jitter)
    bare = linear(WEIGHTS)
    defended = attacks.against(transform, (), jax.random.key(7), bare)
    noise = 0.1 * jax.random.normal(jax.random.key(7), X.shape)
    np.testing.assert_allclose(defended(X), bare(X + noise), rtol=1e-6)
    bim = attacks.bim(LINF, step_size=0.05, num_steps=3)
    x_adv = bim(jax.random.key(2), defended, X, Y)
    expected = bim(jax.random.key(2), lambda x: bare(x + noise[: len(x)]), X, Y)
    np.testing.assert_allclose(x_adv, expected, atol=1e-6)


# --- expectation over transformation ------------------------------------------------


def keys_of(x):
    """The keys of each draw for each image, [S, B, ...], told by the logits."""
    tell = lambda keys, x: jax.random.key_data(keys).astype(jnp.float32)
    return np.asarray(attacks.expectation(tell, jax.random.key(5), 3)(x))


def test_draws_follow_an_images_pixels_and_nothing_else():
    told = keys_of(X)
    assert len(np.unique(told.reshape(18, -1), axis=0)) == 18  # all draws differ
    np.testing.assert_array_equal(keys_of(X), told)
    order = np.array([3, 0, 5, 1, 4, 2])
    np.testing.assert_array_equal(keys_of(X[order]), told[:, order])
    np.testing.assert_array_equal(keys_of(X[2:3]), told[:, 2:3])
    # Another point, other draws: one pixel by one ulp, or two pixels swapped.
    near = X.at[0, 4].set(jnp.nextafter(X[0, 4], 1.0))
    swapped = X.at[0, jnp.array([0, 1])].set(X[0, jnp.array([1, 0])])
    for other in (near, swapped):
        changed = (keys_of(other) != told).any(axis=(0, 2))
        np.testing.assert_array_equal(changed, np.arange(6) == 0)


def test_the_gradient_is_the_mean_over_the_draws():
    with jax.enable_x64(True):
        x, w = np.float64(X), np.float64(WEIGHTS)
        random_fn, key, count = noisy(jnp.asarray(w)), jax.random.key(4), 5
        climbed = attacks.expectation(random_fn, key, count)
        evaluate = _outcome.climbed(objectives.cross_entropy, climbed, Y)
        value, broken = evaluate(jnp.asarray(x))
        grad = jax.grad(lambda z: evaluate(z)[0].sum())(jnp.asarray(x))

        # The same draws, which follow from the point and the key.
        draws = np.asarray(attacks.expectation(_noise, key, count)(jnp.asarray(x)))
    assert draws.shape == (5, 6, 9)
    inner = 4 * (x[None] + 0.3 * draws)
    logits = np.sin(inner) @ w
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    rows = np.arange(6)
    expected_value = -np.log(probs[:, rows, Y]).mean(0)
    residual = probs - np.eye(4)[Y]
    expected = (4 * np.cos(inner) * (residual @ w.T)).mean(0)
    np.testing.assert_allclose(value, expected_value, rtol=1e-9)
    np.testing.assert_allclose(grad, expected, rtol=1e-7, atol=1e-10)
    np.testing.assert_array_equal(broken, probs.mean(0).argmax(1) != Y)


def test_logits_and_probabilities_are_averaged_as_they_say():
    of = lambda average: np.float64(
        attacks.expectation(noisy(WEIGHTS), jax.random.key(4), 5, average=average)(X)
    )
    draws = of("objective")
    assert draws.shape == (5, 6, 4)
    np.testing.assert_allclose(of("logits"), draws.mean(0), atol=1e-5)
    probs = np.exp(draws) / np.exp(draws).sum(-1, keepdims=True)
    np.testing.assert_allclose(np.exp(of("probabilities")), probs.mean(0), atol=1e-5)


def test_an_expectation_is_climbed_to_where_single_draws_are_not():
    climbed = attacks.expectation(noisy(WEIGHTS), jax.random.key(4), 10)
    bim = attacks.bim(threats.linf(0.2), step_size=0.05, num_steps=6)
    y = climbed(X).mean(0).argmax(1)
    x_adv = jax.jit(bim)(jax.random.key(0), climbed, X, y)
    fresh = attacks.expectation(noisy(WEIGHTS), jax.random.key(9), 200)
    loss = lambda x: jax.vmap(objectives.cross_entropy, (0, None))(fresh(x), y).mean(0)
    assert (loss(x_adv) > loss(X) + 0.1).all()


@pytest.mark.parametrize(
    "attack",
    [
        attacks.early_stop(attacks.bim(LINF, step_size=0.05, num_steps=2)),
        attacks.worst_case([attacks.fgsm(LINF)]),
        attacks.restarts(attacks.fgsm(LINF), 2),
        attacks.masked(attacks.fgsm(LINF)),
        attacks.each_target(lambda target: attacks.fgsm(LINF), 2),
    ],
    ids=["early_stop", "worst_case", "restarts", "masked", "each_target"],
)
def test_combinators_take_samples(attack):
    climbed = attacks.expectation(noisy(WEIGHTS), jax.random.key(4), 3)
    y = climbed(X).mean(0).argmax(1).at[0].set(3)
    x_adv = attack(jax.random.key(0), climbed, X, y)
    assert x_adv.shape == X.shape
    np.testing.assert_array_less(jnp.abs(x_adv - X), 0.1 + 1e-6)


def test_weights_are_arguments_of_compiled_code():
    traces = []

    @jax.jit
    def run(f, x):
        traces.append(x.shape)
        return f(x)

    wrapped = (
        lambda w: attacks.expectation(noisy(w), jax.random.key(4), 2),
        lambda w: attacks.against(ROUNDING, (), jax.random.key(4), linear(w)),
    )
    for wrap in wrapped:
        traces.clear()
        results = [run(wrap(w), X) for w in (WEIGHTS, OTHER)]
        assert len(traces) == 1
        np.testing.assert_allclose(results[1], wrap(OTHER)(X), atol=1e-5)
        assert not np.allclose(results[0], results[1])


def test_attacks_from_other_models_hold_their_weights_as_arguments():
    traces = []

    @jax.jit
    def run(attack, f, x):
        traces.append(x.shape)
        return attack(jax.random.key(0), f, x, Y)

    fgsm = attacks.fgsm(LINF)
    for wrap in (
        lambda w: attacks.oblivious(fgsm, linear(w)),
        lambda w: attacks.transfer(fgsm, [linear(w), linear(-w)]),
    ):
        traces.clear()
        for w in (WEIGHTS, OTHER):
            x_adv = run(wrap(w), linear(WEIGHTS), X)
            alone = wrap(w)(jax.random.key(0), linear(WEIGHTS), X, Y)
            np.testing.assert_allclose(x_adv, alone, atol=1e-6)
        assert len(traces) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: attacks.expectation(_noisy, jax.random.key(0), 0), "`num_samples`"),
        (
            lambda: attacks.expectation(_noisy, jax.random.key(0), 2, average="mean"),
            "`average` must be one of 'objective'",
        ),
        (lambda: attacks.transfer(attacks.fgsm(LINF), []), "`sources`"),
    ],
)
def test_bad_arguments_are_one_line(make, message):
    with pytest.raises(InputError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


# --- other models -------------------------------------------------------------------


@functools.cache
def transferred():
    """Points of three sources, the target's verdict and loss, and what was chosen."""
    target = linear(WEIGHTS)
    y = target(X).argmax(1).at[0].set(2)
    sources = [linear(OTHER), linear(-OTHER), linear(WEIGHTS + OTHER)]
    fgsm = attacks.fgsm(threats.linf(0.15))
    chosen = attacks.transfer(fgsm, sources)(jax.random.key(0), target, X, y)
    points = np.stack([fgsm(jax.random.key(0), source, X, y) for source in sources])
    wrong = np.stack([np.asarray(target(p).argmax(1) != y) for p in points])
    loss = np.stack([objectives.cross_entropy(target(p), y) for p in points])
    return points, wrong, loss, np.asarray(chosen)


def test_the_worst_source_is_chosen_per_image_by_the_target():
    points, wrong, loss, chosen = transferred()
    best = [max(range(3), key=lambda s: (wrong[s, i], loss[s, i])) for i in range(6)]
    np.testing.assert_array_equal(chosen, points[best, np.arange(6)])
    assert len(set(best)) > 1


def test_the_target_gives_no_gradients():
    blind = attacks.with_surrogate(linear(WEIGHTS), lambda x: jnp.nan * x[:, :4])
    attack = attacks.transfer(attacks.fgsm(LINF), [linear(OTHER), linear(-OTHER)])
    seen = attack(jax.random.key(0), linear(WEIGHTS), X, Y)
    unseen = attack(jax.random.key(0), blind, X, Y)
    np.testing.assert_array_equal(unseen, seen)


def test_misclassified_comes_before_a_larger_loss_on_the_target():
    # One pixel picks a row: at 0 right with loss log 3, at 1 wrong with less.
    table = jnp.log(jnp.array([[0.334, 0.333, 0.333], [0.475, 0.525, 1e-9]]))
    target = lambda x: table[jnp.round(x[:, 0]).astype(int)]
    up, down = (
        lambda x, s=s: jnp.stack([-s * x[:, 0], s * x[:, 0], 0 * x[:, 0]], 1)
        for s in (1.0, -1.0)
    )
    attack = attacks.transfer(attacks.fgsm(threats.linf(0.5)), [down, up, down])
    x_adv = attack(jax.random.key(0), target, jnp.full((1, 1), 0.5), jnp.array([0]))
    np.testing.assert_array_equal(x_adv, [[1.0]])
