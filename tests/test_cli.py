"""The two commands from end to end, and what they say to bad input."""

import contextlib
import json
import re
import runpy
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import grain  # noqa: F401  # brings flags of its own
import jax
import numpy as np
import pytest
from absl import app, flags

from robustjax import cli

pytestmark = pytest.mark.usefixtures("compilation_cache")

ROOT = Path(__file__).resolve().parent.parent
DIGITS = f"--config={ROOT / 'configs' / 'digits_pgd.py'}"
TINY = (
    "--config.train.num_epochs=2",
    "--config.loop.validate_every=1",
    "--config.train.loss.attack.num_steps=1",
    "--config.validation_attack.num_steps=1",
    "--config.model.stages=((4,),)",
    "--config.data.batch_size=240",
    "--noprogress_bar",
)
# What is measured beside attacks has tests of its own, and many programs.
ALONE = ("--noindicators", "--nopictures")
FEW = ("--attack.num_steps=2", "--attack.num_restarts=2", "--num_examples=50")
QUICK = (*FEW, *ALONE)


@pytest.fixture
def command(monkeypatch, capfd):
    """Runs `train.py` or `eval.py` in this process, as a shell would."""
    app.define_help_flags()

    def run(script, *arguments):
        known = set(flags.FLAGS)
        handlers = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
        code = 0
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as stop:
            code = stop.code
        finally:
            for name in set(flags.FLAGS) - known:
                with contextlib.suppress(AttributeError):
                    delattr(flags.FLAGS, name)
            flags.FLAGS.unparse_flags()
            for name in [name for name in sys.modules if name.endswith("_config")]:
                del sys.modules[name]  # the config file, under ml_collections' name
            for number, handler in handlers.items():
                signal.signal(number, handler)
        out, err = capfd.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return run


@pytest.fixture
def refused(command):
    """Runs a command that must fail with exit code 2 and one line; the line."""

    def run(*line):
        result = command(*line)
        assert result.code == 2, result
        assert result.out == ""
        assert result.err.count("\n") == 1, result.err
        assert result.err.startswith(f"{line[0]}: ")
        assert "Traceback" not in result.err
        return result.err

    return run


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return tmp_path_factory.mktemp("original") / "run"


@pytest.fixture
def trained(command, original, tmp_path):
    """A copy of a finished run."""
    if not original.exists():
        result = command("train.py", DIGITS, f"--workdir={original}", *TINY)
        assert (result.code, result.err) == (0, "")
        assert "validation/robust_accuracy" in result.out
    return shutil.copytree(original, tmp_path / "run")


# --- from end to end ----------------------------------------------------------------


def test_training_and_judging_leave_everything_behind(command, trained):
    steps = sorted(int(path.name) for path in (trained / "checkpoints").iterdir())
    config = json.loads((trained / "config.json").read_text())
    assert config["train"]["num_epochs"] == 2
    assert list((trained / "tensorboard").iterdir())
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").open()]
    assert {row["split"] for row in rows} == {"train", "validation"}

    judged = command("eval.py", f"--workdir={trained}", *QUICK, "--save_adversarial")
    assert judged.code == 0
    for text in ("clean", "PGD-2 x 2 restarts", "worst case", "95% interval", "50"):
        assert text in judged.out
    report = json.loads((trained / "report" / "report.json").read_text())
    assert report["checkpoint"] in steps
    assert report["num_examples"] == 50
    assert report["config"] == config
    assert report["versions"]["jax"] == jax.__version__
    assert re.fullmatch(r"unknown|[0-9a-f]{12}(-dirty)?", report["commit"])
    assert report["device"].startswith("8 x ")
    (attack,) = (row for row in report["rows"] if row["name"] == "PGD-2")
    assert attack["parameters"] == {
        "name": "pgd",
        "threat": {"name": "linf", "eps": 0.1, "bounds": [0.0, 1.0]},
        "step_size": 0.025,
        "num_steps": 2,
        "objective": "cross_entropy",
        "random_start": "uniform",
        "iterate": "last",
        "freeze_broken": False,
    }
    with np.load(trained / "report" / "adversarial" / "PGD-2.npz") as saved:
        assert saved["x_adv"].shape == (50, 8, 8, 1)
        assert 50 - saved["broken"].sum() == attack["correct"]
        assert len(set(saved["index"].tolist())) == 50
    assert not list(trained.rglob("*.partial*"))

    def numbers(summary):
        return [(row["name"], row["correct"]) for row in summary["rows"]]

    again = trained / "again"
    other = ("--batch_size=16", "--curve=0,0.1", f"--report={again}")
    result = command("eval.py", f"--workdir={trained}", *QUICK, *other)
    assert result.code == 0
    second = json.loads((again / "report.json").read_text())
    assert numbers(second) == numbers(report)
    assert second["curve"]["accuracy"][0] == report["rows"][0]["accuracy"]

    for checkpoint, step in (("last", steps[-1]), (str(steps[0]), steps[0])):
        line = (
            f"--workdir={trained}",
            f"--checkpoint={checkpoint}",
            "--attack.eps=0.2",
        )
        assert command("eval.py", *line, *QUICK).code == 0
        report = json.loads((trained / "report" / "report.json").read_text())
        assert report["checkpoint"] == step
        parameters = report["rows"][1]["parameters"]
        assert parameters["threat"]["eps"] == 0.2
        assert parameters["step_size"] == pytest.approx(0.05)


