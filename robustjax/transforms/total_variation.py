"""Total-variation minimisation of images with randomly dropped pixels, as a defense.

See "Countering Adversarial Images using Input Transformations" (Guo et al., 2018) and
"Adversarial Defense via Data Dependent Activation Function and Total Variation
Minimization" (Wang et al., 2018), which puts it before the network.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from robustjax import _checks
from robustjax._checks import InputError
from robustjax._random import per_image_keys
from robustjax.attacks.adaptive import with_surrogate
from robustjax.transforms import _gradients
from robustjax.transforms._inputs import check_images, check_options
from robustjax.transforms._penalties import Penalty
from robustjax.transforms._splitting import DataTerm
from robustjax.transforms.minimise import minimise_total_variation
from robustjax.types import Array, Batch, InputTransform, Key, LogitsFn, PyTree

Gradient = Literal["identity", "unrolled", "implicit"]


def random_mask(
    key: Key,
    shape: tuple[int, ...],
    p_drop: float | Array = 0.5,
    shared: bool = False,
) -> Array:
    """True where a pixel is kept, each with probability 1 - p_drop, bool of `shape`.

    Args:
      key: One key, folded with the position in the batch, or one per image, [B].
      shape: (B, H, W, C).
      p_drop: In [0, 1).
      shared: Whether all channels of a pixel are kept or dropped together.

    Raises:
      InputError: an argument is out of range.

    Example:
      >>> mask = random_mask(jax.random.key(0), (2, 8, 8, 3), 0.5, shared=True)
      >>> bool((mask[..., :1] == mask).all()), mask.shape
      (True, (2, 8, 8, 3))
    """
    _check_p_drop(p_drop)
    if len(shape) != 4:
        raise InputError(f"`shape` must be (B, H, W, C), got {shape}.")
    count, height, width, channels = shape
    drawn = (height, width, 1 if shared else channels)
    keys = per_image_keys(key, count)
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - p_drop, drawn))(keys)
    return jnp.broadcast_to(kept, shape)


def total_variation(
    *,
    weight: float | Array = 0.03,
    p_drop: float | Array = 0.5,
    shared_mask: bool = False,
    keep_zeros: bool = False,
    data_term: DataTerm = "norm",
    penalty: Penalty = "rows_columns",
    tolerance: float = 1e-4,
    max_steps: int = 2000,
    gradient: Gradient = "identity",
    unrolled_steps: int = 50,
) -> InputTransform:
    """Drops pixels at random and fills them in by total-variation minimisation.

    `fit` needs nothing and returns (); `apply(state, key, logits_fn, x)` returns what
    `minimise_total_variation` finds for `x` and `random_mask(key, ...)`. The mask of an
    image depends on its key alone, so an attacker averages over keys (see
    `robustjax.attacks.expectation`).

    Defaults are the paper's equation: dropped pixel by pixel and channel by channel,
    weight 0.03, un-squared data term, norms of whole rows and columns. It fills in
    dropped pixels and, at this weight, leaves kept ones alone; the squared term
    smooths these too. The authors' code uses "squared" and "isotropic", counts pixels
    that are 0 as kept (`keep_zeros`), smooths its shrinkage, and stops after at most
    100 sweeps when pixels change by less than 0.01: options but for the last two.

    Args:
      weight: Of the total variation, at least 0.
      p_drop: Probability that a pixel is dropped, in [0, 1).
      shared_mask: Whether the channels of a pixel are dropped together.
      keep_zeros: Whether pixels that are exactly 0 are always kept.
      data_term: "norm" or "squared".
      penalty: "rows_columns", "isotropic" or "anisotropic".
      tolerance: Of the relative duality gap.
      max_steps: Of the solver.
      gradient: How `apply` is differentiated. "identity": as if it returned `x` (BPDA),
        forwards exact. "unrolled": through `unrolled_steps` steps of the solver, whose
        result is returned instead of the minimiser; memory grows with them.
        "implicit": the derivative of the minimiser, exact away from kinks, where the
        problem is strictly convex: the squared data term with p_drop=0. Else
        minimisers need not be unique, let alone differentiable.
      unrolled_steps: At least 1.

    Returns:
      The transform. Images keep their dtype; half precision is solved in float32.

    Raises:
      InputError: an argument is out of range; at the call, `x` is no finite images.

    Example:
      >>> import robustjax as rj
      >>> transform = rj.transforms.total_variation(p_drop=0.5)
      >>> x = jnp.full((1, 8, 8, 3), 0.25)
      >>> apply = jax.jit(transform.apply, static_argnums=2)
      >>> z = apply((), jax.random.key(0), lambda x: x, x)
      >>> z[0, 0, 0].tolist()
      [0.25, 0.25, 0.25]
    """
    check_options(weight, data_term, penalty, tolerance, max_steps)
    _check_p_drop(p_drop)
    _checks.one_of(("identity", "unrolled", "implicit"), gradient=gradient)
    _checks.positive_int(unrolled_steps=unrolled_steps)
    never = _checks.is_concrete(p_drop) and float(p_drop) == 0
    if gradient == "implicit" and not (data_term == "squared" and never):
        raise InputError(
            '`gradient="implicit"` needs `data_term="squared"` and `p_drop=0`, got '
            f"{data_term!r} and {p_drop!r}: other minimisers need not be unique. Use "
            '"unrolled" or "identity".'
        )

    def solve(x: Array, mask: Array | None) -> Array:
        if gradient == "unrolled":
            return _gradients.unrolled(
                *(x, mask, weight, data_term, penalty, unrolled_steps)
            )
        if gradient == "implicit":
            scalar = jnp.asarray(weight, x.dtype)
            return _gradients.implicit(x, scalar, penalty, tolerance, max_steps)

        def minimise(x: Array) -> Array:
            return minimise_total_variation(
                x,
                mask=mask,
                weight=weight,
                data_term=data_term,
                penalty=penalty,
                tolerance=tolerance,
                max_steps=max_steps,
            ).image

        return with_surrogate(minimise)(x)

    def apply(state: PyTree, key: Key, logits_fn: LogitsFn, x: Array) -> Array:
        del state, logits_fn
        _checks.images(x=x)
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        check_images(wide)
        mask = None
        if not never:
            mask = random_mask(key, x.shape, p_drop, shared_mask)
            if keep_zeros:
                mask = mask | (x == 0)
        return solve(wide, mask).astype(x.dtype)

    return InputTransform(_fit, apply)


def _fit(params: PyTree, model_state: PyTree, key: Key, batch: Batch) -> PyTree:
    del params, model_state, key, batch
    return ()


def _check_p_drop(p_drop: float | Array) -> None:
    _checks.fraction(p_drop=p_drop)
    if _checks.is_concrete(p_drop) and float(p_drop) == 1:
        raise InputError(
            f"`p_drop` must be below 1, got {p_drop!r}: nothing would be left of the "
            "images. The paper drops half, 0.5."
        )
