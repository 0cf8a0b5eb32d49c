"""Checks of what total-variation minimisation is given."""

import jax.numpy as jnp
import numpy as np

from robustjax import _checks
from robustjax._checks import InputError
from robustjax.transforms import _penalties, _splitting
from robustjax.types import Array


def check_options(
    weight: object,
    data_term: object,
    penalty: object,
    tolerance: object,
    max_steps: object,
) -> None:
    """Raises unless the keywords of `minimise_total_variation` are in range."""
    if jnp.ndim(weight) != 0:  # pyright: ignore[reportArgumentType]
        raise InputError(
            f"`weight` must be a scalar, got shape {jnp.shape(weight)}: "  # pyright: ignore[reportArgumentType]
            "use `jax.vmap` over weights."
        )
    _checks.non_negative(weight=weight)
    if _checks.is_concrete(weight) and not np.isfinite(np.asarray(weight)):
        raise InputError(f"`weight` must be finite, got {weight!r}.")
    _checks.one_of(_splitting.DATA_TERMS, data_term=data_term)
    _checks.one_of(_penalties.PENALTIES, penalty=penalty)
    _checks.positive(tolerance=tolerance)
    _checks.positive_int(max_steps=max_steps)


def check_images(x: Array, mask: Array | None = None) -> None:
    """Raises unless `x` is finite images and `mask` booleans of their shape."""
    _checks.images(x=x)
    if x.ndim != 4 or 0 in x.shape:
        raise InputError(
            f"`x` must be images [B, H, W, C], at least one, got shape {x.shape}."
        )
    if x.dtype not in (jnp.float32, jnp.float64):
        raise InputError(
            f"`x` must be float32 or float64, got {x.dtype}. Cast it by astype."
        )
    check_finite(x)
    if mask is None:
        return
    if mask.dtype != jnp.bool_ or mask.shape != x.shape:
        raise InputError(
            f"`mask` must be bool {x.shape}, the shape of `x`, True where a pixel is "
            f"kept, got {mask.dtype} {mask.shape}."
        )


def check_finite(x: Array) -> None:
    """Raises if concrete images hold NaN or infinity."""
    if _checks.is_concrete(x):
        values = np.asarray(x, np.float64)  # NumPy: an outer trace records nothing
        wrong = values[~np.isfinite(values)]
        if wrong.size:
            raise InputError(
                f"`x` must be finite, got {wrong[0]} among {values.shape}: mend or "
                "leave out such images."
            )
