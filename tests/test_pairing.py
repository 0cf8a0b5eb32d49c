"""Maps and distances against the equations, in float64, and what they must not see."""

import math
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from robustjax import InputError, objectives, pairing

MAP_KINDS: Any = ("sum", "mean", "max")
POWERS = (1.0, 1.5, 2.0, 4.0)
DISTANCES: Any = ("l2", "sq", "mse", "l1")
LOGIT_DISTANCES: Any = ("mse", "sq", "l2")
WRONG: Any = "cosine"

RNG = np.random.default_rng(0)
ONE, OTHER = RNG.normal(size=(2, 3, 4, 5, 6)) * 3
SMOOTH = np.abs(ONE) + 0.1, np.abs(OTHER) + 0.1  # no kinks near
ONE[RNG.random(ONE.shape) < 0.3] = 0
OTHER[RNG.random(ONE.shape) < 0.3] = 0
ONE[0, 1] = ONE[2, :, :, 2] = OTHER[1, 2, 3] = 0
COARSE = RNG.normal(size=(2, 3, 2, 2, 7))

every_map = pytest.mark.parametrize("map_kind", MAP_KINDS)
every_power = pytest.mark.parametrize("power", POWERS)
every_distance = pytest.mark.parametrize("kind", DISTANCES)


def unit(a, map_kind, power, floor=1e-12):
    """q of one example [H, W, C], position by position."""
    collect = {"sum": math.fsum, "mean": lambda v: math.fsum(v) / len(v), "max": max}
    places = np.abs(a).reshape(-1, a.shape[2])
    found = [collect[map_kind]([v**power for v in place]) for place in places]
    length = math.hypot(*found)
    return [value / max(length, floor) for value in found]


def apart(q, r, kind):
    gaps = [abs(u - v) for u, v in zip(q, r, strict=True)]
    if kind == "l1":
        return math.fsum(gaps)
    square = math.fsum(gap**2 for gap in gaps)
    return {"l2": math.sqrt(square), "sq": square, "mse": square / len(gaps)}[kind]


def reference(one, other, kind, map_kind="sum", power=2.0):
    """Summed over layers, a list with a number for each example."""
    total = np.zeros(len(next(iter(one.values()))))
    for name in one:
        for i, (a, b) in enumerate(zip(one[name], other[name], strict=True)):
            total[i] += apart(unit(a, map_kind, power), unit(b, map_kind, power), kind)
    return total


def distance(one, other, **kwargs):
    return pairing.attention_distance({"layer": one}, {"layer": other}, **kwargs)


def wide(*arrays):
    return [jnp.asarray(a, jnp.float64) for a in arrays]


@every_map
@every_power
def test_values_are_the_equations(map_kind, power):
    one = {"fine": ONE, "coarse": COARSE[0]}
    other = {"fine": OTHER, "coarse": COARSE[1]}
    for precise, tolerance in ((True, 1e-10), (False, 1e-5)):
        with jax.enable_x64(precise):
            given_one, given_other = jax.tree.map(jnp.asarray, (one, other))
            for kind in DISTANCES:
                found = pairing.attention_distance(
                    given_one, given_other, kind=kind, map_kind=map_kind, power=power
                )
                expected = reference(one, other, kind, map_kind, power)
                assert found.dtype == (jnp.float64 if precise else jnp.float32)
                np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
            q = pairing.unit_map(given_one["fine"], kind=map_kind, power=power)
            expected = [unit(a, map_kind, power) for a in ONE]
            np.testing.assert_allclose(q, expected, rtol=0, atol=tolerance)


CLEAN_MAP, ADV_MAP = [[1, 2], [2, 0]], [[0, 3], [1, 0]]
# p -> (F of both), (q of both), (l2, sq, mse): section 10 of the specification.
EXAMPLE = {
    1.0: (
        ([3, 2], [3, 1]),
        ([0.832050, 0.554700], [0.948683, 0.316228]),
        (0.265466, 0.070472, 0.035236),
    ),
    2.0: (
        ([5, 4], [9, 1]),
        ([0.780869, 0.624695], [0.993884, 0.110432]),
        (0.556635, 0.309842, 0.154921),
    ),
    4.0: (
        ([17, 16], [81, 1]),
        ([0.728200, 0.685365], [0.999924, 0.012345]),
        (0.725803, 0.526790, 0.263395),
    ),
}


