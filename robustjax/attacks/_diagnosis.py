"""What one batch says about whether attacks on a classifier can be trusted."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import _checks
from robustjax._gradients import input_gradient
from robustjax.attacks import _outcome
from robustjax.objectives import cross_entropy
from robustjax.types import Array, LogitsFn


class Diagnosis(NamedTuple):
    """What one batch said.

    Attributes:
      logits: [B, K].
      is_random: Whether two calls on the same images differ.
      warnings: One line for each thing that attacks may stumble on.
    """

    logits: np.ndarray
    is_random: bool
    warnings: list[str]


def diagnose(
    climbed: LogitsFn,
    judge: LogitsFn,
    x: Array,
    y: Array,
    *,
    count: int,
    is_random: bool = False,
    bounds: tuple[float, float] = (0.0, 1.0),
    fetch: Callable[[Any], Any] = jax.device_get,
) -> Diagnosis:
    """What one batch says.

    Looked for: outputs that are random or depend on the other images of the batch,
    probabilities in place of logits, gradients that are zero, too few classes for the
    difference-of-logits losses, pixels out of bounds.

    Args:
      climbed: What attacks take gradients of, a pytree.
      judge: The classifier, a pytree.
      x: A batch, [B, ...].
      y: Labels [B].
      count: Rows that are not padding.
      is_random: Whether it is known to be, which a compiled program hides if the
        randomness is NumPy's.
      bounds: (low, high) of a pixel.
      fetch: From the devices to the host.
    """
    found = fetch(_look(climbed, judge, x, y))
    # One program called twice: two programs may round differently.
    logits, again = fetch(_logits(judge, x)), fetch(_logits(judge, x))
    zero_gradients = found["zero_gradient"][:count].mean()
    warnings = []
    is_random |= not np.array_equal(logits, again, equal_nan=True)
    if is_random:
        warnings.append(
            "The classifier is random: two calls on the same images differ. Attack its "
            "expectation, with the `rand` version."
        )
    alone = found["other_company"]
    if _checks.differing_rows(logits[: len(alone)], alone).any():
        warnings.append(
            "An image's logits depend on the other images of its batch: robustness "
            "measured batch by batch may not be that of single images."
        )
    if count > 1 and found["probabilities"]:
        warnings.append(_checks.PROBABILITIES)
    if zero_gradients:
        warnings.append(
            f"The input gradient of the cross-entropy is zero for "
            f"{100 * zero_gradients:.1f}% of the first {count} images: gradient "
            "attacks are blind there."
        )
    if logits.shape[1] < 4:
        warnings.append(
            f"With {logits.shape[1]} classes the targeted DLR loss does not exist "
            "(4 are needed): the margin loss takes its place."
        )
    low, high = float(found["low"]), float(found["high"])
    if low < bounds[0] or high > bounds[1]:
        warnings.append(
            f"Pixels lie in [{low:g}, {high:g}], outside "
            f"[{bounds[0]:g}, {bounds[1]:g}]."
        )
    return Diagnosis(logits, is_random, warnings)


@jax.jit
def _logits(judge: LogitsFn, x: Array) -> Array:
    return judge(x)


@jax.jit
def _look(climbed: LogitsFn, judge: LogitsFn, x: Array, y: Array) -> dict[str, Array]:
    def objective(z: Array) -> tuple[Array, Array]:
        return _outcome.climbed(cross_entropy, climbed, y)(z)

    _, _, grad = input_gradient(objective, x, raw=True)
    largest = jnp.abs(grad).max(axis=tuple(range(1, x.ndim)))
    # The same image in the company of only the first one.
    lonely = jax.lax.map(lambda image: judge(jnp.stack([image, x[0]]))[0], x[:4])
    return {
        "other_company": lonely,
        "probabilities": _checks.are_probabilities(judge(x)),
        "zero_gradient": largest == 0,
        "low": x.min(),
        "high": x.max(),
    }
