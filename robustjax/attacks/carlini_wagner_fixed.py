"""Carlini and Wagner's L2 objective with one constant, on the pixels themselves.

    minimise  ||x' - x||^2 + c * max(confidence - margin(x'), 0)

See "Towards Evaluating the Robustness of Neural Networks" (Carlini and Wagner, 2017).
"""

from typing import NamedTuple

import jax.numpy as jnp

from robustjax import _checks
from robustjax._gradients import input_gradient
from robustjax.attacks import _constant_search, _outcome, _tanh_adam
from robustjax.attacks._outcome import Candidate
from robustjax.attacks._tanh_adam import Moments
from robustjax.objectives import margin
from robustjax.types import Array, IteratedAttack, Key, LogitsFn, Threat


class FixedConstantState(NamedTuple):
    """Between two steps.

    Attributes:
      x_adv: The current iterate, [B, ...], which may leave the box.
      moments: Adam's.
      best: The best iterate evaluated so far.
      index: Steps done.
    """

    x_adv: Array
    moments: Moments
    best: Candidate
    index: Array


def carlini_wagner_fixed(
    threat: Threat,
    *,
    constant: float = 10.0,
    num_steps: int = 10,
    confidence: float = 0.0,
    step_size: float = 0.01,
    scale: float = 1.0,
    target: Array | None = None,
) -> IteratedAttack:
    """The L2 objective with one constant, by Adam on the pixels themselves.

    Minimises ||x' - x||^2 + c max(confidence - margin(x'), 0), without tanh, box or
    search. Per image the best of the iterates (misclassified first, then the smallest
    objective) is kept, scaled to x + scale (x' - x), and projected onto ball and box.
    This is the attack that the papers on WNLL activations were evaluated with. Their
    2018 constants are the defaults; later ones are `step_size=6e-4, num_steps=50` on
    CIFAR-10 and `step_size=0.003, num_steps=100` on MNIST, with `scale` the L-inf
    radius of their other attacks, which makes it a very weak attack.

    Differences from their code: it keeps the iterate with the best total of the batch;
    its target is a class that an index slip picked at random; it never clips.

    Args:
      threat: What the result is projected onto; `threats.l2(jnp.inf)` clips to the box.
      constant: c.
      num_steps: Gradient steps.
      confidence: The margin from which the penalty is 0.
      step_size: Adam's.
      scale: Factor of the perturbation that was found, at least 0.
      target: Classes [B] to reach; None for any but the label.

    Raises:
      InputError: an argument is out of range.

    Example:
      >>> import jax
      >>> from robustjax import threats
      >>> attack = carlini_wagner_fixed(threats.l2(jnp.inf), num_steps=20)
      >>> x, y = jnp.array([[0.6, 0.4]]), jnp.array([0])
      >>> x_adv = attack(jax.random.key(0), lambda z: z, x, y)
      >>> bool(x_adv[0, 1] > x_adv[0, 0])
      True
    """
    _checks.positive_int(num_steps=num_steps)
    _checks.positive(constant=constant, step_size=step_size)
    _checks.non_negative(confidence=confidence, scale=scale)

    def evaluate(logits_fn: LogitsFn, x: Array, y: Array, first: Array | bool):
        climbed = _outcome.climbed(margin, logits_fn, y, target)

        def penalised(x_adv: Array) -> tuple[Array, Candidate]:
            value, is_broken = climbed(x_adv)
            penalty = constant * _constant_search.hinge(value, confidence)
            loss = _constant_search.square_norm(x_adv - x) + penalty.astype(
                _constant_search.wide(x)
            )
            # Nothing is better than an x that is misclassified as it is.
            worth = jnp.where(first & is_broken, jnp.inf, -loss)
            return loss, Candidate(x_adv, worth, is_broken)

        return penalised

    def init(key: Key, logits_fn: LogitsFn, x: Array, y: Array) -> FixedConstantState:
        del key  # nothing is drawn
        _outcome.check_call(logits_fn, x, y, target)
        never = jnp.full(x.shape[:1], -jnp.inf, _constant_search.wide(x))
        best = Candidate(x, never, jnp.zeros(x.shape[:1], bool))
        return FixedConstantState(x, _tanh_adam.no_moments(x), best, jnp.int32(0))

    def step(
        state: FixedConstantState, logits_fn: LogitsFn, x: Array, y: Array
    ) -> FixedConstantState:
        penalised = evaluate(logits_fn, x, y, state.index == 0)
        _, new, grad = input_gradient(penalised, state.x_adv)
        best = _outcome.keep_worse(state.best, new)
        move, moments = _tanh_adam.adam(state.moments, grad, state.index, step_size)
        return FixedConstantState(state.x_adv - move, moments, best, state.index + 1)

    def finish(
        state: FixedConstantState, logits_fn: LogitsFn, x: Array, y: Array
    ) -> Array:
        _, last = evaluate(logits_fn, x, y, False)(state.x_adv)
        best = _outcome.keep_worse(state.best, last).x_adv
        return threat.project(x + scale * (best - x), x)

    return IteratedAttack(init, step, finish, num_steps)
