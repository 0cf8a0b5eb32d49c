"""The guarantees of every attack, as far as its case promises them.

One representative of each family runs by default; all others are `slow`.
"""

import collections
import functools

import cases
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import InputError, attacks, evaluation, models, threats
from robustjax.attacks import _outcome
from robustjax.data import Dataset
from robustjax.types import IteratedAttack

KEYS = jax.random.split(jax.random.key(0), 5)
SHAPE = (6, 6, 5, 1)  # not square, one channel
X = jnp.round(jax.random.uniform(KEYS[0], SHAPE), 1)  # some pixels at bounds
HIDDEN = jax.random.normal(KEYS[1], (30, 8))
HEAD = jax.random.normal(KEYS[2], (8, 4))
IMAGE_KEYS = jax.random.split(KEYS[3], 6)


def logits_fn(x):
    hidden = x.reshape(x.shape[0], -1).astype(jnp.float32) @ HIDDEN
    return jnp.tanh(0.5 * hidden) @ HEAD


# Right about four images, wrong about the last two.
Y = logits_fn(X).argmax(1).astype(jnp.int32)
Y = Y.at[4:].set((Y[4:] + 1) % 4)


def keys():
    return jax.random.clone(IMAGE_KEYS)


def marked(names):
    """Parameters of a parametrisation: those of no representative are slow."""
    slow = lambda name: (
        () if cases.ATTACKS[name].representative else (pytest.mark.slow,)
    )
    return [pytest.param(name, marks=slow(name), id=name) for name in names]


def having(**promises):
    """The attacks whose case makes all the promises."""
    return pytest.mark.parametrize(
        "name",
        marked(
            name
            for name, case in cases.ATTACKS.items()
            if all(getattr(case, k) == v for k, v in promises.items())
        ),
    )


def threat_of(name, eps=None):
    """The first threat of a case, at the radius of the suite or another."""
    make, radius = cases.THREATS[cases.ATTACKS[name].threats[0]]
    return make(radius if eps is None else eps)


every_attack = pytest.mark.parametrize("name", marked(cases.ATTACKS))


TRACES = collections.Counter()


@functools.cache
def runner(name, threat_name):
    """One compilation per pair: the radius is an argument where it may be."""
    make, radius = cases.THREATS[threat_name]
    case = cases.ATTACKS[name]

    def run(eps, keys, x, y):
        TRACES[name, threat_name] += 1
        threat = make(eps if case.maps_over_eps else radius)
        return case.make(threat)(keys, logits_fn, x, y)

    return run if case.on_host else jax.jit(run)


def pairs():
    for name, case in cases.ATTACKS.items():
        for number, threat_name in enumerate(case.threats):
            quick = case.representative and number == 0
            marks = () if quick else (pytest.mark.slow,)
            yield pytest.param(name, threat_name, marks=marks)


@pytest.mark.parametrize(("name", "threat_name"), pairs())
def test_guarantees(name, threat_name):
    case = cases.ATTACKS[name]
    make, eps = cases.THREATS[threat_name]
    run = runner(name, threat_name)
    x_adv = run(eps, keys(), X, Y)
    assert x_adv.shape == X.shape
    assert x_adv.dtype == X.dtype
    assert np.isfinite(x_adv).all()
    if case.boxed:
        assert x_adv.min() >= 0
        assert x_adv.max() <= 1
    if case.bounded:
        assert (make(eps).norm(x_adv - X) <= eps + 1e-6).all()
    if case.moves:
        assert not np.array_equal(x_adv, X)
    # The same keys, the same answer.
    np.testing.assert_array_equal(run(eps, keys(), X, Y), x_adv)
    if case.bounded:  # no radius, no change
        zero = lambda *args: case.make(make(0.0))(*args)
        if case.maps_over_eps:
            zero = lambda keys, _, *args: run(0.0, keys, *args)
        np.testing.assert_array_equal(zero(keys(), logits_fn, X, Y), X)
    if case.breaks:  # an image that is misclassified already stays so
        assert _outcome.broken(logits_fn(x_adv), Y)[4:].all()
    if not case.independent:
        return
    # An image does not see its neighbours: another order, the same images.
    order = jnp.array([4, 2, 0, 5, 1, 3])
    moved = run(eps, keys()[order], X[order], Y[order])
    np.testing.assert_allclose(moved, x_adv[order], atol=1e-5)
    # Nor those that padding puts beside it.
    others = run(eps, keys(), X.at[3:].set(0.5), Y.at[3:].set(0))
    np.testing.assert_allclose(others[:3], x_adv[:3], atol=1e-5)


