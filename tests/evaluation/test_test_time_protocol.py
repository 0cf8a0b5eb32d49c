"""What a test-time defense adds: on points of both models, by vote, at what cost."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from robustjax import InputError, attacks, threats, training
from robustjax._gradients import loop_safe
from robustjax.data import Dataset
from robustjax.evaluation import (
    NamedAttack,
    beside_bare,
    evaluate,
    inference_cost,
    judge_test_time,
    multiply_adds,
    summarise_test_time,
    tango_interval,
    wilson_interval,
)

RNG = np.random.default_rng(0)
SHADES = RNG.uniform(0.2, 0.6, 80).astype(np.float32)
IMAGES = SHADES.reshape(80, 1, 1, 1)
LABELS = (SHADES > 0.5).astype(np.int32)
DATA = Dataset(IMAGES, LABELS, np.arange(80), ("dark", "bright"))
EPS = 0.1
FGSM = attacks.fgsm(threats.linf(EPS))
ONE = training.data_mesh(jax.devices()[:1])
KEY = 3


def base(z):
    """Darker than the classes are: at 0.35, not at 0.5."""
    z = z.reshape(-1, 1) - 0.35
    return jnp.concatenate([-z, z], axis=1)


def quantised(z):
    return jnp.round(20 * z) / 20


def moved(z):
    """A defense that helps: it moves the boundary to where it belongs."""
    return base(z - 0.15)


def judge(defended, adaptive, **options):
    first = [NamedAttack("FGSM", FGSM)]
    given = dict(key=jax.random.key(KEY), mesh=ONE) | options
    return judge_test_time(defended, base, DATA, first, adaptive, **given)


def survivors(boundary, eps=EPS):
    low, high = SHADES - eps, SHADES + eps
    return np.where(LABELS == 1, low > boundary, high < boundary)


def test_a_defense_that_hides_gradients_adds_nothing():
    masked = lambda z: base(quantised(z))
    bpda = lambda z: base(attacks.with_surrogate(quantised)(z))
    through = [
        NamedAttack("end to end", FGSM),
        NamedAttack("BPDA", FGSM, source=bpda),
    ]
    found = judge(masked, through)
    rows = {row["name"]: row for row in found["rows"]}
    # Its own gradient is zero, so that attack sees the clean accuracy.
    assert rows["end to end"]["defended"] == found["defended"]["clean"]
    assert found["transferred"] < found["defended"]["clean"] - 0.1
    assert found["defended"]["worst_case"] <= found["transferred"]
    assert rows["static model, FGSM"]["on"] == "static model"
    assert rows["BPDA"]["on"] == "defense"
    worst = survivors(0.35)
    assert found["base"]["own"] == pytest.approx(worst.mean())
    assert found["base"]["worst_case"] <= found["base"]["own"]
    low, high = found["base"]["interval"]
    assert (low, high) == wilson_interval(found["base"]["worst_case"] * 80, 80)
    gain = found["defended"]["worst_case"] - found["base"]["worst_case"]
    assert found["gain"] == pytest.approx(gain)
    assert found["flagged"] == (gain <= 0)
    assert found["majority"] is None
    json.dumps(found, allow_nan=False)


def test_a_defense_that_is_its_model_is_flagged():
    found = judge(lambda z: 2 * base(z), [NamedAttack("PGD", FGSM)])
    assert found["gain"] == 0
    low, high = found["gain_interval"]
    assert low < 0 < high  # images that do not differ are no proof that none does
    assert found["flagged"]
    assert "no better than its static model" in found["warning"]
    assert found["base"]["from_defended"] == found["base"]["worst_case"]


def test_a_defense_that_helps_is_not_flagged():
    found = judge(moved, [NamedAttack("PGD", FGSM)])
    before, after = survivors(0.35), survivors(0.5)
    assert found["gain"] == pytest.approx(after.mean() - before.mean())
    only, lost = int((after & ~before).sum()), int((before & ~after).sum())
    assert found["gain_interval"] == pytest.approx(tango_interval(only, lost, 80))
    assert not found["flagged"]
    assert (found["warning"] is None) == (found["gain_interval"][0] > 0)


def test_a_random_defense_is_judged_by_shares_and_by_votes():
    def noisy(keys, z):
        noise = jax.vmap(lambda key: jax.random.normal(key, z.shape[1:]))(keys)
        return base(z + 0.04 * noise)

    judged = attacks.expectation(Partial(noisy), jax.random.key(1), 9)
    source = attacks.expectation(Partial(noisy), jax.random.key(2), 4)
    found = judge(judged, [NamedAttack("EOT", FGSM, source=source)])
    majority = found["majority"]
    assert majority["forwards"] == 9
    assert [row["name"] for row in majority["rows"]] == ["static model, FGSM", "EOT"]
    answers = np.asarray(judged(jnp.asarray(IMAGES)).argmax(axis=2))
    most = (answers.mean(axis=0) > 0.5).astype(int)
    assert majority["clean"] == pytest.approx((most == LABELS).mean())
    # The vote of nine is right where noise is small beside the distance to 0.35.
    assert abs(majority["worst_case"] - survivors(0.35).mean()) < 0.15
    assert 0 < found["defended"]["worst_case"] < 1
    # An answer is one draw: nine of them are not nine times the price.
    assert found["cost"]["work_ratio"] is None  # this model multiplies nothing
    json.dumps(found, allow_nan=False)


def test_the_summary_agrees_with_the_rows_beside_the_bare_model():
    attacked = [
        NamedAttack("first", FGSM, source=base),
        NamedAttack("second", FGSM),
        NamedAttack("wide", attacks.fgsm(threats.linf(0.5)), counts=False),
    ]
    result = evaluate(
        *(moved, DATA, attacked),
        key=jax.random.key(0),
        keep_adversarial=True,
        mesh=ONE,
    )
    found = summarise_test_time(
        result, DATA, moved, base, on_base=["first"], batch_size=17, mesh=ONE
    )
    known = {r["name"]: r for r in beside_bare(result, DATA, base, mesh=ONE)["rows"]}
    for row in found["rows"]:
        assert row["base"] == known[row["name"]]["bare"]
        assert row["defended"] == known[row["name"]]["defended"]
    worst = known["worst case"]
    assert found["base"]["worst_case"] == worst["bare"] > 0
    assert found["defended"]["worst_case"] == worst["defended"] > 0
    assert found["base"]["clean"] == known["clean"]["bare"]


def test_work_is_counted_in_loops_and_gradients():
    weights = jnp.ones((3, 3, 2, 4))
    x = jnp.ones((5, 8, 8, 2))

    def convolved(z):
        return jax.lax.conv_general_dilated(
            z, weights, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        ).mean(axis=(1, 2))

    once = 5 * 8 * 8 * 4 * 3 * 3 * 2
    assert multiply_adds(convolved, x) == once
    assert multiply_adds(loop_safe(convolved), x) == once  # a sum of shifts by now

    def steps(z):
        climb = jax.grad(lambda z: (convolved(z) ** 2).sum())
        moved = jax.lax.scan(lambda z, _: (z + climb(z), None), z, length=10)[0]
        return convolved(moved)

    # A gradient is one pass forward and one backward, of the same size.
    assert multiply_adds(steps, x) == pytest.approx(21 * once, rel=0.01)
    dense = lambda z: z.reshape(5, -1) @ jnp.ones((128, 7))
    program = jax.jit(dense).lower(x).compile()
    assert 2 * multiply_adds(dense, x) == program.cost_analysis()["flops"]
    cost = inference_cost(steps, convolved, x, repeats=2)
    assert cost["work_ratio"] == pytest.approx(21, rel=0.01)
    assert cost["multiply_adds"]["base"] == once / 5
    assert cost["time_ratio"] > 0
    drawn = lambda z: jnp.stack([convolved(z + shift) for shift in range(6)])
    assert inference_cost(drawn, convolved, x, repeats=1)["work_ratio"] == 1


def test_input_that_does_not_fit_says_so():
    named = [NamedAttack("PGD", FGSM)]
    with pytest.raises(InputError, match="`adaptive_attacks` must hold at least one"):
        judge(moved, [])
    with pytest.raises(InputError, match="different names"):
        judge(moved, named * 2)
    result = evaluate(
        moved, DATA, named, key=jax.random.key(0), keep_adversarial=True, mesh=ONE
    )
    with pytest.raises(InputError, match=r"`on_base` must name .* got \['FGSM'\]"):
        summarise_test_time(result, DATA, moved, base, on_base=["FGSM"])
    with pytest.raises(InputError, match="attacks on either side"):
        summarise_test_time(result, DATA, moved, base, on_base=["PGD"])


def test_attacks_on_the_static_model_may_have_a_source_of_their_own():
    hidden = lambda z: base(quantised(z))
    bpda = lambda z: base(attacks.with_surrogate(quantised)(z))
    adaptive = [NamedAttack("through", FGSM, source=bpda)]
    own = {}
    for name, source in (("none", None), ("bpda", bpda)):
        first = [NamedAttack("FGSM", FGSM, source=source)]
        found = judge_test_time(
            hidden, hidden, DATA, first, adaptive, key=jax.random.key(KEY), mesh=ONE
        )
        own[name] = found["base"]["own"]
    assert own["bpda"] < own["none"]