OWN_SUITE = """
def get_config(evaluation):
    unlimited = dict(name="l2", eps=float("inf"))
    return [
        dict(name="fgsm", threat=evaluation["threat"], label="mine"),
        dict(name="ddn", threat=unlimited, num_steps=2, radii=(0.1, 1.0)),
        dict(name="grey", threat=evaluation["threat"], counts=False),
    ]
"""


def test_suites_by_name_and_of_ones_own(command, trained, tmp_path):
    workdir = f"--workdir={trained}"
    judged = command("eval.py", workdir, "--suite=screen", "--num_examples=10", *ALONE)
    assert judged.code == 0
    assert "APGD-CE: " in judged.out
    assert "AutoAttack" not in judged.out
    report = json.loads((trained / "report" / "report.json").read_text())
    assert report["suite"] == "screen"
    clean, row, worst = report["rows"]
    assert [stage["name"] for stage in row["stages"]] == ["APGD-CE", "APGD-T"]
    assert row["stages"][0]["attacked"] == clean["correct"]
    assert row["stages"][-1]["accuracy"] == row["accuracy"] == worst["accuracy"]
    assert not list(trained.rglob("*unfinished*"))

    path = tmp_path / "own.py"
    path.write_text(OWN_SUITE)
    judged = command("eval.py", workdir, f"--suite={path}", "--num_examples=10", *ALONE)
    assert judged.code == 0
    report = json.loads((trained / "report" / "report.json").read_text())
    names = [row["name"] for row in report["rows"]]
    uncounted = ["ddn (not counted)", "grey (not counted)"]
    assert names == ["clean", "mine", *uncounted, "worst case"]
    assert report["rows"][1]["correct"] == report["rows"][-1]["correct"]
    assert report["rows"][2]["minimum_norm"]["eps"] == [0.1, 1.0]
    assert "accuracy at l2 0.1: " in (trained / "report" / "report.md").read_text()


WNLL_SUITE = """
def get_config(evaluation):
    fgsm = dict(name="fgsm", threat=evaluation["threat"])
    straight = dict(gradient="straight_through")
    return [
        fgsm,
        fgsm | dict(label="linear", view=dict(name="linear")),
        fgsm | dict(label="joint", view=straight, perturb_templates=True),
        fgsm | dict(label="past", view=dict(transform=None)),
        fgsm | dict(label="masks", view=dict(samples=2)),
    ]
"""


@pytest.mark.slow
def test_any_run_is_judged_with_another_head_and_a_transform(
    command, trained, tmp_path
):
    path = tmp_path / "views.py"
    path.write_text(WNLL_SUITE)
    judged = command(
        "eval.py",
        f"--workdir={trained}",
        f"--suite={path}",
        *("--num_examples=20", *ALONE),
        "--head=wnll",
        "--set=head.num_templates=100",
        "--transform=total_variation",
        "--set=transform.p_drop=0.2",
    )
    assert judged.code == 0, judged
    report = json.loads((trained / "report" / "report.json").read_text())
    names = [row["name"] for row in report["rows"]]
    views = ["fgsm", "linear", "joint", "past", "masks"]
    assert names == ["clean", *views, "worst case"]
    assert report["config"]["head"] == {"name": "wnll", "num_templates": 100}
    shown = {row["name"]: row.get("parameters", {}) for row in report["rows"]}
    assert shown["linear"]["view"] == {"name": "linear"}
    assert shown["joint"]["perturb_templates"] is True
    assert shown["past"]["view"] == {"transform": None}


