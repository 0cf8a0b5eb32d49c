"""Objectives that attacks climb: `(logits [B, K], y) -> [B]`, float32 or wider.

All are per example and grow as the classifier gets worse. `y` is labels [B], or a
distribution [B, K] where the formula has a meaning for one.
"""

import jax
import jax.numpy as jnp

from robustjax import _checks
from robustjax.types import Array, Objective

_DLR_FLOOR = 1e-12


def cross_entropy(logits: Array, y: Array, label_smoothing: float = 0.0) -> Array:
    """Cross-entropy, logsumexp(z) - sum_k q_k z_k, [B].

    q is the one-hot label or the distribution `y`, smoothed to (1 - s) q + s / K.

    Args:
      logits: [B, K], any float type.
      y: Labels [B] or probabilities [B, K].
      label_smoothing: s in [0, 1].

    Returns:
      [B], non-negative. A label out of range under `jit` gives NaN.

    Raises:
      InputError: shapes or dtypes do not fit, or concrete labels are out of range.

    Example:
      >>> cross_entropy(jnp.zeros((1, 4)), jnp.array([2])).tolist()
      [1.386...]
    """
    _checks.labels(logits, y)
    _checks.fraction(label_smoothing=label_smoothing)
    logits = _wide(logits)
    target = _at(logits, y) if y.ndim == 1 else jnp.sum(y * logits, axis=1)
    if not (_checks.is_concrete(label_smoothing) and label_smoothing == 0):
        # Left out where it is 0, since the mean of huge logits overflows.
        mean = logits.mean(axis=1)
        target = (1 - label_smoothing) * target + label_smoothing * mean
    return jax.nn.logsumexp(logits, axis=1) - target


def margin(logits: Array, y: Array, confidence: float = float("inf")) -> Array:
    """The Carlini-Wagner margin, min(max_{k != y} z_k - z_y, confidence), [B].

    Positive where the example is misclassified, negative where it is not, 0 at a tie.
    See "Towards Evaluating the Robustness of Neural Networks" (Carlini and Wagner,
    2017), section V.A, loss f_6, with the sign turned so that attacks climb it.

    Args:
      logits: [B, K].
      y: Labels [B].
      confidence: Where climbing stops paying, the paper's kappa.

    Raises:
      InputError: shapes or dtypes do not fit, or there are fewer than 2 classes.

    Example:
      >>> margin(jnp.array([[1.0, 3.0, 0.0]]), jnp.array([0])).tolist()
      [2.0]
    """
    logits = _labelled(logits, y, least_classes=2)
    return jnp.minimum(_best_other(logits, y) - _at(logits, y), confidence)


def dlr(logits: Array, y: Array) -> Array:
    """Difference of logits ratio, -(z_y - max_{k != y} z_k) / (s_1 - s_3 + 1e-12), [B].

    s are the logits in descending order: the loss is invariant to shift and scale of
    the logits, which cross-entropy is not. See "Reliable evaluation of adversarial
    robustness with an ensemble of diverse parameter-free attacks" (Croce and Hein,
    2020), eq. (6); `targeted(dlr, target)` is eq. (7).

    Raises:
      InputError: shapes or dtypes do not fit, or there are fewer than 3 classes.

    Example:
      >>> dlr(jnp.array([[4.0, 1.0, 0.0]]), jnp.array([0])).tolist()
      [-0.75]
    """
    logits = _labelled(logits, y, least_classes=3)
    ordered, _ = jax.lax.top_k(logits, 3)
    spread = ordered[:, 0] - ordered[:, 2] + _DLR_FLOOR
    return (_best_other(logits, y) - _at(logits, y)) / spread


def kl(logits: Array, y: Array) -> Array:
    """Kullback-Leibler divergence KL(y || softmax(logits)), [B].

    What TRADES climbs, with y = softmax(clean logits). Labels [B] count as one-hot
    distributions, where it equals cross-entropy.

    Raises:
      InputError: shapes or dtypes do not fit.

    Example:
      >>> p = jnp.array([[0.5, 0.5]])
      >>> kl(jnp.zeros((1, 2)), p).tolist()
      [0.0]
    """
    _checks.labels(logits, y)
    if y.ndim == 1:
        return cross_entropy(logits, y)
    y = _wide(y)
    log_y = jnp.log(jnp.where(y > 0, y, 1.0))  # 0 log 0 = 0, and no NaN gradient
    return jnp.sum(y * (log_y - jax.nn.log_softmax(_wide(logits))), axis=1)


