"""What an attack costs beyond its gradients: python benchmarks/attack_overhead.py.

Time of k-step PGD over k times one jitted input gradient of the same model and batch
(target <= 1.10), peak memory over that of one gradient (<= 1.2), compile time of every
attack (<= 20 s on ResNet-20), and whether anything compiles on a second call or for a
ragged last batch of an evaluation.
"""

import time
from typing import Any

import common
import jax
import numpy as np
from absl import app, flags

from robustjax import attacks, evaluation, models, objectives, threats
from robustjax.data import Dataset
from robustjax.types import Array, Attack, LogitsFn

_BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Images per batch.")
_NUM_STEPS = flags.DEFINE_integer("num_steps", 10, "Steps of PGD.")
_REPEATS = flags.DEFINE_integer("repeats", 7, "Interleaved rounds; the median counts.")
_MODELS = flags.DEFINE_list("models", ["small_cnn", "resnet20"], "Which networks.")


@jax.jit
def input_gradient(logits_fn: LogitsFn, x: Array, y: Array) -> Array:
    """One gradient as anyone would write it, in the entry computation."""
    return jax.grad(lambda z: objectives.cross_entropy(logits_fn(z), y).sum())(x)


def shipped(num_steps: int) -> dict[str, Attack]:
    """Every attack that robustjax ships, at a common budget."""
    linf, step = threats.linf(8 / 255), 2 / 255
    pgd = attacks.pgd(linf, step_size=step, num_steps=num_steps)
    return {
        "fgsm": attacks.fgsm(linf),
        "bim": attacks.bim(linf, step_size=step, num_steps=num_steps),
        "mi_fgsm": attacks.mi_fgsm(linf, num_steps=num_steps),
        "pgd linf": pgd,
        "pgd linf, best iterate": attacks.pgd(
            linf, step_size=step, num_steps=num_steps, iterate="best"
        ),
        "pgd l2": attacks.pgd(threats.l2(0.5), step_size=0.125, num_steps=num_steps),
        "pgd l1": attacks.pgd(
            threats.l1(12.0, sparsity=0.05), step_size=1.0, num_steps=num_steps
        ),
        "pgd x 3 restarts": attacks.restarts(pgd, 3),
    }


def temporary_bytes(compiled: Any) -> int:
    """What a compiled function allocates beside arguments and results."""
    return compiled.memory_analysis().temp_size_in_bytes


def overhead(name: str, logits_fn: LogitsFn, x: Array, y: Array) -> None:
    """Time and memory of attacks against those of one gradient."""
    key, steps = jax.random.key(3), _NUM_STEPS.value
    single = temporary_bytes(input_gradient.lower(logits_fn, x, y).compile())
    for label in ("pgd linf", "pgd l2", "pgd l1"):
        run = jax.jit(shipped(steps)[label])
        seconds = common.interleaved(
            {
                "gradient": lambda: input_gradient(logits_fn, x, y),
                "attack": lambda run=run: run(key, logits_fn, x, y),
            },
            repeats=_REPEATS.value,
        )
        share = common.ratio(seconds, {"gradient": steps}, "attack")
        title = f"{name}: {label}-{steps} / ({steps} x gradient), batch {len(x)}"
        common.print_row(title, f"{share:.3f}", "<= 1.10", met=share <= 1.10)
    attack = jax.jit(shipped(steps)["pgd linf"]).lower(key, logits_fn, x, y).compile()
    peak = temporary_bytes(attack) / single
    title = f"{name}: temporary memory, pgd linf-{steps} / gradient"
    common.print_row(title, f"{peak:.3f}", "<= 1.20", met=peak <= 1.2)


def compile_times(name: str, logits_fn: LogitsFn, x: Array, y: Array) -> None:
    """Trace and compile time of every attack; second calls must not compile."""
    key = jax.random.key(3)
    for label, attack in shipped(_NUM_STEPS.value).items():
        run = jax.jit(attack)
        start = time.perf_counter()
        run.lower(key, logits_fn, x, y).compile()
        seconds = time.perf_counter() - start
        run(key, logits_fn, x, y)
        run(jax.random.key(4), logits_fn, x + 0.0, y)
        once = run._cache_size() == 1  # pyright: ignore[reportAttributeAccessIssue]
        value = f"{seconds:.1f} s{'' if once else ', RECOMPILED'}"
        title = f"{name}: compile {label}, second call compiles nothing"
        common.print_row(title, value, "<= 20 s", met=seconds <= 20 and once)


def ragged(name: str, logits_fn: LogitsFn, shape: tuple[int, int, int]) -> None:
    """An evaluation of 2.5 batches compiles its attack once."""
    rng = np.random.default_rng(0)
    dataset = Dataset(
        rng.random((40, *shape), np.float32),
        rng.integers(0, 10, 40).astype(np.int32),
        np.arange(40),
        tuple("0123456789"),
    )
    traces = 0
    pgd = attacks.pgd(threats.linf(8 / 255), step_size=2 / 255, num_steps=2)

    def counted(key, logits_fn, x, y):
        nonlocal traces
        traces += 1
        return pgd(key, logits_fn, x, y)

    named = evaluation.NamedAttack("pgd", counted)
    evaluation.evaluate(
        logits_fn, dataset, [named], key=jax.random.key(0), batch_size=16
    )
    title = f"{name}: compilations of an attack for 16 + 16 + 8 images"
    common.print_row(title, str(traces), "1", met=traces == 1)


def main(_: list[str]) -> None:
    """Prints the table."""
    print(
        f"{jax.device_count()} x {jax.devices()[0].device_kind}, jax {jax.__version__}"
    )
    for name, network in common.networks(_MODELS.value).items():
        model, params, model_state, shape = network
        logits_fn = models.logits_fn(model, params, model_state)
        x, y = common.images(shape, _BATCH_SIZE.value)
        overhead(name, logits_fn, x, y)
        compile_times(name, logits_fn, x, y)
        ragged(name, logits_fn, shape)


if __name__ == "__main__":
    app.run(main)
