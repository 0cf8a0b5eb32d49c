"""The pages: their tables are what the scripts write, their code runs."""

import importlib
import math
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags

from configs import common
from robustjax import build

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGE = (DOCS / "attacks.md").read_text()
INTERPOLATION = (DOCS / "interpolation.md").read_text()
NAMID = (DOCS / "namid.md").read_text()
NIP = (DOCS / "nip.md").read_text()
AT_ALP = (DOCS / "at_alp.md").read_text()
INDICATORS = (DOCS / "indicators.md").read_text()
INFORMATION = (DOCS / "information.md").read_text()
COMPARISON = (DOCS / "comparison.md").read_text()
BINARIZATION = (DOCS / "binarization.md").read_text()
# One of each way to count: a scan, chunks at two lengths, early ends, no passes.
QUICK = "pgd,square,deepfool,grey"


def blocks(language, page=PAGE):
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def check(*arguments):
    command = [sys.executable, str(DOCS / "make_attacks.py"), "--check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode, done.stdout + done.stderr


def test_the_table_is_what_the_script_writes():
    check(f"--measure={QUICK}")


@pytest.mark.slow
def test_every_cost_is_what_is_measured():
    check()


def test_the_python_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks("python"):
        exec(compile(block, "attacks.md", "exec"), names)
    key, f, x, y = (names[name] for name in ("key", "logits_fn", "x", "y"))
    called = ("towards", "nearest", "random", "several", "ensemble", "each", "sparing")
    for name in (*called, "label_free"):
        assert (names[name](key, f, x, y) != x).any()
    assert (names["curve"][:-1] >= names["curve"][1:]).all()
    assert (names["accuracies"][:-1] >= names["accuracies"][1:]).all()
    assert names["robust_accuracy"] <= (f(x).argmax(1) == y).mean()
    assert not any(tmp_path.iterdir())  # the state file is gone
    suite = names["get_config"]({"threat": {"name": "linf", "eps": 0.1}})
    for block in suite:
        build.build_attack(block)


def test_the_page_on_interpolation_runs():
    names = {}
    for block in blocks("python", INTERPOLATION):
        exec(compile(block, "interpolation.md", "exec"), names)
    fun, x = names["logits_fn"], names["x"]
    for other in ("straight", "surrogate"):
        assert (names[other](x) == fun(x)).all()
    assert all((x_adv != x).any() for x_adv in names["found"])
    assert (names["loss"] >= 0).all()
    assert len(names["get_config"]({"threat": {"name": "linf", "eps": 0.1}})) == 5


def test_the_page_on_namid_runs():
    names = {}
    for block in blocks("python", NAMID):
        exec(compile(block, "namid.md", "exec"), names)
    assert jax.numpy.isfinite(names["loss"])
    assert names["clean"].shape == (16,)


def test_the_page_on_nip_runs():
    names = {}
    for block in blocks("python", NIP):
        exec(compile(block, "nip.md", "exec"), names)
    model_fn, x, y = (names[name] for name in ("model_fn", "x", "y"))
    assert (model_fn(x).logits.argmax(axis=1) == y).mean() > 0.8
    assert names["every_class"].shape == (8, 10, 128)
    assert names["shapley"].value.shape == (2, 32)
    assert (names["oblivious"] != names["adaptive"]).any()


def test_the_page_on_pairs_runs():
    names = {}
    for block in blocks("python", AT_ALP):
        exec(compile(block, "at_alp.md", "exec"), names)
    assert {"loss/logit", "loss/attention"} < set(names["aux"].metrics)
    assert names["features"]["stage3"].shape == (2, 8, 8, 64)
    assert "denoise" in names["weights"][0]["stage1"]
    _, aux = names["ensemble"](
        names["params"], names["model_state"], jax.random.key(5), names["batch"]
    )
    assert 0 <= aux.metrics["accuracy/robust"] <= 1
    assert len(names["areas"]["rows"]) == 2


def test_the_page_on_indicators_runs():
    names = {}
    for block in blocks("python", INDICATORS):
        exec(compile(block, "indicators.md", "exec"), names)
    flags = {one.name for one in names["found"] if one.flagged}
    assert {"gradient", "chance"} <= flags


def test_the_page_on_information_runs():
    names = {}
    for block in blocks("python", INFORMATION):
        exec(compile(block, "information.md", "exec"), names)
    assert 0.3 < names["found"].information < 0.7
    assert 1 < names["of_labels"].information < math.log(10)
    assert np.allclose(names["where"].mean(1), names["each"], atol=1e-5)


def test_the_page_on_comparison_runs():
    names = {}
    for block in blocks("python", COMPARISON):
        exec(compile(block, "comparison.md", "exec"), names)
    assert names["low"] < names["found"].difference < names["high"]
    assert names["p"][0] >= names["found"].p
    assert names["over_runs"].total == 2
    half = names["evaluation"].tango_interval(0, 0, 100)[1]
    assert f"differ by {100 * half:.1f} points" in COMPARISON


def test_the_page_on_binarization_runs():
    names = {}
    for block in blocks("python", BINARIZATION):
        exec(compile(block, "binarization.md", "exec"), names)
    assert names["sound"]["success"] > 0.9
    assert names["masked"]["success"] < 0.5
    assert names["masked"]["flagged"]
    assert names["bpda"]["success"] > 0.9
    found = names["protocol"]
    assert found["transferred"] < found["defended"]["clean"]
    assert 1 <= found["cost"]["work_ratio"] < 1.1


def test_the_tables_on_information_are_what_the_script_writes(monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    script = importlib.import_module("make_information")
    assert script.written(INFORMATION, script.tables(script.kept())) == INFORMATION


@pytest.mark.parametrize(
    "line",
    "".join(
        block
        for page in (PAGE, INTERPOLATION, NAMID, NIP, AT_ALP, COMPARISON)
        for block in blocks("bash", page)
    ).splitlines(),
)
def test_commands_name_flags_that_exist(line):
    script, *arguments = shlex.split(line)[1:]
    source = (ROOT / script).read_text()
    for argument in arguments:
        name = argument.removeprefix("--").partition("=")[0]
        in_config = script == "train.py" and name.startswith("config.")
        assert f'"{name}"' in source or name in flags.FLAGS or in_config


def test_entries_of_an_evaluation_that_pages_set_are_known():
    pages = [ROOT / "README.md", *DOCS.glob("*.md")]
    words = "".join(page.read_text() for page in pages)
    names = sorted(set(re.findall(r"--set=evaluation\.(\w+)", words)))
    assert "influence_maps" in names
    changes = [f"evaluation.{name}=1" for name in names]
    build.override(common.base(0.1), None, None, changes)
