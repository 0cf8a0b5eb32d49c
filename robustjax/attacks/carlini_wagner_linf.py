"""Carlini and Wagner's L-infinity attack: a penalty on pixels beyond a bound tau.

    minimise  sum_i max(|x'_i - x_i| - tau, 0) + c * max(-margin(x'), 0)

tau shrinks while that succeeds, c grows while it does not. See "Towards Evaluating the
Robustness of Neural Networks" (Carlini and Wagner, 2017).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from robustjax import _checks
from robustjax._gradients import input_gradient
from robustjax.attacks import _constant_search, _outcome, _tanh_adam
from robustjax.attacks._outcome import Closest
from robustjax.attacks._tanh_adam import Moments
from robustjax.objectives import margin
from robustjax.types import Array, IteratedAttack, Key, LogitsFn, Threat

# A loss below this share of c has nothing left to win.
_CONVERGED = 1e-4


class CarliniWagnerLinfState(NamedTuple):
    """Between two rounds.

    Attributes:
      x_adv: The last iterate, [B, ...].
      w: The same before tanh.
      tau: The bound on pixels that is free, [B].
      constant: c, [B].
      slack: Margin that makes a success clear, [B].
      found: The nearest adversarial points so far.
    """

    x_adv: Array
    w: Array
    tau: Array
    constant: Array
    slack: Array
    found: Closest


class _Descent(NamedTuple):
    """Inside a round: iterate, Adam's moments, what is found, who moves, steps done."""

    w: Array
    moments: Moments
    found: Closest
    active: Array
    index: Array


