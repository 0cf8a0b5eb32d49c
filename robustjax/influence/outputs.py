"""Functions of the logits whose causes are asked for: `(logits [B, K], y [B]) -> [B]`.

Any function of that shape does. Of a very confident image the probability and its
derivatives underflow; the logit, the log-probability and the margin do not.
"""

import jax
import jax.numpy as jnp

from robustjax import _checks, objectives
from robustjax.types import Array


def logit(logits: Array, y: Array) -> Array:
    """z_y, [B].

    Raises:
      InputError: shapes or dtypes do not fit, or concrete labels are out of range.

    Example:
      >>> logit(jnp.array([[1.0, 3.0]]), jnp.array([1])).tolist()
      [3.0]
    """
    _checks.labels(logits, y)
    return jnp.take_along_axis(logits, y[:, None], axis=1)[:, 0]


def log_probability(logits: Array, y: Array) -> Array:
    """Log softmax(z)_y, [B].

    Raises:
      InputError: as for `logit`.

    Example:
      >>> log_probability(jnp.zeros((1, 4)), jnp.array([1])).tolist()
      [-1.386...]
    """
    return -objectives.cross_entropy(logits, y)


def probability(logits: Array, y: Array) -> Array:
    """softmax(z)_y, [B].

    Raises:
      InputError: as for `logit`.

    Example:
      >>> probability(jnp.zeros((1, 4)), jnp.array([1])).tolist()
      [0.25]
    """
    _checks.labels(logits, y)
    return logit(jax.nn.softmax(logits), y)


def margin(logits: Array, y: Array) -> Array:
    """z_y - max_{k != y} z_k, [B]: `objectives.margin` with its sign turned.

    Raises:
      InputError: as for `logit`, or there are fewer than 2 classes.

    Example:
      >>> margin(jnp.array([[1.0, 3.0]]), jnp.array([1])).tolist()
      [2.0]
    """
    return -objectives.margin(logits, y)
