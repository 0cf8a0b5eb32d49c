"""Who broke what, and how: against plain loops over images."""

import dataclasses
import functools
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustjax import InputError, attacks, evaluation, threats
from robustjax.evaluation import (
    _verdict,
    training_history,
    weights_by_class,
)
from robustjax.evaluation._breakdown import (
    confusion,
    histogram,
    mistakes,
    paths,
    waterfall,
)
from robustjax.evaluation._parameters import MODEL_FREE, QUERIES
from robustjax.evaluation._style import short
from robustjax.evaluation._verdict import adaptive_rows, threat_in_words
from robustjax.evaluation.results import AttackResult, Robustness

LINF = {"name": "linf", "eps": 0.1, "bounds": [0.0, 1.0]}


def outcome(name, correct, **more):
    start = dict(parameters={"name": "pgd", "threat": LINF}, distance={}, lowest=0.0)
    start |= dict(highest=1.0, mass_above_one=0.0, seconds=1.0)
    return AttackResult(name=name, correct=np.asarray(correct), **(start | more))


def robustness(labels, clean, *found, **more):
    labels = np.asarray(labels, np.int32)
    about = dict(index=np.arange(len(labels)), labels=labels, clean_seconds=0.1)
    return Robustness(clean_correct=np.asarray(clean), attacks=found, **about, **more)


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(0, 4))
def test_the_waterfall_counts_each_image_once(seed, number, count):
    rng = np.random.default_rng(seed)
    clean, *rest = rng.random((count + 1, number)) > 0.4
    counted = rng.random(count) > 0.3
    found = [outcome(f"a{i}", r, counts=bool(counted[i])) for i, r in enumerate(rest)]
    result = robustness(np.zeros(number), clean, *found)
    alive = set(range(number))
    expected = []
    rows = [("clean", clean)]
    rows += [(f"a{i}", r) for i, r in enumerate(rest) if counted[i]]
    for name, right in rows:
        fell = {i for i in alive if not right[i]}
        alive -= fell
        expected.append((name, len(fell), len(alive) / number))
    steps = waterfall(result)
    assert [(s["attack"], s["broken"]) for s in steps] == [e[:2] for e in expected]
    np.testing.assert_allclose([s["accuracy"] for s in steps], [e[2] for e in expected])
    assert steps[-1]["accuracy"] == pytest.approx(result.worst_case_correct.mean())


def test_the_waterfall_of_a_random_classifier_ends_at_its_worst_case():
    rng = np.random.default_rng(0)
    clean, one, two = rng.random((3, 20)).astype(np.float32)
    found = (outcome("a", one, seen=one), outcome("b", two, seen=two))
    result = robustness(np.zeros(20), clean, *found, clean_seen=clean, draws=30)
    steps = waterfall(result)
    assert steps[-1]["accuracy"] == pytest.approx(result.worst_case_correct.mean())
    total = sum(step["broken"] for step in steps) / 20
    assert total == pytest.approx(1 - result.worst_case_correct.mean(), abs=1e-4)


def test_confusion_is_that_of_the_worst_point():
    result = robustness(
        [0, 1, 2, 2],
        [True, False, True, True],
        outcome("a", [True, True, False, True], predicted=np.int32([0, 1, 0, 2])),
        outcome("b", [False, False, False, True], predicted=np.int32([2, 0, 1, 2])),
        outcome("c", [False] * 4, predicted=np.int32([1] * 4), counts=False),
        clean_predicted=np.int32([0, 2, 2, 2]),
    )
    # 0 falls to b as 2; 1 is wrong already, as 2; the first 2 falls to a as 0.
    assert confusion(result) == [[0, 0, 1], [0, 0, 1], [1, 0, 1]]
    unknown = dataclasses.replace(result.attacks[0], predicted=None)
    assert confusion(dataclasses.replace(result, attacks=(unknown,))) is None
    assert confusion(dataclasses.replace(result, clean_predicted=None)) is None


