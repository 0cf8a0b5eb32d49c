"""What an evaluation costs: python benchmarks/evaluation.py.

On a small CNN, trained for a minute, and 1,000 digits: `quick` with all it measures
beside the attacks over PGD-10 on the same images (target <= 60), failure indicators
over the suite `standard` (target <= 0.25), compilations after the first block (target
0), and live memory on the device from the first block to the last (target <= 1.1).

Then, for each suite, by how much the peak memory of a process that judges 2048 random
images is above that of one that judges 256, in float32 copies of the images between:
what is attacked as one set must be in memory, and what was found, but no more.
"""

import gc
import multiprocessing
import resource
import sys
from collections.abc import Callable
from typing import Any

import common
import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from robustjax import (
    attacks,
    build,
    data,
    defenses,
    evaluation,
    models,
    threats,
    training,
)
from robustjax.judging import evaluate

_IMAGES = flags.DEFINE_integer("evaluation_images", 1000, "Images that are judged.")
_ROUNDS = flags.DEFINE_integer("evaluation_rounds", 3, "Interleaved rounds.")
EPS = 0.1


def main(_: list[str]) -> None:
    """Prints the table."""
    print(
        f"{jax.device_count()} x {jax.devices()[0].device_kind}, jax {jax.__version__}"
    )
    logits_fn, test = trained()
    cost(logits_fn, test)
    steadiness(logits_fn, test)
    growth()


def trained() -> tuple[Any, data.Dataset]:
    """A soundly trained classifier and what it is judged on."""
    splits = data.load("digits")
    model = models.from_linen(models.small_cnn(stages=((32, 64),)))
    x = jnp.asarray(splits.train.images[:1])
    params, model_state = jax.jit(model.init)(jax.random.key(0), x)
    attack = attacks.pgd(threats.linf(EPS), step_size=EPS / 4, num_steps=10)
    stream = data.shuffled_batches(splits.train, 64, seed=0)
    optimizer = training.adam(training.constant(2e-3))
    step = training.make_train_step(defenses.adversarial(model, attack), optimizer)
    step = jax.jit(step, donate_argnums=0)
    state = training.create_state(params, model_state, optimizer, jax.random.key(1))
    batches = iter(stream)
    for _ in range(15 * stream.steps_per_epoch):
        state, _ = step(state, next(batches))
    logits_fn = models.logits_fn(model, state.params, state.model_state)
    # Of the training split, since there are more, and the price is the same.
    return logits_fn, splits.train.take(slice(_IMAGES.value))


def cost(logits_fn: Any, test: data.Dataset) -> None:
    """Seconds of `quick`, indicators and `standard`, all compiled before."""
    threat = threats.linf(EPS)
    x, y = jnp.asarray(test.images), jnp.asarray(test.labels)
    ten = evaluation.NamedAttack(
        "PGD-10", attacks.pgd(threat, step_size=EPS / 4, num_steps=10)
    )
    block = dict(threat=dict(name="linf", eps=EPS), step_size=EPS / 4, num_steps=40)
    standard = build.build_suite("standard", block | dict(num_restarts=5))
    run = lambda named: evaluation.evaluate(
        logits_fn, test, named, key=jax.random.key(2)
    )
    known = run(standard)
    looked: dict[str, Any] = dict(
        key=jax.random.key(3), step_size=EPS / 4, num_steps=40
    )

    def quick() -> None:
        evaluate(logits_fn, x, y, threat=threat)

    calls: dict[str, Callable[[], Any]] = {
        "ten": lambda: run([ten]),
        "quick": quick,
        "standard": lambda: run(standard),
        "indicators": lambda: evaluation.indicators(
            known, logits_fn, test, threat, **looked
        ),
    }
    seconds = common.interleaved(calls, repeats=_ROUNDS.value)
    for name, taken in seconds.items():
        print(f"  {name}: {np.median(taken):.2f} s")
    passes = common.ratio(seconds, {"ten": 1.0}, "quick")
    met = passes <= 60
    common.print_row("quick / PGD-10", f"{passes:.1f}", "<= 60", met=met)
    share = common.ratio(seconds, {"standard": 1.0}, "indicators")
    met = share <= 0.25
    common.print_row("indicators / standard", f"{share:.3f}", "<= 0.25", met=met)


def steadiness(logits_fn: Any, test: data.Dataset) -> None:
    """Compilations and live arrays block by block."""
    compiled, live = [], []

    def note(event: str, duration_secs: float, **_: Any) -> None:
        if duration_secs >= 0 and "backend_compile" in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(note)
    counts: list[int] = []

    def advance(position: int, share: float) -> None:
        del share
        gc.collect()
        if position == 0:
            counts.append(len(compiled))
            live.append(sum(array.nbytes for array in jax.live_arrays()))

    threat = threats.linf(EPS)
    pgd = attacks.pgd(threat, step_size=EPS / 4, num_steps=13)
    evaluation.evaluate(
        logits_fn,
        test,
        [evaluation.NamedAttack("PGD", pgd)],
        key=jax.random.key(4),
        batch_size=64,
        advance=advance,
    )
    later = counts[-1] - counts[0]
    met = later == 0
    common.print_row("compilations after the first block", f"{later}", "0", met=met)
    growth = max(live) / live[0]
    met = growth <= 1.1
    common.print_row(
        "live memory, most / first block", f"{growth:.2f}", "<= 1.1", met=met
    )


SHAPE = (64, 64, 3)
COPIES = {"quick": 1, "standard": 4}


def growth() -> None:
    """Peak memory of processes that judge few and many images."""
    few, many = 256, 2048
    spawn = multiprocessing.get_context("spawn")  # each with a peak of its own
    for suite, limit in COPIES.items():
        peaks = []
        for count in (few, many):
            with spawn.Pool(1) as pool:
                peaks.append(pool.apply(peak, (suite, count)))
        print(f"  {suite}: " + ", ".join(f"{p / 2**20:.0f} MiB" for p in peaks))
        copies = (peaks[1] - peaks[0]) / (4 * np.prod(SHAPE) * (many - few))
        name = f"growth of peak memory, {suite} / copies of the set"
        met = bool(copies <= limit)
        common.print_row(name, f"{copies:.2f}", f"<= {limit}", met=met)


def peak(suite: str, count: int) -> int:
    """Bytes at the peak of this process after a suite on random images.

    The classifier is linear, so that it costs little, and images are right at first.
    """
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, *SHAPE), np.uint8)
    weights = rng.normal(size=(np.prod(SHAPE), 10)).astype(np.float32)
    logits_fn = jax.tree_util.Partial(linear, jnp.asarray(weights))
    labels = np.concatenate(
        [np.asarray(linear(weights, part / 255.0)) for part in np.split(images, 16)]
    ).argmax(axis=1)
    names = tuple("0123456789")
    test = data.Dataset(images, labels.astype(np.int32), np.arange(count), names)
    eps = 0.02  # a staged attack has all images at first and none in slow stages
    block = dict(threat=dict(name="linf", eps=eps), step_size=eps / 4, num_steps=10)
    named = build.build_suite(suite, block | dict(num_restarts=1))
    options: dict[str, Any] = dict(key=jax.random.key(1), batch_size=64)
    evaluation.evaluate(logits_fn, test, named, **options)
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else 1024 * size


def linear(weights: Any, x: Any) -> Any:
    """Logits."""
    return (x - 0.5).reshape(len(x), -1) @ weights


if __name__ == "__main__":
    app.run(main)
