import dataclasses
import html.parser
import json
import re

import numpy as np
import pytest
import reports

from robustjax import InputError
from robustjax.evaluation import (
    compare,
    compare_paired,
    compare_runs,
    comparison_lines,
    holm,
    mean_and_deviation,
    wilson_interval,
    write_comparison,
)
from robustjax.evaluation._compared import report_directories


@pytest.fixture
def runs(tmp_path):
    """Two evaluated models: workdirs a and b."""
    outcomes = {}
    for number, name in enumerate("ab"):
        accuracies = (
            ("PGD-40", 0.9 - 0.2 * number),
            ("AutoAttack", 0.8 - 0.2 * number),
        )
        outcomes[name] = reports.result(number, accuracies)
        reports.write(tmp_path / name / "report", outcomes[name])
    return outcomes


def test_a_comparison_holds_every_number(runs, tmp_path):
    found = compare([tmp_path / "a", tmp_path / "b"])
    assert json.loads(json.dumps(found)) == found
    assert found["rows"] == ["clean", "PGD-40", "AutoAttack", "worst case"]
    assert [model["name"] for model in found["models"]] == ["a", "b"]
    assert (found["data"], found["num_examples"]) == ("digits", reports.N)
    for model, outcome in zip(found["models"], runs.values(), strict=True):
        right = outcome.worst_case_correct
        assert model["rows"]["worst case"]["accuracy"] == pytest.approx(right.mean())
        assert model["own_worst_case"]["accuracy"] == pytest.approx(right.mean())
        interval = wilson_interval(float(right.sum()), len(right))
        assert model["rows"]["worst case"]["interval"] == list(interval)
    clean, worst = found["pairs"]
    expected = compare_paired(*(o.worst_case_correct for o in runs.values()))
    for name in ("both", "only_first", "only_second", "neither", "p", "difference"):
        assert worst[name] == getattr(expected, name)
    assert worst["interval"] == list(expected.interval)
    assert [clean["p_holm"], worst["p_holm"]] == holm([clean["p"], worst["p"]])
    assert found["warnings"] == []


def test_what_no_classifier_exceeds_stands_beside(runs, tmp_path):
    ball = {"name": "linf", "eps": 0.5, "bounds": [0.0, 1.0]}
    for name in "ab":
        (first, second) = runs[name].attacks
        wide = dataclasses.replace(second, parameters={"name": "aa", "threat": ball})
        both = dataclasses.replace(runs[name], attacks=(first, wide))
        reports.write(tmp_path / name / "report", both)
    found = compare([tmp_path / "a", tmp_path / "b"])
    assert found["limits"] == {"AutoAttack": 0.1, "worst case": 0.1}
    head, _, *lines = comparison_lines(found)
    assert head.split("|")[-2].strip() == "limit of any classifier"
    shown = {
        line.split("|")[1].strip(): line.split("|")[-2].strip() for line in lines[:5]
    }
    assert shown["AutoAttack"] == shown["worst case"] == "10.00%"
    assert shown["clean"] == shown["PGD-40"] == ""


def test_images_are_paired_by_their_index(runs, tmp_path):
    before = compare([tmp_path / "a", tmp_path / "b"])
    reports.write(tmp_path / "b" / "report", reports.shuffled(runs["b"]))
    assert compare([tmp_path / "a", tmp_path / "b"]) == before


def test_report_directories_may_be_named_too(runs, tmp_path):
    found = compare([tmp_path / "a" / "report", tmp_path / "b" / "report"])
    assert [model["name"] for model in found["models"]] == ["a", "b"]


def test_names_are_as_long_as_they_must_be(runs, tmp_path):
    reports.write(tmp_path / "other" / "a" / "report", runs["b"])
    found = compare([tmp_path / "a", tmp_path / "other" / "a"])
    names = [model["name"] for model in found["models"]]
    assert names == [f"{tmp_path.name}/a", "other/a"]


def test_holm_is_over_all_pairs_and_rows(runs, tmp_path):
    reports.write(tmp_path / "c" / "report", reports.result(9))
    found = compare([tmp_path / name for name in "abc"])
    assert len(found["pairs"]) == 6
    assert [p["p_holm"] for p in found["pairs"]] == holm(
        [p["p"] for p in found["pairs"]]
    )