INCONSISTENT = """
def get_config(evaluation):
    linf = dict(evaluation["threat"])
    weak = dict(name="fgsm", threat=linf | dict(eps=0.001), label="too weak")
    fgsm = dict(name="fgsm", threat=linf | dict(eps=0.4))
    stolen = dict(name="transfer", attack=fgsm, sources=[WORKDIR], access="gray")
    return [weak, stolen | dict(label="stolen")]
"""


def test_what_is_around_images_and_where_a_network_looks(command, trained, tmp_path):
    given = (f"--workdir={trained}", "--suite=quick", "--num_examples=16", *ALONE)
    masks = np.zeros((20, 8, 8), bool)
    masks[:, 2:6, 2:6] = True
    np.savez(tmp_path / "masks.npz", masks=masks)
    judged = command(
        "eval.py",
        *(*given, "--attack.num_steps=2", "--attack.num_restarts=1"),
        *("--steps=1,3", "--surfaces=3", "--curve=0,0.5"),
        *("--set=evaluation.grid_restarts=1", "--set=evaluation.best_restarts=0"),
        f"--set=evaluation.reference={trained}",
        "--set=evaluation.layer=relu1_1",
    )
    assert judged.code == 0, judged
    folder = trained / "report"
    report = json.loads((folder / "report.json").read_text())
    assert report["steps"]["steps"] == [1, 3]
    sizes = report["steps"]["step_sizes"]
    np.testing.assert_allclose(sizes, [0.1 / n for n in (4, 8, 16, 32, 64)])
    assert report["gradients"]["count"] == 3
    rows = report["attention"]["rows"]
    assert {row["images"] for row in rows} == {"clean", "white-box PGD-2"}
    assert {row["map"] for row in rows} == {"attention", "grad_cam"}
    assert report["curve"]["limit"][0] is None
    assert 0.1 <= report["curve"]["limit"][1] <= 0.3
    text = (folder / "report.md").read_text()
    for name in ("steps", "surfaces", "attention", "key_share", "curve"):
        assert f"({name}.png)" in text
        assert (folder / f"{name}.png").stat().st_size > 1000
    for title in ("## Steps", "## Loss around images", "## Key areas"):
        assert title in text
    again = command(
        "eval.py",
        *(*given, "--attack.num_steps=1", "--attack.num_restarts=1"),
        f"--set=evaluation.masks={tmp_path / 'masks.npz'}",
        "--set=evaluation.layer=relu1_1",
    )
    assert again.code == 0, again
    assert "masks.npz" in (folder / "report.md").read_text()


def test_attackers_who_know_less_and_do_more_stop_the_result(
    command, trained, tmp_path
):
    path = tmp_path / "mine.py"
    path.write_text(INCONSISTENT.replace("WORKDIR", repr(str(trained))))
    given = (f"--workdir={trained}", f"--suite={path}", "--num_examples=32", *ALONE)
    judged = command("eval.py", *given)
    assert judged.code == 1
    assert "white-box attacks leave" in judged.err
    assert judged.err.count("\n") == 1
    assert "the former failed" in (trained / "report" / "report.md").read_text()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--steps=0,5"], "`--steps` must be ascending"),
        (["--steps=5,x"], "`--steps` must be ascending"),
        (["--surfaces=-1"], "`surfaces`"),
        (["--suite=at_alp_transfer"], "evaluation.gray"),
        (["--set=evaluation.masks=no.npz"], "`evaluation.layer`"),
        (["--set=evaluation.masks=no.npz", "--set=evaluation.layer=relu1_1"], "read"),
        (["--set=evaluation.reference=.", "--set=evaluation.layer=relu1_1"], "no conf"),
    ],
)
def test_a_wrong_way_to_look_closer_is_refused(refused, trained, given, words):
    line = refused("eval.py", f"--workdir={trained}", *QUICK, "--batch_size=8", *given)
    assert words in line