def test_paths_are_quantiles_over_images_that_are_right():
    rng = np.random.default_rng(1)
    losses = rng.normal(size=(7, 5))
    losses[2, 3] = np.nan
    broken = rng.random((7, 5)) > 0.7
    clean = np.arange(7) > 0
    result = robustness(
        np.zeros(7), clean, outcome("a", clean, losses=losses, broken_along=broken)
    )
    (found,) = paths(result)
    assert found["steps"] == [1, 2, 3, 4, 5]
    for step in range(5):
        kept = sorted(v for v in losses[1:, step] if v == v)
        assert found["mean"][step] == pytest.approx(sum(kept) / len(kept))
        assert found["low"][step] <= found["median"][step] <= found["high"][step]
        middle = len(kept) // 2
        median = (
            kept[middle] if len(kept) % 2 else (kept[middle - 1] + kept[middle]) / 2
        )
        assert found["median"][step] == pytest.approx(median)
        ever = [row[: step + 1].any() for row in broken[1:]]
        assert found["broken"][step] == pytest.approx(np.mean(ever))
    assert "halvings" not in found


@pytest.mark.parametrize("steps", [1, 30, 400])
def test_long_paths_are_thinned_but_keep_their_ends(steps):
    losses = np.tile(np.arange(steps, dtype=float), (3, 1))
    result = robustness(
        np.zeros(3), [True] * 3, outcome("a", [True] * 3, losses=losses)
    )
    (found,) = paths(result)
    assert len(found["steps"]) == min(steps, 100)
    assert (found["steps"][0], found["steps"][-1]) == (1, steps)
    assert (found["mean"][0], found["mean"][-1]) == (0, steps - 1)
    assert "broken" not in found


def test_losses_without_a_number_leave_a_gap():
    losses = np.full((2, 3), np.nan)
    result = robustness(
        [0, 0], [False, False], outcome("a", [False] * 2, losses=losses)
    )
    (found,) = paths(result)
    assert found["median"] == [None] * 3


def test_halvings_are_those_that_apgd_made():
    """Read off the losses alone, against the step sizes of the climb itself."""
    eps, total = 0.05, 30
    w = jax.random.normal(jax.random.key(0), (6, 4))
    logits_fn = lambda z: (
        jnp.tanh(9 * z @ w) @ jnp.cos(jnp.outer(jnp.arange(4.0), jnp.arange(3.0)))
    )
    x = jax.random.uniform(jax.random.key(1), (16, 6))
    y = logits_fn(x).argmax(axis=1)
    attack = attacks.apgd(threats.linf(eps), num_steps=total)
    state = jax.jit(lambda: attack.init(jax.random.key(2), logits_fn, x, y))()
    step = jax.jit(lambda state: attack.step(state, logits_fn, x, y))
    losses, sizes = [], []
    for _ in range(total):
        state = step(state)
        losses.append(np.asarray(state.value))
        sizes.append(np.asarray(state.step_size))
    fell = np.diff(np.stack([np.full(16, 2 * eps, np.float32), *sizes]), axis=0) < 0
    expected = [(int(t) + 1, fell[t].mean()) for t in np.flatnonzero(fell.any(axis=1))]
    parameters = {"name": "apgd", "threat": LINF | {"eps": eps}, "rho": 0.75}
    walked = outcome(
        "a", [True] * 16, losses=np.stack(losses, 1), parameters=parameters
    )
    (found,) = paths(robustness(np.zeros(16), [True] * 16, walked))
    made = [(h["step"], h["share"]) for h in found["halvings"] if h["share"] > 0]
    assert len(expected) > 2
    assert made == expected