def test_other_suites_compare_over_shared_rows(runs, tmp_path):
    more = reports.result(3, (("AutoAttack", 0.6), ("Square", 0.3)))
    reports.write(tmp_path / "c" / "report", more, suite="full")
    found = compare([tmp_path / "a", tmp_path / "c"])
    assert found["rows"] == ["clean", "AutoAttack", "worst case"]
    shared = more.clean_correct & more.attacks[0].correct
    model = found["models"][1]
    assert model["rows"]["worst case"]["accuracy"] == pytest.approx(shared.mean())
    assert model["own_worst_case"]["accuracy"] == pytest.approx(
        more.worst_case_correct.mean()
    )
    assert model["own_worst_case"]["accuracy"] < model["rows"]["worst case"]["accuracy"]
    assert "Suites differ (a: standard, c: full)" in found["warnings"][0]
    assert "AutoAttack." in found["warnings"][1]


def test_a_row_with_other_parameters_is_left_out(runs, tmp_path):
    first = runs["b"].attacks[0]
    other = dataclasses.replace(first, parameters={**first.parameters, "num_steps": 3})
    changed = dataclasses.replace(runs["b"], attacks=(other, runs["b"].attacks[1]))
    reports.write(tmp_path / "b" / "report", changed)
    found = compare([tmp_path / "a", tmp_path / "b"])
    assert found["rows"] == ["clean", "AutoAttack", "worst case"]
    assert found["warnings"][0].startswith("PGD-40: parameters differ")


def test_rows_that_do_not_count_stay_out_of_the_worst_case(tmp_path):
    for number, name in enumerate("ab"):
        outcome = reports.result(number)
        unbounded = reports.attack("C&W", np.zeros(reports.N, bool), counts=False)
        attacks = (*outcome.attacks, unbounded)
        outcome = dataclasses.replace(outcome, attacks=attacks)
        reports.write(tmp_path / name / "report", outcome)
    found = compare([tmp_path / "a", tmp_path / "b"])
    assert "C&W (not counted)" in found["rows"]
    assert found["models"][0]["rows"]["worst case"]["accuracy"] > 0


def test_reports_without_one_threat_model_are_doubted(runs, tmp_path):
    for name, outcome in runs.items():
        reports.write(tmp_path / name / "report", outcome, threat=None)
    found = compare([tmp_path / "a", tmp_path / "b"])
    assert "no one threat model" in found["warnings"][0]


def test_attacks_of_one_name_stay_apart(tmp_path):
    for number, name in enumerate("ab"):
        outcome = reports.result(number, (("PGD", 0.9), ("PGD", 0.5), ("PGD", 0.2)))
        first, second, third = outcome.attacks
        third = dataclasses.replace(third, counts=False)
        outcome = dataclasses.replace(outcome, attacks=(first, second, third))
        reports.write(tmp_path / name / "report", outcome)
    found = compare([tmp_path / "a", tmp_path / "b"])
    attacks = ["PGD", "PGD (2)", "PGD (3) (not counted)"]
    assert found["rows"] == ["clean", *attacks, "worst case"]
    assert found["models"][0]["rows"]["PGD (2)"]["accuracy"] < 0.7


def test_reports_of_other_pixels_are_not_compared(runs, tmp_path):
    for name, digest in (("a", "one"), ("b", "two")):
        other = dataclasses.replace(runs[name], images=digest)
        reports.write(tmp_path / name / "report", other)
    with pytest.raises(InputError, match="other splits, cuts, sizes or pixels"):
        compare([tmp_path / "a", tmp_path / "b"])
    same = dataclasses.replace(runs["b"], images="one")
    reports.write(tmp_path / "b" / "report", same)
    assert compare([tmp_path / "a", tmp_path / "b"])["pairs"]


def test_without_a_shared_attack_there_is_no_worst_case(runs, tmp_path):
    first, *_ = runs["b"].attacks
    own = dataclasses.replace(first, name="mine")
    reports.write(
        tmp_path / "b" / "report", dataclasses.replace(runs["b"], attacks=(own,))
    )
    found = compare([tmp_path / "a", tmp_path / "b"])
    assert "worst case" not in found["rows"]
    assert {pair["row"] for pair in found["pairs"]} == {"clean"}
    assert any("no worst case to pair" in line for line in found["warnings"])


def test_one_run_of_a_group_has_no_deviation(tmp_path):
    for name in ("a", "b"):
        outcome = reports.result(0, (("PGD-40", 0.5),))
        reports.write(tmp_path / name / "seed_0" / "report", outcome)
    found = compare([tmp_path / "a", tmp_path / "b"])
    row = found["models"][0]["rows"]["clean"]
    assert row["deviation"] is None
    assert "(1 run)" in comparison_lines(found)[2]
    write_comparison(tmp_path / "out", found)
    assert "+-" not in (tmp_path / "out" / "compare.md").read_text().split("|")[8]


