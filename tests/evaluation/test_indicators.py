"""Each indicator on functions whose failure is known."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from robustjax import InputError, attacks, threats, training
from robustjax.attacks import StageOutcome, expectation
from robustjax.data import Dataset
from robustjax.evaluation import NamedAttack, _climbs, _probes, evaluate, indicators
from robustjax.evaluation._precision import in_bfloat16
from robustjax.evaluation._thresholds import RULES

RNG = np.random.default_rng(0)
X = RNG.random((24, 3, 3, 1), dtype=np.float32)
WEIGHTS = RNG.normal(size=(9, 4)).astype(np.float32)
LINF = threats.linf(0.02)
WALK = dict(step_size=0.02, num_steps=8)
FEW = dict(num_draws=64, num_queries=20, num_directions=20)
KEY = jax.random.key(0)
INCOMPLETE = "incomplete_optimisation"


def sound(z):
    return z.reshape(len(z), -1) @ jnp.asarray(WEIGHTS)


Y = np.asarray(sound(X).argmax(axis=1), np.int32)
DATA = Dataset(X, Y, np.arange(24), ("a", "b", "c", "d"))


def mesh():
    return training.data_mesh(jax.devices()[:1])


def run(fun, *, threat=LINF, data=DATA, rows=None, walk=WALK, **options):
    """(result, indicators by name) of plain PGD."""
    if rows is None:
        finite = 0 < float(threat.eps) < np.inf
        rows = [NamedAttack("PGD", attacks.pgd(threat, **walk))] if finite else []
    given = dict(key=KEY, mesh=mesh(), batch_size=len(data))
    result = evaluate(fun, data, rows, **given)
    return result, look(result, fun, threat=threat, data=data, walk=walk, **options)


def look(result, fun, *, threat=LINF, data=DATA, walk=WALK, **options):
    given = dict(key=KEY, mesh=mesh()) | walk | FEW | options
    found = indicators(result, fun, data, threat, **given)
    names = options.get("only") or [rule.name for rule in RULES]
    assert {one.name for one in found} == set(names)
    json.dumps([one._asdict() for one in found], allow_nan=False)
    return {one.name: one for one in found}


def raised(found):
    return {name for name, one in found.items() if one.flagged}


@pytest.fixture(scope="module")
def of_sound():
    return run(sound)


def test_a_linear_classifier_raises_nothing(of_sound):
    _, found = of_sound
    assert not raised(found)
    missing = {name for name, one in found.items() if one.value is None}
    assert missing == {"transfer"}


def test_names_and_thresholds_are_a_table():
    names = [rule.name for rule in RULES]
    assert len(set(names)) == len(names) == 19
    for rule in RULES:
        assert rule.threshold >= 0
        assert all(text.strip() and "\n" not in text for text in rule[2:])


def test_a_walk_is_pgd():
    of = subject(sound)
    start = np.asarray(LINF.sample(KEY, jnp.asarray(X)))
    found = _probes.path(of, start=start)
    attack = attacks.pgd(LINF, random_start=lambda key, x: jnp.asarray(start), **WALK)
    x_adv = attack(jax.random.key(3), sound, jnp.asarray(X), jnp.asarray(Y))
    np.testing.assert_allclose(found.x_adv, x_adv, atol=1e-6)
    wide = WEIGHTS.astype(np.float64)
    for step, z in ((0, start), (8, found.x_adv)):
        logits = np.asarray(z, np.float64).reshape(24, -1) @ wide
        loss = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(24), Y]
        np.testing.assert_allclose(found.losses[:, step], loss, atol=1e-5)
        wrong = logits.argmax(axis=1) != Y
        np.testing.assert_array_equal(found.broken[:, step], wrong)
    np.testing.assert_array_equal(found.correct, ~wrong)


def subject(fun, **changes):
    fun = jax.tree_util.Partial(fun)
    of = _probes.subject(
        *(fun, fun, LINF, DATA, np.arange(24)),
        batch_size=24,
        mesh=mesh(),
        key=jax.random.key(9),
        **WALK,
    )
    return dataclasses.replace(of, **changes)


def test_all_walks_are_one_program():
    traces = []

    def counted(z):
        traces.append(z.shape)
        return sound(z)

    of = subject(counted)
    _probes.path(of)
    before = len(traces)
    for number, eps, scale in ((1, 0.02, 1.0), (0, 0.3, 1.0), (0, 0.02, 100.0)):
        _probes.path(of, number, eps=eps, scale=scale)
    _probes.unbounded(of)
    assert len(traces) == before


def test_blocks_change_nothing(of_sound):
    result, whole = of_sound
    only = ("gradient", "noise_stability", "more_restarts", "transductive", "noise")
    parts = look(result, sound, batch_size=8, only=only)
    for name, one in parts.items():
        assert whole[name].flagged == one.flagged
        assert whole[name].value == pytest.approx(one.value, abs=1e-5)


def test_the_rise_at_the_end():
    losses = np.array(
        [[0, 1, 2, 3, 4], [4, 0, 8, 3, 1], [1, 1, 1, 1, 1], [0, 2, 2, 2, 2]]
    )
    found = _climbs.rise_at_the_end(losses.astype(np.float32), 2)
    np.testing.assert_allclose(found, [0.5, 0, 0, 0])
    assert _climbs.rise_at_the_end(np.array([[0, np.nan, 1.0]]), 1).tolist() == [1.0]


def test_too_small_steps_are_incomplete():
    walk = dict(step_size=0.0005, num_steps=8)
    plain = attacks.bim(LINF, **walk)
    _, found = run(
        sound, rows=[NamedAttack("BIM", plain)], walk=walk, only=(INCOMPLETE,)
    )
    assert found[INCOMPLETE].flagged
    assert "BIM" in found[INCOMPLETE].detail


def test_rounding_has_no_gradient_and_queries_find_what_it_hides():
    threat, walk = threats.linf(0.3), dict(step_size=0.1, num_steps=6)
    blind = lambda z: sound(jnp.round(4 * z) / 4)
    names = {"gradient", "queries", "noise", "unbounded", "chance"}
    _, found = run(blind, threat=threat, walk=walk, only=names)
    assert found["gradient"].value == 1
    assert names == raised(found)


def test_pixels_that_nobody_looks_at_hide_nothing():
    corner = lambda z: sound(jnp.zeros_like(z).at[:, :2, :2].set(z[:, :2, :2]))
    hidden = lambda z: corner(z) + sound(jnp.round(8 * z))
    options = dict(rows=[], only=("gradient",))
    assert not run(corner, **options)[1]["gradient"].flagged
    wide = threats.linf(0.2)
    assert run(hidden, threat=wide, **options)[1]["gradient"].value > 0.5


def test_a_gradient_may_be_missing():
    @jax.custom_vjp
    def opaque(z):
        return sound(z)

    def backwards(*_):
        raise NotImplementedError

    opaque.defvjp(lambda z: (opaque(z), ()), backwards)
    _, found = run(opaque, rows=[], only=("gradient", "more_steps"))
    assert found["gradient"].flagged
    assert found["more_steps"].value is None
    assert "no gradient" in found["more_steps"].detail


def test_huge_logits_hide_from_the_cross_entropy():
    threat, walk = threats.linf(0.1), dict(step_size=0.025, num_steps=6)
    names = {"gradient", "logit_scale"}
    _, found = run(lambda z: 1e4 * sound(z), threat=threat, walk=walk, only=names)
    assert names == raised(found)


def test_a_wriggling_margin_is_unstable():
    _, found = run(
        lambda z: sound(z) + 3 * jnp.sin(1e4 * sound(z)), only=("noise_stability",)
    )
    assert found["noise_stability"].flagged


def test_silent_success():
    """The middle of the way is broken; the border of the ball is not."""
    x = jnp.asarray(X)

    def hiding(z):
        moved = (
            jnp.abs(z - x).max(axis=(1, 2, 3)) if len(z) == 24 else jnp.zeros(len(z))
        )
        inside = (moved > 0.25 * 0.02) & (moved < 0.75 * 0.02)
        return jnp.where(inside[:, None], -1.0, 1.0) * sound(z)

    only, slow = ("silent_success",), attacks.bim(LINF, step_size=0.005, num_steps=4)
    result, found = run(hiding, rows=[NamedAttack("BIM", slow)], only=only)
    assert found["silent_success"].value > 0.9
    assert found["silent_success"].flagged
    best = dataclasses.replace(
        result.attacks[0], name="best", correct=np.zeros(24, bool), seen=None
    )
    both = dataclasses.replace(result, attacks=(*result.attacks, best))
    assert not look(both, hiding, only=only)["silent_success"].flagged


@pytest.mark.parametrize("parameters", [None, "view", "access", "inside"])
def test_what_another_model_met_on_the_way_is_its_own(parameters):
    """A surrogate breaks at once, and its loss rises to the end."""
    far = threats.linf(1e-6)
    always, only = lambda z: -20 * sound(z), ("silent_success", INCOMPLETE)
    attack = attacks.bim(far, step_size=1e-6, num_steps=8)
    named = dict(
        view=dict(view=dict(gradient="other")),
        access=dict(access="gray"),
        inside=dict(name="restarts", attack=dict(view="other")),
    ).get(parameters)
    row = NamedAttack("BIM", attack, named or {}, source=always)
    given = dict(threat=far, walk=dict(step_size=1e-6, num_steps=8), only=only)
    result, found = run(sound, rows=[row], **given)
    (seen,) = result.attacks
    assert seen.broken_along.all()
    assert not seen.own
    # Also told by the parameters alone, as of results that were put together by hand.
    if named:
        told = dataclasses.replace(seen, own=True)
        found = look(dataclasses.replace(result, attacks=(told,)), sound, **given)
    for name in only:
        assert "BIM" not in found[name].detail
        assert "recorded" not in found[name].detail
    assert not found["silent_success"].flagged


@pytest.mark.parametrize("eps", [1.0, 1])
def test_the_whole_box_as_radius(eps):
    walk = dict(step_size=0.25, num_steps=4)
    only = ("monotone", "chance", "more_restarts")
    _, found = run(sound, threat=threats.linf(eps), walk=walk, only=only)
    assert found["monotone"].value is None
    assert found["monotone"].detail == "One radius only."
    assert found["chance"].value is not None


def test_a_radius_may_be_an_array(of_sound):
    result, whole = of_sound
    only = ("more_restarts", "noise", "unbounded")
    found = look(result, sound, threat=threats.linf(jnp.float32(0.02)), only=only)
    assert {name: one.value for name, one in found.items()} == {
        name: whole[name].value for name in only
    }
    each = threats.linf(jnp.full(24, 0.02))
    with pytest.raises(InputError, match="one radius for all images"):
        look(result, sound, threat=each, only=only)


def test_parameters_may_be_anything(of_sound):
    result, _ = of_sound
    odd = dict(threat="linf", start="zero", attack="pgd", attacks="all")
    row = dataclasses.replace(result.attacks[0], parameters=odd)
    result = dataclasses.replace(result, attacks=(row,))
    found = look(result, sound, surrogates=[sound], only=("transfer", INCOMPLETE))
    assert found["transfer"].value == 0
    assert "PGD" in found[INCOMPLETE].detail


def test_companions():
    mixed = lambda z: sound(z - z.mean(axis=0, keepdims=True))
    options = dict(rows=[], only=("transductive",))
    _, found = run(mixed, **options)
    assert found["transductive"].value == 1
    one = DATA.take([0])
    assert run(mixed, data=one, **options)[1]["transductive"].flagged
    assert not run(sound, data=one, **options)[1]["transductive"].flagged
    # Who knows the order, and who is blind beside too many that are no images.
    leak = lambda z: (
        6 * jax.nn.one_hot(jnp.resize(jnp.asarray(Y), len(z)), 4) + sound(z)
    )
    assert run(leak, **options)[1]["transductive"].value > 0.5

    def detector(z):
        strange = jnp.abs(64 * z - jnp.round(64 * z)).max(axis=(1, 2, 3)) > 0.1
        return jnp.where(strange.mean() > 0.5, 0.0, 1.0) * sound(z)

    grid = dataclasses.replace(DATA, images=np.round(64 * X) / 64)
    assert run(detector, data=grid, **options)[1]["transductive"].value == 1


def test_calls_that_differ():
    rng = np.random.default_rng(0)

    def noisy(z):
        shape = jax.ShapeDtypeStruct((len(z), 4), jnp.float32)
        draw = lambda: rng.normal(size=shape.shape).astype(np.float32)
        return sound(z) + jax.pure_callback(draw, shape)

    _, found = run(noisy, rows=[], only=("random", "noise", "transductive"))
    assert found["random"].value == 1
    assert found["noise"].value is None
    assert found["transductive"].value is None


def noisy(keys, z):
    draws = jax.vmap(lambda key: jax.random.normal(key, (4,)))(keys)
    return sound(z) + 0.3 * draws


def test_draws_without_expectation():
    judge = expectation(noisy, jax.random.key(1), 9)
    one = expectation(noisy, jax.random.key(2), 1, average="logits")
    many = expectation(noisy, jax.random.key(3), 4)
    row = lambda source: NamedAttack("PGD", attacks.pgd(LINF, **WALK), source=source)
    _, found = run(judge, rows=[row(one)], source=one, only=("random",))
    assert found["random"].flagged
    for average in ("logits", "probabilities"):
        mean = expectation(noisy, jax.random.key(3), 4, average=average)
        _, found = run(judge, rows=[row(mean)], source=mean, only=("random",))
        assert found["random"].value == 0.0
    _, found = run(judge, rows=[row(many)], source=many)
    assert not raised(found)
    for name in ("noise", "silent_success", "precision", "incomplete_optimisation"):
        assert found[name].value is None


def test_probabilities():
    with pytest.warns(UserWarning, match="probabilities"):
        _, found = run(
            lambda z: jax.nn.softmax(sound(z)), rows=[], only=("probabilities",)
        )
    assert found["probabilities"].flagged


def test_not_a_number():
    def half(z):
        bright = (z[:, 0, 0, 0] > 0.9)[:, None]
        return jnp.where(bright, jnp.nan, sound(z))

    _, found = run(half, rows=[], only=("not_a_number",))
    share = (X[:, 0, 0, 0] > 0.9).mean()
    assert share > 0
    assert found["not_a_number"].value >= share
    assert found["not_a_number"].flagged


def test_surrogates_and_access(of_sound):
    threat, walk = threats.linf(0.1), dict(step_size=0.025, num_steps=6)
    blind = lambda z: sound(jnp.round(20 * z) / 20)
    only = ("transfer",)
    _, found = run(blind, threat=threat, walk=walk, surrogates=[sound], only=only)
    assert found["transfer"].flagged
    assert found["transfer"].value > 0.1
    result, _ = of_sound
    assert not look(result, sound, surrogates=[sound], only=only)["transfer"].flagged
    black = dataclasses.replace(
        result.attacks[0],
        parameters=dict(name="pgd", access="black"),
        correct=np.zeros(24, bool),
        seen=None,
    )
    both = dataclasses.replace(result, attacks=(*result.attacks, black))
    assert look(both, sound, only=only)["transfer"].flagged


@pytest.mark.parametrize(("broken", "flagged"), [(1, False), (2, True)])
def test_autoattack_has_its_own_square(of_sound, broken, flagged):
    result, _ = of_sound
    stages = (
        StageOutcome("APGD-CE", 24, 1, 0.9, 1.0),
        StageOutcome("Square", 20, broken, 0.8, 1.0),
    )
    staged = dataclasses.replace(result.attacks[0], name="AutoAttack", stages=stages)
    result = dataclasses.replace(result, attacks=(staged,))
    found = look(result, sound, only=("queries",))["queries"]
    assert found.value == broken / 24
    assert found.flagged == flagged


def test_products_in_bfloat16():
    def reference(z):
        short = lambda a: np.asarray(a, ml_dtypes.bfloat16).astype(np.float64)
        hidden = np.maximum(short(z.reshape(len(z), -1)) @ short(WEIGHTS), 0)
        return short(hidden.astype(np.float32)) @ short(WEIGHTS.T)

    def inside(z):
        return jax.lax.cond(z.sum() > -1, plain, lambda z: 0 * plain(z), z)

    def plain(z):
        return jax.jit(jax.nn.relu)(sound(z)) @ jnp.asarray(WEIGHTS.T)

    for fun in (plain, inside):
        found = jax.jit(in_bfloat16(fun))(jnp.asarray(X))
        np.testing.assert_allclose(found, reference(X), rtol=1e-5, atol=1e-5)
        assert np.abs(found - fun(jnp.asarray(X))).max() > 1e-3


def test_verdicts_of_rounding():
    def fine(z):  # what bfloat16 cannot tell apart
        return (z.reshape(len(z), -1) + 64) @ jnp.asarray(WEIGHTS) - 64 * WEIGHTS.sum(
            0
        )[None]

    _, found = run(fine, only=("precision",))
    assert found["precision"].flagged


@pytest.mark.parametrize(
    ("threat", "classes", "count"),
    [
        (threats.l2(0.05), 4, 24),
        (threats.l1(0.1, sparsity=0.3), 2, 5),
        (threats.linf(0.0), 4, 3),
        (threats.l2(float("inf")), 4, 3),
    ],
    ids=["l2", "l1", "zero", "unlimited"],
)
def test_any_threat_and_size(threat, classes, count):
    fun = lambda z: sound(z)[:, :classes]
    labels = np.asarray(fun(X).argmax(axis=1), np.int32)
    data = Dataset(X, labels, np.arange(24), tuple("abcd"[:classes])).take(slice(count))
    has_radius = 0 < float(threat.eps) < np.inf
    walk = dict(step_size=min(float(threat.eps), 1.0), num_steps=4)
    names = ("more_steps", "unbounded", "chance", "queries", "noise", "monotone")
    only = names if has_radius else None
    _, found = run(fun, threat=threat, data=data, walk=walk, only=only)
    assert not raised(found)
    assert (found["more_steps"].value is None) != has_radius
    assert found["unbounded"].value == 0
    assert found["chance"].value is None


def test_images_that_are_wrong_already():
    wrong = dataclasses.replace(DATA, labels=(Y + 1) % 4)
    _, found = run(sound, data=wrong)
    assert not raised(found)


def test_devices_share_the_images(of_sound):
    result, whole = of_sound
    only = ("gradient", "more_restarts", "transductive", "noise")
    found = look(result, sound, mesh=training.data_mesh(), only=only)
    assert {name: whole[name].flagged for name in found} == {
        name: one.flagged for name, one in found.items()
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(subset=0), "`subset`"),
        (dict(num_steps=0), "`num_steps`"),
        (dict(step_size=-1.0), "`step_size`"),
        (dict(num_draws=0), "`num_draws`"),
        (dict(only=("gradients",)), "`only`"),
        (dict(key=0), "`key`"),
        (dict(data=DATA.take(slice(3, None))), "`dataset`"),
    ],
)
def test_bad_input(of_sound, changes, message):
    with pytest.raises(InputError, match=message):
        look(of_sound[0], sound, **changes)


def test_an_offset_or_one_large_row_hides_no_difference():
    rng = np.random.default_rng(0)
    large = jnp.ones(24).at[3].set(1e4)

    def noisy_at(offset, scale):
        def noisy(z):
            shape = jax.ShapeDtypeStruct((len(z), 4), jnp.float32)
            draw = lambda: 0.3 * rng.normal(size=shape.shape).astype(np.float32)
            factor = jnp.resize(large, len(z))[:, None] if scale else 1.0
            return factor * sound(z) + jax.pure_callback(draw, shape) + offset

        return noisy

    def mixed_at(offset, scale):
        def mixed(z):
            factor = jnp.resize(large, len(z))[:, None] if scale else 1.0
            return factor * sound(z - z.mean(axis=0, keepdims=True)) + offset

        return mixed

    for offset, scale in ((3000.0, False), (0.0, True)):
        found = run(noisy_at(offset, scale), rows=[], only=("random",))[1]
        assert found["random"].value >= 23 / 24
        found = run(mixed_at(offset, scale), rows=[], only=("transductive",))[1]
        assert found["transductive"].flagged
    still = lambda z: sound(z) + 3000.0
    found = run(still, rows=[], only=("random", "transductive"))[1]
    assert not raised(found)


@pytest.mark.parametrize("num_draws", [2, 33, 100])
def test_half_of_the_noise_is_at_corners(num_draws):
    """However many fit into one pass: only corners of the ball break these."""
    far = lambda z: (jnp.abs(z - 0.5) > 0.0199).all(axis=(1, 2, 3))
    corner = lambda z: jnp.where(far(z), -1.0, 1.0)[:, None] * jnp.array([[1.0, 0.0]])
    grey = np.full((16, 1, 2, 1), 0.5, np.float32)
    data = Dataset(grey, np.zeros(16, np.int32), np.arange(16), ("a", "b"))
    found = run(corner, data=data, rows=[], only=("noise",), num_draws=num_draws)[1]
    assert found["noise"].value == 1