@pytest.mark.parametrize("power", EXAMPLE)
@pytest.mark.parametrize("precise", [True, False])
def test_worked_example_of_maps(power, precise):
    maps, units, distances = EXAMPLE[power]
    tolerance = 1e-6 if precise else 1e-5
    with jax.enable_x64(precise):
        pair = [jnp.asarray(m, float).reshape(1, 1, 2, 2) for m in (CLEAN_MAP, ADV_MAP)]
        for a, plain, q in zip(pair, maps, units, strict=True):
            found = pairing.attention_map(a, power=power)
            np.testing.assert_allclose(found, [[plain]], rtol=1e-6)
            found = pairing.unit_map(a, power=power)
            np.testing.assert_allclose(found, [q], atol=tolerance)
        for kind, expected in zip(DISTANCES[:3], distances, strict=True):
            found = distance(*pair, kind=kind, power=power)
            np.testing.assert_allclose(found, [expected], atol=tolerance)


@pytest.mark.parametrize("precise", [True, False])
def test_worked_example_of_logits(precise):
    with jax.enable_x64(precise):
        clean, adv = jnp.array([[2.0, 0.0, -1.0]]), jnp.array([[1.0, 1.0, -1.0]])
        y, tolerance = jnp.array([0]), 1e-6 if precise else 1e-5
        values = dict(mse=0.666667, sq=2, l2=1.414214)
        for kind in LOGIT_DISTANCES:
            expected, found = (
                values[kind],
                pairing.logit_distance(clean, adv, kind=kind),
            )
            np.testing.assert_allclose(found, [expected], atol=tolerance)
        for smoothing, expected in (
            (0.0, (0.169846, 0.758624)),
            (0.1, (0.336513, 0.825290)),
        ):
            for logits, value in zip((clean, adv), expected, strict=True):
                found = objectives.cross_entropy(logits, y, smoothing)
                np.testing.assert_allclose(found, [value], atol=tolerance)


@pytest.mark.parametrize("kind", LOGIT_DISTANCES)
def test_logit_distances_are_the_equations(kind):
    z, moved = RNG.normal(size=(2, 5, 7))
    expected = [apart(*pair, kind) for pair in zip(z, moved, strict=True)]
    with jax.enable_x64(True):
        found = pairing.logit_distance(*wide(z, moved), kind=kind)
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    low, moved_low = (jnp.asarray(a, jnp.bfloat16) for a in (z, moved))
    found = pairing.logit_distance(low, moved_low, kind=kind)
    assert found.dtype == jnp.float32
    as_float32 = low.astype(jnp.float32), moved_low.astype(jnp.float32)
    same = pairing.logit_distance(*as_float32, kind=kind)
    np.testing.assert_array_equal(found, same)


def all_distances(one, other):
    """[kinds of map, distances, B]."""
    return jnp.stack(
        [
            distance(one, other, kind=kind, map_kind=map_kind, power=power)
            for map_kind, power in zip(MAP_KINDS, (2.0, 1.5, 4.0), strict=True)
            for kind in DISTANCES
        ]
    ).reshape(len(MAP_KINDS), len(DISTANCES), -1)


compiled_distances = jax.jit(all_distances)


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**32 - 1),
    scale=st.floats(0.1, 1e6),
    order=st.permutations(range(6)),
    signs=st.lists(st.sampled_from([-1.0, 1.0]), min_size=6, max_size=6),
)
def test_scales_signs_and_channels_are_not_seen(seed, scale, order, signs):
    rng = np.random.default_rng(seed)
    one, other = rng.normal(size=(2, 2, 3, 2, 6)) * (rng.random((2, 2, 3, 2, 6)) < 0.8)
    one[:, 0, 0, 0] = other[:, 0, 0, 0] = 1.0
    with jax.enable_x64(True):
        found = compiled_distances(*wide(one, other))
        scales = np.array([scale, 1.0]).reshape(2, 1, 1, 1)
        for changed in (other * scales, other[..., order], other * np.array(signs)):
            same = compiled_distances(*wide(one, changed))
            np.testing.assert_allclose(same, found, rtol=1e-9, atol=1e-13)
        l2, sq = found[:, 0], found[:, 1]
        assert (sq >= 0).all()
        assert (sq <= 2 + 1e-12).all()
        assert (l2 <= math.sqrt(2) + 1e-12).all()
        np.testing.assert_allclose(l2**2, sq, rtol=1e-9, atol=1e-13)
        q, r = (pairing.unit_map(a) for a in wide(one, other))
        cosine = (q * r).sum(1) / jnp.linalg.norm(q, axis=1)
        cosine = cosine / jnp.linalg.norm(r, axis=1)
        np.testing.assert_allclose(sq[0], 2 - 2 * cosine, atol=1e-12)


