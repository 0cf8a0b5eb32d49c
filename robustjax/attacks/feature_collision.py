"""Feature collision: an image whose features are those of another class.

    x <- project(x + step_size * steepest(-grad ||f(x) - f(t)||^2))

for guides t of other classes. A classifier whose loss surface is flat where training
looked at it may still be fooled through its features; see "Adversarial Manipulation of
Deep Representations" (Sabour et al., 2016), where the distance is minimised by L-BFGS.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from robustjax import _checks, _random
from robustjax._checks import InputError
from robustjax._gradients import input_gradient
from robustjax.attacks import _guides, _outcome
from robustjax.attacks._outcome import Candidate
from robustjax.attacks.gradient import unit_l1
from robustjax.objectives import cross_entropy
from robustjax.types import Array, Attack, Key, LogitsFn, Objective, Threat


def feature_collision(
    threat: Threat,
    features_fn: Callable[[Array], Array],
    images: Array,
    labels: Array,
    *,
    guides: Literal["any", "runner_up"] = "any",
    num_targets: int = 10,
    num_steps: int = 200,
    step_size: float | Array,
    momentum: float = 0.0,
    random_start: Callable[[Key, Array], Array] | None = None,
    objective: Objective = cross_entropy,
) -> Attack:
    """Per image the worst of several attempts to take over another image's features.

    The guides of an image are the `num_targets` images of other classes, or of one, out
    of those given, whose features are nearest to its own. The attempts run one after
    another, each `num_steps` forward and backward passes; x itself is a candidate too.

    Args:
      threat: Ball and box.
      features_fn: Images [B, ...] to features [B, ...] of any shape: a layer of the
        model, or a map of one such as its attention.
      images: Candidates for guides, [N, ...].
      labels: Their classes, [N]; at least two.
      guides: Of "any" other class, or of the wrong one that the classifier holds most
        likely at x; of any where no image has that class.
      num_targets: Guides per image, at most N.
      num_steps: Gradient steps towards each.
      step_size: Length of a step in the threat's norm, scalar or one per image [B].
      momentum: mu of g <- mu g + grad / ||grad||_1, as in `mi_fgsm`, in whose steepest
        direction the steps then go; 0 is plain descent.
      random_start: None starts at x; else `(key, x) -> x'` such as `threat.sample`.
      objective: Decides between attempts that agree on misclassification.

    Returns:
      An attack whose results lie in the threat set.

    Raises:
      InputError: an argument is out of range.

    Example:
      >>> from robustjax import threats
      >>> images, labels = jnp.array([[0.0, 1.0], [1.0, 0.0]]), jnp.array([1, 0])
      >>> attack = feature_collision(
      ...     threats.linf(0.25), lambda z: z, images, labels, num_targets=1,
      ...     num_steps=4, step_size=0.125)
      >>> x, y = jnp.full((1, 2), 0.5), jnp.array([0])
      >>> attack(jax.random.key(0), lambda z: 4 * z, x, y).tolist()
      [[0.25, 0.75]]
    """
    _checks.positive_int(num_targets=num_targets, num_steps=num_steps)
    _checks.positive(step_size=step_size)
    _checks.non_negative(momentum=momentum)
    _checks.one_of(("any", "runner_up"), guides=guides)
    _check_guides(images, labels, num_targets)

    def evaluate(logits_fn: LogitsFn, x_adv: Array, y: Array) -> Candidate:
        return Candidate(x_adv, *_outcome.climbed(objective, logits_fn, y)(x_adv))

    def approach(start: Array, x: Array, guide: Array) -> Array:
        """X after the steps towards the features `guide`, [B, D]."""

        def closeness(z: Array) -> tuple[Array, tuple[()]]:
            return -jnp.sum((_flat(features_fn(z)) - guide) ** 2, axis=1), ()

        def step(carry: tuple[Array, Array], _: None):
            x_adv, total = carry
            grad = input_gradient(closeness, x_adv)[2]
            total = momentum * total + unit_l1(grad)
            length = jnp.asarray(step_size, x.dtype)
            length = length.reshape(length.shape + (1,) * (x.ndim - length.ndim))
            moved = x_adv + length * threat.steepest(total)
            return (threat.project(moved, x).astype(x.dtype), total), None

        begun = (start, jnp.zeros_like(start))
        return jax.lax.scan(step, begun, length=num_steps)[0][0]

    def attack(key: Key, logits_fn: LogitsFn, x: Array, y: Array) -> Array:
        _outcome.check_call(logits_fn, x, y)
        _checks.same_shape(images=images[0], x=x[0])
        keys = _random.per_image_keys(key, x.shape[0])
        # The barrier keeps XLA from evaluating the model on constants as it compiles.
        guides_x = jax.lax.optimization_barrier(images.astype(x.dtype))
        pool = _flat(features_fn(guides_x))
        label = _outcome.label_of(y)
        allowed = labels[None, :] != label[:, None]
        if guides == "runner_up":
            allowed = _of_runner_up(logits_fn(x), label, labels, allowed)
        chosen = _guides.nearest(_flat(features_fn(x)), pool, allowed, num_targets)

        def attempt(best: Candidate, number: Array) -> tuple[Candidate, None]:
            start = x
            if random_start is not None:
                start = random_start(_random.fold_in(keys, number), x)
            x_adv = approach(start, x, pool[chosen[:, number]])
            return _outcome.keep_worse(best, evaluate(logits_fn, x_adv, y)), None

        clean = evaluate(logits_fn, x, y)
        best, _ = jax.lax.scan(attempt, clean, jnp.arange(num_targets))
        return jax.lax.stop_gradient(best.x_adv)

    return attack


def _of_runner_up(logits: Array, label: Array, labels: Array, others: Array) -> Array:
    """Which guides are of the likeliest wrong class, [B, N]; `others` if none is."""
    if logits.ndim == 3:  # draws of a random classifier
        logits = jax.nn.softmax(logits).mean(axis=0)
    wrong = jnp.where(jax.nn.one_hot(label, logits.shape[1]) > 0, -jnp.inf, logits)
    allowed = labels[None, :] == wrong.argmax(axis=1)[:, None]
    return jnp.where(allowed.any(axis=1, keepdims=True), allowed, others)


def _flat(features: Array) -> Array:
    return features.reshape(features.shape[0], -1)


def _check_guides(images: Array, labels: Array, num_targets: int) -> None:
    _checks.images(images=images)
    _checks.same_batch(images=images, labels=labels)
    if num_targets > images.shape[0]:
        raise InputError(
            f"`num_targets` must be at most the number of `images`, {images.shape[0]}, "
            f"got {num_targets}."
        )
    if _checks.is_concrete(labels) and (labels == labels[0]).all():
        raise InputError(
            "`labels` must hold at least two classes, so that every image finds one of "
            f"another; all are {labels[0]}."
        )
