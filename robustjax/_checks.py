"""Eager validators: concrete Python and array values are checked, tracers pass.

Every message names the argument in backticks, shows the value and says the fix.
Factories call these once; pure functions call the shape checks, which are static.
"""

import warnings

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

PROBABILITIES = (
    "`logits_fn` seems to return probabilities: rows are non-negative and sum to 1. "
    "Attacks expect logits; return them before the softmax, or its log."
)


class InputError(ValueError):
    """Bad input from the user: one clear line, exit code 2 on the command line."""


def is_concrete(value: object) -> bool:
    """False for tracers, whose values are not known yet."""
    return not isinstance(value, jax.core.Tracer)


def positive(**arguments: object) -> None:
    """Raises unless every keyword argument is a number (or array) above 0."""
    for name, value in arguments.items():
        if is_concrete(value) and not _all(value, lambda v: v > 0):
            raise InputError(f"`{name}` must be a number above 0, got {value!r}.")


def non_negative(**arguments: object) -> None:
    """Raises unless every keyword argument is a number (or array) of at least 0."""
    for name, value in arguments.items():
        if is_concrete(value) and not _all(value, lambda v: v >= 0):
            raise InputError(f"`{name}` must be a number of at least 0, got {value!r}.")


def finite(**arguments: object) -> None:
    """Raises unless every keyword argument is finite, such as a radius that is used."""
    for name, value in arguments.items():
        if is_concrete(value) and not _all(value, np.isfinite):
            raise InputError(f"`{name}` must be finite for this attack, got {value!r}.")


def box(bounds: tuple[float, float]) -> None:
    """Raises unless `bounds` are (low, high) with low < high."""
    low, high = bounds
    if not low < high:
        raise InputError(
            f"`bounds` must be (low, high) with low < high, got {bounds!r}."
        )


def fraction(**arguments: object) -> None:
    """Raises unless every keyword argument lies in [0, 1]."""
    for name, value in arguments.items():
        if is_concrete(value) and not _all(value, lambda v: (v >= 0) & (v <= 1)):
            raise InputError(f"`{name}` must lie in [0, 1], got {value!r}.")


def positive_int(**arguments: object) -> None:
    """Raises unless every keyword argument is an integer of at least 1."""
    for name, value in arguments.items():
        whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        if not whole or value < 1:  # pyright: ignore[reportOperatorIssue]
            raise InputError(
                f"`{name}` must be an integer of at least 1, got {value!r}."
            )


def one_of(choices: object, **arguments: object) -> None:
    """Raises unless every keyword argument is one of `choices`."""
    options = tuple(choices)  # pyright: ignore[reportArgumentType]
    for name, value in arguments.items():
        if value not in options:
            listed = ", ".join(repr(choice) for choice in options)
            raise InputError(f"`{name}` must be one of {listed}; got {value!r}.")


def radius(eps: object, bounds: tuple[float, float], *, largest: float) -> None:
    """Raises unless a concrete `eps` lies in [0, largest]; `largest` may be inf."""
    box(bounds)
    if is_concrete(eps) and not _all(eps, lambda v: (v >= 0) & (v <= largest)):
        hint = ""
        scalar = np.ndim(eps) == 0 and not isinstance(eps, (str, bytes))  # pyright: ignore
        if scalar and eps > largest:  # pyright: ignore
            hint = f" Did you mean {eps}/255?"
        raise InputError(
            f"`eps` must lie in [0, {largest:g}] on the pixel scale of `bounds` "
            f"{bounds}, got {eps!r}.{hint}"
        )


def images(**arguments: jax.Array) -> None:
    """Raises unless every argument is a floating-point array with a batch axis."""
    for name, x in arguments.items():
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise InputError(
                f"`{name}` must be floating point with pixels in [0, 1], got dtype "
                f"{x.dtype}. Divide integer images by 255."
            )
        if x.ndim < 2:
            raise InputError(
                f"`{name}` must have a batch axis first, [B, ...], got shape {x.shape}."
            )


def image_axes(**arguments: jax.Array) -> None:
    """Raises unless every argument has the axes of images."""
    for name, x in arguments.items():
        if x.ndim != 4:
            raise InputError(
                f"`{name}` must be images [B, H, W, C] for this attack, got shape "
                f"{x.shape}."
            )


def no_nan(**arguments: jax.Array) -> None:
    """Raises if a concrete array holds NaN."""
    for name, value in arguments.items():
        if is_concrete(value) and np.isnan(np.asarray(value, np.float32)).any():
            raise InputError(f"`{name}` must be numbers, got NaN in {value.shape}.")


def same_batch(**arguments: jax.Array) -> None:
    """Raises unless all arguments agree in their first axis."""
    sizes = {name: jnp.shape(value)[:1] for name, value in arguments.items()}
    if len(set(sizes.values())) > 1 or () in sizes.values():
        shapes = ", ".join(f"`{n}` {jnp.shape(v)}" for n, v in arguments.items())
        raise InputError(f"First axes must be the same batch size, got {shapes}.")


def same_shape(**arguments: jax.Array) -> None:
    """Raises unless all arguments have one shape."""
    if len({jnp.shape(value) for value in arguments.values()}) > 1:
        shapes = ", ".join(f"`{n}` {jnp.shape(v)}" for n, v in arguments.items())
        raise InputError(f"Shapes must be equal, got {shapes}.")


