import dataclasses
import json

import pytest
import reports

from robustjax import InputError
from robustjax.evaluation import export_robustbench, robustbench_entry

EPS = 8 / 255
THREAT = {"name": "linf", "eps": EPS, "bounds": [0.0, 1.0]}
L2 = {"name": "l2", "eps": 0.5}
CIFAR10 = f"Dataset('cifar10/3.0.2', {reports.N} images 32x32x3 uint8, 10 classes)"
# model_info/cifar10/Linf/Carmon2019Unlabeled.json has these and no other fields.
FIELDS = {
    *("link", "name", "authors", "additional_data", "number_forward_passes"),
    *("dataset", "venue", "architecture", "eps", "clean_acc", "reported"),
    "autoattack_acc",
}


def judged(autoattack=0.7, threat=THREAT, **more):
    """Outcomes with a row of AutoAttack among others."""
    outcome = reports.result(0, (("PGD-40", 0.9), ("AutoAttack", autoattack)))
    pgd, whole = outcome.attacks
    parameters = {"name": "autoattack", "threat": threat, **more}
    whole = dataclasses.replace(whole, parameters=parameters)
    # AutoAttack's is the worst case, as it mostly is.
    pgd = dataclasses.replace(pgd, correct=pgd.correct | whole.correct)
    return dataclasses.replace(outcome, attacks=(pgd, whole))


@pytest.fixture
def content(tmp_path):
    given = dict(data=CIFAR10, threat=THREAT)
    return reports.write(tmp_path / "My run (1)" / "report", judged(), **given)


def test_an_entry_has_the_fields_and_the_report_s_numbers(content):
    entry = robustbench_entry(content)
    assert set(entry) == FIELDS | {"footnote", "unreliable"}
    rows = {row["name"]: row for row in content["rows"]}
    assert entry["clean_acc"] == f"{100 * rows['clean']['accuracy']:.2f}"
    assert entry["autoattack_acc"] == f"{100 * rows['AutoAttack']['accuracy']:.2f}"
    assert (entry["dataset"], entry["eps"]) == ("cifar10", "8/255")
    assert entry["number_forward_passes"] == 1
    assert entry["architecture"] == "small_cnn"
    for name in ("link", "name", "authors", "additional_data", "venue", "reported"):
        assert entry[name] is None
    assert (entry["unreliable"], entry["footnote"]) == (None, None)


def test_parameters_of_ones_own_are_passed_over(content):
    odd = dict(content["rows"][1], name="mine", parameters={"threat": "linf"})
    rows = [content["rows"][0], odd, *content["rows"][1:]]
    assert robustbench_entry({**content, "rows": rows}) == robustbench_entry(content)


def test_what_is_told_fills_the_gaps(content):
    about = dict(link="https://arxiv.org/abs/1", authors="A, B", additional_data=False)
    entry = robustbench_entry(content, about)
    assert {name: entry[name] for name in about} == about


def test_what_is_told_on_a_command_line_is_text(content):
    about = dict(additional_data="false", number_forward_passes="2", eps="8/255")
    entry = robustbench_entry(content, about)
    assert entry["additional_data"] is False
    assert entry["number_forward_passes"] == 2
    for field, text in dict(additional_data="no", eps="8/0", eps_="1").items():
        with pytest.raises(InputError, match="`about`"):
            robustbench_entry(content, {field: text})


def test_a_lower_worst_case_is_external(tmp_path):
    outcome = judged()
    lower = reports.attack("adaptive", outcome.attacks[1].correct.copy())
    lower.correct[:20] = False
    outcome = dataclasses.replace(outcome, attacks=(*outcome.attacks, lower))
    given = dict(data=CIFAR10, threat=THREAT, suite="full")
    entry = robustbench_entry(reports.write(tmp_path, outcome, **given))
    assert entry["external"] == f"{100 * outcome.worst_case_correct.mean():.2f}"
    assert float(entry["external"]) < float(entry["autoattack_acc"])
    assert "suite full" in entry["footnote"]


def test_a_part_of_the_images_is_told(content):
    data = "Dataset('cifar10/3.0.2', 10000 images 32x32x3 uint8, 10 classes)"
    entry = robustbench_entry({**content, "data": data}, dict(footnote="Ours."))
    assert entry["footnote"] == f"Ours. Measured on {reports.N} of 10000 test images."
    given = "Dataset('images given', 120 images 32x32x3 float32, 10 classes)"
    for data in (given, "some images"):
        entry = robustbench_entry({**content, "data": data}, dict(dataset="cifar10"))
        assert entry["footnote"] == f"Measured on {reports.N} images."


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (dict(verdict=dict(flags=[], measured=3)), False),
        (dict(verdict=dict(flags=["noise"], measured=3)), True),
        (dict(verdict=dict(flags=[], measured=0)), None),
        (dict(warnings=["AutoAttack: Square broke what APGD did not."]), True),
        (dict(warnings=["PGD-40: doubtful."]), None),
    ],
)
def test_unreliable_says_what_indicators_found(content, change, expected):
    assert robustbench_entry({**content, **change})["unreliable"] is expected


