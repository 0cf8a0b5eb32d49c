"""Inverse perturbations: which way an image goes to raise a class's neurons.

    S_c(x) = <m_c, g(x)> + w log p_c(x),    d_c(x) = rms(grad_x S_c(x))

with g the outputs of a layer and m_c weights on its neurons, positive in front and
negative in the tail. w is 0 in NIP; m = 0 and w = 1 is the direction of a plain
cross-entropy, the control.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from robustjax._gradients import loop_safe
from robustjax.types import Array, ModelFn

RMS_FLOOR = 1e-5


def rms_normalised(v: Array, axes: int = 1) -> Array:
    """The array v / (sqrt(mean(v^2)) + 1e-5), the mean over all but `axes` axes.

    Example:
      >>> rms_normalised(jnp.array([[3.0, 4.0, 0.0, 0.0]])).round(3).tolist()
      [[1.2..., 1.6..., 0.0, 0.0]]
    """
    over = tuple(range(axes, v.ndim))
    square = jnp.square(v).mean(axis=over, keepdims=True)
    # The root has no derivative at 0, where the direction is 0 all the same.
    size = jnp.sqrt(jnp.where(square > 0, square, 1.0))
    return jnp.where(square > 0, v / (size + RMS_FLOOR), 0.0)


class Slope(NamedTuple):
    """Scores of images, and their gradients.

    Attributes:
      score: S, [M, B].
      gradient: [M, B, H, W, C].
    """

    score: Array
    gradient: Array

    @property
    def direction(self) -> Array:
        """d, [M, B, H, W, C]."""
        return rms_normalised(self.gradient, 2)


def slopes(
    model_fn: ModelFn,
    x: Array,
    layer: str,
    masks: Array,
    classes: Array,
    class_weight: float,
) -> Slope:
    """Scores and directions of M classes: one forward pass for all of them.

    The backward passes run one after another. Side by side they would have the axis of
    images, which may be spread over devices, behind that of the classes.

    Args:
      model_fn: The classifier.
      x: [B, H, W, C].
      layer: g.
      masks: [M, B or 1, *layer].
      classes: [M, B].
      class_weight: w.
    """

    def scores(z: Array) -> Array:
        found = model_fn(z, capture=(layer,))
        a = found.features[layer][None]
        total = (masks * a).reshape(len(masks), a.shape[1], -1).sum(axis=2)
        if class_weight:
            logs = jax.nn.log_softmax(found.logits)
            own = jnp.take_along_axis(logits_of(logs, classes), classes[..., None], 2)
            total = total + class_weight * own[..., 0]
        return total

    score, pull_back = jax.vjp(scores, x)
    each = jnp.eye(len(masks), dtype=score.dtype)[:, :, None]
    rows = jnp.broadcast_to(each, (len(masks), *score.shape))
    gradient = jax.lax.map(loop_safe(lambda row: pull_back(row)[0]), rows)
    return Slope(score, gradient)


def logits_of(logits: Array, classes: Array) -> Array:
    """[B, K] for each of the M rows of classes, [M, B, K]."""
    return jnp.broadcast_to(logits[None], (len(classes), *logits.shape))


def climbed(
    slopes_at: Callable[[Array], Any], x: Array, num: int, size: Array, num_steps: int
) -> Array:
    """Iterated perturbations, [M, B, H, W, C] within `size` of x in every pixel.

        x <- clip(x + 2.5 size / T sign(grad S)) in the box of pixels and of the ball

    Args:
      slopes_at: One image per class and row, [M, B, ...], to directions of that shape.
      x: [B, H, W, C].
      num: M.
      size: The radius.
      num_steps: T.
    """
    low, high = jnp.maximum(x - size, 0)[None], jnp.minimum(x + size, 1)[None]
    step_size = 2.5 * size / num_steps
    way = loop_safe(lambda z: jnp.sign(slopes_at(z)))

    def step(z: Array, _: None) -> tuple[Array, None]:
        return jnp.clip(z + step_size * way(z), low, high), None

    start = jnp.broadcast_to(x[None], (num, *x.shape))
    return jax.lax.scan(step, start, length=num_steps)[0]