def test_a_start_that_does_not_fit_leaves_no_directory_behind(
    refused, trained, tmp_path
):
    other = ("--config.model.stages=((6,),)", f"--config.init_from={trained}")
    workdir = tmp_path / "new"
    line = refused("train.py", DIGITS, f"--workdir={workdir}", *TINY, *other)
    assert "another network" in line
    assert not (workdir / "config.json").exists()


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ("('stage9','relu1_1')", r"'stage9'.*relu1_1"),
        ("('relu1_1','head')", r"`layers` .*\[B, H, W, C\]: 'head' has .*\(240, 10\)"),
    ],
)
@pytest.mark.parametrize("within", ["", "loss."])
def test_layers_without_maps_leave_no_directory_behind(
    refused, tmp_path, layers, words, within
):
    text = """
from configs import digits_at_alp

def get_config():
    config = digits_at_alp.get_config().unlock()
    config.model.stages = ((4,),)
    if {within!r}:
        config.train.loss = dict(name="awp", gamma=0.01, loss=config.train.loss)
    return config
"""
    path = tmp_path / "mine.py"
    path.write_text(text.replace("{within!r}", repr(within)))
    given = (f"--config={path}", f"--config.train.loss.{within}layers={layers}")
    more = ("--config.data.batch_size=240", "--noprogress_bar")
    workdir = tmp_path / "new"
    line = refused("train.py", *given, f"--workdir={workdir}", *more)
    assert re.search(words, line)
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--head=softmax"], "`head name` must be one of"),
        (["--head=wnll", "--set=head.num_templates=0"], "`num_templates`"),
        (["--head=wnll", "--set=head.templates=9"], "The block of head does not fit"),
        (["--set=head.num_templates=9"], "`--set` must be block.name=value"),
        (["--transform=blur"], "`transform name` must be one of"),
        (["--transform=total_variation", "--set=transform.p_drop=1"], "`p_drop`"),
        (["--suite=wnll_adaptive"], "wnll_adaptive judges a head or a transform"),
        (["--head=wnll", "--set=head.queries=batch", "--batch_size=500"], "divide"),
    ],
)
def test_a_wrong_head_or_transform_is_refused(refused, trained, given, words):
    assert words in refused("eval.py", f"--workdir={trained}", *given)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        ("def get_config(:", "SyntaxError"),
        ("import nothing_of_this_name", "nothing_of_this_name"),
        ("{}['a']", "KeyError: 'a'"),
        ("def get_config(): raise ValueError('odd\\nlines')", "odd lines"),
        ("def get_config(evaluation): return evaluation['a']", "KeyError: 'a'"),
        ("get_config = 3", "no function get_config()"),
        ("def get_config(): return [dict(name='ddn', radii=0.5)]", "`radii` must be"),
    ],
)
def test_a_suite_that_fails_is_refused(refused, trained, tmp_path, content, words):
    path = tmp_path / "own.py"
    if content is not None:
        path.write_text(content)
    assert words in refused("eval.py", f"--workdir={trained}", f"--suite={path}")


def test_the_same_command_again_changes_nothing(command, trained):
    def everything():
        return {
            path: path.read_bytes()
            for path in trained.rglob("*")
            if path.is_file() and "tensorboard" not in path.parts
        }

    before = everything()
    assert command("train.py", DIGITS, f"--workdir={trained}", *TINY).code == 0
    assert everything() == before


def test_seeds_are_trained_and_judged_one_by_one(command, tmp_path):
    line = (DIGITS, f"--workdir={tmp_path}", *TINY, "--config.train.num_epochs=1")
    result = command("train.py", *line, "--seeds=0,3")
    assert result.code == 0
    assert "| 2     |" in result.out
    figures = json.loads((tmp_path / "seeds.json").read_text())
    assert {len(values) for values in figures.values()} == {2}
    rows = [(tmp_path / f"seed_{s}" / "metrics.jsonl").read_text() for s in (0, 3)]
    assert rows[0] != rows[1]
    judged = command("eval.py", f"--workdir={tmp_path}", *QUICK)
    assert judged.code == 0
    assert "deviation" in judged.out
    figures = json.loads((tmp_path / "report" / "seeds.json").read_text())
    assert set(figures) == {"clean", "PGD-2", "PGD-2 x 2 restarts", "worst case"}
    assert (tmp_path / "report" / "seed_3" / "report.md").exists()


