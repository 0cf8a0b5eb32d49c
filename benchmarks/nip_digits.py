"""What NIP and its controls are worth on digits: python benchmarks/nip_digits.py.

Trains the config digits_nip, or that of `--trial`, for each seed (runs that are there
are taken as they are), makes adversarial images of the bare model once, and classifies
them with every defense of configs/nip.py: accuracies, and defense success rates. Beside
them stand diagnostics that are told the truth. `--adaptive=DEFENSE` then attacks these
defenses by the suite nip_adaptive. Every number goes to a file in WORKDIR as it is
found, and a second call goes on from there. From the root of the repository:

    PYTHONPATH=. python benchmarks/nip_digits.py --workdir=runs/nip_trial
    PYTHONPATH=. python benchmarks/nip_digits.py --adaptive="candidates, proto"
    PYTHONPATH=. python benchmarks/nip_digits.py --trial=mnist_nip --data_dir=DIR
"""

import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import app, flags

from configs import nip as blocks
from robustjax import (
    attacks,
    build,
    data,
    evaluation,
    influence,
    threats,
    training,
    transforms,
    types,
)

_WORKDIR = flags.DEFINE_string("workdir", "runs/nip_trial", "Of runs and results.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Trainings.")
_NUM = flags.DEFINE_integer("num_examples", 300, "Test images of each.")
_NUM_ADAPTIVE = flags.DEFINE_integer("num_adaptive", 150, "Of the adaptive suite.")
_ADAPTIVE = flags.DEFINE_multi_string("adaptive", [], "Defenses to attack adaptively.")
_VARIANT = flags.DEFINE_string("variant", "standard", "Or adversarial.")
_TRIAL = flags.DEFINE_string("trial", "digits_nip", "The config, by name.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Of TFDS, for data sets from there.")
_BATCH = 100

ROOT = Path(__file__).resolve().parent.parent
ATTACKS = ("FGSM", "PGD", "PGD 1.5", "min")


def attacks_of(eps: float) -> dict[str, types.Attack]:
    """By name: within `eps`, within half as much again, and the smallest."""
    wider = threats.linf(1.5 * eps)
    found = (
        attacks.fgsm(threats.linf(eps)),
        attacks.pgd(threats.linf(eps), step_size=eps / 10, num_steps=40),
        attacks.pgd(wider, step_size=0.15 * eps, num_steps=40),
        attacks.pgd_minimal(threats.linf(1.0)),
    )
    return dict(zip(ATTACKS, found, strict=True))


def in_blocks(fun: Callable[..., Any], *rows: Any) -> np.ndarray:
    """A compiled function of images, over all of them."""
    compiled, count = jax.jit(fun), len(rows[0])
    starts = range(0, count, _BATCH)
    parts = [compiled(*(row[i : i + _BATCH] for row in rows)) for i in starts]
    return np.concatenate([np.asarray(part) for part in parts])


def train(seed: int) -> Path:
    """A finished run."""
    workdir = Path(_WORKDIR.value) / _VARIANT.value / f"seed_{seed}"
    if not (workdir / "done").exists():
        config = f"{ROOT}/configs/{_TRIAL.value}.py:{_VARIANT.value}"
        flags_ = [f"--config={config}", f"--workdir={workdir}", "--noprogress_bar"]
        if _DATA_DIR.value is not None:
            flags_.append(f"--config.data.data_dir={_DATA_DIR.value}")
        command = [sys.executable, f"{ROOT}/train.py", *flags_, f"--config.seed={seed}"]
        subprocess.run(command, check=True, cwd=ROOT)
        (workdir / "done").touch()
    return workdir


