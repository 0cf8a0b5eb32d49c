"""What the README tells people to type."""

import re
import shlex
from pathlib import Path

import pytest
from absl import flags

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_ci_runs_the_readmes_test_command_to_the_letter():
    (line,) = (
        line for line in "".join(blocks("bash")).splitlines() if "pytest" in line
    )
    install, test = line.rsplit(" && ", 1)
    script = (ROOT / ".ci" / "run").read_text()
    assert install in script
    assert test in script


def test_the_python_blocks_run(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    block, report = blocks("python")
    names = {}
    exec(compile(block, "README.md", "exec"), names)
    few = {name: names[name][:12] for name in "xy"}  # mostly compilation
    exec(compile(report, "README.md", "exec"), names | few)
    assert (tmp_path / "runs" / "mine" / "report.html").exists()
    curve = names["curve"]
    assert curve.shape == (9,)
    assert (names["x_adv"] != names["x"]).any()


@pytest.mark.parametrize(
    "line",
    [
        line[line.index("python ") :]
        for block in blocks("bash")
        for line in block.replace(" && ", "\n").splitlines()
        if re.search(r"(train|eval)\.py", line)
    ],
)
def test_commands_name_files_and_flags_that_exist(line):
    script, *arguments = shlex.split(line)[1:]
    source = (ROOT / script).read_text()
    for argument in arguments:
        name, _, value = argument.removeprefix("--").partition("=")
        if name == "config":
            assert (ROOT / value).is_file()
        elif not name.startswith("config."):
            assert f'"{name}"' in source or name in flags.FLAGS