def test_histograms_count_every_image():
    norms = np.array([0.0, 0.0, 0.1, 0.4, 0.4, np.inf])
    found = histogram(norms)
    assert sum(found["counts"]) + found["wrong"] + found["unbroken"] == len(norms)
    assert (found["wrong"], found["unbroken"]) == (2, 1)
    assert found["edges"][0] == 0
    assert found["edges"][-1] == pytest.approx(0.4)
    empty = histogram(np.array([np.inf]))
    assert sum(empty["counts"]) == 0
    assert json.loads(json.dumps(empty)) == empty


# --- the verdict --------------------------------------------------------------------


def row(name, parameters, **more):
    return dict(name=name, parameters=parameters, **more)


def test_the_threat_is_what_all_attacks_that_count_have():
    inside = {"name": "restarts", "attack": {"name": "pgd", "threat": LINF}}
    both = [row("a", {"threat": LINF}), row("b", inside), dict(name="worst case")]
    threat_of = functools.partial(_verdict.threat_of, context={})
    assert threat_of(both) == LINF
    wider = row("c", {"threat": LINF | {"eps": 0.3}})
    assert threat_of([*both, wider]) == LINF | {"eps": 0.3}
    free = {"threat": {"name": "l2", "eps": "inf"}}
    assert threat_of([*both, row("d", free, counts=False)]) == LINF
    assert threat_of([*both, row("d", free)]) is None
    assert threat_of([]) is None
    assert _verdict.threat_of([], {"threat": LINF}) == LINF
    assert _verdict.threat_of([*both, row("d", free)], {"threat": LINF}) is None


@given(st.integers(0, 2**32 - 1), st.integers(2, 6))
def test_the_most_frequent_mistakes_come_first(seed, classes):
    counts = np.random.default_rng(seed).integers(0, 3, (classes, classes))
    found = mistakes(counts.tolist())
    listed = {(i, j): n for i, j, n in found}
    numbers = [n for *_, n in found]
    assert numbers == sorted(numbers, reverse=True)
    off = {(i, j) for i in range(classes) for j in range(classes) if i != j}
    wrong = {pair: counts[pair] for pair in off if counts[pair]}
    assert len(found) == min(20, len(wrong))
    assert all(wrong[pair] == n for pair, n in listed.items())


def test_what_went_beyond_the_threat_model_is_named():
    def moved(name, linf, pixels=(0.0, 1.0), **more):
        distance = dict(linf=np.array([0.0, linf]), l2=np.array([0.0, 9.0]))
        more |= dict(distance=distance, lowest=pixels[0], highest=pixels[1])
        return outcome(name, [True, True], **more)

    rows = [
        moved("within", 0.1 * (1 + 1e-6)),
        moved("far", 0.3),
        moved("left out", 0.3, counts=False),
        moved("bright", 0.1, (0.0, 1.2)),
    ]
    found = robustness([0, 1], [True, True], *rows)
    (line,) = evaluation.beyond(found, threats.linf(0.1))
    assert line.endswith("far (0.3); bright (pixels in [0, 1.2]).")
    found = robustness([0, 1], [True, True], rows[0])
    assert evaluation.beyond(found, threats.linf(0.1)) == []


@pytest.mark.parametrize(
    ("threat", "words"),
    [
        (
            {"name": "linf", "eps": 0.1},
            "each pixel moves by at most 0.1, pixels in [0, 1]",
        ),
        ({"name": "linf", "eps": 4 / 255}, "0.01569 (4/255)"),
        ({"name": "l2", "eps": 0.5}, "Euclidean norm of the change is at most 0.5"),
        ({"name": "l1", "eps": 12, "bounds": [-1, 1]}, "at most 12, pixels in [-1, 1]"),
        ({"name": "l2", "eps": "inf"}, "at most inf"),
        ({"name": "other", "eps": 1}, "other at most 1"),
        ({}, "nan"),
        (None, "several"),
    ],
)
def test_threats_in_words(threat, words):
    assert words in threat_in_words(threat)