@pytest.mark.parametrize("script", ["train.py", "eval.py"])
def test_help_is_there(command, script):
    result = command(script, "--help")
    assert result.code == 0
    assert f"python {script} --" in result.out
    assert "--workdir" in result.out
    assert "--[no]multihost" in result.out


@pytest.mark.parametrize("script", ["train.py", "eval.py"])
def test_the_commands_stay_short(script):
    assert len((ROOT / script).read_text().splitlines()) <= 150


# --- bad input ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("--config.foo=1", "no 'foo' to override"),
        ("--config.model.width=1", "'width'"),
        ("--config.train.num_epochs=2.5", "num_epochs=2.5"),
        ("--config.train.num_epochs=many", "num_epochs=many"),
        ("--config.train.num_epochs=0", "total_steps"),
        ("--config.train.selection=accuracy", "`selection` must be one of 'last', 'v"),
        (
            "--config.train.selection=validation/robust_accuracy "
            "--config.data.validation=0.0",
            "`selection` must be one of 'last'; got",
        ),
        ("--config.train.loss.attack.threat.eps=8", "Did you mean 8.0/255?"),
        (
            "--config.evaluation.threat.eps=8 --config.validation_attack.threat.eps=8",
            "",
        ),
        ("--config.model.name=resnet19", "`model name` must be one of 'small_cnn'"),
        ("--config.train.loss.name=none", "`loss name` must be one of 'standard'"),
        ("--config.train.loss.attack.name=cw", "`attack name` must be one of"),
        ("--config.train.loss.attack.threat.name=l3", "`threat name` must be one of"),
        ("--config.train.optimizer.name=lion", "`optimizer name` must be one of"),
        ("--config.train.optimizer.schedule.name=step", "`schedule name` must be"),
        ("--config.stages=('train','tune')", "there is no config.tune"),
        ("--config.data.name=mnist --config.data.data_dir=/dev/null", "mnist"),
        ("--config.data.batch_size=100", "multiple of the 8 devices, got 100"),
        ("--config.data.batch_size=8000", "at most 1080"),
        ("--config.loop.log_every=0", "`log_every`"),
        ("--foo=1", "foo"),
        ("digits", "'digits'"),
        ("--seeds=", "--seeds"),
        ("--seeds=0,x", "--seeds"),
        ("--seeds=1,1", "--seeds"),
    ],
)
def test_training_refuses(refused, tmp_path, given, words):
    line = ("train.py", DIGITS, f"--workdir={tmp_path / 'run'}", "--noprogress_bar")
    assert words in refused(*line, *given.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "def get_config():\n    return 1 / 0\n",
            "ZeroDivisionError: division by zero",
        ),
        ("def get_config():\n    raise ValueError('odd\\nlines')\n", "odd lines"),
        ("def get_config(:\n", "SyntaxError"),
        ("import nothing_of_this_name\n", "nothing_of_this_name"),
        ("x = 1\n", "get_config"),
        ("def get_config():\n    return {}\n", "ConfigDict"),
        (None, "config.py"),
    ],
)
def test_a_config_that_fails_is_refused(refused, tmp_path, text, words):
    path = tmp_path / "config.py"
    if text is not None:
        path.write_text(text)
    line = ("train.py", f"--config={path}", f"--workdir={tmp_path / 'run'}")
    assert words in refused(*line)
    assert not (tmp_path / "run").exists()


def test_what_is_missing_is_named(refused, tmp_path):
    assert "`--config` is missing" in refused("train.py", f"--workdir={tmp_path}")
    assert "`--workdir` is missing" in refused("train.py", DIGITS)
    assert "`--workdir` is missing" in refused("eval.py")
    assert "no run was started" in refused("eval.py", f"--workdir={tmp_path / 'run'}")
    config = f"--config={ROOT / 'configs' / 'cifar10_pgd_resnet18.py'}:three"
    assert ":one_cycle, got :three" in refused("train.py", config, "--workdir=x")


def test_a_directory_that_cannot_be_written_is_refused(refused):
    words = "Cannot write /dev/null/run/config.json"
    assert words in refused("train.py", DIGITS, "--workdir=/dev/null/run", *TINY)


