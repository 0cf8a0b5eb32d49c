"""The compiled halves of the failure indicators: one program each, whatever the radius.

All take classifiers as pytrees and blocks of images, and return one row per image.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import attacks
from robustjax._gradients import input_gradient, loop_safe
from robustjax.evaluation._batching import image_keys
from robustjax.evaluation._judging import judged
from robustjax.evaluation.landscape import GradientHealth, gradient_health
from robustjax.objectives import cross_entropy, margin, over_draws, scaled
from robustjax.types import Array, Key, LogitsFn, Threat

_PASS = 512  # images in one forward pass of noise


class Path(NamedTuple):
    """Of plain PGD on B images, T steps; on the devices or the host.

    Attributes:
      x_adv: The last point, [B, ...].
      correct: Whether the judge is right there, or in which share of draws, [B].
      losses: What was climbed, at the start and after each step, [B, T + 1].
      broken: Whether the classifier that was climbed is wrong there, [B, T + 1].
      not_a_number: Whether it answered NaN anywhere, [B].
    """

    x_adv: Any
    correct: Any
    losses: Any
    broken: Any
    not_a_number: Any


@functools.partial(jax.jit, static_argnums=0)
def drawn(threat: Threat, key: Key, x: Array, index: Array, eps: Array) -> Array:
    """A random start for each image, in the ball of this radius."""
    return threat.with_eps(eps).sample(image_keys(key, index), x)


@functools.partial(jax.jit, static_argnums=(0, 1))
def climb(
    threat: Threat,
    num_steps: int,
    climbed: LogitsFn,
    judge: LogitsFn,
    x: Array,
    y: Array,
    start: Array,
    eps: Array,
    step_size: Array,
    scale: Array,
) -> Path:
    """Plain PGD on the cross-entropy of `scale` times the logits.

    Radius, step, scale and start are arguments, so that all runs of a classifier are
    one program. A step that is not finite is not made.
    """
    ball = threat.with_eps(eps)
    objective = over_draws(scaled(cross_entropy, scale))

    def look(z: Array) -> tuple[Array, tuple[Array, Array]]:
        logits = climbed(z)
        nan = jnp.isnan(logits).any(axis=-1)
        nan = nan.any(axis=0) if nan.ndim == 2 else nan
        return objective(logits, y), (attacks.broken(logits, y), nan)

    def step(z: Array, _):
        value, (wrong, nan), grad = input_gradient(look, z)
        moved = ball.project(z + step_size * ball.steepest(grad), x).astype(x.dtype)
        return jnp.where(jnp.isfinite(moved), moved, z), (value, wrong, nan)

    x_adv, along = jax.lax.scan(step, start, length=num_steps)
    value, (wrong, nan) = look(x_adv)
    losses, broken, nans = (
        jnp.concatenate([rows, row[None]]).T
        for rows, row in zip(along, (value, wrong, nan), strict=True)
    )
    correct = judged((judge,), x_adv, y).correct
    return Path(x_adv, correct, losses, broken, nans.any(axis=1))


@jax.jit
def answers(judge: LogitsFn, x: Array) -> Array:
    """Logits, the batch axis first: [B, K] or [B, S, K]."""
    logits = judge(x)
    return jnp.moveaxis(logits, 0, 1) if logits.ndim == 3 else logits


@jax.jit
def right(judge: LogitsFn, x: Array, y: Array) -> Array:
    """Whether the judge is right, or in which share of draws, [B]."""
    return judged((judge,), x, y).correct


@jax.jit
def health(climbed: LogitsFn, x: Array, y: Array) -> GradientHealth:
    """Of the cross-entropy."""
    return gradient_health(climbed, x, y)


@jax.jit
def beside_zeros(
    climbed: LogitsFn, x: Array, y: Array, far: Array, middle: Array
) -> tuple[Array, Array]:
    """Answers before and after pixels without a derivative move towards the middle."""

    def look(z: Array) -> tuple[Array, tuple]:
        return over_draws(cross_entropy)(climbed(z), y), ()

    grad = input_gradient(look, x)[2]
    moved = jnp.where(grad == 0, x + jnp.where(x > middle, -far, far), x)
    return answers(climbed, x), answers(climbed, moved)


@functools.partial(jax.jit, static_argnums=(0, 1))
def instability(
    num_draws: int,
    bounds: tuple[float, float],
    climbed: LogitsFn,
    key: Key,
    x: Array,
    y: Array,
    index: Array,
    radius: Array,
) -> Array:
    """Mean relative change of the margin of logits in a small box, capped at 1, [B]."""
    objective, keys = over_draws(margin), image_keys(key, index)

    @loop_safe
    def loss(z: Array) -> Array:
        return objective(climbed(z), y)

    before = loss(x)

    def draw(total: Array, number: Array):
        each = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
        noise = jax.vmap(
            lambda k: jax.random.uniform(k, x.shape[1:], x.dtype, -1.0, 1.0)
        )(each)
        moved = jnp.clip(x + radius * noise, *bounds)
        return total + jnp.abs(loss(moved) - before), None

    start = jnp.zeros_like(before)
    total, _ = jax.lax.scan(draw, start, jnp.arange(num_draws))
    size = jnp.where(before == 0, 1.0, jnp.abs(before))
    change = total / num_draws / size
    return jnp.minimum(jnp.where(jnp.isnan(change), 1.0, change), 1.0)


@functools.partial(jax.jit, static_argnums=(0, 1))
def stands_noise(
    threat: Threat,
    num_draws: int,
    judge: LogitsFn,
    key: Key,
    x: Array,
    y: Array,
    index: Array,
) -> Array:
    """Whether an image is classified correctly at every one of the draws, [B].

    Half of them are uniform in the ball, the others are at its corners.
    """
    # As many blocks as one pass of the model needs, of one even size.
    at_once = max(2, _PASS // max(len(x), 1))
    num_blocks = -(-num_draws // at_once)
    half = -(-num_draws // (2 * num_blocks))
    many = lambda rows: jnp.repeat(rows, half, axis=0)
    keys, safe = image_keys(key, index), loop_safe(judge)
    inside, corner = attacks.uniform_noise(threat), attacks.sign_noise(threat)

    def block(standing: Array, number: Array):
        each = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
        each = jax.vmap(lambda k: jax.random.split(k, (2, half)))(each)
        points = [  # neither asks the model
            kind(each[:, i].reshape(-1), judge, many(x), many(y))
            for i, kind in enumerate((inside, corner))
        ]
        labels = jnp.concatenate([many(y)] * 2)
        wrong = attacks.broken(safe(jnp.concatenate(points)), labels)
        return standing & ~wrong.reshape(2, -1, half).any(axis=(0, 2)), None

    standing = jnp.ones(x.shape[:1], bool)
    return jax.lax.scan(block, standing, jnp.arange(num_blocks))[0]


@functools.partial(jax.jit, static_argnums=(0, 1))
def under_square(
    threat: Threat,
    num_queries: int,
    judge: LogitsFn,
    key: Key,
    x: Array,
    y: Array,
    index: Array,
) -> Array:
    """Whether the judge is right after Square, or in which share of draws, [B]."""
    attack = attacks.square(threat, num_queries=num_queries, rescale_schedule=True)
    x_adv = attack(image_keys(key, index), judge, x, y)
    return judged((judge,), x_adv, y).correct


def rise_at_the_end(losses: np.ndarray, last: int) -> np.ndarray:
    """How much of its whole rise a loss gains in the last steps, [N].

    Losses [N, T + 1] are made monotone, the best so far, then rescaled to [0, 1].

    Example:
      >>> rise_at_the_end(np.array([[0.0, 3.0, 1.0, 4.0], [0.0, 1.0, 1.0, 1.0]]), 2)
      array([0.25, 0.  ])
    """
    best = np.maximum.accumulate(np.nan_to_num(losses), axis=1)
    whole = best[:, -1] - best[:, 0]
    late = best[:, -1] - best[:, -1 - last]
    return np.where(whole > 0, late / np.where(whole > 0, whole, 1.0), 0.0)
