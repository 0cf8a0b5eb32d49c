"""What the benchmarks share: interleaved timing and a table."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from robustjax import models
from robustjax.types import Array, Model, PyTree


def interleaved(
    calls: Mapping[str, Callable[[], Any]], *, repeats: int
) -> dict[str, list[float]]:
    """Seconds of each call, round robin, so that a busy machine slows all alike."""
    for call in calls.values():
        jax.block_until_ready(call())  # compile
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in tqdm(range(repeats), desc="repeats", leave=False):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(
    seconds: Mapping[str, list[float]], parts: Mapping[str, float], whole: str
) -> float:
    """Median over the rounds of whole / sum of count * part."""
    rounds = np.zeros(len(seconds[whole]))
    for name, count in parts.items():
        rounds += count * np.array(seconds[name])
    return float(np.median(np.array(seconds[whole]) / rounds))


def print_row(name: str, value: str, target: str, *, met: bool) -> None:
    """One line of the table."""
    print(f"{name:58s} {value:>16s}   target {target:10s} {'met' if met else 'MISSED'}")


def networks(
    names: list[str],
) -> dict[str, tuple[Model, PyTree, PyTree, tuple[int, int, int]]]:
    """Model, parameters, BatchNorm statistics and image shape by name."""
    table = {
        "small_cnn": (models.small_cnn(stages=((16,), (32,))), (28, 28, 1)),
        "resnet20": (models.resnet20(), (32, 32, 3)),
    }
    chosen = {}
    for name in names:
        module, shape = table[name]
        model = models.from_linen(module)
        x = jax.numpy.zeros((1, *shape))
        chosen[name] = (model, *jax.jit(model.init)(jax.random.key(0), x), shape)
    return chosen


def images(shape: tuple[int, int, int], batch_size: int) -> tuple[Array, Array]:
    """A batch of uniform noise and labels."""
    x = jax.random.uniform(jax.random.key(1), (batch_size, *shape))
    y = jax.random.randint(jax.random.key(2), (batch_size,), 0, 10)
    return x, y
