"""Attacks against other libraries' on the same weights: python benchmarks/attacks.py.

1. PGD-10 against torchattacks, Foolbox (PyTorch) and ART: time ratios at batches of 1,
   16, 64, 128 and 512; target <= 1 of Foolbox and ART, <= 1 of torchattacks up to 64
   and <= 1.25 beyond.
2. AutoAttack against its parts elsewhere (APGD and FAB of adv-lib, Square of
   torchattacks with the schedule of the authors), each on the survivors of those
   before: robust accuracy within one image, time <= 0.8. Needs TFDS_DATA_DIR.
3. Compile time of every attack on ResNet-20, <= 20 s.

Sections 1 and 2 need the environment of `make parity`; without it they say so. The
network is the MNIST CNN of tests/parity.
"""

import functools
import importlib
import logging
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import common
import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax.tree_util import Partial

from robustjax import attacks, models, objectives, threats
from robustjax.types import Attack

sys.path.append(str(pathlib.Path(__file__).parents[1] / "tests" / "parity"))
import mnist_cnn  # pyright: ignore[reportMissingImports]

MISSING = ""
peers: Any = None
torch: Any = None
try:
    peers, torch = importlib.import_module("peers"), importlib.import_module("torch")
except ImportError as error:
    MISSING = str(error)

_BATCHES = flags.DEFINE_list("batches", ["1", "16", "64", "128", "512"], "Of PGD-10.")
_REPEATS = flags.DEFINE_integer("repeats", 7, "Interleaved rounds; the median counts.")
_IMAGES = flags.DEFINE_integer("images", 64, "Of AutoAttack, 64 to 256.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Of AutoAttack.")
_ONLY = flags.DEFINE_list("only", [], "Compile these attacks alone.")
_SECTIONS = flags.DEFINE_list("sections", ["pgd", "autoattack", "compile"], "Which.")
_EPS = 0.15


def channels_first(x: Any) -> Any:
    """Images [B, H, W, C] as a PyTorch tensor [B, C, H, W]."""
    return torch.from_numpy(np.array(np.transpose(x, (0, 3, 1, 2))))


def make_task(x: Any, y: Any) -> Any:
    """The MNIST CNN in PyTorch with images and labels."""
    labels = torch.from_numpy(np.array(y, np.int64))
    return peers.Task(mnist_cnn.torch_network(), channels_first(x), labels)


def pgd10(batch_size: int) -> None:
    """Target 2, at one batch size."""
    x, y = common.images((28, 28, 1), batch_size)
    task, f, key = make_task(x, y), mnist_cnn.logits_fn(), jax.random.key(0)
    step = _EPS / 4
    ours = jax.jit(attacks.pgd(threats.linf(_EPS), step_size=step, num_steps=10))
    theirs = {
        "torchattacks": peers.torchattacks("PGD", eps=_EPS, alpha=step, steps=10),
        "Foolbox": peers.foolbox(
            "LinfProjectedGradientDescentAttack", _EPS, abs_stepsize=step, steps=10
        ),
        "ART": peers.art(
            "ProjectedGradientDescentPyTorch",
            **dict(eps=_EPS, eps_step=step, max_iter=10, num_random_init=1),
            **dict(batch_size=batch_size, verbose=False),
        ),
    }
    calls: dict[str, Callable[[], Any]] = {"ours": lambda: ours(key, f, x, y)}
    for name, attack in theirs.items():
        calls[name] = functools.partial(attack, task)
    seconds = common.interleaved(calls, repeats=_REPEATS.value)
    milliseconds = {k: 1e3 * statistics.median(v) for k, v in seconds.items()}
    print(
        f"batch {batch_size}, ms: "
        + ", ".join(f"{name} {value:.1f}" for name, value in milliseconds.items())
    )
    for name in theirs:
        share = common.ratio(seconds, {name: 1}, "ours")
        target = 1.25 if name == "torchattacks" and batch_size > 64 else 1.0
        title = f"PGD-10, batch {batch_size}, time / {name}'s"
        common.print_row(title, f"{share:.2f}", f"<= {target:.2f}", met=share <= target)