def test_flags_are_told(runs, tmp_path):
    measured = [reports.indicator("gradient", True), reports.indicator("noise", False)]
    given = dict(indicators=measured, warnings=["PGD-40: doubtful."])
    reports.write(tmp_path / "b" / "report", runs["b"], **given)
    found = compare([tmp_path / "a", tmp_path / "b"])
    assert [model["flags"] for model in found["models"]] == [None, ["gradient"]]
    assert found["warnings"] == ["b: Flags: gradient.", "b: PGD-40: doubtful."]


def seeds(directory, first, count, accuracy):
    """A group of training runs, each with a report."""
    found = {}
    for seed in range(count):
        outcome = reports.result(first + seed, (("PGD-40", accuracy),))
        found[f"seed_{seed}"] = outcome
        reports.write(directory / "report" / f"seed_{seed}", outcome)
    (directory / "report" / "seeds.json").write_text("{}")
    return found


def test_seeds_are_one_model_with_a_spread_over_runs(tmp_path):
    one, two = seeds(tmp_path / "a", 0, 3, 0.9), seeds(tmp_path / "b", 10, 3, 0.6)
    found = compare([tmp_path / "a", tmp_path / "b"])
    means = [
        {s: float(o.worst_case_correct.mean()) for s, o in group.items()}
        for group in (one, two)
    ]
    for model, values in zip(found["models"], means, strict=True):
        row = model["rows"]["worst case"]
        assert row["by_run"] == values
        expected = mean_and_deviation([*values.values()])
        assert (row["accuracy"], row["deviation"]) == expected
        assert row["interval"] is None
        assert model["runs"] == 3
    worst = found["pairs"][1]
    assert worst["method"] == "paired t over 3 seeds"
    assert worst["p"] == compare_runs(*means).p
    assert worst["both"] is None


def test_a_run_and_a_group_are_not_tested(runs, tmp_path):
    seeds(tmp_path / "c", 0, 2, 0.7)
    found = compare([tmp_path / "a", tmp_path / "c"])
    for pair in found["pairs"]:
        assert pair["p"] is None
        assert "single run" in pair["untested"]
    write_comparison(tmp_path / "out", found)
    text = (tmp_path / "out" / "compare.md").read_text()
    assert "Not tested (one is a single run" in text
    assert "## Pairs" not in text


def test_a_seed_without_a_report_is_named(tmp_path):
    seeds(tmp_path / "a", 0, 2, 0.9)
    seeds(tmp_path / "b", 0, 2, 0.9)
    (tmp_path / "b" / "seed_2").mkdir()
    with pytest.raises(InputError, match=r"b has no report of seed_2: run.*eval\.py"):
        compare([tmp_path / "a", tmp_path / "b"])


def test_the_reports_of_a_group_win_over_older_ones_of_its_runs(tmp_path):
    for name in "ab":
        seeds(tmp_path / name, 0, 2, 0.9)
        for seed in (0, 1):
            place = tmp_path / name / f"seed_{seed}" / "report"
            reports.write(place, reports.result(50 + seed, (("PGD-40", 0.1),)))
    found = compare([tmp_path / "a", tmp_path / "b"])
    assert found["models"][0]["rows"]["PGD-40"]["accuracy"] > 0.7
    # One more run: only the other place has them all.
    reports.write(tmp_path / "a" / "seed_2" / "report", reports.result(9))
    assert set(report_directories(tmp_path / "a")) == {"seed_0", "seed_1", "seed_2"}
    # One run judged alone does not hide the group, nor ask for the others.
    for file in (tmp_path / "b" / "seed_1" / "report").iterdir():
        file.unlink()
    where = report_directories(tmp_path / "b")
    assert [place.parent.name for place in where.values()] == ["report", "report"]


def random_classifier(seed):
    rng = np.random.default_rng(seed)
    shares = rng.integers(0, 7, (2, reports.N)).astype(np.float32) / 6
    found = dataclasses.replace(
        reports.result(seed),
        clean_correct=shares.max(axis=0),
        attacks=(reports.attack("PGD-40", shares.min(axis=0)),),
        draws=18,
    )
    return found


