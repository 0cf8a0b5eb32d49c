"""Estimates of mutual information from the scores of pairs.

A critic gives sample i a global vector and sample j a map of local vectors; their inner
products u[i, j, l, m], `scores`, should be high for what belongs together, j = i, and
low for pairs of different samples. A bound turns them into an estimate for each sample
i, whose mean over the batch is that of the mutual information. NAMID's losses are minus
these estimates, and its released code has the bounds `dv`, `f_divergence` and
`info_nce_released`.

A bound looks at one row of scores at a time, so that rows can be computed in blocks and
the [N, N, L, M] scores need never exist at once.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from robustjax import _checks
from robustjax._checks import InputError
from robustjax.information._blocks import by_blocks, score_row, wide
from robustjax.types import Array, PyTree

Measure = Literal["gan", "jsd", "chi_squared", "kl", "reverse_kl", "hellinger", "w1"]
_LOG_2 = math.log(2.0)


class Bound(NamedTuple):
    """How rows of scores become an estimate.

    Attributes:
      row: `(u [N, L, M], i) -> summary`, of the scores of sample i.
      combine: `summaries [N, ...] -> estimates [N]`, in nats if the bound is one on
        mutual information.
      state: What `climb` keeps from step to step, at its start.
      by_place: `summaries [N, ...] -> [N, L]`, estimates of each place, whose mean over
        places is `combine`; None where a bound has none.
      climb: `(summaries, state) -> (scalar, state)`, what the training of a critic
        maximises where that is not the mean of the estimates; None if it is.
    """

    row: Callable[[Array, Array], PyTree]
    combine: Callable[[PyTree], Array]
    state: PyTree = ()
    climb: Callable[[PyTree, PyTree], tuple[Array, PyTree]] | None = None
    by_place: Callable[[PyTree], Array] | None = None


def scores(local_features: Array, global_features: Array) -> Array:
    """u[i, j, l, m], the inner product of global_features[i, :, m] with the local
    features [j, :, l]: [N, N, L, M].

    Args:
      local_features: [N, U, L].
      global_features: [N, U, M].
    """
    _check_features(local_features, global_features)
    return jax.vmap(score_row, (None, 0))(local_features, global_features)


def estimates(
    bound: Bound,
    local_features: Array,
    global_features: Array,
    *,
    block_size: int | None = None,
    scale: float | Array = 1.0,
    activation_penalty: float | Array = 0.0,
) -> Array:
    """The estimate of each sample, [N], float32 or wider; NAMID's losses are minus it.

    Args:
      bound: Such as `dv()`.
      local_features: [N, U, L], what the information is about, place by place.
      global_features: [N, U, M], where it is looked for.
      block_size: Rows of scores at a time, recomputed for the gradient; changes
        nothing but time and memory. None is as many as make 4 million scores.
      scale: Of the estimates.
      activation_penalty: What is taken off for each unit of ||global_features||^2,
        summed over U and averaged over M.

    Raises:
      InputError: shapes do not fit, or there is but one sample.

    Example:
      >>> features = jnp.zeros((5, 3, 4))
      >>> found = estimates(dv(), features, features[:, :, :1])
      >>> found.shape, round(float(found[0]), 4)  # -log(5 / 4)
      ((5,), -0.2231)
    """
    summaries = _summaries(bound, local_features, global_features, block_size)
    found = scale * bound.combine(summaries)
    wide = global_features.astype(found.dtype)
    return found - activation_penalty * jnp.sum(wide**2, axis=1).mean(axis=1)


def estimates_of_scores(bound: Bound, u: Array) -> Array:
    """The same from the scores [N, N, L, M] themselves."""
    if u.ndim != 4 or u.shape[0] != u.shape[1] or u.shape[0] < 2:
        raise InputError(
            f"`u` must be scores [N, N, L, M] of at least 2 samples, got {u.shape}."
        )
    return bound.combine(jax.vmap(bound.row)(wide(u), jnp.arange(len(u))))


def estimates_by_place(
    bound: Bound,
    local_features: Array,
    global_features: Array,
    *,
    block_size: int | None = None,
) -> Array:
    """The estimate of each sample at each place, [N, L]; their mean is `estimates`.

    Raises:
      InputError: shapes do not fit, or the bound has no such estimates.
    """
    if bound.by_place is None:
        raise InputError(
            "`bound` has no estimates by place: take dv() or info_nce(), whose "
            "logarithms are of one place each."
        )
    summaries = _summaries(bound, local_features, global_features, block_size)
    return bound.by_place(summaries)


def climbed(
    bound: Bound,
    local_features: Array,
    global_features: Array,
    state: PyTree = (),
    *,
    block_size: int | None = None,
) -> tuple[Array, PyTree]:
    """What the training of a critic maximises, a scalar, and the bound's new state.

    Args:
      bound: Whose `state` is the one to start with.
      local_features: [N, U, L].
      global_features: [N, U, M].
      state: Of the step before.
      block_size: As in `estimates`.
    """
    summaries = _summaries(bound, local_features, global_features, block_size)
    if bound.climb is None:
        return bound.combine(summaries).mean(), state
    return bound.climb(summaries, state)


def dv(*, diagonal: Literal["zeroed", "removed"] = "zeroed") -> Bound:
    """The released code's form of Donsker and Varadhan's bound, sample by sample.

        I_i = mean_l( u[i, i, l] - log( (1 + sum_{j != i} exp u[i, j, l]) / (N - 1) ) )

    The logarithm is taken for each sample and place apart, of a sum in which the score
    of the positive is set to 0 and stays in. So it is no lower bound, and not capped at
    log N.

    Args:
      diagonal: "removed" leaves out that 1.
    """
    _checks.one_of(("zeroed", "removed"), diagonal=diagonal)

    def row(u: Array, i: Array) -> Array:
        floor = 0.0 if diagonal == "zeroed" else -jnp.inf
        negative = jax.nn.logsumexp(_others(u, i, floor), axis=0)
        return (u[i] - (negative - math.log(len(u) - 1))).mean(axis=1)

    return Bound(row, _over_places, by_place=lambda found: found)


def donsker_varadhan() -> Bound:
    """Mean u of positives - log mean exp u of all pairs of different samples.

    A lower bound of the mutual information. See "Mutual Information Neural Estimation"
    (Belghazi et al., 2018), eq. (5). A sample's estimate is its own mean score minus
    the logarithm that all share.
    """
    return Bound(_pooled, _pooled_estimates)


def mine(*, decay: float = 0.7) -> Bound:
    """`donsker_varadhan`, trained with the bias-corrected gradient.

    The gradient of log E exp u in a batch divides by a noisy mean, and so is biased;
    MINE divides by a moving average of it. See (Belghazi et al., 2018), section 3.2.

    Args:
      decay: Of the moving average, in [0, 1); 0 is the plain gradient. A batch that
        holds rare high scores counts up to 1 / (1 - decay) times as much as it would
        there, and Adam takes small steps for long after it: 0.99 needs many more steps.
    """
    _checks.fraction(decay=decay)
    if _checks.is_concrete(decay) and decay == 1:
        raise InputError("`decay` must be below 1, got 1: the average never moves.")

    def climb(found: tuple[Array, Array], state: Array) -> tuple[Array, Array]:
        state = jnp.asarray(state, found[0].dtype)
        positive, log_mean = found[0].mean(), _log_mean(found[1])
        present = jax.lax.stop_gradient(log_mean)
        average = jnp.logaddexp(jnp.log(decay) + state, jnp.log1p(-decay) + present)
        average = jnp.where(state > -jnp.inf, average, present)
        return positive - jnp.exp(log_mean - average), average

    return Bound(_pooled, _pooled_estimates, -math.inf, climb)


def smile(*, clip: float = 5.0) -> Bound:
    """`donsker_varadhan` with scores of negatives clipped to [-clip, clip].

    Less variance for some bias; a critic is trained by the Jensen-Shannon divergence.
    See "Understanding the Limitations of Variational Mutual Information Estimators"
    (Song and Ermon, 2020), eq. (17).
    """
    _checks.positive(clip=clip)
    divergence = f_divergence("jsd")

    def row(u: Array, i: Array) -> tuple[tuple[Array, Array], PyTree]:
        # The positives enter the first term as they are.
        clipped = jnp.clip(u, -clip, clip)
        return (u[i].mean(), _pooled(clipped, i)[1]), divergence.row(u, i)

    def climb(found: PyTree, state: PyTree) -> tuple[Array, PyTree]:
        return divergence.combine(found[1]).mean(), state

    return Bound(row, lambda found: _pooled_estimates(found[0]), (), climb)


def f_divergence(measure: Measure = "jsd", *, clip: float | None = None) -> Bound:
    """Mean P(u) of positives - mean Q(u) of negatives, Fenchel duals of f-divergences.

    | measure | P(u) | Q(u) |
    |---|---|---|
    | gan | -softplus(-u) | softplus(-u) + u |
    | jsd | log 2 - softplus(-u) | softplus(-u) + u - log 2 |
    | chi_squared | u^2 | -(|u| + 1)^2 / 2 |
    | kl | u | exp(u - 1) |
    | reverse_kl | -exp(-u) | u - 1 |
    | hellinger | 1 - exp(-u) | exp(u) - 1 |
    | w1 | u | u |

    as the released code has them. Its chi-squared has no upper bound, and w1 is one
    only for critics with a Lipschitz constant. Only kl bounds mutual information. Of
    sample i: P is averaged over its own places, Q over those of its pairs with others.

    Args:
      measure: A row of the table.
      clip: What an exponent counts at most in kl, reverse_kl and hellinger; None lets
        estimates become infinite.
    """
    _checks.one_of(_MEASURES, measure=measure)
    if clip is not None:
        _checks.positive(clip=clip)
    of_positives, of_negatives = _MEASURES[measure]

    def row(u: Array, i: Array) -> Array:
        places = u.size // len(u)
        apart = jnp.arange(len(u)) != i
        # 0 for the positive: no infinity that is masked away only afterwards.
        negative = of_negatives(_others(u, i, 0.0), clip)
        total = jnp.where(_along(apart, u), negative, 0.0).sum()
        positive = of_positives(u[i], clip).mean()
        return positive - total / ((len(u) - 1) * places)

    return Bound(row, lambda found: found)


def info_nce() -> Bound:
    """mean_l( u[i, i, l] - log mean_j exp u[i, j, l] ), at most log N.

    See "Representation Learning with Contrastive Predictive Coding" (van den Oord et
    al., 2018), eq. (4).
    """

    def row(u: Array, i: Array) -> Array:
        return (u[i] - jax.nn.logsumexp(u, axis=0)).mean(axis=1) + math.log(len(u))

    return Bound(row, _over_places, by_place=lambda found: found)


def info_nce_released() -> Bound:
    """The released code's InfoNCE: negatives of a place are all places of the others.

        I_i = mean_{l, m}( p - log( exp p + sum_{j != i, l'} exp u[i, j, l', m]
                                    + L exp(-10) ) ),   p = u[i, i, l, m]

    The last summand is what its masked entries leave in the sum. Without the logarithm
    of the number of pairs, so below 0.
    """

    def row(u: Array, i: Array) -> Array:
        rest = jax.nn.logsumexp(_others(u, i, -10.0), axis=(0, 1))
        return (u[i] - jnp.logaddexp(u[i], rest[None])).mean()

    return Bound(row, lambda found: found)


def _over_places(found: Array) -> Array:
    return found.mean(axis=1)


def _exp(exponent: Array, clip: float | None) -> Array:
    return jnp.exp(exponent if clip is None else jnp.minimum(exponent, clip))


def _hellinger(u: Array, clip: float | None) -> Array:
    return 1 - _exp(-u, clip)


_MEASURES: dict[str, tuple[Callable, Callable]] = {
    "gan": (lambda u, _: -jax.nn.softplus(-u), lambda u, _: jax.nn.softplus(u)),
    "jsd": (
        lambda u, _: _LOG_2 - jax.nn.softplus(-u),
        lambda u, _: jax.nn.softplus(u) - _LOG_2,
    ),
    "chi_squared": (lambda u, _: u**2, lambda u, _: -((jnp.abs(u) + 1) ** 2) / 2),
    "kl": (lambda u, _: u, lambda u, clip: _exp(u - 1, clip)),
    "reverse_kl": (lambda u, clip: -_exp(-u, clip), lambda u, _: u - 1),
    "hellinger": (_hellinger, lambda u, clip: _exp(u, clip) - 1),
    "w1": (lambda u, _: u, lambda u, _: u),
}


def _pooled(u: Array, i: Array) -> tuple[Array, Array]:
    """The mean score of a sample with itself, and log mean exp of those with others."""
    places = u.size // len(u)
    total = jax.nn.logsumexp(_others(u, i, -jnp.inf))
    return u[i].mean(), total - math.log((len(u) - 1) * places)


def _pooled_estimates(found: tuple[Array, Array]) -> Array:
    positive, of_rows = found
    return positive - _log_mean(of_rows)


def _log_mean(logs: Array) -> Array:
    return jax.nn.logsumexp(logs) - math.log(len(logs))


def _others(u: Array, i: Array, instead: float) -> Array:
    """A row of scores, that of the sample itself replaced."""
    return jnp.where(_along(jnp.arange(len(u)) != i, u), u, instead)


def _along(flags: Array, u: Array) -> Array:
    return flags.reshape((-1,) + (1,) * (u.ndim - 1))


def _summaries(
    bound: Bound, local_features: Array, global_features: Array, block_size: int | None
) -> PyTree:
    _check_features(local_features, global_features)
    local_features, global_features = map(wide, (local_features, global_features))
    count, _, num_local = local_features.shape

    def row(part: tuple[Array, Array]) -> PyTree:
        return bound.row(score_row(local_features, part[0]), part[1])

    return by_blocks(
        row,
        (global_features, jnp.arange(count)),
        row_size=count * num_local * global_features.shape[2],
        block_size=block_size,
    )


def _check_features(local_features: Array, global_features: Array) -> None:
    shapes = local_features.shape, global_features.shape
    if any(len(shape) != 3 for shape in shapes) or shapes[0][:2] != shapes[1][:2]:
        raise InputError(
            "`local_features` must be [N, U, L] and `global_features` [N, U, M], got "
            f"{shapes[0]} and {shapes[1]}."
        )
    if shapes[0][0] < 2:
        raise InputError(
            "`local_features` must hold at least 2 samples, got 1: an estimate "
            "compares pairs of different samples."
        )
