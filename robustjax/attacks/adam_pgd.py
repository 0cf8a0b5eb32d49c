"""PGD with Adam steps, annealed: a strong attack for training and quick evaluation."""

from collections.abc import Callable
from typing import Any

import optax

from robustjax import _checks
from robustjax.attacks import gradient
from robustjax.objectives import cross_entropy
from robustjax.types import IteratedAttack, Objective, Threat

Schedule = Callable[[Any], Any]


def adam_pgd(
    threat: Threat,
    *,
    num_steps: int = 40,
    learning_rate: float | Schedule | None = None,
    objective: Objective = cross_entropy,
    random_start: gradient.Start | None = gradient.uniform_start,
) -> IteratedAttack:
    """The last iterate of x <- P(x + Adam step along the gradient).

    Raw gradients, moments that decay by 0.9 and 0.999, a guard of 1e-9, per pixel. This
    is the attack of the code published with "Uncovering the Limits of Adversarial
    Training against Norm-Bounded Adversarial Examples" (Gowal et al., 2020) and "Fixing
    Data Augmentation to Improve Adversarial Robustness" (Rebuffi et al., 2021): in
    training 10 steps on the KL divergence, of rate 0.1, from step 5 on 0.01; in its
    evaluation 40 steps on the margin, of rate 0.1, from step 20 on 0.01, from step 30
    on 0.0001.

    Args:
      threat: Ball and box; Adam steps suit L-inf.
      num_steps: Gradient steps.
      learning_rate: On the pixel scale, or a schedule of the step as optax makes them.
        None is 0.1, from the half on 0.01, and with more than 10 steps from three
        quarters on 0.0001: both settings above.
      objective: What is climbed; that evaluation's is `objectives.margin`.
      random_start: As in `pgd`.

    Raises:
      InputError: an argument is out of range.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from robustjax import threats
      >>> x, y = jnp.full((1, 2), 0.5), jnp.array([0])
      >>> attack = adam_pgd(threats.linf(0.25), num_steps=10)
      >>> attack(jax.random.key(0), lambda z: z, x, y).round(3).tolist()
      [[0.25..., 0.75...]]
    """
    _checks.positive_int(num_steps=num_steps)
    if learning_rate is None:
        drops = {(num_steps + 1) // 2: 0.1}
        if num_steps > 10:
            drops[3 * num_steps // 4] = 0.01  # times the first
        learning_rate = optax.piecewise_constant_schedule(0.1, drops)
    if not callable(learning_rate):
        _checks.positive(learning_rate=learning_rate)
    rule = optax.chain(
        optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-9),
        optax.scale_by_learning_rate(learning_rate, flip_sign=False),
    )
    return gradient.projected_gradient(
        threat,
        rule,
        num_steps=num_steps,
        objective=objective,
        random_start=random_start,
    )