def test_random_classifiers_are_compared_by_shares(runs, tmp_path):
    for name, seed in (("c", 1), ("d", 2)):
        reports.write(tmp_path / name / "report", random_classifier(seed))
    found = compare([tmp_path / "c", tmp_path / "d"])
    assert found["pairs"][1]["method"] == "paired t over images"
    assert found["pairs"][1]["only_first"] is None
    # Of attacks that only some share, the adversary's choice is not known.
    found = compare([tmp_path / "a", tmp_path / "c"])
    assert found["rows"] == ["clean", "PGD-40"]
    assert "random classifier" in found["warnings"][0]


def test_written_files_say_what_the_numbers_say(runs, tmp_path):
    found = compare([tmp_path / "a", tmp_path / "b"])
    write_comparison(tmp_path / "out" / "here", found)
    files = {path.name for path in (tmp_path / "out" / "here").iterdir()}
    assert files == {f"compare.{kind}" for kind in ("json", "md", "html", "png")}
    written = json.loads((tmp_path / "out" / "here" / "compare.json").read_text())
    assert written == found
    text = (tmp_path / "out" / "here" / "compare.md").read_text()
    assert "worst case: a is more accurate than b" in text
    worst = found["pairs"][1]
    row = next(line for line in text.splitlines() if "| worst case | a" in line)
    counts = (worst[n] for n in ("both", "only_first", "only_second", "neither"))
    assert re.split(r"\s*\|\s*", row)[4:8] == [str(count) for count in counts]


def test_a_terminal_gets_the_table_and_the_sentences(runs, tmp_path):
    found = compare([tmp_path / "a", tmp_path / "b"])
    lines = comparison_lines(found)
    assert re.split(r"\s*\|\s*", lines[0])[1:-1] == ["row", "a", "b"]
    assert any(line.startswith("worst case: a is more accurate") for line in lines)


def test_no_difference_is_said_in_words(tmp_path):
    for name in "ab":
        reports.write(tmp_path / name / "report", reports.result(0))
    write_comparison(tmp_path, compare([tmp_path / "a", tmp_path / "b"]))
    text = (tmp_path / "compare.md").read_text()
    assert "worst case: no difference shown between a and b: +0.00 points" in text


class Page(html.parser.HTMLParser):
    """Balanced tags, ids, and what an img or a link points to."""

    VOID = ("meta", "img", "link", "br")

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.images, self.outside = [], [], [], []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag not in self.VOID:
            self.open.append(tag)
        if "id" in given:
            self.ids.append(given["id"])
        if tag == "img":
            self.images.append(given)
        links = [value for name, value in attributes if name in ("src", "href")]
        self.outside += [v for v in links if not v.startswith(("#", "data:"))]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_names_with_signs_of_mathematics_are_drawn(runs, tmp_path):
    odd = dataclasses.replace(
        runs["a"], attacks=(reports.attack(r"$\wrong{ $x", runs["a"].clean_correct),)
    )
    for name in ("_a$", "$\\nothing$"):
        reports.write(tmp_path / name / "report", odd)
    write_comparison(tmp_path, compare([tmp_path / "_a$", tmp_path / "$\\nothing$"]))
    assert (tmp_path / "compare.png").stat().st_size > 5000