@having(on_host=False)
def test_one_trace(name):
    """Other values of the same shapes are traced no second time."""
    case = cases.ATTACKS[name]
    _, eps = cases.THREATS[case.threats[0]]
    run = runner(name, case.threats[0])
    run(eps, keys(), X, Y)
    before = TRACES[name, case.threats[0]]
    for i in range(3):
        run(eps, jax.random.split(jax.random.key(i), 6), X * 0.3 * i, Y)
    assert TRACES[name, case.threats[0]] == before > 0


@having(independent=True, on_host=False)
def test_jit_is_eager_and_a_batch_of_one_agrees(name):
    case = cases.ATTACKS[name]
    _, eps = cases.THREATS[case.threats[0]]
    x_adv = runner(name, case.threats[0])(eps, keys(), X, Y)
    attack = case.make(threat_of(name))
    one = attack(keys()[:1], logits_fn, X[:1], Y[:1])
    np.testing.assert_allclose(one, x_adv[:1], atol=1e-4)


@every_attack
def test_a_constant_model_gives_no_nan(name):
    attack = cases.ATTACKS[name].make(threat_of(name))
    constant = lambda x: 0 * x.reshape(x.shape[0], -1)[:, :4] + jnp.arange(4.0)[None]
    x_adv = attack(jax.random.key(0), constant, X, Y)
    assert np.isfinite(x_adv).all()


@every_attack
@pytest.mark.parametrize("at_once", [False, True])
def test_a_model_of_nan_gives_no_nan(name, at_once):
    """Logits, or with finite logits their gradients alone, are no numbers."""
    attack = cases.ATTACKS[name].make(threat_of(name))

    def trap(x):
        return logits_fn(jnp.where(x > 0.05, jnp.sqrt(x - 0.05), 0.0))

    def partly(x):
        dark = (x.mean((1, 2, 3)) < 0.5)[:, None]
        return logits_fn(x) * jnp.where(dark, jnp.nan, 1.0)

    assert np.isnan(jax.grad(lambda x: trap(x).sum())(X)).any()
    x_adv = attack(jax.random.key(0), partly if at_once else trap, X, Y)
    assert np.isfinite(x_adv).all()


@having(on_host=False)
def test_no_gradient_gets_out(name):
    attack = cases.ATTACKS[name].make(threat_of(name))

    def through(x, weight):
        return attack(jax.random.key(0), lambda z: weight * logits_fn(z), x, Y).sum()

    for grad in jax.jit(jax.grad(through, (0, 1)))(X, 1.5):
        assert not np.any(grad)


@having(maps_over_eps=True, on_host=False)
def test_the_radius_maps(name):
    case = cases.ATTACKS[name]
    _, eps = cases.THREATS[case.threats[0]]
    run = runner(name, case.threats[0])
    radii = eps * jnp.array([0.5, 1.0])
    mapped = jax.jit(jax.vmap(run, (0, None, None, None)))(radii, keys(), X, Y)
    for radius, x_adv in zip(radii, mapped, strict=True):
        np.testing.assert_allclose(x_adv, run(radius, keys(), X, Y), atol=1e-4)


def few_classes():
    """Two by default; of three by default what two are too few for."""
    for name, case in cases.ATTACKS.items():
        for num_classes in (2, 3):
            quick = case.representative and (num_classes == 2 or case.least_classes > 2)
            marks = () if quick else (pytest.mark.slow,)
            yield pytest.param(name, num_classes, marks=marks)


