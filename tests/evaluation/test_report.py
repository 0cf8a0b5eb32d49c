import dataclasses
import json
import os
from pathlib import Path

import jax.numpy as jnp
import jsonschema
import numpy as np
import pytest

from robustjax import InputError, threats
from robustjax.evaluation import (
    AttackResult,
    Robustness,
    compose,
    load_outcomes,
    mean_and_deviation,
    read_report,
    report_markdown,
    save_adversarial,
    schema,
    seeds_table,
    summarise,
    table,
    wilson_interval,
    write_report,
)


@pytest.fixture
def result():
    rng = np.random.default_rng(0)

    def attack(name, correct):
        return AttackResult(
            name=name,
            parameters={"name": "pgd", "num_steps": 40},
            correct=np.array(correct),
            distance={norm: np.arange(4.0) / 10 for norm in ("linf", "l2", "l1")},
            lowest=0.0,
            highest=1.0,
            mass_above_one=0.0,
            seconds=1.5,
            x_adv=rng.random((4, 2, 2, 1), np.float32),
        )

    return Robustness(
        index=np.array([5, 6, 7, 8]),
        labels=np.int32([0, 1, 0, 1]),
        clean_correct=np.array([True, True, True, False]),
        clean_seconds=0.25,
        attacks=(
            attack("PGD-40", [True, False, True, False]),
            attack("PGD-40 x 5", [False, True, True, False]),
        ),
    )


def test_a_summary_holds_every_number(result):
    summary = summarise(result)
    names = [row["name"] for row in summary["rows"]]
    assert names == ["clean", "PGD-40", "PGD-40 x 5", "worst case"]
    assert [row["correct"] for row in summary["rows"]] == [3, 2, 2, 1]
    assert [row["seconds"] for row in summary["rows"]] == [0.25, 1.5, 1.5, 3.0]
    worst = summary["rows"][-1]
    assert worst["interval"] == list(wilson_interval(1, 4))
    attack = summary["rows"][1]
    assert attack["parameters"] == {"name": "pgd", "num_steps": 40}
    assert attack["largest_distance"]["l2"] == pytest.approx(0.3)
    assert json.loads(json.dumps(summary)) == summary


def test_mass_above_one_is_reported(result):
    above = dataclasses.replace(result.attacks[0], highest=1.25, mass_above_one=0.031)
    told = summarise(dataclasses.replace(result, attacks=(above, result.attacks[1])))
    assert told["rows"][1]["mass_above_one"] == 0.031
    assert "mass_above_one" not in told["rows"][2]
    assert told["warnings"] == [
        "PGD-40: pixels reach 1.25, and up to 3.1% of an image's mass lies above 1."
    ]


def test_the_table_names_all_rows_n_interval_and_seconds(result):
    lines = table(summarise(result)).splitlines()
    assert len({len(line) for line in lines}) == 1
    low, high = wilson_interval(1, 4)
    cells = [cell.strip() for cell in lines[-1].strip("|").split("|")]
    interval = f"{100 * low:.2f}..{100 * high:.2f}%"
    assert cells == ["worst case", "25.00%", interval, "4", "3.0"]


CONTEXT = {"workdir": "w", "checkpoint": 7, "config": {"seed": 0}, "commit": "abc"}
CURVE = {"eps": [0.0, 0.1], "accuracy": [0.75, 0.25]}


def names(directory):
    return {path.name for path in directory.iterdir()}


def test_the_report_is_written_whole(result, tmp_path):
    summary = summarise(result)
    directory = tmp_path / "r"
    write_report(directory, summary, context=CONTEXT, curve=CURVE, result=result)
    texts = {"report.json", "report.md", "report.html", "outcomes.npz"}
    assert names(directory) == {*texts, "curve.png", "waterfall.png"}
    content = json.loads((directory / "report.json").read_text())
    assert {**content, **CONTEXT, **summary, "curve": CURVE} == content
    assert content == read_report(directory) == read_report(directory / "report.json")
    assert content["schema"] == {"name": "robustjax-report", "version": 1}
    assert [one["name"] for one in content["pictures"]] == ["waterfall", "curve"]
    text = (directory / "report.md").read_text()
    assert table(summary) in text
    assert "- checkpoint: 7" in text
    assert "75.00%" in text
    np.testing.assert_array_equal(
        load_outcomes(directory).worst_case, result.worst_case_correct
    )
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="Cannot write") as caught:
        write_report(tmp_path / "file" / "r", summary, context=CONTEXT)
    assert "\n" not in str(caught.value)


