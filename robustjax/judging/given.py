"""What a notebook gives, looked at before anything runs."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from robustjax import _checks, data
from robustjax._checks import InputError
from robustjax.evaluation import GIVEN, NamedAttack
from robustjax.judging.subject import Subject, Wanted
from robustjax.types import LogitsFn, Threat

_QUERIES = "suite=[NamedAttack('square', attacks.square(threat))]"


def check_types(logits_fn: Any, key: Any, surrogates: Any, wanted: Any) -> None:
    """Raises unless arguments are what only Python can tell."""
    if not callable(logits_fn):
        raise InputError(
            "`logits_fn` must be a function of images such as "
            "models.logits_fn(model, params, state), got "
            f"{type(logits_fn).__name__}."
        )
    _checks.keys(key)
    if key.ndim:
        raise InputError(f"`key` must be one key, got an array of shape {key.shape}.")
    if not isinstance(surrogates, Mapping):
        raise InputError(
            "`surrogates` must be classifiers by name, as in {'resnet': logits_fn}, "
            f"got {type(surrogates).__name__}."
        )
    check_functions(**{f"surrogates[{k!r}]": fun for k, fun in surrogates.items()})
    if not isinstance(wanted, Wanted):
        raise InputError(
            f"`wanted` must be a judging.Wanted, got {type(wanted).__name__}."
        )


def check_functions(**functions: Any) -> None:
    """Raises unless each, by argument, is a function or None."""
    for name, fun in functions.items():
        if fun is not None and not callable(fun):
            raise InputError(f"`{name}` must be a function of images, got {fun!r}.")


def check_threat(threat: Any, step_size: float | None) -> None:
    """Raises unless it is a threat of one radius, from which steps can be had."""
    if not isinstance(threat, Threat):
        raise InputError(
            f"`threat` must be a threat such as threats.linf(8 / 255), got {threat!r}."
        )
    if np.ndim(threat.eps):
        raise InputError(
            "`threat` must have one radius for all images, got one of shape "
            f"{np.shape(threat.eps)}."
        )
    eps = float(threat.eps)
    if step_size is None and not 0 < eps < float("inf"):
        raise InputError(
            f"`threat` has the radius {eps:g}, a quarter of which is no step: give "
            "another `eps`, or `step_size`."
        )


def named(suite: Any) -> list[NamedAttack]:
    """Attacks that a caller gives in place of a suite's name.

    Raises:
      InputError: they have no names, or there are none.
    """
    found: Any = suite if isinstance(suite, (list, tuple)) else [suite]
    for one in found:
        if not isinstance(one, NamedAttack):
            raise InputError(
                f"`suite` must be a name, a .py file, or NamedAttacks, got "
                f"{type(one).__name__}: write NamedAttack('mine', attack)."
            )
    if not found:
        raise InputError("`suite` must hold at least one attack, got none.")
    return list(found)


def dataset(
    logits_fn: LogitsFn,
    x: Any,
    y: Any,
    class_names: Sequence[str] | None,
    bounds: tuple[float, float],
) -> data.Dataset:
    """The images as a data set, of as many classes as there are logits.

    Raises:
      InputError: shapes, types or ranges do not fit.
    """
    images, labels = np.asarray(x), np.asarray(y)
    _checks.same_batch(x=images, y=labels)  # pyright: ignore[reportArgumentType]
    if images.ndim != 4 or not len(images):
        raise InputError(f"`x` must be images [N, H, W, C], got shape {images.shape}.")
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(
            f"`y` must be integer labels [N], got {labels.dtype} {labels.shape}."
        )
    if images.dtype != np.uint8:
        images = images.astype(np.float32)
    _check_pixels(images, bounds)
    num_classes = _num_classes("logits_fn", logits_fn, images.shape[1:])
    if num_classes < 2:
        raise InputError("`logits_fn` must tell 2 classes or more, got 1 logit.")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise InputError(
            f"`y` must lie in [0, {num_classes}), as the logits do, got "
            f"{labels.min()} to {labels.max()}."
        )
    if not isinstance(class_names, Sequence | np.ndarray | None):
        raise InputError(f"`class_names` must be a list, got {class_names!r}.")
    names = tuple(map(str, range(num_classes) if class_names is None else class_names))
    if len(names) != num_classes:
        raise InputError(
            f"`class_names` must name the {num_classes} classes, got {len(names)}."
        )
    index = np.arange(len(images))
    given = (images, labels.astype(np.int32), index, names)
    return data.Dataset(*given, name=GIVEN)


def check_others(others: Mapping[str, LogitsFn | None], test: data.Dataset) -> None:
    """Raises unless other classifiers, by argument, know the same classes."""
    for name, other in others.items():
        if other is None:
            continue
        found = _num_classes(name, other, test.images.shape[1:])
        if found != test.num_classes:
            raise InputError(
                f"`{name}` must tell the {test.num_classes} classes that `logits_fn` "
                f"does, got {found}."
            )


def check_gradient(subject: Subject, suite: Any) -> None:
    """Raises where the attacks of a suite could not run on what they climb."""
    if not subject.has_gradient:
        if isinstance(suite, str):
            raise InputError(
                f"`suite` {suite!r} needs gradients and the classifier has none: give "
                "`source`, a classifier like it that has some, or attack by queries, "
                f"{_QUERIES}."
            )
        return
    shape = (2, 2, *subject.dataset.images.shape[1:])
    try:
        jax.eval_shape(
            jax.vmap(subject.climbed), jax.ShapeDtypeStruct(shape, np.float32)
        )
    except NotImplementedError as error:
        raise InputError(
            "`logits_fn` cannot be mapped over restarts by jax.vmap: give its "
            "jax.pure_callback vmap_method='sequential'."
        ) from error


def _check_pixels(images: np.ndarray, bounds: tuple[float, float]) -> None:
    broken = np.isnan(images).any(axis=(1, 2, 3))
    if broken.any():
        raise InputError(f"`x` must hold numbers, image {broken.argmax()} has NaN.")
    low, high = float(images.min()), float(images.max())
    if images.dtype == np.uint8:
        if high == 1:
            raise InputError(
                "`x` of uint8 is divided by 255, got nothing above 1: give floats."
            )
        low, high = low / 255, high / 255
    elif low < 0 or high > 1:
        raise InputError(
            f"`x` must lie in [0, 1], got [{low:g}, {high:g}]: divide by 255, and "
            "let the model normalise."
        )
    if bounds[1] > 2:
        raise InputError(
            f"`threat` has pixels in [{bounds[0]:g}, {bounds[1]:g}], and images here "
            "are in [0, 1]: divide its radius and `bounds` by 255."
        )
    if low < bounds[0] or high > bounds[1]:
        raise InputError(
            f"`x` must lie in the bounds of `threat`, [{bounds[0]:g}, {bounds[1]:g}], "
            f"got [{low:g}, {high:g}]."
        )


def _num_classes(name: str, fun: LogitsFn, shape: tuple[int, ...]) -> int:
    """Of a classifier, without running it."""
    try:
        found = jax.eval_shape(fun, jax.ShapeDtypeStruct((2, *shape), np.float32))
    except jax.errors.JAXTypeError as error:
        raise InputError(
            f"`{name}` must be written in jax.numpy, got a function that looks at "
            "the values of its images: wrap it in jax.pure_callback, and attack it by "
            f"queries, {_QUERIES}."
        ) from error
    except InputError:
        raise
    except Exception as error:  # somebody's program: anything may go wrong in it
        said = (str(error).strip() or "no message").splitlines()[0]
        raise InputError(
            f"`{name}` fails on float32 images of shape {(2, *shape)}, "
            f"{type(error).__name__}: {said} Give a function of such images, of a "
            "module models.logits_fn(model, params, state), of nnx after `.eval()`."
        ) from error
    sides = getattr(found, "shape", None)
    if sides is None or len(sides) not in (2, 3) or sides[-2] != 2:
        got = type(found).__name__ if sides is None else f"{sides} for 2 images"
        raise InputError(
            f"`{name}` must return logits [B, K], or draws [S, B, K], got {got}."
        )
    return sides[-1]
