"""PGD with Adam against a loop in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import InputError, objectives, threats
from robustjax.attacks.adam_pgd import adam_pgd

RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(8, 2))
X = RNG.uniform(0, 1, (5, 8))
Y = np.array([0, 1, 1, 0, 1])


def reference(rates, eps):
    """Cross-entropy of two classes, by hand; Adam as its paper writes it."""
    point, first, second = X.copy(), 0.0, 0.0
    for i, rate in enumerate(rates, 1):
        ascent = (WEIGHTS[:, 1 - Y] - WEIGHTS[:, Y]).T
        margin = (point * ascent).sum(1, keepdims=True)
        grad = ascent / (1 + np.exp(-margin))
        first = 0.9 * first + 0.1 * grad
        second = 0.999 * second + 0.001 * grad**2
        step = first / (1 - 0.9**i) / (np.sqrt(second / (1 - 0.999**i)) + 1e-9)
        point = np.clip(X + np.clip(point + rate * step - X, -eps, eps), 0, 1)
    return point


@pytest.mark.parametrize(
    ("rate", "num_steps", "rates"),
    [
        (None, 10, [0.1] * 5 + [0.01] * 5),
        (None, 40, [0.1] * 20 + [0.01] * 10 + [0.0001] * 10),
        (None, 1, [0.1]),
        (0.02, 6, [0.02] * 6),
        (lambda step: 0.05 / (step + 1), 4, [0.05, 0.025, 0.05 / 3, 0.0125]),
    ],
)
def test_the_trajectory_ends_where_numpy_ends(rate, num_steps, rates):
    eps = 0.6  # the ball does not bind everywhere
    attack = adam_pgd(
        threats.linf(eps), num_steps=num_steps, learning_rate=rate, random_start=None
    )
    with jax.enable_x64(True):
        linear = lambda z: z @ jnp.asarray(WEIGHTS)
        run = jax.jit(lambda k, x, y: attack(k, linear, x, y))
        x_adv = run(jax.random.key(0), jnp.asarray(X), jnp.asarray(Y))
    # optax forms the bias corrections in float32.
    np.testing.assert_allclose(x_adv, reference(rates, eps), atol=1e-6)


def test_errors():
    with pytest.raises(InputError, match=r"`learning_rate` .* got 0\.0"):
        adam_pgd(threats.linf(0.1), learning_rate=0.0)
    with pytest.raises(InputError, match=r"`num_steps` .* got 0"):
        adam_pgd(threats.linf(0.1), num_steps=0, objective=objectives.margin)
