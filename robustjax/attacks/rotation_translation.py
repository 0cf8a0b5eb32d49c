"""Rotations and translations: a grid of them, the worst per image.

See "Exploring the Landscape of Spatial Robustness" (Engstrom et al., 2019).
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from robustjax import _checks
from robustjax.attacks import _outcome, _warp
from robustjax.attacks._outcome import Candidate
from robustjax.objectives import cross_entropy
from robustjax.types import Array, IteratedAttack, Key, LogitsFn, Objective


class GridState(NamedTuple):
    """Between two points of the grid.

    Attributes:
      x_adv: The images under the last transformation, [B, H, W, C].
      index: How many points are done.
      best: The most adversarial images so far.
    """

    x_adv: Array
    index: Array
    best: Candidate


def rotation_translation(
    *,
    max_degrees: float | Array = 30.0,
    max_shift: float | Array = 3.0,
    num_angles: int = 31,
    num_shifts: int = 5,
    objective: Objective = cross_entropy,
) -> IteratedAttack:
    """The worst of all rotations and translations on a grid, x itself included.

    An image is turned about its centre, then moved; both in one bilinear reading,
    black beyond the edge. The defaults are the paper's 31 x 5 x 5 = 775 points, up to
    30 degrees and a tenth of 32 pixels. One forward pass per point, one after another:
    memory is that of a single pass.

    Args:
      max_degrees: Largest angle to either side.
      max_shift: Largest translation along each axis, to either side, in pixels.
      num_angles: Angles, evenly spaced; 1 turns nothing.
      num_shifts: Translations per axis, evenly spaced; 1 moves nothing.
      objective: Decides between points that agree on misclassification.

    Returns:
      An attack on images [B, H, W, C] in the box. No norm of x' - x is bounded.

    Raises:
      InputError: an argument is out of range.

    Example:
      >>> import jax
      >>> x = jnp.zeros((1, 3, 3, 1)).at[0, 1, 1, 0].set(1.0)
      >>> centre = lambda z: jnp.stack([z[:, 1, 1, 0], 1 - z[:, 1, 1, 0]], 1) * 4
      >>> attack = rotation_translation(max_shift=1, num_angles=1, num_shifts=3)
      >>> x_adv = attack(jax.random.key(0), centre, x, jnp.array([0]))
      >>> float(x_adv[0, 1, 1, 0])
      0.0
    """
    _checks.positive_int(num_angles=num_angles, num_shifts=num_shifts)
    _checks.non_negative(max_degrees=max_degrees, max_shift=max_shift)
    axes = (_even(num_angles), _even(num_shifts), _even(num_shifts))
    angles, downs, rights = (a.ravel() for a in np.meshgrid(*axes, indexing="ij"))

    def init(key: Key, logits_fn: LogitsFn, x: Array, y: Array) -> GridState:
        del key  # nothing is drawn
        _outcome.check_call(logits_fn, x, y)
        _checks.image_axes(x=x)
        clean = Candidate(x, *_outcome.scored(objective, logits_fn, y)(x))
        return GridState(x, jnp.int32(0), clean)

    def step(state: GridState, logits_fn: LogitsFn, x: Array, y: Array) -> GridState:
        def at(axis: np.ndarray, largest: float | Array) -> Array:
            return jnp.asarray(axis, x.dtype)[state.index] * jnp.asarray(
                largest, x.dtype
            )

        x_adv = moved(
            x, at(angles, max_degrees), at(downs, max_shift), at(rights, max_shift)
        )
        new = Candidate(x_adv, *_outcome.scored(objective, logits_fn, y)(x_adv))
        return GridState(x_adv, state.index + 1, _outcome.keep_worse(state.best, new))

    def finish(state: GridState, logits_fn: LogitsFn, x: Array, y: Array) -> Array:
        del logits_fn, x, y
        return state.best.x_adv

    return IteratedAttack(init, step, finish, num_angles * num_shifts**2)


def moved(
    x: Array, degrees: float | Array, down: float | Array, right: float | Array
) -> Array:
    """Images turned counterclockwise about their centre, then moved, black outside.

    Args:
      x: [B, H, W, C].
      degrees: The angle.
      down: The translation towards the last row, in pixels.
      right: The translation towards the last column, in pixels.

    Returns:
      [B, H, W, C].

    Example:
      >>> x = jnp.array([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 2, 2, 1)
      >>> moved(x, degrees=0.0, down=0.0, right=1.0)[0, :, :, 0].tolist()
      [[0.0, 1.0], [0.0, 3.0]]
    """
    rows, columns = _warp.identity(x)
    middle_row, middle_column = (x.shape[1] - 1) / 2, (x.shape[2] - 1) / 2
    angle = jnp.deg2rad(jnp.asarray(degrees, x.dtype))
    rows = rows - middle_row - jnp.asarray(down, x.dtype)
    columns = columns - middle_column - jnp.asarray(right, x.dtype)
    # Backwards: where the pixel that lands here came from.
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    source_rows = cos * rows + sin * columns + middle_row
    source_columns = cos * columns - sin * rows + middle_column
    shape = x.shape[:3]
    return _warp.sample(
        x,
        jnp.broadcast_to(source_rows[None], shape),
        jnp.broadcast_to(source_columns[None], shape),
    )


def _even(count: int) -> np.ndarray:
    return np.linspace(-1, 1, count) if count > 1 else np.zeros(1)