@pytest.mark.parametrize(("name", "num_classes"), few_classes())
def test_few_classes_work_or_are_refused(name, num_classes):
    case = cases.ATTACKS[name]
    few = lambda x: logits_fn(x)[:, :num_classes]
    y = few(X).argmax(1).astype(jnp.int32)
    run = lambda: case.make(threat_of(name))(jax.random.key(0), few, X, y)
    if num_classes < case.least_classes:
        with pytest.raises(InputError) as error:
            run()
        assert "\n" not in str(error.value)
        return
    assert np.isfinite(run()).all()


@having(on_host=False)
def test_bfloat16_logits_three_channels_and_double_precision(name):
    case = cases.ATTACKS[name]
    attack = case.make(threat_of(name))
    coarse = lambda x: logits_fn(x[..., :1]).astype(jnp.bfloat16)
    x = jnp.repeat(X, 3, axis=-1)
    x_adv = jax.jit(lambda k: attack(k, coarse, x, Y))(jax.random.key(0))
    assert x_adv.dtype == jnp.float32
    assert np.isfinite(x_adv).all()
    with jax.enable_x64(True):
        x = jnp.asarray(X, jnp.float64)
        wide = lambda z: (
            jnp.tanh(z.reshape(z.shape[0], -1) @ np.float64(HIDDEN)) @ np.float64(HEAD)
        )
        attack = case.make(threat_of(name))
        out = jax.eval_shape(lambda k: attack(k, wide, x, Y), jax.random.key(0))
    assert out.dtype == jnp.float64


@having(iterated=True)
def test_by_hand_it_is_the_same(name):
    case = cases.ATTACKS[name]
    attack = case.make(threat_of(name))
    assert isinstance(attack, IteratedAttack)
    step = jax.jit(lambda s: attack.step(s, logits_fn, X, Y))
    state = attack.init(keys(), logits_fn, X, Y)
    for _ in range(attack.num_steps):
        state = step(state)
        assert state.x_adv.shape == X.shape
    x_adv = attack.finish(state, logits_fn, X, Y)
    _, eps = cases.THREATS[case.threats[0]]
    expected = runner(name, case.threats[0])(eps, keys(), X, Y)
    np.testing.assert_allclose(x_adv, expected, atol=1e-4)
    if attack.broken is not None:
        known = attack.broken(state)
        np.testing.assert_array_equal(known, _outcome.broken(logits_fn(x_adv), Y))


@every_attack
def test_bad_input_is_one_clear_line(name):
    attack = cases.ATTACKS[name].make(threat_of(name))
    for x, message in (
        ((255 * X).astype(jnp.int32), "`x` must be floating point .* 255"),
        (X.at[0, 0, 0, 0].set(jnp.nan), "`x` .* NaN"),
    ):
        with pytest.raises(InputError, match=message) as error:
            attack(jax.random.key(0), logits_fn, x, Y)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="`y`"):
        attack(jax.random.key(0), logits_fn, X, Y[:3])
    with pytest.raises(InputError, match="`y` must be integer labels"):
        attack(jax.random.key(0), logits_fn, X, jnp.float32(Y))
    for reshaped in (
        lambda z: logits_fn(z)[0],
        lambda z: logits_fn(z)[:, 0],
        lambda z: logits_fn(z)[:, None],
        lambda z: logits_fn(z)[:, None, None],
    ):
        with pytest.raises(InputError, match="`logits_fn` must return") as error:
            attack(jax.random.key(0), reshaped, X, Y)
        assert "\n" not in str(error.value)
    with pytest.warns(UserWarning, match="probabilities"):
        attack(jax.random.key(0), lambda z: jax.nn.softmax(logits_fn(z)), X, Y)


def test_one_trace_in_an_evaluation():
    chex.clear_trace_counter()
    rng = np.random.default_rng(0)
    dataset = Dataset(
        rng.random((20, 6, 5, 1), np.float32),
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


@pytest.mark.parametrize("name", ["bim", "pgd", "fgsm", "mi-fgsm"])
def test_radius_and_step_map_and_may_differ_per_image(name):
    radii = jnp.array([0.05, 0.1, 0.2])
    run = runner(name, "linf")
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
            r"`x` \(6, 6, 5, 1\), `y` \(2,\)",
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
