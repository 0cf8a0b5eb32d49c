"""The guarantees of every attack under every threat."""

import functools

import cases
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import InputError, attacks, evaluation, models, threats
from robustjax.data import Dataset
from robustjax.types import IteratedAttack

KEYS = jax.random.split(jax.random.key(0), 5)
X = jnp.round(jax.random.uniform(KEYS[0], (6, 3, 3, 1)), 1)  # some pixels at bounds
Y = jnp.array([0, 1, 2, 3, 1, 0])
HIDDEN = jax.random.normal(KEYS[1], (9, 8))
HEAD = jax.random.normal(KEYS[2], (8, 4))
IMAGE_KEYS = jax.random.split(KEYS[3], 6)


def logits_fn(x):
    return jnp.tanh(x.reshape(x.shape[0], -1) @ HIDDEN) @ HEAD


pytestmark = pytest.mark.usefixtures("compile_quickly")
every_attack = pytest.mark.parametrize("attack_name", cases.ATTACKS)
every_threat = pytest.mark.parametrize("threat_name", cases.THREATS)


@functools.cache
def runner(attack_name, threat_name):
    """One compilation per pair: the radius is an argument."""
    make, _ = cases.THREATS[threat_name]

    @jax.jit
    def run(eps, keys, x, y):
        return cases.ATTACKS[attack_name](make(eps))(keys, logits_fn, x, y)

    return run


@every_threat
@every_attack
def test_guarantees(attack_name, threat_name):
    make, eps = cases.THREATS[threat_name]
    run = runner(attack_name, threat_name)
    keys = lambda: jax.random.clone(IMAGE_KEYS)
    x_adv = run(eps, keys(), X, Y)
    assert x_adv.shape == X.shape
    assert x_adv.dtype == X.dtype
    # In the ball and in the box.
    assert (make(eps).norm(x_adv - X) <= eps + 1e-6).all()
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert not np.array_equal(x_adv, X)
    # The same keys, the same answer; no radius, no change.
    np.testing.assert_array_equal(run(eps, keys(), X, Y), x_adv)
    np.testing.assert_array_equal(run(0.0, keys(), X, Y), X)
    # An image does not see its neighbours: another order, the same images.
    order = jnp.array([4, 2, 0, 5, 1, 3])
    moved = run(eps, keys()[order], X[order], Y[order])
    np.testing.assert_allclose(moved, x_adv[order], atol=1e-6)
    # Nor those that padding puts beside it.
    others = run(eps, keys(), X.at[3:].set(0.5), Y.at[3:].set(0))
    np.testing.assert_allclose(others[:3], x_adv[:3], atol=1e-6)


@every_attack
def test_jit_is_eager_and_smaller_batches_agree(attack_name):
    make, eps = cases.THREATS["linf"]
    attack = cases.ATTACKS[attack_name](make(eps))
    x_adv = runner(attack_name, "linf")(eps, jax.random.clone(IMAGE_KEYS), X, Y)
    two = attack(jax.random.clone(IMAGE_KEYS)[:2], logits_fn, X[:2], Y[:2])
    np.testing.assert_allclose(two, x_adv[:2], atol=1e-5)


@every_attack
def test_one_trace(attack_name):
    chex.clear_trace_counter()
    attack = cases.ATTACKS[attack_name](threats.linf(0.1))

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(key, x, y):
        return attack(key, logits_fn, x, y)

    for i in range(3):
        run(jax.random.key(i), X * 0.3 * i, Y)


def test_one_trace_in_an_evaluation():
    chex.clear_trace_counter()
    rng = np.random.default_rng(0)
    dataset = Dataset(
        rng.random((20, 3, 3, 1), np.float32),
        rng.integers(0, 4, 20).astype(np.int32),
        np.arange(20),
        ("a", "b", "c", "d"),
    )
    pgd = attacks.pgd(threats.linf(0.1), step_size=0.05, num_steps=2)
    attack = chex.assert_max_traces(lambda *arguments: pgd(*arguments), n=1)
    named = evaluation.NamedAttack("pgd", attack)
    results = [
        # The last batch is ragged; a second call compiles nothing.
        evaluation.evaluate(
            logits_fn, dataset, [named], key=jax.random.key(1), batch_size=8
        )
        for _ in range(2)
    ]
    whole = evaluation.evaluate(
        logits_fn,
        dataset,
        [evaluation.NamedAttack("pgd", pgd)],
        key=jax.random.key(1),
        batch_size=20,
    )
    for result in (results[1], whole):
        np.testing.assert_array_equal(
            result.attacks[0].correct, results[0].attacks[0].correct
        )


@every_attack
def test_a_constant_model_has_no_gradient_and_gives_no_nan(attack_name):
    attack = cases.ATTACKS[attack_name](threats.l2(0.5))
    constant = lambda x: jnp.zeros((x.shape[0], 4)) + 0 * x.sum((1, 2, 3))[:, None]
    x_adv = jax.jit(lambda k: attack(k, constant, X, Y))(jax.random.key(0))
    assert np.isfinite(x_adv).all()
    if attack_name in ("fgsm", "bim", "mi-fgsm"):  # those without a random start
        np.testing.assert_allclose(x_adv, X, atol=1e-7)