def test_adaptive_attacks_climb_another_view():
    rows = [
        row("plain", {"view": None}),
        row("exact", {"view": {"gradient": "exact"}}),
        row("joint", {"perturb_templates": True}),
        dict(name="clean"),
    ]
    assert adaptive_rows(rows) == ["exact", "joint"]


def test_attacks_that_ignore_the_defense_are_not_adaptive():
    bare, through = {"transform": None}, {"transform": {}}
    pgd = {"name": "pgd"}
    rows = [
        row("bare", pgd | {"view": bare}),
        row("bare, restarted", {"name": "restarts", "attack": pgd, "view": bare}),
        row("queries", {"name": "square"}),  # of the defended model, which it ignores
        row("queries of draws", {"name": "square", "view": {"samples": 10}}),
        row("signs", {"name": "sign_noise", "view": through}),
        row(
            "noises", {"name": "restarts", "attack": {"name": "grey"}, "view": {"a": 1}}
        ),
    ]
    assert adaptive_rows(rows) == []
    rows += [
        row("end to end", {"name": "restarts", "attack": pgd, "view": through}),
        row("another head", pgd | {"view": bare | {"name": "linear"}}),
    ]
    assert adaptive_rows(rows) == ["end to end", "another head"]


def test_queries_are_the_attacks_of_the_table_that_make_no_gradients():
    table = Path(__file__).parents[2] / "docs" / "attacks.md"
    passes = r"^\| `(\w+)`(?:[^|]*\|){3} (?:about )?[\d,]+ / 0(?: \([^|]*)? \|"
    found = re.findall(passes, table.read_text(), re.MULTILINE)
    assert sorted(QUERIES) == sorted(set(found) - set(MODEL_FREE))


# --- what is made ready for a report ------------------------------------------------


def test_training_curves_are_those_of_the_file(tmp_path):
    rows = [
        {
            "step": 1,
            "split": "train",
            "loss/total": 2.0,
            "grad/norm": 1.0,
            "epoch": 1.0,
        },
        {"step": 2, "split": "validation", "validation/clean_accuracy": 0.5},
        {"step": 3, "split": "train", "loss/total": float("nan")},
        {"step": 4, "split": "train", "loss/total": 1.0},
    ]
    lines = "".join(json.dumps(one) + "\n" for one in rows)
    (tmp_path / "metrics.jsonl").write_text(lines + '{"step": 5, "spl')
    found = training_history(tmp_path, 4)
    assert found["chosen"] == 4
    assert found["series"] == [
        dict(name="loss/total", split="train", step=[1, 4], value=[2.0, 1.0]),
        dict(
            name="validation/clean_accuracy", split="validation", step=[2], value=[0.5]
        ),
    ]
    assert training_history(tmp_path / "nowhere") is None
    (tmp_path / "metrics.jsonl").write_text("\n[1]\n{}\n")
    assert training_history(tmp_path) is None


def test_weights_by_class_add_up():
    rng = np.random.default_rng(0)
    weights = rng.random((3, 8))
    kinds = rng.integers(0, 4, 8)
    found = weights_by_class({"clean": weights, "a": weights * 2}, kinds, [0, 1, 3], 4)
    for query in range(3):
        for condition in range(2):
            told = found["by_class"][query][condition]
            total = sum(weights[query])
            expected = [sum(weights[query][kinds == k]) / total for k in range(4)]
            np.testing.assert_allclose(told, expected)
        assert found["nearest"][query] == [kinds[weights[query].argmax()]] * 2


@pytest.mark.parametrize(
    "weights", [np.ones((2, 3)), -np.ones((1, 3)), np.full((1, 3), np.nan)]
)
def test_weights_that_do_not_fit_are_refused(weights):
    with pytest.raises(InputError, match="`weights` of 'clean' must be finite"):
        weights_by_class({"clean": weights}, [0, 1, 0], [0], 2)


def test_names_in_pictures_are_short_and_no_formula():
    assert short("a" * 40, 10) == "a" * 9 + "…"
    assert short("$x$") == r"\$x\$"