def targeted(objective: Objective, target: Array) -> Objective:
    """The objective that is climbed by moving towards `target`.

    For `dlr` it is the targeted DLR, (z_t - z_y) / (s_1 - (s_3 + s_4) / 2 + 1e-12);
    for any other objective, minus the objective at `target`, so that `margin` gives
    z_t - max_{k != t} z_k.

    Args:
      objective: Any objective.
      target: Labels [B] to move to, or a distribution [B, K].

    Returns:
      An objective. Its `y`, the true label, is used by DLR only.

    Raises:
      InputError: at the call, if a concrete target equals its label; for DLR, with
        fewer than 4 classes.

    Example:
      >>> towards_1 = targeted(margin, jnp.array([1]))
      >>> towards_1(jnp.array([[1.0, 3.0, 0.0]]), jnp.array([0])).tolist()
      [2.0]
    """

    def climb(logits: Array, y: Array) -> Array:
        _checks.targets_differ(target, y)
        if objective is dlr:
            return _targeted_dlr(logits, y, target)
        return -objective(logits, target)

    return climb


def scaled(objective: Objective, scale: float | Array) -> Objective:
    """The objective of `scale` times the logits.

    Large logits round the gradient of a cross-entropy to 0, small ones hide it: a
    classifier whose accuracy depends on the scale is hiding from the attack.

    Raises:
      InputError: the scale is not above 0.

    Example:
      >>> scaled(margin, 10.0)(jnp.array([[1.0, 3.0]]), jnp.array([0])).tolist()
      [20.0]
    """
    _checks.positive(scale=scale)
    return lambda logits, y: objective(scale * _wide(logits), y)


def over_draws(objective: Objective) -> Objective:
    """The objective of a random classifier: its mean over draws [S, B, K], [B].

    Its gradient is that of expectation over transformation. Logits [B, K] are as they
    were.

    Example:
      >>> draws = jnp.array([[[1.0, 3.0]], [[1.0, 0.0]]])
      >>> over_draws(margin)(draws, jnp.array([0])).tolist()
      [0.5]
    """

    def mean(logits: Array, y: Array) -> Array:
        if logits.ndim == 2:
            return objective(logits, y)
        return jax.vmap(lambda draw: objective(draw, y))(logits).mean(axis=0)

    return mean


def _targeted_dlr(logits: Array, y: Array, target: Array) -> Array:
    logits = _labelled(logits, y, least_classes=4)
    _checks.labels(logits, target)
    ordered, _ = jax.lax.top_k(logits, 4)
    spread = ordered[:, 0] - 0.5 * (ordered[:, 2] + ordered[:, 3]) + _DLR_FLOOR
    return (_at(logits, target) - _at(logits, y)) / spread


def _labelled(logits: Array, y: Array, *, least_classes: int) -> Array:
    _checks.labels(logits, y)
    if y.ndim != 1:
        raise _checks.InputError(
            f"`y` must be labels [B] for this objective, got shape {y.shape}. "
            "Distributions work with `cross_entropy` and `kl`."
        )
    if logits.shape[1] < least_classes:
        raise _checks.InputError(
            f"`logits` must have at least {least_classes} classes for this objective, "
            f"got {logits.shape[1]}. Use `margin` or `cross_entropy`."
        )
    return _wide(logits)


def _at(logits: Array, y: Array) -> Array:
    rows = jnp.where(y < 0, logits.shape[1], y)[:, None]  # "fill" takes -1 as the last
    return jnp.take_along_axis(logits, rows, axis=1, mode="fill")[:, 0]


def _best_other(logits: Array, y: Array) -> Array:
    own = jax.nn.one_hot(y, logits.shape[1], dtype=bool)
    return jnp.where(own, -jnp.inf, logits).max(axis=1)


def _wide(logits: Array) -> Array:
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