class Seed:
    """One training with its adversarial images."""

    def __init__(self, seed: int):
        """Trains, or restores."""
        self.workdir = train(seed)
        self.config: Any = build.read_config(self.workdir).unlock()
        self.block = self.config.transform.to_dict()
        self.layer = self.block["layer"]
        self.controls = blocks.controls(self.layer, self.block)
        self.test = self.with_block({}).run.splits.test

    def with_block(self, block: Any) -> Any:
        """The run with another transform."""
        config = ml_collections.ConfigDict(self.config.to_dict())
        config.transform = ml_collections.ConfigDict(dict(block))
        mesh = training.data_mesh()
        return build.restore(self.workdir, mesh, config=config, checkpoint="last")

    @functools.cached_property
    def images(self) -> dict[str, jax.Array]:
        """Clean and adversarial images of the bare model."""
        bare = self.with_block({}).classifier.logits_fn
        x = data.as_float(jnp.asarray(self.test.images[: _NUM.value]))
        y = self.test.labels[: _NUM.value]
        keys = jax.random.split(jax.random.key(0), len(x))
        made = {
            name: in_blocks(lambda k, x, y, a=attack: a(k, bare, x, y), keys, x, y)
            for name, attack in attacks_of(self.config.evaluation.threat.eps).items()
        }
        return {"clean": x} | {n: jnp.asarray(x_adv) for n, x_adv in made.items()}

    def static(self) -> dict[str, Any]:
        """Accuracies and DSR of every defense on the bare model's images."""
        y = np.asarray(self.test.labels[: _NUM.value])
        right: dict[str, dict[str, np.ndarray]] = {}
        for name, block in self.controls.items():
            view = self.with_block(block).classifier.view({})
            answers = {n: in_blocks(view, x) for n, x in self.images.items()}
            right[name] = {n: a.argmax(axis=1) == y for n, a in answers.items()}
        bare = right["none"]
        fell = {n: bare["clean"] & ~bare[n] for n in ATTACKS}
        return {
            name: dict(
                accuracy={n: float(r.mean()) for n, r in found.items()},
                dsr={n: float(found[n][fell[n]].mean()) for n in ATTACKS},
            )
            for name, found in right.items()
        }

    def told(self) -> dict[str, Any]:
        """Diagnostics with the true label."""
        restored = self.with_block(self.block)
        model_fn = restored.classifier.neurons["model_fn"]
        train = restored.run.splits.train
        train = train.take(slice(10_000))
        x = data.as_float(jnp.asarray(train.images))
        defense: Any = build.build_defense(self.block, train.num_classes)
        benign = types.Batch(x, jnp.asarray(train.labels))
        state = defense.fit(jax.random.key(0), model_fn, benign)
        options = defense.apply.options
        y = jnp.asarray(self.test.labels[: _NUM.value])
        wrong = (y + jax.random.randint(jax.random.key(1), y.shape, 1, 10)) % 10
        found: dict[str, Any] = {"oracle": {}, "wrong label": {}}
        for name, x in self.images.items():
            shares = (
                evaluation.oracle_share(options, state, model_fn, x, label)
                for label in (y, wrong)
            )
            found["oracle"][name], found["wrong label"][name] = shares
        script = transforms.NIPOptions(
            layer=self.layer, front=1, tail=5, output=influence.probability
        )
        for name in ("min", "PGD"):
            for size in (0.001, 0.005, 0.02, 0.05, 0.1):
                for label, key in (("NIP", None), ("random", jax.random.key(2))):
                    for flip in (False, True):
                        row = f"benign twin, {name}, {label}, flip {flip}"
                        found.setdefault(row, {})[str(size)] = (
                            evaluation.benign_twin_share(
                                *(script, model_fn, self.images["clean"]),
                                self.images[name],
                                size=size,
                                sign_flip=flip,
                                random_key=key,
                            )
                        )
        return found

    def adaptive(self, name: str) -> dict[str, Any]:
        """The suite nip_adaptive: accuracies of the model alone, and defended."""
        restored = self.with_block(self.controls[name])
        classifier = restored.classifier
        block = self.config.evaluation
        result = evaluation.evaluate(
            classifier.logits_fn,
            self.test,
            build.build_suite("nip_adaptive", block, None, classifier),
            key=jax.random.key(0),
            num_examples=_NUM_ADAPTIVE.value,
            keep_adversarial=True,
            state_dir=self.workdir / "adaptive.unfinished",
        )
        bare = self.with_block({}).classifier.logits_fn
        rows = evaluation.beside_bare(result, self.test, bare)["rows"]
        return {row["name"]: [row["bare"], row["defended"]] for row in rows}


def main(argv: Any) -> None:
    """Runs what is not there yet."""
    del argv
    about = f"{_VARIANT.value}_{_NUM.value}_{_NUM_ADAPTIVE.value}"
    path = Path(_WORKDIR.value) / f"trial_{about}.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for seed in range(_SEEDS.value):
        done = results.setdefault(str(seed), {})
        this = Seed(seed)
        parts = {"static": this.static, "told": this.told}
        for name in _ADAPTIVE.value:
            parts[f"adaptive {name}"] = functools.partial(this.adaptive, name)
        for name, part in parts.items():
            if name not in done:
                done[name] = part()
                training.write_json(path, results)
                jax.clear_caches()  # thousands of programs exhaust a process's maps
                print(f"seed {seed}: {name}", flush=True)
    show(results)


def show(results: dict[str, Any]) -> None:
    """Means over seeds as tables."""
    seeds = list(results.values())
    columns = ["clean", *ATTACKS]
    print("\n| defense | " + " | ".join([*columns, *(f"DSR {a}" for a in ATTACKS)]))
    for name in seeds[0]["static"]:
        rows = [seed["static"][name] for seed in seeds]
        means = [np.mean([r["accuracy"][c] for r in rows]) for c in columns]
        means += [np.nanmean([r["dsr"][a] for r in rows]) for a in ATTACKS]
        print(f"| {name} | " + " | ".join(f"{v:.3f}" for v in means) + " |")
    for name in seeds[0]["told"]:
        rows = [seed["told"][name] for seed in seeds]
        cells = (f"{c}: {np.mean([r[c] for r in rows]):.3f}" for c in rows[0])
        print(f"| {name} (told the truth) | " + " | ".join(cells) + " |")
    for name in [n for n in seeds[0] if n.startswith("adaptive")]:
        rows = [seed[name] for seed in seeds if name in seed]
        print(f"\n{name}, {len(rows)} seeds")
        for row in rows[0]:
            bare, defended = np.mean([r[row] for r in rows], axis=0)
            print(f"| {row} | {bare:.3f} | {defended:.3f} |")


if __name__ == "__main__":
    app.run(main)