def test_the_page_needs_nothing_else(runs, tmp_path):
    odd = dataclasses.replace(
        runs["a"], attacks=(reports.attack("<b>&\"PGD'", runs["a"].clean_correct),)
    )
    for name in ("x<i>", "y"):
        reports.write(tmp_path / name / "report", odd)
    write_comparison(tmp_path, compare([tmp_path / "x<i>", tmp_path / "y"]))
    text = (tmp_path / "compare.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    assert page.outside == []
    assert len(page.ids) == len(set(page.ids))
    assert [image["src"][:22] for image in page.images] == ["data:image/png;base64,"]
    assert "x<i>" in page.images[0]["alt"]
    assert "<i>" not in text
    assert "&lt;b&gt;&amp;&quot;PGD&#x27;" in text
    assert 'lang="en"' in text
    assert text.count("<h1>") == 1


def change(tmp_path, runs, **context):
    reports.write(tmp_path / "b" / "report", runs["b"], **context)


def fewer(tmp_path, runs):
    reports.write(tmp_path / "b" / "report", reports.result(1, total=50))


def other_split(tmp_path, runs):
    moved = dataclasses.replace(runs["b"], index=runs["b"].index + 1)
    reports.write(tmp_path / "b" / "report", moved)


def other_labels(tmp_path, runs):
    moved = dataclasses.replace(runs["b"], labels=(runs["b"].labels + 1) % 10)
    reports.write(tmp_path / "b" / "report", moved)


def broken_json(tmp_path, runs):
    (tmp_path / "b" / "report" / "report.json").write_text('{"rows": [')


def no_report(tmp_path, runs):
    (tmp_path / "b" / "report" / "report.json").unlink()


def no_outcomes(tmp_path, runs):
    (tmp_path / "b" / "report" / "outcomes.npz").unlink()


def other_outcomes(tmp_path, runs):
    new = reports.result(1, (("PGD-40", 0.5), ("Square", 0.5)))
    content = (tmp_path / "b" / "report" / "report.json").read_text()
    reports.write(tmp_path / "b" / "report", new)
    (tmp_path / "b" / "report" / "report.json").write_text(content)


def newer_outcomes(tmp_path, runs):
    content = (tmp_path / "b" / "report" / "report.json").read_text()
    change(tmp_path, dict(b=reports.result(77)))  # the same attacks
    (tmp_path / "b" / "report" / "report.json").write_text(content)


def no_rows(tmp_path, runs):
    path = tmp_path / "b" / "report" / "report.json"
    content = json.loads(path.read_text())
    del content["rows"]
    path.write_text(json.dumps(content))


def data(name="digits", size="8x8x1", classes=10):
    return dict(
        data=f"Dataset('{name}', 1797 images {size} float32, {classes} classes)"
    )


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (
            lambda *a: change(*a, **data(name="mnist")),
            "data sets: a is on digits, b.*mn",
        ),
        (lambda *a: change(*a, **data(size="16x16x1")), "image sizes: a is on 8x8x1"),
        (lambda *a: change(*a, **data(classes=5)), "class counts"),
        (
            lambda *a: change(*a, threat={"name": "linf", "eps": 8 / 255}),
            r"threat models: a: linf, each.* 0\.1, .*; b: linf, each.*8/255",
        ),
        (lambda *a: change(*a, threat={"name": "l2", "eps": 0.1}), "threat models"),
        (
            lambda *a: change(*a, threat={**reports.THREAT, "bounds": [-1, 1]}),
            "threat models",
        ),
        (
            lambda *a: change(*a, schema={"name": "robustjax-report", "version": 2}),
            "another schema version .*2",
        ),
        (lambda *a: change(*a, schema=None), "another schema version"),
        (fewer, r"different images: a.*120, b on 50.*--num_examples=50"),
        (other_split, "different images"),
        (other_labels, "different images"),
        (broken_json, "is not JSON"),
        (no_rows, "not a whole report"),
        (no_report, r"b has no report: run python eval\.py --workdir="),
        (no_outcomes, r"has no outcomes\.npz"),
        (other_outcomes, "different evaluations"),
        (newer_outcomes, "different evaluations"),
    ],
)
def test_what_does_not_compare_is_one_line(runs, tmp_path, damage, match):
    damage(tmp_path, runs)
    with pytest.raises(InputError, match=match) as caught:
        compare([tmp_path / "a", tmp_path / "b"])
    assert len(str(caught.value).splitlines()) == 1


def test_one_directory_or_one_twice_is_refused(runs, tmp_path):
    with pytest.raises(InputError, match="two directories or more, got 1"):
        compare([tmp_path / "a"])
    with pytest.raises(InputError, match="twice"):
        compare([tmp_path / "a", tmp_path / "b", tmp_path / "a" / "report"])


@pytest.mark.parametrize("given", ["runs/a", None, [1, 2], ["runs/a", None]])
def test_what_names_no_directories_is_one_line(given):
    with pytest.raises(InputError, match="`reports` must be a list of directories"):
        compare(given)


def test_a_directory_that_cannot_be_written(runs, tmp_path):
    found = compare([tmp_path / "a", tmp_path / "b"])
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="Cannot write "):
        write_comparison(tmp_path / "file" / "out", found)


@pytest.mark.parametrize("told", [{}, {"view": "the source that was given"}])
def test_attacks_that_nothing_is_told_of_are_not_paired(tmp_path, told):
    for number, name in enumerate("ab"):
        outcome = reports.result(number)
        first, second = outcome.attacks
        first = dataclasses.replace(first, parameters=told)
        outcome = dataclasses.replace(outcome, attacks=(first, second))
        reports.write(tmp_path / name / "report", outcome)
    found = compare([tmp_path / "a", tmp_path / "b"])
    assert found["rows"] == ["clean", "AutoAttack", "worst case"]
    assert any("PGD-40: nothing tells" in line for line in found["warnings"])