@every_attack
def test_no_gradient_gets_out(attack_name):
    attack = cases.ATTACKS[attack_name](threats.linf(0.1))

    def through(x, weight):
        return attack(jax.random.key(0), lambda z: weight * logits_fn(z), x, Y).sum()

    for grad in jax.jit(jax.grad(through, (0, 1)))(X, 1.5):
        assert not np.any(grad)


@every_attack
def test_strict_dtypes_and_double_precision(attack_name):
    attack = cases.ATTACKS[attack_name](threats.l2(0.5))
    if attack_name != "adam":  # optax.adam itself promotes
        with jax.numpy_dtype_promotion("strict"):
            jax.eval_shape(lambda k: attack(k, logits_fn, X, Y), jax.random.key(0))
    with jax.enable_x64(True):
        x = jnp.asarray(X, jnp.float64)
        wide = lambda z: (
            jnp.tanh(z.reshape(6, -1) @ np.float64(HIDDEN)) @ np.float64(HEAD)
        )
        out = jax.eval_shape(lambda k: attack(k, wide, x, Y), jax.random.key(0))
    assert out.dtype == jnp.float64


@pytest.mark.parametrize("name", [n for n in cases.ATTACKS if n != "restarts"])
def test_by_hand_it_is_the_same(name):
    attack = cases.ATTACKS[name](threats.linf(0.1))
    assert isinstance(attack, IteratedAttack)

    @jax.jit
    def by_hand(keys):  # unrolled, so one threat is enough
        state = attack.init(keys, logits_fn, X, Y)
        for _ in range(attack.num_steps):
            state = attack.step(state, logits_fn, X, Y)
        return attack.finish(state, logits_fn, X, Y)

    expected = runner(name, "linf")(0.1, jax.random.clone(IMAGE_KEYS), X, Y)
    np.testing.assert_allclose(
        by_hand(jax.random.clone(IMAGE_KEYS)), expected, atol=1e-5
    )


@pytest.mark.parametrize("name", ["bim", "pgd", "fgsm", "mi-fgsm"])
def test_radius_and_step_map_and_may_differ_per_image(name):
    radii = jnp.array([0.05, 0.1, 0.2])
    run = runner(name, "linf")
    keys = lambda: jax.random.clone(IMAGE_KEYS)
    mapped = jax.jit(jax.vmap(run, (0, None, None, None)))(radii, keys(), X, Y)
    for eps, x_adv in zip(radii, mapped, strict=True):
        np.testing.assert_allclose(x_adv, run(eps, keys(), X, Y), atol=1e-6)
    per_image = jnp.array([0.05, 0.1, 0.2, 0.2, 0.1, 0.05])
    mixed = run(per_image, keys(), X, Y)
    for i, j in enumerate((0, 1, 2, 2, 1, 0)):
        np.testing.assert_allclose(mixed[i], mapped[j, i], atol=1e-6)


def test_statistics_stay_and_batch_mode_is_visible():
    model, params, state = cases.batch_norm_model()
    batch = cases.fake_batch(4)
    before = jax.tree.map(np.array, state)
    attack = attacks.pgd(threats.linf(0.1), step_size=0.05, num_steps=2)
    run = jax.jit(lambda f: attack(jax.random.key(0), f, batch.x, batch.y))
    results = {
        mode: run(models.logits_fn(model, params, state, mode=mode))
        for mode in ("eval", "batch")
    }
    jax.tree.map(np.testing.assert_array_equal, before, state)
    assert not np.array_equal(results["eval"], results["batch"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda t: attacks.pgd(t, step_size=0.0, num_steps=1),
            r"`step_size` .* got 0\.0",
        ),
        (
            lambda t: attacks.pgd(t, step_size=0.1, num_steps=2.5),
            r"`num_steps` .* got 2\.5",
        ),
        (
            lambda t: attacks.pgd(t, step_size=0.1, num_steps=1, iterate="first"),
            "`iterate` must be one of 'last', 'best'; got 'first'",
        ),
        (lambda t: attacks.fgsm(t, step_size=-1.0), r"`step_size` .* got -1\.0"),
        (lambda t: attacks.mi_fgsm(t, num_steps=0), "`num_steps` .* got 0"),
        (lambda t: attacks.mi_fgsm(t, momentum=-1), "`momentum` .* got -1"),
        (lambda t: attacks.restarts(attacks.fgsm(t), 0), "`num_restarts` .* got 0"),
        (
            lambda t: attacks.fgsm(t)(jax.random.key(0), logits_fn, X, Y[:2]),
            r"`x` \(6, 3, 3, 1\), `y` \(2,\)",
        ),
        (
            lambda t: attacks.fgsm(t)(jax.random.key(0), logits_fn, X.astype(int), Y),
            "`x` .* Divide integer images by 255",
        ),
        (
            lambda t: attacks.fgsm(t, random_start=t.sample)(
                jax.random.split(jax.random.key(0), 3), logits_fn, X, Y
            ),
            r"`key` .* \[6\], got shape \(3,\)",
        ),
    ],
)
def test_errors_name_the_argument_the_value_and_the_fix(call, message):
    with pytest.raises(InputError, match=message):
        call(threats.linf(0.1))
