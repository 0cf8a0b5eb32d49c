"""Kills a training run again and again and compares it with one never stopped.

    python benchmarks/resume.py --kills=10

Trains a small robust classifier on digits twice: once in peace, once with SIGKILL at
moments drawn from `--seed` (at a step, while a checkpoint is being written, or while
the program starts), started again after each. Exit code 0 if parameters, optimizer
state and metrics.jsonl end bit for bit the same, 1 otherwise.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import build, cli, training

ROOT = Path(__file__).resolve().parent.parent
POLL = 0.002  # seconds


def command(workdir: Path, epochs: int) -> list[str]:
    overrides = {
        "train.num_epochs": epochs,
        "train.loss.attack.num_steps": 2,
        "validation_attack.num_steps": 2,
        "loop.validate_every": 1,
        "loop.log_every": 3,
        "loop.average_decay": 0.9,
        "data.batch_size": 64,
        "model.stages": "((8,16),)",
    }
    return [
        sys.executable,
        str(ROOT / "train.py"),
        f"--config={ROOT / 'configs' / 'digits_pgd.py'}",
        f"--workdir={workdir}",
        "--noprogress_bar",
        *(f"--config.{name}={value}" for name, value in overrides.items()),
    ]


def rows(workdir: Path) -> int:
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def run_until(line: list[str], workdir: Path, kind: str, row: int, delay: float) -> str:
    """Starts the command and kills it at a moment; says what happened."""
    process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL)

    def wait_for(condition) -> bool:
        while not condition():
            if process.poll() is not None:
                return False
            time.sleep(POLL)
        return True

    if kind == "start":
        began = time.monotonic()
        wait_for(lambda: time.monotonic() - began > 10 * delay)
    elif wait_for(lambda: rows(workdir) >= row):
        if kind == "save":
            unfinished = "*.orbax-checkpoint-tmp*"
            wait_for(lambda: any((workdir / "checkpoints").glob(unfinished)))
        else:
            time.sleep(delay)
    over = process.poll() is not None
    process.kill()
    code = process.wait()
    if over and code:
        raise SystemExit(f"The run failed with exit code {code}.")
    return "over before that" if over else "killed"


def final_state(workdir: Path) -> training.TrainState:
    config = cli.read_config(workdir)
    mesh = training.data_mesh(jax.devices()[:1])
    run = build.run(config, mesh)
    stages = build.build_stages(config, run.splits, run.networks, mesh)
    return training.load(
        stages,
        run.init,
        workdir=workdir,
        checkpoint="last",
        average=run.options.average_decay is not None,
        mesh=mesh,
    )


def same_bits(a: training.TrainState, b: training.TrainState) -> bool:
    def plain(leaf: jax.Array) -> np.ndarray:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        return np.asarray(leaf)

    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(plain(x).tobytes() == plain(y).tobytes() for x, y in pairs)


def compare(kills: int, epochs: int, seed: int, directory: Path) -> bool:
    calm, shaken = directory / "calm", directory / "shaken"
    subprocess.run(
        command(calm, epochs), cwd=ROOT, stdout=subprocess.DEVNULL, check=True
    )
    total = rows(calm)
    draw = random.Random(seed)
    # In order, so that every one of them is reached.
    moments = sorted(draw.randrange(total - 1) for _ in range(kills))
    done = 0
    for number, row in enumerate(moments):
        kind = ("save", "step", "step", "start")[number % 4]
        delay = draw.uniform(0, 0.3)
        what = run_until(command(shaken, epochs), shaken, kind, row, delay)
        done += what == "killed"
        print(f"{number + 1:2d}. {kind:5s} after row {row:3d} of {total}: {what}")
    subprocess.run(
        command(shaken, epochs), cwd=ROOT, stdout=subprocess.DEVNULL, check=True
    )
    state = same_bits(final_state(calm), final_state(shaken))
    name = "metrics.jsonl"
    metrics = (calm / name).read_bytes() == (shaken / name).read_bytes()
    print(f"{done} kills: state {_verdict(state)}, {name} {_verdict(metrics)}")
    return state and metrics


def _verdict(same: bool) -> str:
    return "bit-identical" if same else "DIFFERS"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    with tempfile.TemporaryDirectory() as directory:
        same = compare(chosen.kills, chosen.epochs, chosen.seed, Path(directory))
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