def composition(task: Any) -> int:
    """Images that AutoAttack's parts of adv-lib and torchattacks leave."""
    eps, inf = _EPS, float("inf")
    parts = [
        peers.adv_lib("apgd", eps=eps, norm=inf, loss_function="ce"),
        peers.adv_lib("apgd_targeted", eps=eps, norm=inf, num_targets=9),
        peers.adv_lib("fab", norm=inf, ε=eps, restarts=9, targeted_restarts=True),
        peers.torchattacks("Square", eps=eps, n_queries=5000, resc_schedule=False),
    ]
    left = task.network(task.x).argmax(1) == task.y
    for attack in parts:
        index = left.nonzero()[:, 0]
        if not len(index):
            break
        rest = task._replace(x=task.x[index], y=task.y[index])
        x_adv = attack(rest)
        inside = (x_adv - rest.x).abs().flatten(1).amax(1) <= eps + 1e-5
        left[index] = ~inside | (task.network(x_adv).argmax(1) == rest.y)
    return int(left.sum())


def autoattacks() -> None:
    """Target 3."""
    if not mnist_cnn.has_data():
        print(f"AutoAttack: skipped, {mnist_cnn.NO_DATA}")
        return
    x, y = mnist_cnn.images(_IMAGES.value)
    task, f = make_task(x, y), mnist_cnn.logits_fn()
    attack, left, seconds = attacks.autoattack(threats.linf(_EPS)), {}, {}
    calls = {
        "ours": lambda: int(attack.run(jax.random.key(0), f, x, y).correct.sum()),
        "theirs": lambda: composition(task),
    }
    for turn in range(_ROUNDS.value + 1):
        for name, call in calls.items():
            if turn == 0 and name == "theirs":
                continue  # nothing to compile
            start = time.perf_counter()
            left[name] = call()
            seconds.setdefault((name, turn > 0), []).append(time.perf_counter() - start)
            print(
                f"AutoAttack, {name}: {left[name]} images left, "
                f"{seconds[name, turn > 0][-1]:.1f} s",
                flush=True,
            )
    first = seconds["ours", False][0] - statistics.median(seconds["ours", True])
    difference = left["ours"] - left["theirs"]
    title = f"AutoAttack, {len(x)} images: robust images, ours - theirs"
    common.print_row(title, f"{difference:+d}", "<= +1", met=difference <= 1)
    pairs = zip(seconds["ours", True], seconds["theirs", True], strict=True)
    share = statistics.median(ours / theirs for ours, theirs in pairs)
    title = f"AutoAttack, {len(x)} images: time / time of the composition"
    common.print_row(title, f"{share:.2f}", "<= 0.80", met=share <= 0.8)
    print(f"the first call took {first:.1f} s more, to compile")


