"""What a defense could do that is told the answer: diagnostics, never accuracies.

The functions return shares of images and take the truth as an argument, so that no
evaluation can run them and no report prints them as a row. They bound what the
deployable policies of `transforms.nip` may reach, and show how large the numbers of the
authors' protocol come out without any defense.
"""

import jax
import jax.numpy as jnp

from robustjax import _checks
from robustjax.transforms import (
    NIPOptions,
    NIPState,
    moved_towards,
    own_direction,
    rms_normalised,
)
from robustjax.types import Array, Key, ModelFn


def oracle_share(
    options: NIPOptions, state: NIPState, model_fn: ModelFn, x: Array, y: Array
) -> float:
    """The share of images that end in class y when they are moved towards y.

    With the true labels an upper bound of every choice among candidates; with wrong
    ones the share that the same direction drags away.

    Args:
      options: Those of `nip`.
      state: What its `fit` returned.
      model_fn: The classifier.
      x: Tested images, [B, H, W, C].
      y: Where to move each, [B].

    Raises:
      InputError: the arguments do not fit.
    """
    _checks.same_batch(x=x, y=y)
    moved = moved_towards(options, state, model_fn, x, y)
    return float((model_fn(moved).logits.argmax(axis=1) == y).mean())


def benign_twin_share(
    options: NIPOptions,
    model_fn: ModelFn,
    x: Array,
    x_adv: Array,
    *,
    size: float,
    sign_flip: bool = True,
    random_key: Key | None = None,
) -> float:
    """The success of the authors' released protocol, which no defender can follow.

    The direction is that of the benign twin of each adversarial image, towards the
    class predicted there; where a step leaves another prediction, the opposite step is
    taken. All pairs count, whether the attack had succeeded or not.

    Args:
      options: Layer, influence and sets, which are those of each image.
      model_fn: The classifier.
      x: Benign twins, [B, H, W, C].
      x_adv: Of the same shape.
      size: Root mean square of the step.
      sign_flip: Whether the opposite step is allowed, which needs the true label.
      random_key: Takes random directions in place of NIP's: the control.

    Raises:
      InputError: the arguments do not fit.
    """
    _checks.same_shape(x=x, x_adv=x_adv)
    _checks.non_negative(size=size)
    label = model_fn(x).logits.argmax(axis=1)
    if random_key is None:
        direction = own_direction(options, model_fn, x, label)
    else:
        direction = rms_normalised(jax.random.normal(random_key, x.shape))

    def right(sign: int) -> Array:
        moved = jnp.clip(x_adv + sign * size * direction, 0, 1)
        return model_fn(moved).logits.argmax(axis=1) == label

    found = right(1)
    return float((found | right(-1) if sign_flip else found).mean())