def test_attacks_of_one_name_do_not_cost_the_report(result, tmp_path):
    twice = dataclasses.replace(result, attacks=(result.attacks[0],) * 3)
    write_report(tmp_path, summarise(twice), context={}, result=twice)
    assert list(load_outcomes(tmp_path).attacks) == [
        "PGD-40",
        "PGD-40 (2)",
        "PGD-40 (3)",
    ]


def test_rows_of_one_name_are_numbered_everywhere(result):
    first, second = result.attacks
    second = dataclasses.replace(second, name=first.name, counts=False)
    twice = dataclasses.replace(result, attacks=(first, first, second))
    summary = summarise(twice)
    named = ["PGD-40", "PGD-40 (2)"]
    rows = [row["name"] for row in summary["rows"]]
    assert rows == ["clean", *named, "PGD-40 (3) (not counted)", "worst case"]
    assert [one["attack"] for one in summary["waterfall"]] == ["clean", *named]


def test_parameters_may_be_anything(result, tmp_path):
    odd = dict(
        threat="linf", start="zero", attacks="all", access="gray", model=object()
    )
    ball = dict(threat=threats.linf(jnp.float32(0.5)), attack=len, steps=np.arange(2))
    losses = np.zeros((4, 3))
    first, second = result.attacks
    first = dataclasses.replace(first, parameters=odd, losses=losses)
    second = dataclasses.replace(second, parameters=ball, losses=losses)
    told = summarise(dataclasses.replace(result, attacks=(first, second)))
    rows = told["rows"]
    assert rows[1]["parameters"] == odd | dict(model="<object object>")
    block = dict(name="linf", eps=0.5, bounds=[0.0, 1.0])
    shown = dict(threat=block, attack="<built-in function len>", steps=[0, 1])
    assert rows[2]["parameters"] == shown
    assert "limit" not in rows[1]
    assert rows[2]["limit"] == 0.5
    assert json.loads(json.dumps(told)) == told
    write_report(tmp_path, told, context=CONTEXT, result=result)
    assert read_report(tmp_path)["threat"] == block


def test_the_threat_of_the_context_is_for_rows_that_name_none(result, tmp_path):
    ball = dict(name="linf", eps=0.1)
    other = dict(name="linf", eps=0.3)
    first, second = result.attacks
    name = lambda attack, eps: dataclasses.replace(
        attack, parameters=dict(name="pgd", threat=dict(ball, eps=eps))
    )
    cases = [
        (result.attacks, ball),
        ((name(first, 0.1), name(second, 0.2)), dict(name="linf", eps=0.2)),
        ((name(first, 0.3), second), other),
    ]
    for rows, expected in cases:
        summary = summarise(dataclasses.replace(result, attacks=rows))
        content, _ = compose(summary, context=CONTEXT | dict(threat=ball))
        assert content["threat"] == expected
        assert f"at most {expected['eps']}" in content["verdict"]["sentence"]
    assert compose(summarise(result), context=CONTEXT).content["threat"] is None


