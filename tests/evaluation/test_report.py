import dataclasses
import json

import numpy as np
import pytest

from robustjax import InputError
from robustjax.evaluation import (
    mean_and_deviation,
    save_adversarial,
    seeds_table,
    summarise,
    table,
    wilson_interval,
    write_report,
)
from robustjax.evaluation.robustness import AttackResult, Robustness


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


def test_the_report_is_written_whole(result, tmp_path):
    context = {"workdir": "w", "checkpoint": 7, "config": {"seed": 0}, "commit": "abc"}
    curve = {"eps": [0.0, 0.1], "accuracy": [0.75, 0.25]}
    summary = summarise(result)
    write_report(tmp_path / "r", summary, context=context, curve=curve)
    assert {path.name for path in (tmp_path / "r").iterdir()} == {
        "report.json",
        "report.md",
        "curve.png",
    }
    content = json.loads((tmp_path / "r" / "report.json").read_text())
    assert content == {**context, **summary, "curve": curve}
    text = (tmp_path / "r" / "report.md").read_text()
    assert table(summary) in text
    assert "- checkpoint: 7" in text
    assert "75.00%" in text
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="Cannot write"):
        write_report(tmp_path / "file" / "r", summary, context=context)


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


def test_seeds_have_mean_and_sample_deviation():
    mean, deviation = mean_and_deviation([0.5, 0.6, 0.7])
    assert (mean, deviation) == (pytest.approx(0.6), pytest.approx(0.1))
    assert mean_and_deviation([0.5]) == (0.5, 0.0)
    assert "| clean  | 60.00% | 10.00     | 3     |" in seeds_table(
        {"clean": [0.5, 0.6, 0.7]}
    )
