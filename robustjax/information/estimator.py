"""Mutual information of two samples, by fitting a critic to them."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from robustjax import _checks, models
from robustjax._checks import InputError
from robustjax.information import bounds
from robustjax.information.bounds import Bound
from robustjax.types import Array, Key, MIEstimator, PyTree

_DEFAULT_BOUND = bounds.donsker_varadhan()
_PARTS = 20  # of training, after each of which a critic may be chosen


class Estimate(NamedTuple):
    """What `estimate_mutual_information` found.

    Attributes:
      information: The mean estimate on held-out samples, in nats if the bound is one on
        mutual information.
      standard_error: Of that mean, from the spread of the batches of held-out samples;
        it knows nothing of how good the critic is.
      climbed: What training maximised, by step.
      params: The fitted critic's.
      state: Its BatchNorm statistics.
    """

    information: Array
    standard_error: Array
    climbed: Array
    params: PyTree
    state: PyTree


def estimate_mutual_information(
    key: Key,
    x: Array,
    z: Array,
    *,
    bound: Bound | None = None,
    estimator: MIEstimator | None = None,
    optimizer: optax.GradientTransformation | None = None,
    num_steps: int = 1000,
    batch_size: int = 256,
    held_out: float = 0.2,
    estimate_batch_size: int | None = None,
) -> Estimate:
    """Fits a critic on some of the samples and estimates on others.

    Of 20 critics along training the best counts, by its estimate on samples that
    neither training nor the final estimate sees. A bound from below is one for any
    critic, up to the noise of its held-out mean: the figure says "at least". With
    `info_nce` it cannot exceed log estimate_batch_size, and falls short before.

    Args:
      key: For the critic's start, the cut and the order of samples.
      x: [N, ...], vectors for the default critic.
      z: [N, ...], paired with `x` row by row.
      bound: By default `donsker_varadhan()`.
      estimator: The critic; by default two `models.DenseCritic`s.
      optimizer: By default Adam, its step size 3e-3 falling to 0 along a cosine.
      num_steps: Training steps, rounded up to a multiple of 20.
      batch_size: Samples of a step, and of an estimate by which a critic is chosen.
      held_out: Share of the samples for the estimate, and for the choice of the
        critic as many, in (0, 1/2).
      estimate_batch_size: Held-out samples that are paired with each other for one
        estimate, of which the mean is taken. More let `info_nce` say more, and cost
        time as their square. By default an eighth of those held out, but no less than
        `batch_size`.

    Raises:
      InputError: samples do not pair up, are no finite floats or too few.

    Example:
      >>> x = jax.random.normal(jax.random.key(0), (2000, 1))
      >>> z = 0.8 * x + 0.6 * jax.random.normal(jax.random.key(1), (2000, 1))
      >>> found = estimate_mutual_information(
      ...     jax.random.key(2), x, z, num_steps=100)  # -log(1 - 0.8^2) / 2 = 0.51
      >>> 0.3 < float(found.information) < 0.7
      True
    """
    _check_samples(x, z, batch_size, num_steps, held_out)
    bound = _DEFAULT_BOUND if bound is None else bound
    if estimator is None:
        estimator = _default_estimator()
    if optimizer is None:
        optimizer = _default_optimizer(num_steps)
    num_held_out = _num_held_out(len(x), batch_size, held_out)
    if estimate_batch_size is None:
        estimate_batch_size = max(batch_size, num_held_out // 8)
    _checks.positive_int(estimate_batch_size=estimate_batch_size)
    if not 2 <= estimate_batch_size <= num_held_out:
        raise InputError(
            f"`estimate_batch_size` must lie in [2, {num_held_out}], the held-out "
            f"samples, got {estimate_batch_size}."
        )
    return _fit(
        *(bound, estimator, optimizer, num_steps, batch_size),
        *(num_held_out, estimate_batch_size),
        *(key, x, z),
    )


@functools.cache
def _default_estimator() -> MIEstimator:
    """One object, so that code compiled for it is found again."""
    return models.mi_estimator(models.DenseCritic(), models.DenseCritic())


@functools.cache
def _default_optimizer(num_steps: int) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(3e-3, num_steps))


def _num_held_out(count: int, batch_size: int, held_out: float) -> int:
    return max(1, round(held_out * count) // batch_size) * batch_size


@functools.partial(jax.jit, static_argnums=range(7))
def _fit(
    bound: Bound,
    estimator: MIEstimator,
    optimizer: optax.GradientTransformation,
    num_steps: int,
    batch_size: int,
    num_held_out: int,
    estimate_batch_size: int,
    key: Key,
    x: Array,
    z: Array,
) -> Estimate:
    keys = jax.random.split(key, 3)
    order = jax.random.permutation(keys[0], len(x))
    held_out, chosen_by = jnp.split(order[: 2 * num_held_out], 2)
    fitted = order[2 * num_held_out :]
    params, state = estimator.init(keys[1], x[:2], z[:2])

    def step(carry: PyTree, rows: Array) -> tuple[PyTree, Array]:
        params, state, opt_state, kept = carry

        def loss(params: PyTree) -> tuple[Array, tuple[PyTree, PyTree]]:
            local_features, global_features, new = estimator.features(
                params, state, x[rows], z[rows], mode="train"
            )
            value, moved = bounds.climbed(bound, local_features, global_features, kept)
            return -value, (new, moved)

        (value, (state, kept)), slope = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(slope, opt_state, params)
        return (optax.apply_updates(params, updates), state, opt_state, kept), -value

    def batch_estimates(params: PyTree, state: PyTree, rows: Array, size: int) -> Array:
        def estimate(rows: Array) -> Array:
            local_features, global_features, _ = estimator.features(
                params, state, x[rows], z[rows]
            )
            return bounds.estimates(bound, local_features, global_features).mean()

        whole = rows[: len(rows) // size * size]
        return jax.lax.map(estimate, whole.reshape(-1, size))

    def part(carry: PyTree, rows: Array) -> tuple[PyTree, Array]:
        (best, score), now = carry
        now, climbed = jax.lax.scan(step, now, rows)
        params, state = now[:2]
        found = batch_estimates(params, state, chosen_by, batch_size).mean()
        better = found > score  # False for NaN
        best = jax.tree.map(lambda a, b: jnp.where(better, a, b), now[:2], best)
        return ((best, jnp.where(better, found, score)), now), climbed

    per_epoch = len(fitted) // batch_size
    steps = -(-num_steps // _PARTS) * _PARTS
    epochs = jax.random.split(keys[2], -(-steps // per_epoch))
    shuffled = jax.vmap(lambda key: jax.random.permutation(key, fitted))(epochs)
    rows = shuffled[:, : per_epoch * batch_size].reshape(-1, batch_size)[:steps]
    kept = jax.tree.map(jnp.asarray, bound.state)
    start = ((params, state), -jnp.inf), (params, state, optimizer.init(params), kept)
    parts = rows.reshape(_PARTS, -1, batch_size)
    (((params, state), score), _), climbed = jax.lax.scan(part, start, parts)
    found = batch_estimates(params, state, held_out, estimate_batch_size)
    found = jnp.where(score > -jnp.inf, found, jnp.nan)  # NaN throughout training
    spread = found.std(ddof=1) if len(found) > 1 else jnp.full((), jnp.nan)
    error = spread / math.sqrt(len(found))
    return Estimate(found.mean(), error, climbed.ravel(), params, state)


def _check_samples(
    x: Array, z: Array, batch_size: int, num_steps: int, held_out: float
) -> None:
    _checks.positive_int(batch_size=batch_size, num_steps=num_steps)
    _checks.same_batch(x=x, z=z)
    for name, sample in (("x", x), ("z", z)):
        if not jnp.issubdtype(sample.dtype, jnp.floating):
            raise InputError(f"`{name}` must be floats, got {sample.dtype}.")
        if _checks.is_concrete(sample) and not jnp.isfinite(sample).all():
            raise InputError(f"`{name}` must be finite, got NaN or infinity.")
    if not 0 < held_out < 0.5:
        raise InputError(f"`held_out` must lie in (0, 1/2), got {held_out}.")
    if batch_size < 2:
        raise InputError("`batch_size` must be at least 2, got 1: pairs are compared.")
    least = _num_held_out(len(x), batch_size, held_out) * 2 + batch_size
    if len(x) < least:
        raise InputError(
            f"`x` must hold at least {least} samples for `batch_size` {batch_size} and "
            f"`held_out` {held_out}, got {len(x)}."
        )
