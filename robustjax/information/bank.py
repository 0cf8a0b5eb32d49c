"""Estimates whose negatives are a fixed bank, so that no sample sees its batch.

An estimate compares a sample with others. Within a batch these are its neighbours, and
an attack on one image would move the estimates of all, as would padding and the size
of the batch. Against a bank of reference samples each image stands alone.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from robustjax import _checks
from robustjax._checks import InputError
from robustjax.information._blocks import by_blocks, score_row, wide
from robustjax.information.bounds import Bound, dv
from robustjax.types import Array, MIEstimator, PyTree

_DV = dv()


def estimates_against(
    bound: Bound,
    local_features: Array,
    global_features: Array,
    bank: Array,
    *,
    block_size: int | None = None,
) -> Array:
    """The estimate of each sample against a bank, [N], float32 or wider.

    As `estimates`, but the negatives of sample i are the R samples of the bank, and
    R + 1 stands for N in the bound's formula. If the bank is the batch without sample
    i, that is its estimate in `estimates` for the bounds that look at one row of
    scores: `dv`, `info_nce`, `info_nce_released`, `f_divergence`. The pooled ones,
    `donsker_varadhan`, `mine` and `smile`, share one logarithm over the batch there.
    Here each sample has its own, of its R pairs alone; by Jensen's inequality their
    mean is then no lower than with a shared one over the same pairs.

    Args:
      bound: Such as `dv()`.
      local_features: [N, U, L], what the information is about, place by place.
      global_features: [N, U, M], where it is looked for.
      bank: [R, U, L], local features of other samples, of the same kind. A bank with
        sample i itself counts it among its own negatives.
      block_size: Rows of scores at a time, recomputed for the gradient; changes
        nothing but time and memory. None is as many as make 4 million scores.

    Raises:
      InputError: shapes do not fit, or the bank is empty.

    Example:
      >>> features = jnp.zeros((5, 3, 4))
      >>> bank = jnp.zeros((9, 3, 4))
      >>> found = estimates_against(dv(), features, features[:, :, :1], bank)
      >>> found.shape, round(float(found[0]), 4)  # -log(10 / 9)
      ((5,), -0.1054)
    """
    _check_features(local_features, global_features, bank)
    local_features, global_features, bank = map(
        wide, (local_features, global_features, bank)
    )

    def estimate(part: tuple[Array, Array]) -> Array:
        own, sought = part
        # Scores are joined, not features: the bank is not copied for every sample.
        u = (score_row(own[None], sought), score_row(bank, sought))
        summary = bound.row(jnp.concatenate(u), jnp.zeros((), int))
        return bound.combine(jax.tree.map(lambda leaf: leaf[None], summary))[0]

    return by_blocks(
        estimate,
        (local_features, global_features),
        row_size=(len(bank) + 1) * bank.shape[2] * global_features.shape[2],
        block_size=block_size,
    )


def probe(
    estimator: MIEstimator,
    params: PyTree,
    state: PyTree,
    bank_samples: Array,
    *,
    bound: Bound = _DV,
    block_size: int | None = None,
) -> Partial:
    """A trained critic as a function `(samples [B, ...], z [B, K]) -> estimates [B]`.

    In eval mode, each sample against the same bank. Differentiable in both arguments.
    The result is a pytree of the weights and the bank's local features, which are
    computed here, once: nothing is baked into code that takes it as an argument, and
    other weights or samples in the bank do not compile again. Nor does a second probe
    of the same `estimator`, `bound` and `block_size`, the first two being known by
    identity.

    Args:
      estimator: The critic.
      params: Its parameters.
      state: Its BatchNorm statistics; never updated here.
      bank_samples: [R, ...], of the kind the critic was trained on: images, or noises
        x_adv - x. Of other images than are asked about, such as of the training split.
      bound: Of the estimates, as in training.
      block_size: See `estimates_against`.

    Raises:
      InputError: the bank is empty, `block_size` is no positive integer; at the call,
        samples and z do not pair up.

    Example:
      >>> from robustjax import models
      >>> critic = models.mi_estimator(models.LocalCritic(16), models.GlobalCritic(16))
      >>> x, z = jnp.ones((2, 8, 8, 1)), jnp.ones((2, 10))
      >>> params, state = critic.init(jax.random.key(0), x, z)
      >>> information = probe(critic, params, state, jnp.zeros((5, 8, 8, 1)))
      >>> jax.jit(lambda f, x, z: f(x, z))(information, x, z).shape
      (2,)
    """
    if not len(bank_samples):
        raise InputError("`bank_samples` must hold at least 1 sample, got none.")
    if block_size is not None:
        _checks.positive_int(block_size=block_size)
    bank, _ = estimator.local_features(params, state, bank_samples)
    return Partial(_Probe(estimator, bound, block_size), params, state, bank)


@dataclasses.dataclass(frozen=True)
class _Probe:
    # A dataclass compares by value, a closure by identity: equal ones share a trace.
    estimator: MIEstimator
    bound: Bound
    block_size: int | None

    def __call__(
        self, params: PyTree, state: PyTree, bank: Array, samples: Array, z: Array
    ) -> Array:
        _checks.same_batch(samples=samples, z=z)
        local, sought, _ = self.estimator.features(params, state, samples, z)
        return estimates_against(
            self.bound, local, sought, bank, block_size=self.block_size
        )


def _check_features(local: Array, sought: Array, bank: Array) -> None:
    shapes = local.shape, sought.shape, bank.shape
    fits = all(len(shape) == 3 for shape in shapes)
    fits = fits and shapes[0][:2] == shapes[1][:2] and shapes[0][1:] == shapes[2][1:]
    if not fits:
        raise InputError(
            "`local_features` must be [N, U, L], `global_features` [N, U, M] and "
            "`bank` [R, U, L], got {}, {} and {}.".format(*shapes)
        )
    if not len(bank):
        raise InputError(
            "`bank` must hold at least 1 sample, got none: an estimate compares pairs "
            "of different samples."
        )