@every_map
@every_distance
def test_identical_maps_cost_nothing_and_pull_nowhere(map_kind, kind):
    dark = jnp.asarray(ONE, jnp.float32).at[1].set(0.0)
    for power in (0.5, *POWERS[:3]):
        total = lambda a, b, p=power: distance(
            a, b, kind=kind, map_kind=map_kind, power=p
        ).sum()
        value, grads = jax.value_and_grad(total, (0, 1))(dark, dark)
        assert value == 0
        for grad in grads:
            np.testing.assert_array_equal(grad, np.zeros_like(grad))


@pytest.mark.parametrize("kind", LOGIT_DISTANCES)
def test_identical_logits_cost_nothing_and_pull_nowhere(kind):
    z = jnp.asarray(RNG.normal(size=(3, 4)), jnp.float32)
    total = lambda a, b: pairing.logit_distance(a, b, kind=kind).sum()
    value, grads = jax.value_and_grad(total, (0, 1))(z, z)
    assert value == 0
    assert not any(grad.any() for grad in grads)


@every_map
@pytest.mark.parametrize("floor", [1e-12, 0.0])
def test_a_dark_map_stays_dark(map_kind, floor):
    dark, lit = jnp.zeros((3, 4, 5, 6)), jnp.asarray(np.abs(OTHER), jnp.float32)
    for power in (0.5, *POWERS[:3]):
        how = dict(power=power, floor=floor)
        assert not pairing.unit_map(dark, kind=map_kind, **how).any()
        for kind, expected in (("l2", 1.0), ("sq", 1.0), ("mse", 1 / 20)):
            total = lambda a, b, kind=kind, how=how: distance(
                a, b, kind=kind, map_kind=map_kind, **how
            ).sum()
            value, (grad, pull) = jax.value_and_grad(total, (0, 1))(dark, lit)
            assert value == pytest.approx(3 * expected, rel=1e-5)
            assert not grad.any()
            assert np.isfinite(pull).all()


@every_map
@pytest.mark.parametrize("power", [0.5, *POWERS])
@pytest.mark.parametrize("scale", [1e-20, 1e15])
def test_tiny_and_huge_activations_in_float32(map_kind, power, scale):
    a = (ONE * scale).astype(np.float32)
    for floor in (1e-12, 0.0):
        found = pairing.unit_map(
            jnp.asarray(a), kind=map_kind, power=power, floor=floor
        )
        expected = [unit(np.float64(m), map_kind, power, floor) for m in a]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
        grad = jax.grad(
            lambda a, floor=floor: (
                pairing.unit_map(a, kind=map_kind, power=power, floor=floor).sum()
                / scale
            )
        )(jnp.asarray(a))
        assert not np.isnan(grad).any()


@every_map
@pytest.mark.parametrize("power", [1.5, 2.0])
def test_floor_below_which_maps_fade(map_kind, power):
    a = SMOOTH[0] * np.array([1e-3, 1.0, 1e3]).reshape(3, 1, 1, 1)
    floor = 300.0**power
    expected = np.array([unit(m, map_kind, power, floor) for m in a])
    lengths = np.linalg.norm(expected, axis=1)
    assert (lengths[:2] < 0.99).all()
    assert lengths[2] == pytest.approx(1)
    weights, direction = np.random.default_rng(1).normal(size=(2, *a.shape))
    with jax.enable_x64(True):
        q = lambda a: pairing.unit_map(a, kind=map_kind, power=power, floor=floor)
        np.testing.assert_allclose(q(jnp.asarray(a)), expected, rtol=1e-10)
        total = lambda a: (weights[..., 0].reshape(3, -1) * q(a)).sum()
        grad, h = jax.grad(total)(jnp.asarray(a)), 1e-6
        slope = (total(a + h * a * direction) - total(a - h * a * direction)) / (2 * h)
        np.testing.assert_allclose((grad * a * direction).sum(), slope, rtol=1e-6)