def test_several_hosts_need_an_address(refused, tmp_path, monkeypatch):
    def initialize(address, count, index):
        assert (address, count, index) == (None, 2, None)
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    line = ("train.py", DIGITS, f"--workdir={tmp_path / 'run'}", "--num_processes=2")
    assert "--coordinator_address" in refused(*line, "--multihost")


def test_labels_out_of_range_are_refused(refused, tmp_path, monkeypatch):
    import sklearn.datasets

    def load_digits(return_X_y):
        del return_X_y
        labels = np.arange(1797) % 11
        return np.zeros((1797, 64)), labels

    monkeypatch.setattr(sklearn.datasets, "load_digits", load_digits)
    line = ("train.py", DIGITS, f"--workdir={tmp_path / 'run'}")
    assert "must lie in [0, 9]" in refused(*line)


def test_a_used_directory_is_left_as_it_was(command, refused, trained):
    def everything():
        return {p: p.read_bytes() for p in trained.rglob("*") if p.is_file()}

    before = everything()
    workdir = f"--workdir={trained}"
    err = refused("train.py", DIGITS, workdir, *TINY, "--config.seed=1")
    assert "config.seed is 0 there and 1 now" in err
    for given, words in (
        ("--attack.eps=8", "Did you mean 8.0/255?"),
        ("--attack.eps=x", "attack.eps"),
        ("--attack.foo=1", "attack.foo"),
        ("--attack.norm=l3", "`threat name`"),
        ("--attack.num_steps=0", "`num_steps`"),
        ("--suite=slow", "`suite` must be one of quick"),
        ("--num_examples=598", "at most 597"),
        ("--batch_size=0", "`batch_size`"),
        ("--curve=0.2,0.1", "--curve"),
        ("--curve=a", "--curve"),
        ("--curve=0,2", "`--curve`: `eps` must lie in [0, 1]"),
        ("--curve=0,1/0", "--curve"),
        ("--checkpoint=7", "No checkpoint of step 7"),
        ("--checkpoint=newest", "`checkpoint` must be best, last or a step"),
        ("--report=/dev/null/report", "Cannot write"),
    ):
        attack = () if given.startswith("--attack.num") else ("--attack.num_steps=1",)
        assert words in refused("eval.py", workdir, *attack, given), given
    assert everything() == before

    config = json.loads((trained / "config.json").read_text())
    config["model"]["stages"] = [[5]]
    (trained / "config.json").write_text(json.dumps(config))
    assert "of another architecture" in refused("eval.py", workdir)
    (trained / "config.json").write_text('{"seed": ')
    assert "config.json cannot be read" in refused("eval.py", workdir)
    assert "config.json cannot be read" in refused("train.py", DIGITS, workdir, *TINY)


def test_a_damaged_checkpoint_is_one_line_and_the_one_before_loads(
    command, refused, trained
):
    steps = sorted(int(path.name) for path in (trained / "checkpoints").iterdir())
    newest = trained / "checkpoints" / str(steps[-1])
    largest = max(
        (newest / "state" / "d").iterdir(), key=lambda path: path.stat().st_size
    )
    largest.write_bytes(largest.read_bytes()[:-100])
    words = f"step {steps[-1]} in {trained / 'checkpoints'} is damaged"
    workdir = f"--workdir={trained}"
    assert words in refused("train.py", DIGITS, workdir, *TINY)
    assert words in refused("eval.py", workdir, "--checkpoint=last")
    before = command("eval.py", workdir, f"--checkpoint={steps[0]}", *QUICK)
    assert before.code == 0


def test_a_loss_that_explodes_is_one_line(command, tmp_path):
    line = (DIGITS, f"--workdir={tmp_path}", *TINY)
    result = command("train.py", *line, "--config.train.optimizer.schedule.value=1e38")
    assert result.code == 1
    assert result.err.count("\n") == 1, result.err
    assert re.search(r"at step \d+ .* Last good checkpoint: ", result.err)


def test_a_signal_outside_the_loop_stops_cleanly(command, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "robustjax.build.run", lambda *_, **__: signal.raise_signal(signal.SIGTERM)
    )
    monkeypatch.setattr("os._exit", sys.exit)
    result = command("train.py", DIGITS, f"--workdir={tmp_path}")
    assert result.code == cli.STOPPED
    assert result.err.count("\n") == 1
    assert "Run again" in result.err