def test_outcomes_are_replaced_right_before_the_numbers(result, tmp_path, monkeypatch):
    order, real = [], Path.replace

    def replace(path, target):
        order.append(Path(target).name)
        return real(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    write_report(tmp_path, summarise(result), context=CONTEXT, result=result)
    assert order[-2:] == ["outcomes.npz", "report.json"]
    assert not list(tmp_path.glob("*.partial"))


def test_numbers_that_json_does_not_know_become_none(result, tmp_path):
    context = {"config": {"eps": float("inf"), "shape": np.array([1, 2])}, "seed": 3}
    write_report(tmp_path, summarise(result), context=context)
    text = (tmp_path / "report.json").read_text()
    assert "Infinity" not in text
    assert "NaN" not in text
    assert read_report(tmp_path)["config"] == {"eps": None, "shape": [1, 2]}


class Full(OSError):
    pass


@pytest.mark.parametrize("left", [0, 2, 4, 5])
def test_a_run_that_is_stopped_leaves_the_old_report(
    result, tmp_path, monkeypatch, left
):
    """On a full disk or killed by a signal, at any file: old or new, never half."""
    summary = summarise(result)
    write_report(tmp_path, summary, context=CONTEXT | {"seed": 1}, curve=CURVE)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    real, count = Path.write_bytes, []

    def write(path, data):
        count.append(path.name)
        if len(count) > left:
            real(path, data[: len(data) // 2])
            raise Full(28, "No space left on device")
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", write)
    if left >= 5:
        write_report(tmp_path, summary, context=CONTEXT | {"seed": 2}, curve=CURVE)
        assert read_report(tmp_path)["seed"] == 2
        assert count[-1] == f"report.json.{os.getpid()}.partial"
        return
    with pytest.raises(InputError, match="No space left") as caught:
        write_report(tmp_path, summary, context=CONTEXT | {"seed": 2}, curve=CURVE)
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_interrupt_leaves_the_old_report_and_no_litter(
    result, tmp_path, monkeypatch
):
    summary = summarise(result)
    write_report(tmp_path, summary, context=CONTEXT | {"seed": 1}, curve=CURVE)
    before = (tmp_path / "report.json").read_bytes()
    real = Path.replace

    def replace(path, target):
        if target.name == "report.json":
            raise KeyboardInterrupt
        return real(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        write_report(tmp_path, summary, context=CONTEXT | {"seed": 2}, curve=CURVE)
    assert (tmp_path / "report.json").read_bytes() == before
    assert not list(tmp_path.glob("*.partial"))


def test_pictures_of_the_old_report_go_and_files_of_others_stay(result, tmp_path):
    summary = summarise(result)
    write_report(tmp_path, summary, context=CONTEXT, curve=CURVE)
    (tmp_path / "mine.png").write_bytes(b"mine")
    (tmp_path / "1 AutoAttack.unfinished.npz").touch()
    write_report(tmp_path, summary, context=CONTEXT)
    kept = {"report.json", "report.md", "report.html", "waterfall.png"}
    assert names(tmp_path) == kept | {"mine.png", "1 AutoAttack.unfinished.npz"}


def test_a_report_names_no_file_outside_its_directory(result, tmp_path):
    outside = tmp_path / "outside.png"
    outside.touch()
    directory = tmp_path / "r"
    write_report(directory, summarise(result), context=CONTEXT)
    content = read_report(directory)
    content["pictures"].append(dict(name="../outside", alt="none", caption=""))
    (directory / "report.json").write_text(json.dumps(content))
    write_report(directory, summarise(result), context=CONTEXT)
    assert outside.exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.pop("schema"), "another schema version \\(none\\)"),
        (lambda c: c["schema"].update(version=2), "robustjax-report 2\\); this"),
        (lambda c: c["schema"].update(name="other"), "schema version \\(other 1"),
        (lambda c: c.update(schema=1), "another schema version"),
        (lambda c: c.pop("verdict"), "at the top, 'verdict' is a required"),
        (lambda c: c["rows"][0].pop("accuracy"), "at rows.0, 'accuracy' is a"),
        (lambda c: c["rows"][1].update(accuracy=89.0), "at rows.1.accuracy, 89.0"),
        (lambda c: c.update(num_examples="4"), "at num_examples, '4' is not"),
        (lambda c: c.update(indicators=[{"name": "x"}]), "at indicators.0"),
        (lambda c: c.update(threat={"name": "linf"}), "at threat, 'eps' is"),
        (lambda c: c.update(threat={"name": "linf", "eps": "x"}), "at threat.eps"),
        (
            lambda c: c.update(threat={"name": "l2", "eps": 1, "bounds": [0]}),
            "at threat.bounds",
        ),
        (lambda c: c["rows"][1].update(accuracy=1.0), "at rows.1, accuracy 1 is not"),
        (lambda c: c["rows"][1].update(interval=[0.9, 0.1]), "at rows.1, .* is not in"),
        (lambda c: c["verdict"].update(accuracy=1.0), "at verdict, accuracy 1 is not"),
        (lambda c: c.update(num_examples=3200), "at rows.0, accuracy"),
        (lambda c: c.update(seed=float("nan")), "is not JSON"),
        (lambda c: c["schema"].update(version="1"), r"\(robustjax-report '1'\)"),
    ],
)
def test_reports_that_cannot_be_read_are_refused(result, tmp_path, change, words):
    write_report(tmp_path, summarise(result), context=CONTEXT)
    content = json.loads((tmp_path / "report.json").read_text())
    change(content)
    (tmp_path / "report.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=words) as caught:
        read_report(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "run eval.py" in str(caught.value) or "Run eval.py" in str(caught.value)


def test_a_report_of_no_path_is_one_line():
    with pytest.raises(InputError, match="`directory` must be a path, got None"):
        read_report(None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "does not exist: run eval.py"),
        (b"", "is not JSON"),
        (b'{"rows": [\n1, 2', "is not JSON \\(line 2\\)"),
        (b"\xff\xfe", "is not JSON"),
        (b"[1]", "another schema version"),
        (b"[" * 100_000, "is not JSON"),
    ],
)
def test_damaged_reports_are_refused(tmp_path, text, words):
    if text is not None:
        (tmp_path / "report.json").write_bytes(text)
    with pytest.raises(InputError, match=words) as caught:
        read_report(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_schema_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(schema.SCHEMA)
    required = schema.SCHEMA["required"]
    assert required == list(dict.fromkeys(required))


def test_what_is_given_has_to_make_a_report(result, tmp_path):
    wrong = dict(eps=[0.1], accuracy=[89.0])
    with pytest.raises(InputError, match=r"curve.accuracy.0, 89.0"):
        write_report(tmp_path, summarise(result), context={}, curve=wrong)
    assert not list(tmp_path.iterdir())
    with pytest.raises(TypeError, match="curves"):
        write_report(tmp_path, summarise(result), context={}, curves=CURVE)


def test_saved_images_match_the_report(result, tmp_path):
    save_adversarial(tmp_path / "adversarial", result)
    names = {path.name for path in (tmp_path / "adversarial").iterdir()}
    assert names == {"PGD-40.npz", "PGD-40_x_5.npz"}
    with np.load(tmp_path / "adversarial" / "PGD-40.npz") as saved:
        np.testing.assert_array_equal(saved["x_adv"], result.attacks[0].x_adv)
        np.testing.assert_array_equal(saved["index"], result.index)
        np.testing.assert_array_equal(saved["labels"], result.labels)
        np.testing.assert_array_equal(saved["broken"], ~result.attacks[0].correct)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="Cannot write"):
        save_adversarial(tmp_path / "file" / "r", result)


def test_images_of_attacks_whose_files_would_be_one_are_all_kept(result, tmp_path):
    rows = [
        dataclasses.replace(
            result.attacks[0], name=name, x_adv=np.full((4, 2, 2, 1), i)
        )
        for i, name in enumerate(["a b", "a_b", "a/b", "a b"])
    ]
    save_adversarial(tmp_path, dataclasses.replace(result, attacks=tuple(rows)))
    files = ["a_b.npz", "a_b (2).npz", "a_b (3).npz", "a_b (4).npz"]
    assert names(tmp_path) == set(files)
    for i, name in enumerate(files):
        with np.load(tmp_path / name) as saved:
            assert (saved["x_adv"] == i).all()


def test_seeds_have_mean_and_sample_deviation():
    mean, deviation = mean_and_deviation([0.5, 0.6, 0.7])
    assert (mean, deviation) == (pytest.approx(0.6), pytest.approx(0.1))
    assert mean_and_deviation([0.5]) == (0.5, 0.0)
    assert "| clean  | 60.00% | 10.00     | 3     |" in seeds_table(
        {"clean": [0.5, 0.6, 0.7]}
    )


def test_of_many_classes_only_the_most_frequent_mistakes_are_told(result):
    total = len(result.labels)
    labels = np.arange(total, dtype=np.int32) + 120
    attack = dataclasses.replace(
        result.attacks[0], correct=np.zeros(total, bool), predicted=labels - 1
    )
    right = dict(clean_correct=np.ones(total, bool), clean_predicted=labels)
    many = dataclasses.replace(result, labels=labels, attacks=(attack,), **right)
    content, pictures = compose(summarise(many), context=CONTEXT)
    assert content["confusion"] is None
    assert [120, 119, 1] in content["confusions"]
    assert len(content["confusions"]) == min(20, total)
    assert "confusion" not in pictures
    assert "The most frequent mistakes" in report_markdown(content, pictures)