@every_map
@pytest.mark.parametrize("power", POWERS[:3])
def test_gradients_are_finite_differences(map_kind, power):
    with jax.enable_x64(True):
        one, other = wide(*SMOOTH)
        direction = np.random.default_rng(2).normal(size=one.shape) * SMOOTH[1]
        for kind in DISTANCES:
            total = lambda a, kind=kind: distance(
                one, a, kind=kind, map_kind=map_kind, power=power
            ).sum()
            grad, h = jax.grad(total)(other), 1e-6
            slope = total(other + h * direction) - total(other - h * direction)
            inner = (grad * direction).sum()
            np.testing.assert_allclose(inner, slope / (2 * h), rtol=1e-6, atol=1e-9)


def test_low_precision_computes_in_float32():
    low = [jnp.asarray(a, jnp.bfloat16) for a in (ONE, OTHER)]
    as_float32 = [a.astype(jnp.float32) for a in low]
    for kind in DISTANCES:
        found = distance(*low, kind=kind, power=4.0)
        assert found.dtype == jnp.float32
        np.testing.assert_array_equal(
            found, distance(*as_float32, kind=kind, power=4.0)
        )
    assert pairing.attention_map(low[0], power=4.0).dtype == jnp.float32
    half = jnp.full((1, 1, 1, 1), 300.0, jnp.float16)  # 300^4 is too much for it
    assert pairing.attention_map(half, power=4.0).item() == pytest.approx(300.0**4)


def test_jit_and_vmap_agree_with_eager():
    one, other = (jnp.asarray(a, jnp.float32) for a in (ONE, OTHER))
    eager = all_distances(one, other)
    np.testing.assert_allclose(compiled_distances(one, other), eager, atol=1e-6)
    single = lambda a, b: all_distances(a[None], b[None])[..., 0]
    found = jax.jit(jax.vmap(single, out_axes=-1))(one, other)
    np.testing.assert_allclose(found, eager, atol=1e-6)


def test_what_is_no_number_stays_none():
    a = jnp.asarray(ONE, jnp.float32)
    broken = a.at[0, 0, 0, 0].set(jnp.nan).at[1, 0, 0, 0].set(jnp.inf)
    found = all_distances(a, broken)
    assert np.isnan(found[..., :2]).all()
    assert np.isfinite(found[..., 2]).all()
    z = jnp.full((1, 3), jnp.nan)
    for kind in LOGIT_DISTANCES:
        assert np.isnan(pairing.logit_distance(z, jnp.zeros((1, 3)), kind=kind))


MAPS, FEATURES = jnp.ones((2, 3, 3, 4)), jnp.ones((2, 4))
BAD_CALLS = {
    "features": (lambda: pairing.attention_map(FEATURES), r"`a` .*\(2, 4\)"),
    "features, unit": (lambda: pairing.unit_map(FEATURES), r"\[B, H, W, C\]"),
    "features, distance": (lambda: distance(FEATURES, FEATURES), r"\[B, H, W, C\]"),
    "map kind": (lambda: pairing.attention_map(MAPS, kind=WRONG), "'sum', 'mean'"),
    "power": (lambda: pairing.unit_map(MAPS, power=0.0), r"`power` .*0\.0"),
    "floor": (lambda: pairing.unit_map(MAPS, floor=-1.0), r"`floor` .*-1\.0"),
    "distance": (lambda: distance(MAPS, MAPS, kind=WRONG), "'l2', 'sq', 'mse', 'l1'"),
    "positions": (
        lambda: pairing.map_distance(FEATURES, jnp.ones((2, 5))),
        r"`one` \(2, 4\), `other` \(2, 5\)",
    ),
    "sides": (
        lambda: distance(MAPS, jnp.ones((2, 3, 2, 4))),
        r"'layer' .*\(3, 3\) and \(3, 2\)",
    ),
    "layers": (
        lambda: pairing.attention_distance({"a": MAPS}, {"b": MAPS}),
        r"\['a'\] and \['b'\]",
    ),
    "no layers": (lambda: pairing.attention_distance({}, {}), "at least one"),
    "classes": (
        lambda: pairing.logit_distance(FEATURES, jnp.ones((2, 3))),
        r"`one` \(2, 4\), `other` \(2, 3\)",
    ),
    "logit distance": (
        lambda: pairing.logit_distance(FEATURES, FEATURES, kind=WRONG),
        "'mse', 'sq', 'l2'; got 'cosine'",
    ),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_errors_name_the_argument_the_value_and_the_fix(name):
    call, message = BAD_CALLS[name]
    with pytest.raises(InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_channels_may_differ():
    """A teacher's maps have channels of their own."""
    assert distance(MAPS, jnp.ones((2, 3, 3, 9))).tolist() == [0.0, 0.0]
