"""Programs that are really killed, and two of them on one run."""

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    "--config.train.loss.attack.num_steps=2",
    "--config.validation_attack.num_steps=2",
    "--config.loop.validate_every=1",
    "--config.data.batch_size=64",
    "--config.model.stages=((8,16),)",
)


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory):
    """Compiled once, not once a process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_PLATFORMS", "cpu")
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("jax")))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
        yield


def start(script, *arguments):
    return subprocess.Popen(
        [sys.executable, script, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def train(workdir, *arguments):
    config = f"--config={ROOT / 'configs' / 'digits_pgd.py'}"
    return start(
        "train.py",
        config,
        f"--workdir={workdir}",
        *TINY,
        "--noprogress_bar",
        *arguments,
    )


def finish(process):
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def metrics(workdir):
    return (workdir / "metrics.jsonl").read_bytes()


@pytest.mark.slow
def test_a_run_that_is_killed_twice_ends_with_the_same_bits():
    line = [sys.executable, "benchmarks/resume.py", "--kills=2", "--epochs=6"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kills: state bit-identical, metrics.jsonl bit-identical" in done.stdout


def test_signals_save_and_the_same_command_goes_on(tmp_path):
    options = ("--config.train.num_epochs=12", "--config.loop.log_every=7")
    whole = train(tmp_path / "whole", *options)
    cut = tmp_path / "cut"
    for number in (signal.SIGTERM, signal.SIGINT):
        process = train(cut, *options)
        size = len(metrics(cut)) if (cut / "metrics.jsonl").exists() else 0
        while process.poll() is None:
            if (cut / "metrics.jsonl").exists() and len(metrics(cut)) > size + 400:
                break
            time.sleep(0.005)
        process.send_signal(number)
        code, out, err = finish(process)
        assert (code, out, err.count("\n")) == (75, "", 1), err
        assert "saved. Run again to go on." in err
    code, _, err = finish(train(cut, *options))
    assert (code, err) == (0, "")
    assert finish(whole)[0] == 0
    assert metrics(cut) == metrics(tmp_path / "whole")


def test_a_stopped_evaluation_does_not_wait_for_its_attack(tmp_path):
    assert finish(train(tmp_path, "--config.train.num_epochs=1"))[0] == 0
    long = ("--attack.num_steps=1000000", "--num_examples=50")
    process = start("eval.py", f"--workdir={tmp_path}", *long)
    try:
        about = process.stdout.readline()
        time.sleep(4)  # it compiles, and runs
        process.send_signal(signal.SIGTERM)
        code, _, err = finish(process)
    finally:
        process.kill()
    assert about.startswith("About")
    assert (code, err.count("\n")) == (75, 1), err
    assert "Run again to go on." in err


@pytest.mark.slow
def test_a_full_disk_is_one_line(small_disk):
    """700 kB hold one checkpoint of this network, not two."""
    workdir = small_disk("700k") / "run"
    process = train(workdir, "--config.model.stages=((16,16),)")
    code, out, err = finish(process)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert "Could not save a checkpoint" in err
    assert "the last good one is step " in err
    assert [json.loads(line) for line in metrics(workdir).splitlines()]


def two_processes(script, *arguments):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [
        start(
            script,
            *arguments,
            "--multihost",
            f"--coordinator_address={address}",
            "--num_processes=2",
            f"--process_id={index}",
        )
        for index in range(2)
    ]
    return [finish(process) for process in processes]


@pytest.mark.slow
def test_two_processes_train_and_judge_like_one(tmp_path):
    common = (
        f"--config={ROOT / 'configs' / 'digits_pgd.py'}",
        *TINY,
        "--config.train.num_epochs=1",
        "--config.loop.log_every=1",
        "--noprogress_bar",
    )
    alone = start("train.py", f"--workdir={tmp_path / 'one'}", *common)
    first, second = two_processes("train.py", f"--workdir={tmp_path / 'two'}", *common)
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert "Done" in first[1]
    assert "Done" not in second[1]  # only the first one speaks
    assert finish(alone)[0] == 0
    one, two = (
        [json.loads(line) for line in metrics(tmp_path / name).splitlines()]
        for name in ("one", "two")
    )
    assert [row["split"] for row in one] == [row["split"] for row in two]
    for a, b in zip(one[:3], two[:3], strict=True):
        assert a["loss/total"] == pytest.approx(b["loss/total"], abs=1e-6)
    assert one[-1] == two[-1]  # validation

    judged = (
        f"--workdir={tmp_path / 'two'}",
        "--attack.num_steps=2",
        "--attack.num_restarts=2",
        "--num_examples=101",
        "--save_adversarial",
        "--curve=0,0.1",
    )
    alone = start("eval.py", *judged, f"--report={tmp_path / 'r1'}")
    results = two_processes("eval.py", *judged, f"--report={tmp_path / 'r2'}")
    assert [code for code, _, _ in results] == [0, 0], results
    assert finish(alone)[0] == 0
    one, two = (
        json.loads((tmp_path / name / "report.json").read_text())
        for name in ("r1", "r2")
    )
    for a, b in zip(one["rows"], two["rows"], strict=True):
        assert (a["name"], a["correct"]) == (b["name"], b["correct"])
    assert one["curve"] == two["curve"]
    for path in sorted((tmp_path / "r1" / "adversarial").iterdir()):
        a, b = np.load(path), np.load(tmp_path / "r2" / "adversarial" / path.name)
        np.testing.assert_array_equal(a["broken"], b["broken"])
        np.testing.assert_allclose(a["x_adv"], b["x_adv"], atol=1e-4)