@pytest.mark.parametrize(
    ("config", "passes"),
    [
        ({"head": {"name": "linear"}}, 1),
        ({"head": {"name": "wnll"}}, None),
        ({"transform": {"name": "nip"}}, None),
        (None, None),
    ],
)
def test_forward_passes_are_told_of_plain_networks_only(content, config, passes):
    entry = robustbench_entry({**content, "config": config})
    assert entry["number_forward_passes"] == passes


def test_the_architecture_is_the_config_s(content):
    model = dict(name="wide_resnet34_10", dtype="float32", buffer=1)
    entry = robustbench_entry({**content, "config": {"model": model}})
    assert entry["architecture"] == "wide_resnet34_10 (buffer=1)"


def test_the_file_lies_where_robustbench_has_it(content, tmp_path):
    path = export_robustbench(tmp_path / "My run (1)")
    root = tmp_path / "My run (1)" / "report"
    assert path == root / "model_info" / "cifar10" / "Linf" / "My_run_1.json"
    assert json.loads(path.read_text()) == robustbench_entry(content)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    elsewhere = export_robustbench(root, directory=tmp_path / "entries")
    assert elsewhere.is_relative_to(tmp_path / "entries" / "model_info")


def test_what_the_report_lacks_may_be_told(content):
    bare = {**content, "data": None, "threat": None}
    with pytest.raises(InputError, match="give `norm`"):
        robustbench_entry(bare)
    with pytest.raises(InputError, match="give `dataset`"):
        robustbench_entry(bare, dict(norm="linf", eps=EPS))
    told = dict(norm="linf", eps=EPS, dataset="cifar100")
    assert robustbench_entry(bare, told)["dataset"] == "cifar100"


def test_l2_has_its_own_folder_and_decimal_radius(tmp_path):
    given = dict(data=CIFAR10, threat=L2)
    reports.write(tmp_path / "run" / "report", judged(threat=L2), **given)
    path = export_robustbench(tmp_path / "run")
    assert path.parent.name == "L2"
    assert json.loads(path.read_text())["eps"] == "0.5"


def l1(content):
    threat = {"name": "l1", "eps": 12.0}
    return {**content, "threat": threat}


def without(content):
    rows = [row for row in content["rows"] if row["name"] != "AutoAttack"]
    return {**content, "rows": rows}


def changed(content, counts=True, **parameters):
    rows = [dict(row) for row in content["rows"]]
    for row in rows:
        if row["name"] == "AutoAttack":
            row["counts"] = counts
            row["parameters"] = row["parameters"] | parameters
    return {**content, "rows": rows}


@pytest.mark.parametrize(
    ("damage", "about", "match"),
    [
        (without, {}, "no AutoAttack at linf eps 0.0313.*--suite=standard"),
        (lambda c: c, dict(x=1), "`about` has 'x'"),
        (lambda c: changed(c, view={"transform": None}), {}, "no AutoAttack"),
        (lambda c: changed(c, source="runs/other"), {}, "no AutoAttack"),
        (lambda c: changed(c, threat=L2), {}, "no AutoAttack"),
        (lambda c: changed(c, counts=False), {}, "no AutoAttack"),
        (lambda c: changed(c, name="autoattack_plus"), {}, "no AutoAttack"),
        (l1, {}, "linf and l2"),
        (lambda c: {**c, "draws": 30}, {}, "random one"),
        (lambda c: c, dict(eps=0.5), "`eps` 0.5 contradicts"),
        (lambda c: c, dict(norm="l2"), "`norm` 'l2' contradicts"),
        (lambda c: c, dict(dataset="mnist"), "`dataset` 'mnist' contradicts"),
        (lambda c: c, dict(clean_acc="99"), "`about` has 'clean_acc'"),
        (
            lambda c: {**c, "threat": {**THREAT, "bounds": [-1.0, 1.0]}},
            {},
            r"pixels in \[0, 1\]",
        ),
    ],
)
def test_what_makes_no_entry_is_one_line(content, damage, about, match):
    with pytest.raises(InputError, match=match) as caught:
        robustbench_entry(damage(content), about)
    assert len(str(caught.value).splitlines()) == 1


def test_no_report_says_the_command_to_type(tmp_path):
    with pytest.raises(InputError, match="There is no directory"):
        export_robustbench(tmp_path / "typo")
    (tmp_path / "run").mkdir()
    for given in (tmp_path / "run", tmp_path / "run" / "report"):
        with pytest.raises(InputError, match=r"eval\.py --workdir=\S+/run --suite"):
            export_robustbench(given)


def test_several_seeds_make_no_entry(tmp_path):
    reports.write(tmp_path / "a" / "report" / "seed_0", judged())
    with pytest.raises(InputError, match=r"reports of 1 seeds.*name one"):
        export_robustbench(tmp_path / "a")


def test_a_directory_that_cannot_be_written(content, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="Cannot write"):
        export_robustbench(tmp_path / "My run (1)", directory=tmp_path / "file")
