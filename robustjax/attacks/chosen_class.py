"""Attacks whose class the model chooses: its own answer, or a target.

From "Adversarial Machine Learning at Scale" (Kurakin et al., 2017) and "Ensemble
Adversarial Training" (Tramer et al., 2018), section 3.2. Towards a class t they descend
its objective, x <- x - step_size * steepest(grad L(x, t)).
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from robustjax import _checks, _random
from robustjax._checks import InputError
from robustjax.attacks import _outcome
from robustjax.attacks._targets import ranked_class
from robustjax.attacks.combine import each_target
from robustjax.attacks.gradient import Start, fgsm, pgd, uniform_start
from robustjax.objectives import cross_entropy, targeted
from robustjax.types import (
    Array,
    Attack,
    IteratedAttack,
    Key,
    LogitsFn,
    Objective,
    Threat,
)

Choice = Literal["least_likely", "runner_up", "random", "every"]


def unlabelled(attack: Attack) -> Attack:
    """The attack away from the model's own answer on x, whatever the label.

    The guard of Kurakin et al. (2017) against label leaking: where single steps are
    made from true labels, a network in training learns to read these off the steps.

    Args:
      attack: Any attack that takes labels.

    Raises:
      InputError: at the call, if an argument does not fit.

    Example:
      >>> from robustjax import attacks, threats
      >>> attack = unlabelled(attacks.fgsm(threats.linf(0.25)))
      >>> x, wrong = jnp.array([[0.75, 0.5]]), jnp.array([1])
      >>> attack(jax.random.key(0), lambda z: z, x, wrong).tolist()
      [[0.5, 0.75]]
    """

    def run(key: Key, logits_fn: LogitsFn, x: Array, y: Array) -> Array:
        _outcome.check_call(logits_fn, x, y)
        logits = logits_fn(x)
        if logits.ndim == 3:  # draws of a random classifier, as `broken` judges them
            logits = jax.nn.softmax(logits.astype(jnp.float32)).mean(axis=0)
        own = logits.argmax(axis=1).astype(y.dtype if y.ndim == 1 else jnp.int32)
        return attack(key, logits_fn, x, own)

    return run


def sign_start(threat: Threat, size: float | Array) -> Start:
    """A start `size` away along steepest(N(0, I)): under L-inf random signs.

    Args:
      threat: Ball and box, neither of which is left.
      size: Length in the threat's norm, scalar or one per image [B].

    Raises:
      InputError: `size` is negative.

    Example:
      >>> from robustjax import threats
      >>> start = sign_start(threats.linf(0.5), 0.25)
      >>> abs(start(jax.random.key(0), jnp.full((1, 3), 0.5)) - 0.5).tolist()
      [[0.25, 0.25, 0.25]]
    """
    _checks.non_negative(size=size)

    def start(key: Key, x: Array) -> Array:
        drawn = _random.draw(key, x, jax.random.normal)
        length = jnp.asarray(size, x.dtype)
        length = length.reshape(length.shape + (1,) * (x.ndim - length.ndim))
        return threat.project(x + length * threat.steepest(drawn), x)

    return start


def r_fgsm(
    threat: Threat,
    *,
    random_step: float | Array | None = None,
    objective: Objective = cross_entropy,
) -> IteratedAttack:
    """R+FGSM: a random step of signs, then one gradient step of what is left of eps.

    See "Ensemble Adversarial Training" (Tramer et al., 2018), eq. (7).

    Args:
      threat: Ball and box.
      random_step: alpha, the length of the first; eps / 2 if None, the paper's.
      objective: What is climbed.

    Raises:
      InputError: an argument is out of range.

    Example:
      >>> from robustjax import threats
      >>> x, y = jnp.full((1, 2), 0.5), jnp.array([0])
      >>> attack = r_fgsm(threats.linf(0.25), random_step=0.0)
      >>> attack(jax.random.key(0), lambda z: z, x, y).tolist()
      [[0.25, 0.75]]
    """
    random_step = threat.eps / 2 if random_step is None else random_step
    return fgsm(
        threat,
        step_size=_rest(threat, random_step),
        objective=objective,
        random_start=sign_start(threat, random_step),
    )


def step_ll(threat: Threat, *, random_step: float | Array | None = None) -> Attack:
    """Step-LL, one step of eps towards the least likely class; R+Step-LL after a draw.

    See "Adversarial Machine Learning at Scale" (Kurakin et al., 2017), eq. (4); the
    least likely wrong class, where the label itself is the least likely.

    Args:
      threat: Ball and box.
      random_step: Length of a random step of signs before, taken off eps; None is none.

    Raises:
      InputError: `random_step` is out of range.

    Example:
      >>> from robustjax import threats
      >>> x, y = jnp.array([[0.5, 0.25, 0.5]]), jnp.array([0])
      >>> step_ll(threats.linf(0.125))(jax.random.key(0), lambda z: z, x, y).tolist()
      [[0.375, 0.375, 0.375]]
    """
    start, step_size = None, threat.eps
    if random_step is not None:
        step_size = _rest(threat, random_step)
        start = sign_start(threat, random_step)
    return towards(
        lambda target: fgsm(
            threat,
            step_size=step_size,
            objective=targeted(cross_entropy, target),
            random_start=start,
        ),
        "least_likely",
    )


def _rest(threat: Threat, random_step: float | Array) -> float | Array:
    """What a random step leaves of the radius."""
    _checks.non_negative(random_step=random_step)
    left = threat.eps - random_step
    if _checks.is_concrete(left) and np.any(np.asarray(left) < 0):
        raise InputError(
            f"`random_step` must be at most `eps` {threat.eps}, got {random_step!r}."
        )
    return left


def pgd_targeted(
    threat: Threat,
    *,
    step_size: float | Array,
    num_steps: int,
    choice: Choice = "least_likely",
    num_targets: int | None = None,
    at_once: int = 1,
    objective: Objective = cross_entropy,
    random_start: Start | None = uniform_start,
) -> Attack:
    """PGD towards one wrong class or, one after the other, towards several.

    Args:
      threat: As in `pgd`.
      step_size: As in `pgd`.
      num_steps: As in `pgd`.
      choice: "least_likely", the training attack of "Adversarial Logit Pairing" (Kannan
        et al., 2018); "runner_up"; "random", uniform over the wrong classes, that of
        "Feature Denoising for Improving Adversarial Robustness" (Xie et al., 2019); or
        "every", the likeliest first: see `each_target`.
      num_targets: How many for "every"; all wrong classes if None.
      at_once: How many of these in one vmapped run.
      objective: What is climbed towards the target, see `objectives.targeted`.
      random_start: As in `pgd`.

    Raises:
      InputError: an argument is out of range.

    Example:
      >>> from robustjax import threats
      >>> x, y = jnp.array([[0.5, 0.25, 0.5]]), jnp.array([0])
      >>> attack = pgd_targeted(
      ...     threats.linf(0.25), step_size=0.25, num_steps=2, random_start=None)
      >>> attack(jax.random.key(0), lambda z: z, x, y).tolist()
      [[0.25, 0.5, 0.25]]
    """
    choices = ("least_likely", "runner_up", "random", "every")
    _checks.one_of(choices, choice=choice)
    _checks.positive_int(num_steps=num_steps)
    _checks.positive(step_size=step_size)

    def attack_towards(target: Array) -> Attack:
        return pgd(
            threat,
            step_size=step_size,
            num_steps=num_steps,
            objective=targeted(objective, target),
            random_start=random_start,
        )

    if choice == "every":
        return each_target(attack_towards, num_targets, at_once=at_once)
    return towards(attack_towards, choice)


def towards(attack_towards, choice: Choice) -> Attack:
    """The attack on a class that is chosen by the logits of x; never on the label.

    Of a distribution y the label is its likeliest class.

    Args:
      attack_towards: Targets [B] to an attack, as in `each_target`.
      choice: As in `pgd_targeted`, but for "every".

    Example:
      >>> from robustjax import attacks, objectives, threats
      >>> attack = towards(lambda t: attacks.fgsm(
      ...     threats.linf(0.25),
      ...     objective=objectives.targeted(objectives.cross_entropy, t)), "runner_up")
      >>> x, y = jnp.array([[0.75, 0.5, 0.25]]), jnp.array([0])
      >>> attack(jax.random.key(0), lambda z: z, x, y).tolist()
      [[0.5, 0.75, 0.0]]
    """
    _checks.one_of(("least_likely", "runner_up", "random"), choice=choice)

    def run(key: Key, logits_fn: LogitsFn, x: Array, y: Array) -> Array:
        _outcome.check_call(logits_fn, x, y)
        keys, y = _random.per_image_keys(key, x.shape[0]), _outcome.label_of(y)
        clean = logits_fn(x)
        rank: int | Array = 2 if choice == "runner_up" else clean.shape[-1]
        if choice == "random":
            draw = lambda k: jax.random.randint(k, (), 2, clean.shape[-1] + 1)
            rank = jax.vmap(draw)(_random.fold_in(keys, 1))
        target = ranked_class(clean, y, rank)
        x_adv = attack_towards(target)(_random.fold_in(keys, 0), logits_fn, x, y)
        return jax.lax.stop_gradient(x_adv)

    return run
