"""What no classifier exceeds, and that knowing more must not do less."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustjax import attacks, evaluation, threats
from robustjax.config.at_alp_suites import at_alp_paper
from robustjax.data import Dataset
from robustjax.evaluation.limits import (
    by_access,
    class_prior,
    disagreements,
    has_constant_solution,
    inconsistencies,
)

RNG = np.random.default_rng(0)
X = RNG.random((24, 4, 4, 1), dtype=np.float32)
Y = np.int32([0] * 10 + [1] * 8 + [2] * 6)
DATA = Dataset(X, Y, np.arange(24), ("a", "b", "c"))
BALL = {"name": "linf", "eps": 0.5, "bounds": [0.0, 1.0]}


def named(name, eps, **more):
    threat = {"name": "linf", "eps": eps, "bounds": [0.0, 1.0]}
    attack = getattr(attacks, name)(threats.linf(eps))
    parameters = {"name": name, "threat": threat} | more
    return evaluation.NamedAttack(name, attack, parameters)


def judged(logits_fn, *chosen):
    return evaluation.evaluate(logits_fn, DATA, chosen, key=jax.random.key(0))


def test_at_half_the_range_one_image_is_legal_for_all():
    x_adv = attacks.grey(threats.linf(0.5))(
        jax.random.key(0), lambda z: z.reshape(len(z), -1), jnp.asarray(X), Y
    )
    np.testing.assert_array_equal(x_adv, np.full_like(X, 0.5))


@given(st.integers(0, 2**31))
def test_no_classifier_exceeds_the_largest_class_under_it(seed):
    weights = jax.random.normal(jax.random.key(seed), (16, 3)) * 10
    logits_fn = lambda z: jnp.sin(9 * z.reshape(len(z), -1)) @ weights
    x_adv = attacks.grey(threats.linf(0.5))(
        jax.random.key(0), logits_fn, jnp.asarray(X), jnp.asarray(Y)
    )
    accuracy = np.mean(np.asarray(logits_fn(x_adv)).argmax(axis=1) == Y)
    assert accuracy <= class_prior(Y) == 10 / 24


@pytest.mark.parametrize(
    ("parameters", "limited"),
    [
        ({"threat": BALL}, True),
        ({"threat": BALL | {"eps": 0.499}}, False),
        ({"threat": BALL | {"eps": "inf"}}, True),
        ({"threat": BALL | {"name": "l2"}}, False),
        ({"threat": BALL | {"bounds": [-1.0, 1.0]}}, False),
        ({"threat": BALL | {"bounds": [-1.0, 1.0], "eps": 1.0}}, True),
        ({"threat": {"name": "linf", "eps": 0.5}}, True),
        ({"attack": {"threat": BALL}}, True),
        ({"attacks": [{"threat": BALL | {"eps": 0.1}}, {"threat": BALL}]}, True),
        ({"start": {"threat": BALL}, "attack": {"name": "none"}}, True),
        ({"name": "stadv"}, False),
        ({"threat": "linf"}, False),
        ({"threat": threats.linf(0.5)}, True),
        ({"threat": threats.l2(0.5)}, False),
        ({"threat": BALL | {"eps": "8/255"}}, False),
        ({"attack": "pgd", "start": 3, "attacks": ["a", {"threat": BALL}]}, True),
    ],
)
def test_where_one_image_is_within_reach_of_all(parameters, limited):
    assert has_constant_solution(parameters) is limited


def test_reports_show_the_limit_and_doubt_what_exceeds_it():
    memory = jnp.asarray(X).reshape(24, -1)

    def knows_them_all(z):  # sign noise leaves the nearest image what it was
        apart = jnp.square(z.reshape(len(z), 1, -1) - memory[None]).sum(axis=2)
        return jax.nn.one_hot(jnp.asarray(Y)[apart.argmin(axis=1)], 3) * 9 - 4

    weak = dataclasses.replace(named("uniform_noise", 0.5), name="weak")
    summary = evaluation.summarise(judged(knows_them_all, named("grey", 0.1), weak))
    rows = {row["name"]: row for row in summary["rows"]}
    assert "limit" not in rows["clean"]
    assert "limit" not in rows["grey"]
    assert rows["weak"]["limit"] == rows["worst case"]["limit"] == 10 / 24
    assert rows["weak"]["accuracy"] > 10 / 24
    assert any(w.startswith("weak: ") and "41.67%" in w for w in summary["warnings"])
    head, *lines = evaluation.table(summary).splitlines()
    assert "limit of any classifier" in head
    assert "41.67%" in lines[-1]
    assert "41.67%" not in lines[1]


def test_without_a_large_radius_no_limit_is_shown():
    summary = evaluation.summarise(
        judged(lambda z: z.reshape(len(z), -1)[:, :3], named("grey", 0.1))
    )
    assert "limit" not in evaluation.table(summary)


def test_access_is_the_worst_case_of_each_kind():
    logits_fn = lambda z: z.reshape(len(z), -1)[:, :3] * 9
    white = named("fgsm", 0.05)
    gray = dataclasses.replace(named("fgsm", 0.2, access="gray"), name="gray")
    black = dataclasses.replace(named("fgsm", 0.1, access="black"), name="black")
    free = dataclasses.replace(named("fgsm", 0.9), name="free", counts=False)
    result = judged(logits_fn, white, gray, black, free)
    right = {a.name: a.correct & result.clean_correct for a in result.attacks}
    found = by_access(result)
    assert found == {
        "white": right["fgsm"].mean(),
        "gray": right["gray"].mean(),
        "black": right["black"].mean(),
    }
    lines = inconsistencies(found)
    assert len(lines) == 2  # white above gray and above black; gray below black is well
    summary = evaluation.summarise(result)
    assert summary["access"] == found
    assert set(lines) <= set(summary["warnings"])


def test_consistent_accuracies_say_nothing():
    assert not inconsistencies({"white": 0.3, "gray": 0.3, "black": 0.5})
    assert not inconsistencies({"black": 0.5})
    assert len(inconsistencies({"white": 0.3, "black": 0.2})) == 1


def test_radii_that_do_not_count_are_compared_among_themselves():
    logits_fn = lambda z: z.reshape(len(z), -1)[:, :3] * 9
    weak = dataclasses.replace(named("fgsm", 0.01), name="weak", counts=False)
    threat = weak.parameters["threat"]
    gray = evaluation.NamedAttack(
        "gray",
        attacks.fgsm(threats.linf(0.9)),
        {"name": "transfer", "threat": threat, "access": "gray"},
        counts=False,
    )
    sure = named("fgsm", 0.9)  # at another radius: no excuse for the weak one
    (line,) = disagreements(judged(logits_fn, weak, gray, sure))
    assert line.startswith("at linf 0.01: white-box attacks leave")


def test_the_rows_of_the_papers_suite_are_compared_at_both_radii():
    """As its blocks are: a ball inside restarts, and inside what is transferred."""
    threat = {"name": "linf", "eps": 0.03, "bounds": (0.0, 1.0)}
    blocks = at_alp_paper(dict(threat=threat, step_size=0.01, gray="runs/a"))
    rows = []
    for block in blocks:
        eps = 0.01 if block.get("access") is None else 0.9
        told = dict(name=block["label"], parameters=block, counts=block["counts"])
        rows.append(dataclasses.replace(named("fgsm", eps), **told))
    logits_fn = lambda z: z.reshape(len(z), -1)[:, :3] * 9
    result = judged(logits_fn, *rows)
    lines = disagreements(result)
    assert len(lines) == 2
    assert lines[0].startswith("white-box attacks leave")
    assert lines[1].startswith("at linf 0.25: white-box attacks leave")
    summary = evaluation.summarise(result)
    assert set(summary["access_elsewhere"]) == {"linf 0.25"}
    assert {one.get("at") for one in summary["surrogates"]} == {None, "linf 0.25"}
    text = evaluation.report_markdown(*evaluation.compose(summary, context={}))
    assert "white-box at linf 0.25 (not counted)" in text


@pytest.mark.parametrize(
    "start",
    [
        {"name": "transfer"},
        {"name": "strongest", "attacks": [{"name": "fgsm"}, {"name": "transfer"}]},
        {"name": "restarts", "attack": {"name": "transfer"}},
    ],
)
def test_what_asks_no_model_and_what_goes_on_from_transfer_is_nobodys(start):
    logits_fn = lambda z: z.reshape(len(z), -1)[:, :3] * 9
    reused = dataclasses.replace(
        named("fgsm", 0.9), name="reused", parameters={"name": "x", "start": start}
    )
    result = judged(logits_fn, named("grey", 0.5), reused)
    assert by_access(result) == {}
    assert not disagreements(result)