def carlini_wagner_linf(
    threat: Threat,
    *,
    num_steps: int = 1000,
    search_steps: int = 75,
    initial_constant: float = 1e-5,
    largest_constant: float = 20.0,
    constant_factor: float = 2.0,
    tau_factor: float = 0.9,
    smallest_tau: float = 1 / 255,
    step_size: float = 0.01,
    abort_early: bool = True,
    target: Array | None = None,
) -> IteratedAttack:
    """The L-inf attack: small adversarial perturbations, per image.

    Minimises sum_i max(|x'_i - x_i| - tau, 0) + c max(-margin(x'), 0) over w by Adam,
    where x' = (tanh(w) + 1) / 2. tau starts at the width of the box. A round that finds
    a point nearer than any before takes tau to `tau_factor` times its distance (or
    times tau, if that is less); another multiplies c by `constant_factor`. A round
    starts at the last iterate of the one before, clipped to tau around x. An image is
    done when tau or c reaches its limit. See "Towards Evaluating the Robustness of
    Neural Networks" (Carlini and Wagner, 2017), section VI.

    Differences from the authors' code: they go on with Adam's moments where c was
    doubled. They clip a start only to a millionth inside the box; but tanh is flat
    there, so that a pixel that has gone to the other end can hardly come back, and all
    later rounds fail. On MNIST with 100 steps clipping to tau lowers the median
    distance by a fifth. Success takes a margin of 1e-4 of that at x, or another
    compilation of the model would take part of it back.

    The default of `search_steps` never binds: 53 rounds take tau from 1 to 1/255 and 21
    take c to its limit. Rounds of images that are done cost nothing. A step of this
    `IteratedAttack` is a whole round.

    Args:
      threat: L-inf: the box, and in `eps` the largest distance that counts as found;
        `threats.linf(1.0)` sets no limit.
      num_steps: Gradient steps of a round.
      search_steps: Rounds.
      initial_constant: c of the first round.
      largest_constant: From which on an image is given up.
      constant_factor: Of c, above 1.
      tau_factor: Of tau, below 1.
      smallest_tau: From which on an image is done, in the units of the pixels.
      step_size: Adam's.
      abort_early: Whether a round of an image ends when its loss is below c / 10,000;
        without it perturbations are no smaller.
      target: Classes [B] to reach; None for any but the label.

    Returns:
      An attack that returns x where nothing was found within `eps`.

    Raises:
      InputError: an argument is out of range.

    Example:
      >>> from robustjax import threats
      >>> attack = carlini_wagner_linf(threats.linf(1.0), num_steps=50)
      >>> x, y = jnp.array([[0.6, 0.4]]), jnp.array([0])
      >>> x_adv = attack(jax.random.key(0), lambda z: z, x, y)
      >>> bool((jnp.abs(x_adv - x) < 0.12).all() & (x_adv[0, 1] > x_adv[0, 0]))
      True
    """
    _checks.one_of(("linf",), **{"threat.name": threat.name})
    _checks.positive_int(num_steps=num_steps, search_steps=search_steps)
    _checks.positive(
        initial_constant=initial_constant,
        largest_constant=largest_constant,
        constant_factor=constant_factor,
        tau_factor=tau_factor,
        smallest_tau=smallest_tau,
        step_size=step_size,
    )
    _checks.fraction(tau_factor=tau_factor)
    low, high = threat.bounds

    def init(
        key: Key, logits_fn: LogitsFn, x: Array, y: Array
    ) -> CarliniWagnerLinfState:
        del key  # nothing is drawn
        _outcome.check_call(logits_fn, x, y, target)
        found, slack = _constant_search.clean_images(logits_fn, x, y, target)
        ones = jnp.ones_like(slack)
        w = _tanh_adam.from_pixels(x.astype(ones.dtype), threat.bounds)
        return CarliniWagnerLinfState(
            x, w, ones * (high - low), ones * initial_constant, slack, found
        )

    def descend(
        carry: _Descent,
        logits_fn: LogitsFn,
        x: Array,
        y: Array,
        state: CarliniWagnerLinfState,
    ) -> _Descent:
        climbed = _outcome.climbed(margin, logits_fn, y, target)

        def penalised(w: Array) -> tuple[Array, tuple[Array, Array]]:
            x_adv = _tanh_adam.to_pixels(w, threat.bounds).astype(x.dtype)
            value, is_broken = climbed(x_adv)
            value = value.astype(w.dtype)
            penalty = _constant_search.hinge(value, 2 * state.slack)
            success = _constant_search.succeeded(value, is_broken, state.slack)
            beyond = _beyond(x_adv - x, state.tau)
            return beyond + state.constant * penalty, (x_adv, success)

        loss, (x_adv, success), grad = input_gradient(penalised, carry.w)
        distance = threat.norm(x_adv - x)
        found = _outcome.keep_closer(carry.found, x_adv, distance, success)
        active = carry.active
        if abort_early:
            active &= loss >= _CONVERGED * state.constant
        move, moments = _tanh_adam.adam(carry.moments, grad, carry.index, step_size)
        w = _outcome.where(active, carry.w - move, carry.w)
        return _Descent(w, moments, found, active, carry.index + 1)

    def step(
        state: CarliniWagnerLinfState, logits_fn: LogitsFn, x: Array, y: Array
    ) -> CarliniWagnerLinfState:
        active = (state.tau > smallest_tau) & (state.constant < largest_constant)
        active &= state.found.distance > 0
        w = _outcome.where(active, _drawn_near(state, x, threat.bounds), state.w)
        moments = _tanh_adam.no_moments(w)
        done = jax.lax.while_loop(
            lambda carry: (carry.index < num_steps) & carry.active.any(),
            lambda carry: descend(carry, logits_fn, x, y, state),
            _Descent(w, moments, state.found, active, jnp.int32(0)),
        )
        better = done.found.distance < state.found.distance
        tau = tau_factor * jnp.minimum(state.tau, done.found.distance)
        grown = jnp.where(better, state.constant, constant_factor * state.constant)
        return CarliniWagnerLinfState(
            _tanh_adam.to_pixels(done.w, threat.bounds).astype(x.dtype),
            done.w,
            jnp.where(active & better, tau, state.tau),
            jnp.where(active, grown, state.constant),
            state.slack,
            done.found,
        )

    def finish(
        state: CarliniWagnerLinfState, logits_fn: LogitsFn, x: Array, y: Array
    ) -> Array:
        return _outcome.within(threat, state.found, x)

    return IteratedAttack(init, step, finish, search_steps)


def _drawn_near(
    state: CarliniWagnerLinfState, x: Array, bounds: tuple[float, float]
) -> Array:
    """The w of the last iterate, clipped to tau around x.

    What else goes far beyond tau stays there: tanh is flat at the bounds, and single
    precision soon has no gradient at all.
    """
    wide = x.astype(state.w.dtype)
    tau = state.tau.reshape(-1, *[1] * (x.ndim - 1))
    delta = _tanh_adam.to_pixels(state.w, bounds) - wide
    return _tanh_adam.from_pixels(wide + jnp.clip(delta, -tau, tau), bounds)


def _beyond(delta: Array, tau: Array) -> Array:
    """sum_i max(|delta_i| - tau, 0), [B]."""
    size = jnp.abs(delta.reshape(delta.shape[0], -1)).astype(tau.dtype)
    return jnp.maximum(size - tau[:, None], 0.0).sum(axis=1)
