"""Accuracies from minimum norms, and what does not belong to the worst case."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import InputError, attacks, threats, training
from robustjax.attacks import Stage, StagedAttack
from robustjax.data import Dataset
from robustjax.evaluation import (
    NamedAttack,
    accuracy_at,
    evaluate,
    minimum_norms,
    summarise,
    write_report,
)

KEYS = jax.random.split(jax.random.key(0), 3)
HIDDEN, HEAD = jax.random.normal(KEYS[1], (9, 8)), jax.random.normal(KEYS[2], (8, 4))
X = np.asarray(jax.random.uniform(KEYS[0], (16, 3, 3, 1)))


def logits_fn(x):
    return jnp.tanh((x.reshape(x.shape[0], -1) - 0.5) @ HIDDEN) @ HEAD


LABELS = np.array(logits_fn(X).argmax(1), np.int32)
LABELS[3] = (LABELS[3] + 1) % 4
DATA = Dataset(X, LABELS, 100 + np.arange(16), tuple("abcd"))


def judged(*named, f=logits_fn, dataset=DATA):
    mesh = training.data_mesh(jax.devices()[:1])
    return evaluate(f, dataset, named, key=jax.random.key(0), mesh=mesh)


@pytest.mark.parametrize(
    "make",
    [
        lambda t: attacks.ddn(t, num_steps=30, levels=None, initial_radius=0.2),
        lambda t: attacks.fmn(t, num_steps=15),
        lambda t: attacks.deepfool(t, num_steps=10),
    ],
    ids=["ddn", "fmn", "deepfool"],
)
def test_norms_without_a_limit_give_the_accuracy_at_each(make):
    radii = (0.05, 0.4)
    free = NamedAttack(
        "free", make(threats.l2(np.inf)), norm="l2", radii=radii, counts=False
    )
    limited = [NamedAttack(f"at {eps}", make(threats.l2(eps))) for eps in radii]
    result = judged(free, *limited)
    norms = minimum_norms(result.attacks[0], result.clean_correct)
    assert norms[3] == 0
    expected = [attack.correct.mean() for attack in result.attacks[1:]]
    np.testing.assert_array_equal(accuracy_at(norms, radii), expected)
    assert expected[0] > expected[-1]
    row = summarise(result)["rows"][1]
    assert row["name"] == "free (not counted)"
    assert row["minimum_norm"]["accuracy"] == expected
    right = norms[np.arange(16) != 3]
    assert row["minimum_norm"]["median_of_correct"] == pytest.approx(np.median(right))


def test_what_does_not_count_stays_out_of_the_worst_case():
    anything = NamedAttack("far", lambda k, f, x, y: 0 * x, counts=False)
    fgsm = NamedAttack("fgsm", attacks.fgsm(threats.linf(0.05)))
    result = judged(anything, fgsm)
    far, near = result.attacks
    assert (near.correct & ~far.correct).any()
    np.testing.assert_array_equal(result.worst_case_correct, near.correct)
    names = [row["name"] for row in summarise(result)["rows"]]
    assert names == ["clean", "far (not counted)", "fgsm", "worst case"]


def test_a_norm_that_nobody_measured_is_refused():
    result = judged(NamedAttack("fgsm", attacks.fgsm(threats.linf(0.05))))
    with pytest.raises(InputError, match="`norm` must be one of 'linf', 'l2', 'l1'"):
        minimum_norms(result.attacks[0], result.clean_correct)
    with pytest.raises(InputError, match="`eps`"):
        accuracy_at(np.zeros(3), [-0.1])


def test_a_radius_itself_is_inside():
    norms = np.float32([0.1, 0.2, np.inf])
    np.testing.assert_allclose(
        accuracy_at(norms, [0.1, 0.2, 9.0]), [2 / 3, 1 / 3, 1 / 3]
    )


def test_json_knows_no_infinity(tmp_path):
    still = lambda key, f, x, y: x
    named = NamedAttack("none", still, norm="l2", radii=(0.5,), counts=False)
    summary = summarise(judged(named))
    found = summary["rows"][1]["minimum_norm"]
    assert found["median_of_correct"] is None
    assert found["accuracy"] == [15 / 16]
    write_report(tmp_path, summary, context={})

    def refuse(constant):
        raise AssertionError(constant)

    json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)
    assert "none found for half" in (tmp_path / "report.md").read_text()


def test_pixels_that_are_no_numbers_are_refused():
    dataset = Dataset(X.copy(), LABELS, DATA.index, DATA.class_names)
    dataset.images[5, 1, 1, 0] = np.nan  # after its own check
    with pytest.raises(InputError, match=r"must lie in .* got \[nan, nan\]"):
        judged(dataset=dataset)
    assert judged().clean_correct.sum() == 15


def test_probabilities_are_warned_of():
    with pytest.warns(UserWarning, match="probabilities"):
        judged(f=lambda x: jax.nn.softmax(logits_fn(x)))


# --- staged attacks -----------------------------------------------------------------


def staged(threat=threats.linf(0.1)):  # noqa: B008
    stages = (
        Stage("weak", lambda turn: attacks.fgsm(threats.linf(0.02))),
        Stage("Square", lambda turn: attacks.apgd(threat, num_steps=3), 2),
    )
    return StagedAttack("two stages", threat, lambda num_classes: stages)


def test_stages_and_warnings_reach_the_report(tmp_path):
    lines = []
    result = evaluate(
        logits_fn,
        DATA,
        [NamedAttack("mine", staged(), {"name": "staged"})],
        key=jax.random.key(0),
        batch_size=8,
        state_dir=tmp_path,
        log=lines.append,
        keep_adversarial=True,
    )
    assert not list(tmp_path.iterdir())  # progress is gone
    (found,) = result.attacks
    weak, square = found.stages
    assert weak.attacked == 15
    assert square.attacked == 15 - weak.broken
    assert square.broken > 0
    assert square.accuracy == found.correct.mean()
    assert found.distance["linf"].max() <= 0.1 + 1e-6
    wrong = np.asarray(logits_fn(jnp.asarray(found.x_adv)).argmax(1)) != LABELS
    np.testing.assert_array_equal(found.correct, ~wrong)
    assert [line.split(":")[0] for line in lines] == ["weak", "Square"]

    summary = summarise(result)
    (warning,) = summary["warnings"]
    assert warning.startswith("mine: Square, which sees no gradients, broke")
    assert summary["rows"][1]["stages"][1]["broken"] == square.broken
    write_report(tmp_path, summary, context={})
    text = (tmp_path / "report.md").read_text()
    assert f"- {warning}" in text
    share = 100 * weak.accuracy
    assert f"after weak: {share:.2f}% ({weak.broken} of 15 broken" in text
    assert json.loads((tmp_path / "report.json").read_text())["warnings"] == [warning]


class Killed(Exception):
    pass


def test_two_attacks_of_one_name_keep_their_progress_apart(tmp_path):
    def log(line):
        seen.append(line)
        if len(seen) == kill_at:
            raise Killed

    named = [
        NamedAttack("mine", staged(threats.linf(eps)), {"eps": eps})
        for eps in (0.1, 0.05)
    ]
    go = lambda: evaluate(
        logits_fn,
        DATA,
        named,
        key=jax.random.key(0),
        mesh=training.data_mesh(jax.devices()[:1]),
        state_dir=tmp_path,
        log=log,
    )
    seen, kill_at = [], 4  # at the end of the second attack
    with pytest.raises(Killed):
        go()
    assert len(list(tmp_path.iterdir())) == 2  # of the first, that it is done
    seen, kill_at = [], 0
    result = go()
    assert not list(tmp_path.iterdir())
    strong, weak = result.attacks
    assert strong.correct.sum() < weak.correct.sum()


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_an_attack_that_returns_no_numbers_is_refused(value):
    named = NamedAttack("wild", lambda key, f, x, y: x.at[3, 0].set(value))
    with pytest.raises(InputError, match="'wild' returned pixels that are not finite"):
        judged(named)
