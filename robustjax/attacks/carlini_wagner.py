"""Carlini and Wagner's L2 attack: distance plus a penalty on the logits, by Adam.

    minimise  ||x' - x||^2 + c * max(confidence - margin(x'), 0)

margin is that of `objectives.margin`, positive where x' is misclassified. See "Towards
Evaluating the Robustness of Neural Networks" (Carlini and Wagner, 2017).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from robustjax import _checks
from robustjax._gradients import input_gradient
from robustjax.attacks import _constant_search, _outcome, _tanh_adam
from robustjax.attacks._constant_search import ConstantSearch
from robustjax.attacks._outcome import Closest
from robustjax.attacks._tanh_adam import Moments
from robustjax.attacks.carlini_wagner_fixed import (
    carlini_wagner_fixed as carlini_wagner_fixed,
)
from robustjax.objectives import margin
from robustjax.types import Array, IteratedAttack, Key, LogitsFn, Threat

# An image whose loss fell by less than this share since the last check has converged.
_PROGRESS = 0.9999


class CarliniWagnerState(NamedTuple):
    """Between two rounds of the search for the constant.

    Attributes:
      x_adv: The last iterate of the round, [B, ...].
      search: The brackets of the constants.
      found: The nearest adversarial points so far.
      index: Rounds done.
    """

    x_adv: Array
    search: ConstantSearch
    found: Closest
    index: Array


class _Descent(NamedTuple):
    """Inside a round; [B] unless said otherwise.

    Attributes:
      w: The images before tanh, [B, ...].
      moments: Adam's, [B, ...].
      found: The nearest adversarial points of all rounds.
      succeeded: Whether this round found an adversarial point.
      checked: The loss at the last check of progress.
      active: Whether the image still moves.
      index: Steps done, a scalar.
    """

    w: Array
    moments: Moments
    found: Closest
    succeeded: Array
    checked: Array
    active: Array
    index: Array


def carlini_wagner(
    threat: Threat,
    *,
    num_steps: int = 10_000,
    search_steps: int = 9,
    initial_constant: float = 1e-3,
    confidence: float = 0.0,
    step_size: float = 0.01,
    abort_early: bool = True,
    target: Array | None = None,
) -> IteratedAttack:
    """The L2 attack: small adversarial perturbations, per image.

    Minimises ||x' - x||^2 + c max(confidence - margin(x'), 0) over w by Adam, where
    x' = (tanh(w) + 1) / 2 stays in the box, from w = atanh(0.999999 (2x - 1)). A round
    of `num_steps` has one constant c; then c is bisected between the largest that
    failed and the smallest that succeeded, or multiplied by 10 while none has. See
    "Towards Evaluating the Robustness of Neural Networks" (Carlini and Wagner, 2017).

    Differences from the authors' code: an image stops moving when its own loss has
    fallen by less than 0.01 % in a tenth of the steps (they watch the sum over the
    batch), and a round ends when all have; success takes a margin of `confidence` plus
    1e-4 of that at x, or another compilation of the model would take part of it back;
    an image that is adversarial as it is comes back as it is. A step of this
    `IteratedAttack` is a whole round.

    Black and white pixels sit where tanh is flat, and at first nothing seems to move:
    there, `abort_early=False` unless `num_steps` is in the thousands.

    NAMID evaluates with `num_steps=10, search_steps=4, initial_constant=1.0,
    confidence=1.0`; its text says 20 steps.

    Args:
      threat: L2: the box, and in `eps` the largest distance that counts as found;
        `threats.l2(jnp.inf)` sets no limit.
      num_steps: Gradient steps of a round, the paper's 10,000.
      search_steps: Rounds. From ten on, the last repeats the smallest constant that
        succeeded.
      initial_constant: c of the first round.
      confidence: The margin that counts as success, the paper's kappa.
      step_size: Adam's.
      abort_early: Whether images stop that make no progress.
      target: Classes [B] to reach; None for any but the label.

    Returns:
      An attack that returns x where nothing was found within `eps`.

    Raises:
      InputError: an argument is out of range.

    Example:
      >>> from robustjax import threats
      >>> attack = carlini_wagner(threats.l2(1.0), num_steps=50, initial_constant=1.0)
      >>> x, y = jnp.array([[0.6, 0.4]]), jnp.array([0])
      >>> x_adv = attack(jax.random.key(0), lambda z: z, x, y)
      >>> x_adv.round(2).tolist()
      [[0.5, 0.5]]
    """
    _checks.one_of(("l2",), **{"threat.name": threat.name})
    _checks.positive_int(num_steps=num_steps, search_steps=search_steps)
    _checks.positive(initial_constant=initial_constant, step_size=step_size)
    _checks.non_negative(confidence=confidence)
    period = max(1, num_steps // 10)

    def init(key: Key, logits_fn: LogitsFn, x: Array, y: Array) -> CarliniWagnerState:
        del key  # nothing is drawn
        _outcome.check_call(logits_fn, x, y, target)
        found, slack = _constant_search.clean_images(
            logits_fn, x, y, target, confidence
        )
        search = _constant_search.begin(initial_constant, slack)
        return CarliniWagnerState(x, search, found, jnp.int32(0))

    def descend(
        carry: _Descent, logits_fn: LogitsFn, x: Array, y: Array, search: ConstantSearch
    ) -> _Descent:
        constant, least = search.constant, confidence + search.slack
        climbed = _outcome.climbed(margin, logits_fn, y, target)

        def penalised(w: Array) -> tuple[Array, tuple[Array, Array]]:
            x_adv = _tanh_adam.to_pixels(w, threat.bounds).astype(x.dtype)
            value, is_broken = climbed(x_adv)
            value = value.astype(constant.dtype)
            penalty = constant * _constant_search.hinge(value, least + search.slack)
            success = _constant_search.succeeded(value, is_broken, least)
            return _constant_search.square_norm(x_adv - x) + penalty, (x_adv, success)

        loss, (x_adv, success), grad = input_gradient(penalised, carry.w)
        distance = threat.norm(x_adv - x)
        found = _outcome.keep_closer(carry.found, x_adv, distance, success)
        checked, active = carry.checked, carry.active
        if abort_early:
            due = carry.index % period == 0
            active &= ~(due & (loss > _PROGRESS * checked))
            checked = jnp.where(due, loss, checked)
        move, moments = _tanh_adam.adam(carry.moments, grad, carry.index, step_size)
        return _Descent(
            _outcome.where(active, carry.w - move, carry.w),
            moments,
            found,
            carry.succeeded | success,
            checked,
            active,
            carry.index + 1,
        )

    def step(
        state: CarliniWagnerState, logits_fn: LogitsFn, x: Array, y: Array
    ) -> CarliniWagnerState:
        search = _constant_search.for_round(state.search, state.index, search_steps)
        constant, found = search.constant, state.found
        w = _tanh_adam.from_pixels(x.astype(constant.dtype), threat.bounds)
        done = jax.lax.while_loop(
            lambda carry: (carry.index < num_steps) & carry.active.any(),
            lambda carry: descend(carry, logits_fn, x, y, search),
            _Descent(
                w,
                _tanh_adam.no_moments(w),
                found,
                found.distance == 0,
                jnp.full_like(constant, jnp.inf),
                found.distance > 0,  # nothing is closer than x itself
                jnp.int32(0),
            ),
        )
        return CarliniWagnerState(
            _tanh_adam.to_pixels(done.w, threat.bounds).astype(x.dtype),
            _constant_search.narrow(search, done.succeeded),
            done.found,
            state.index + 1,
        )

    def finish(
        state: CarliniWagnerState, logits_fn: LogitsFn, x: Array, y: Array
    ) -> Array:
        return _outcome.within(threat, state.found, x)

    return IteratedAttack(init, step, finish, search_steps)
