"""The way to the nearest image of another class: an attack without any gradient."""

import jax

from robustjax import _checks, threats
from robustjax._checks import InputError
from robustjax.attacks import _decision, _guides, _outcome
from robustjax.types import Array, Attack, Key, LogitsFn


def towards_other(images: Array, labels: Array, *, num_halvings: int = 10) -> Attack:
    """Per image, where the classifier changes its mind on the way to another image.

    The other image is the nearest one (Euclidean) of another label among those that
    the classifier does not give the tested image's label. Held to no radius; it shows
    what changes inside a model where no gradient of it was climbed.

    Args:
      images: [N, ...].
      labels: Their classes, [N].
      num_halvings: Of the segment.

    Returns:
      An attack; an image without such another one is returned as it is.

    Raises:
      InputError: an argument does not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> others = jnp.array([[0.0, 1.0]])
      >>> attack = towards_other(others, jnp.array([1]))
      >>> x, y = jnp.array([[0.75, 0.25]]), jnp.array([0])
      >>> attack(jax.random.key(0), lambda z: z, x, y).round(2).tolist()
      [[0.5, 0.5]]
    """
    _checks.positive_int(num_halvings=num_halvings)
    _checks.same_batch(images=images, labels=labels)

    def run(key: Key, logits_fn: LogitsFn, x: Array, y: Array) -> Array:
        del key
        _outcome.check_call(logits_fn, x, y)
        if x.shape[1:] != images.shape[1:]:
            raise InputError(
                f"`images` must have the shape of those attacked, {x.shape[1:]}, got "
                f"{images.shape[1:]}."
            )
        answers = logits_fn(images.astype(x.dtype)).argmax(axis=1)
        flat, others = (a.reshape(a.shape[0], -1) for a in (x, images))
        usable = (labels[None] != y[:, None]) & (answers[None] != y[:, None])
        nearest = _guides.nearest(flat, others, usable, 1)[:, 0]
        end = images[nearest].astype(x.dtype)
        decide = _decision.decision(logits_fn, y)
        l2 = threats.l2(float("inf"))
        found = _decision.to_boundary(decide, l2, x, end, num_halvings)
        found = _outcome.where(usable.any(axis=1), found, x)
        return jax.lax.stop_gradient(found)

    return run