def every_attack(features_fn: Any, x: Any, y: Any) -> dict[str, Attack]:
    """Every attack that robustjax ships, with default budgets where it has them."""
    linf, l2 = threats.linf(8 / 255), threats.l2(0.5)
    l1 = threats.l1(12.0, sparsity=0.05)
    any_l2, any_l1 = threats.l2(jnp.inf), threats.l1(jnp.inf)
    step: dict[str, Any] = dict(step_size=2 / 255, num_steps=10)
    pgd = attacks.pgd(linf, **step)
    return {
        "fgsm": attacks.fgsm(linf),
        "bim": attacks.bim(linf, **step),
        "pgd linf": pgd,
        "pgd l2": attacks.pgd(l2, step_size=0.125, num_steps=10),
        "pgd l1": attacks.pgd(l1, step_size=1.0, num_steps=10),
        "pgd x 3 restarts": attacks.restarts(pgd, 3),
        "mi_fgsm": attacks.mi_fgsm(linf),
        "ni_fgsm": attacks.ni_fgsm(linf),
        "si_ni_fgsm": attacks.si_ni_fgsm(linf),
        "vmi_fgsm": attacks.vmi_fgsm(linf),
        "di_fgsm": attacks.di_fgsm(linf),
        "ti_dim": attacks.ti_dim(linf),
        "apgd linf": attacks.apgd(linf),
        "apgd l2, dlr": attacks.apgd(l2, objective=objectives.dlr),
        "apgd l1": attacks.apgd(l1, large_eps_phases=True),
        "apgd_targeted": attacks.apgd_targeted(linf),
        "fab linf": attacks.fab(linf),
        "fab l2": attacks.fab(any_l2),
        "fab l1": attacks.fab(any_l1),
        "fab_targeted": attacks.fab_targeted(linf),
        "square linf": attacks.square(linf),
        "square l2": attacks.square(l2),
        "square l1": attacks.square(l1),
        "carlini_wagner": attacks.carlini_wagner(any_l2),
        "carlini_wagner_fixed": attacks.carlini_wagner_fixed(any_l2),
        "carlini_wagner_linf": attacks.carlini_wagner_linf(linf),
        "deepfool linf": attacks.deepfool(linf),
        "deepfool l2": attacks.deepfool(any_l2),
        "ddn": attacks.ddn(any_l2),
        "fmn linf": attacks.fmn(linf),
        "fmn l2": attacks.fmn(any_l2),
        "fmn l1": attacks.fmn(any_l1),
        "ead": attacks.ead(any_l1),
        "spsa": attacks.spsa(linf),
        "nes": attacks.nes(linf),
        "boundary": attacks.boundary(any_l2),
        "hop_skip_jump": attacks.hop_skip_jump(any_l2),
        "jsma": attacks.jsma(num_candidates=128),
        "pixel": attacks.pixel(),
        "single_pixel": attacks.single_pixel(),
        "rotation_translation": attacks.rotation_translation(),
        "stadv": attacks.stadv(),
        "wasserstein_pgd": attacks.wasserstein_pgd(eps=0.005),
        "universal": attacks.universal(linf, **step),
        "feature_collision": attacks.feature_collision(
            linf, features_fn, x, y, step_size=2 / 255
        ),
        "noise": attacks.uniform_noise(linf),
    }


def compile_times() -> None:
    """The last part of target 5."""
    [(model, params, model_state, shape)] = common.networks(["resnet20"]).values()
    f = models.logits_fn(model, params, model_state)
    x, y = common.images(shape, 128)
    inside = models.model_fn(model, params, model_state)
    features_fn = Partial(_features, inside)
    for name, attack in every_attack(features_fn, x, y).items():
        if _ONLY.value and name not in _ONLY.value:
            continue
        start, cpu = time.perf_counter(), time.process_time()
        jax.jit(attack).lower(jax.random.key(0), f, x, y).compile()
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        title = f"resnet20, batch 128: trace and compile {name}"
        value = f"{seconds:.1f} s, cpu {cpu:.1f}"  # the latter on a busy machine
        common.print_row(title, value, "<= 20 s", met=seconds <= 20)


def _features(model_fn: Any, x: Any) -> Any:
    return model_fn(x, capture=("features",)).features["features"]


def main(_: list[str]) -> None:
    """Prints the table."""
    print(
        f"{jax.device_count()} x {jax.devices()[0].device_kind}, jax {jax.__version__}"
    )
    sections = set(_SECTIONS.value)
    if peers is None and sections & {"pgd", "autoattack"}:
        print(f"pgd, autoattack: skipped, {MISSING}; run `make parity`")
        sections -= {"pgd", "autoattack"}
    if torch is not None:
        logging.getLogger("art").setLevel(logging.WARNING)
        # As many as XLA takes. On a busy machine PyTorch's threads wait for one
        # another: pin the run to one core, `taskset -c 0 python benchmarks/attacks.py`.
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    if "pgd" in sections:
        for batch_size in map(int, _BATCHES.value):
            pgd10(batch_size)
    if "autoattack" in sections:
        autoattacks()
    if "compile" in sections:
        compile_times()


if __name__ == "__main__":
    app.run(main)