def labels(logits: jax.Array, y: jax.Array) -> None:
    """Raises unless `y` is int [B] or a distribution [B, K] for `logits` [B, K].

    Concrete integer labels are also checked for their range; under `jit` they
    cannot be, and a label out of range gives NaN.
    """
    if logits.ndim != 2:
        raise InputError(f"`logits` must be [B, K], got shape {logits.shape}.")
    same_batch(logits=logits, y=y)
    if y.ndim == 2:
        same_shape(logits=logits, y=y)
        if not jnp.issubdtype(y.dtype, jnp.floating):
            raise InputError(f"`y` [B, K] must be probabilities, got dtype {y.dtype}.")
        return
    if y.ndim != 1 or not jnp.issubdtype(y.dtype, jnp.integer):
        raise InputError(
            f"`y` must be integer labels [B] or probabilities [B, K], got "
            f"{y.dtype} {y.shape}."
        )
    label_range(y, logits.shape[-1])


def warn_of_probabilities(logits: jax.Array) -> None:
    """Warns if concrete logits look like probabilities; one row may be chance."""
    if logits.shape[0] > 1 and are_probabilities(logits):
        warnings.warn(PROBABILITIES, stacklevel=3)


def are_probabilities(logits: jax.Array) -> jax.Array:
    """Whether all rows of logits [..., K] are non-negative and sum to 1."""
    sums = logits.astype(jnp.float32).sum(axis=-1)
    return (logits >= 0).all() & (jnp.abs(sums - 1) < 1e-3).all()


def differing_rows(
    one: np.ndarray, other: np.ndarray, tolerance: float = 1e-3
) -> np.ndarray:
    """Whether rows of logits differ by more than rounding does, [B] bool.

    Rounding grows with the logits themselves, and with how far those of a row lie
    apart, or those of a usual row where its own are closer. An offset that all share
    hides no difference then, nor does a single large row.

    Args:
      one: [B, ..., K].
      other: The same.
      tolerance: A share of that distance; the default is that between two programs.
    """
    both = np.stack([one, other], axis=1).astype(np.float64)
    known = np.ma.masked_invalid(both.reshape(len(one), -1, one.shape[-1]))
    apart = np.ma.filled(np.ma.max(np.ma.ptp(known, axis=-1), axis=-1), 0.0)
    usual = np.median(apart[apart > 0]) if (apart > 0).any() else 0.0
    size = np.ma.filled(np.ma.max(np.abs(known), axis=(1, 2)), 0.0)
    rounding = max(1e-5, float(jnp.finfo(one.dtype).eps))
    allowed = tolerance * np.maximum(apart, usual) + rounding * size
    allowed = allowed.reshape(-1, *(1,) * (one.ndim - 1))
    with np.errstate(invalid="ignore"):  # the difference of infinite ones is NaN
        same = (np.abs(both[:, 0] - both[:, 1]) <= allowed) | (both[:, 0] == both[:, 1])
    same |= np.isnan(both).all(axis=1)
    return ~same.reshape(len(one), -1).all(axis=1)


def class_labels(x: jax.Array, y: jax.Array) -> None:
    """Raises unless `y` is a class index for each row of `x`, int [B]."""
    same_batch(x=x, y=y)
    if y.ndim != 1 or not jnp.issubdtype(y.dtype, jnp.integer):
        raise InputError(
            f"`y` must be integer labels [{x.shape[0]}], got {y.dtype} {y.shape}. Of "
            "one-hot rows take the argmax."
        )


def label_range(y: object, num_classes: int) -> None:
    """Raises if concrete integer labels fall outside [0, num_classes)."""
    if is_concrete(y) and np.size(y):  # pyright: ignore[reportArgumentType]
        values = np.asarray(y)  # numpy, so that an outer trace records nothing
        lowest, highest = values.min(), values.max()
        if lowest < 0 or highest >= num_classes:
            wrong = lowest if lowest < 0 else highest
            raise InputError(
                f"`y` must hold labels in [0, {num_classes - 1}], got {wrong}."
            )


def targets_differ(target: object, y: object) -> None:
    """Raises if concrete targets equal the labels that they should replace."""
    if not (is_concrete(target) and is_concrete(y)):
        return
    targets, own = np.asarray(target), np.asarray(y)
    if targets.ndim != 1 or targets.shape != own.shape:
        return
    equal = np.flatnonzero(targets == own)
    if equal.size:
        raise InputError(
            f"`target` must differ from the label, got {targets[equal[0]]} for both at "
            f"image {equal[0]}."
        )


def keys(key: jax.Array) -> None:
    """Raises unless `key` is a typed key, or a [B] array of them."""
    dtype = getattr(key, "dtype", np.dtype("V"))
    if not jnp.issubdtype(dtype, jax.dtypes.prng_key):
        raise InputError(
            f"`key` must be a typed key, as `jax.random.key(0)` makes, got "
            f"{getattr(key, 'dtype', type(key).__name__)}."
        )


def _all(value: object, holds: object) -> bool:
    if isinstance(value, (str, bytes)):
        return False  # numpy would read a number out of it
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        return False
    with np.errstate(invalid="ignore"):
        return bool(np.all(holds(array)))  # pyright: ignore[reportCallIssue]
