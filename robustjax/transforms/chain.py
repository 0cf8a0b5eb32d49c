"""Several input transforms as one."""

from robustjax import _random
from robustjax._checks import InputError
from robustjax.types import Array, Batch, InputTransform, Key, LogitsFn, PyTree


def chain(*transforms: InputTransform) -> InputTransform:
    """The transforms one after the other, the first one first.

    Each has its own randomness, the key folded with its position, and its own state:
    `fit` fits every one to the batch as it is and returns the tuple of states. All are
    handed the same `logits_fn`, the bare classifier.

    Args:
      transforms: None of them is the identity.

    Raises:
      InputError: an argument is no `InputTransform`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> double = InputTransform(lambda *_: (), lambda state, key, f, x: 2 * x)
      >>> plus = InputTransform(lambda *_: 1.0, lambda state, key, f, x: x + state)
      >>> both = chain(double, plus)
      >>> key, x = jax.random.key(0), jnp.zeros((1, 2, 2, 1)) + 3
      >>> state = both.fit({}, {}, key, Batch(x, jnp.zeros(1, int)))
      >>> float(both.apply(state, jax.random.key(1), lambda z: z, x).max())
      7.0
    """
    for transform in transforms:
        if not isinstance(transform, InputTransform):
            raise InputError(
                f"`transforms` must be `InputTransform`s, got {transform!r}: pass each "
                "as an argument of its own."
            )

    def fit(params: PyTree, model_state: PyTree, key: Key, batch: Batch) -> PyTree:
        return tuple(
            transform.fit(params, model_state, _random.fold_in(key, place), batch)
            for place, transform in enumerate(transforms)
        )

    def apply(state: PyTree, key: Key, logits_fn: LogitsFn, x: Array) -> Array:
        for place, (transform, part) in enumerate(zip(transforms, state, strict=True)):
            x = transform.apply(part, _random.fold_in(key, place), logits_fn, x)
        return x

    return InputTransform(fit, apply)
