"""Projected gradient attacks against closed forms and a float64 loop in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from robustjax import attacks, objectives, threats

RNG = np.random.default_rng(0)
W = np.array([[1.0, -2.0], [0.5, 3.0], [-1.0, 0.25], [2.0, 1.0]])
X = RNG.uniform(0.3, 0.7, (5, 4))
Y = np.array([0, 1, 0, 1, 1])
linear = lambda z: z @ jnp.asarray(W, z.dtype)
variants = pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])


def attacked(attack, f=linear, x=X, y=Y, *, key=0, jit=True):
    call = lambda k, x, y: attack(k, f, x, y)
    call = jax.jit(call) if jit else call
    return np.asarray(call(jax.random.key(key), jnp.float32(x), jnp.asarray(y)))


def ascent():
    """Cross-entropy of two classes climbs along W[:, wrong] - W[:, right]."""
    return (W[:, 1 - Y] - W[:, Y]).T


@variants
@pytest.mark.parametrize("eps", [0.0, 4 / 255, 0.2])
def test_linf_is_exact_on_a_linear_model(eps, jit):
    expected = X + eps * np.sign(ascent())
    for attack in (
        attacks.pgd(threats.linf(eps), step_size=1.0, num_steps=2),
        attacks.bim(threats.linf(eps), step_size=0.11, num_steps=2),
        attacks.fgsm(threats.linf(eps)),
        attacks.mi_fgsm(threats.linf(eps), num_steps=2),
    ):
        np.testing.assert_allclose(attacked(attack, jit=jit), expected, atol=1e-6)


@variants
@pytest.mark.parametrize("eps", [0.0, 0.01, 0.2])
def test_l2_is_exact_on_a_linear_model(eps, jit):
    unit = ascent() / np.linalg.norm(ascent(), axis=1, keepdims=True)
    attack = attacks.bim(threats.l2(eps), step_size=0.15, num_steps=2)
    np.testing.assert_allclose(attacked(attack, jit=jit), X + eps * unit, atol=1e-6)


@pytest.mark.parametrize("eps", [0.0, 0.2, 0.9])
def test_l1_is_exact_on_a_linear_model(eps):
    # The optimum fills the room of the steepest pixels in order. Exact line: the
    # linear program max <g, d>, |d|_1 <= eps, x + d in the box.
    gradient, expected = ascent(), X.copy()
    for i in range(5):
        left = eps
        for j in np.argsort(-np.abs(gradient[i])):
            up = gradient[i, j] > 0
            move = min(left, 1 - X[i, j] if up else X[i, j])
            expected[i, j] += move if up else -move
            left -= move
    # As dense steps: each pixel at its bound gives its share to the next.
    attack = attacks.projected_gradient(
        threats.l1(eps),
        optax.scale(1.0),
        num_steps=300,
        random_start=None,
        objective=lambda z, y: objectives.margin(z, y),
    )
    x_adv = attacked(attack)
    gain = lambda z: ((z - X) * gradient).sum(1)
    np.testing.assert_allclose(gain(x_adv), gain(expected), atol=1e-4)
    # And the k-sparse step itself, away from the box.
    once = attacked(attacks.fgsm(threats.l1(0.2)))
    one_hot = np.eye(4)[np.abs(gradient).argmax(1)] * np.sign(gradient)
    np.testing.assert_allclose(once, X + 0.2 * one_hot, atol=1e-6)


HIDDEN = RNG.normal(size=(6, 7))
HEAD = RNG.normal(size=(7, 4)) * 2
START = RNG.uniform(0, 1, (3, 6))
LABELS = np.array([1, 3, 0])


def reference_gradient(x):
    """d CE / dx of tanh(x A) B, by hand."""
    hidden = np.tanh(x @ HIDDEN)
    logits = hidden @ HEAD
    probs = np.exp(logits - logits.max(1, keepdims=True))
    probs /= probs.sum(1, keepdims=True)
    return ((probs - np.eye(4)[LABELS]) @ HEAD.T * (1 - hidden**2)) @ HIDDEN.T


def reference_project_l2(v, x, eps):
    """Dykstra's alternating projections onto ball and box."""
    z, p, q = v.copy(), np.zeros_like(v), np.zeros_like(v)
    for _ in range(3000):
        moved = z + p - x
        size = np.linalg.norm(moved, axis=1, keepdims=True)
        ball = x + moved * np.minimum(1, eps / np.maximum(size, 1e-300))
        p = z + p - ball
        z = np.clip(ball + q, 0, 1)
        q = ball + q - z
    return z


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("momentum", [None, 0.9])
def test_every_step_of_a_float64_reference(norm, momentum):
    eps, length = 0.3, 0.11
    threat = getattr(threats, norm)(eps)
    if momentum is None:
        attack = attacks.bim(threat, step_size=length, num_steps=5)
    else:
        attack = attacks.mi_fgsm(
            threat, step_size=length, num_steps=5, momentum=momentum
        )
    with jax.enable_x64(True):
        x, y = jnp.asarray(START), jnp.asarray(LABELS)
        f = lambda z: jnp.tanh(z @ HIDDEN) @ HEAD
        state = attack.init(jax.random.key(0), f, x, y)
        step = jax.jit(lambda s: attack.step(s, f, x, y))
        expected, velocity = START.copy(), 0.0
        for _ in range(5):
            grad = reference_gradient(expected)
            if momentum is not None:
                velocity = momentum * velocity + grad / np.abs(grad).sum(1)[:, None]
                grad = velocity
            if norm == "linf":
                expected = expected + length * np.sign(grad)
                expected = np.clip(np.clip(expected, START - eps, START + eps), 0, 1)
            else:
                unit = grad / np.linalg.norm(grad, axis=1, keepdims=True)
                expected = reference_project_l2(expected + length * unit, START, eps)
            state = step(state)
            np.testing.assert_allclose(state.x_adv, expected, atol=1e-8)


def test_without_momentum_mi_fgsm_is_bim():
    f = lambda z: jnp.tanh(z @ jnp.float32(HIDDEN)) @ jnp.float32(HEAD)
    for make in (threats.linf, threats.l2, threats.l1):
        results = [
            attacked(attack, f, START, LABELS)
            for attack in (
                attacks.mi_fgsm(make(0.3), num_steps=4, momentum=0.0),
                attacks.bim(make(0.3), step_size=0.3 / 4, num_steps=4),
            )
        ]
        np.testing.assert_allclose(*results, atol=1e-6)


def one_pixel(z):
    """Two logits of one pixel: class 1 from 0.55 to 0.75, class 0 elsewhere."""
    inside = 0.1 - jnp.abs(z - 0.65)
    return jnp.concatenate([-inside, inside], axis=1) * 10


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # 0.4, 0.5, 0.6 (wrong: stays there); without freezing on to the peak and back.
        ({"freeze_broken": True}, 0.6),
        ({"freeze_broken": True, "iterate": "best"}, 0.6),
    ],
)
def test_freezing_keeps_the_first_misclassified_iterate(options, expected):
    attack = attacks.bim(threats.linf(0.5), step_size=0.1, num_steps=6, **options)
    x_adv = attacked(attack, one_pixel, np.array([[0.4], [0.56]]), np.array([0, 0]))
    np.testing.assert_allclose(x_adv, [[expected], [0.56]], atol=1e-6)


def test_a_frozen_start_outside_the_ball_comes_back_into_it():
    attack = attacks.pgd(
        threats.linf(0.1),
        step_size=0.01,
        num_steps=2,
        random_start=lambda key, x: x + 0.3,
        freeze_broken=True,
    )
    x_adv = attacked(attack, one_pixel, np.array([[0.3]]), np.array([0]))
    np.testing.assert_allclose(x_adv, [[0.4]], atol=1e-6)


def test_best_is_misclassified_first_then_the_largest_loss():
    # 0.6 is wrong with loss 0.5; a step of 0.3 jumps over the window to 0.9, right.
    attack = lambda iterate: attacks.bim(
        threats.linf(0.6), step_size=0.3, num_steps=1, iterate=iterate
    )
    x, y = np.array([[0.6]]), np.array([0])
    np.testing.assert_allclose(
        attacked(attack("last"), one_pixel, x, y), [[0.9]], atol=1e-6
    )
    np.testing.assert_allclose(
        attacked(attack("best"), one_pixel, x, y), [[0.6]], atol=1e-6
    )


@pytest.mark.parametrize("objective", [objectives.cross_entropy, objectives.margin])
def test_best_is_never_worse_than_last(objective):
    rng = np.random.default_rng(3)
    x, y = rng.random((200, 6)), rng.integers(0, 4, 200)
    f = lambda z: jnp.sin(4 * (z @ jnp.float32(HIDDEN))) @ jnp.float32(HEAD)

    def judged(iterate):
        attack = attacks.pgd(
            threats.l2(0.1),
            step_size=0.1,
            num_steps=5,
            objective=objective,
            iterate=iterate,
        )
        logits = f(jnp.float32(attacked(attack, f, x, y)))
        wrong = np.asarray(logits.argmax(1) != y)
        return wrong, np.asarray(objective(logits, jnp.asarray(y)))

    (wrong, value), (best_wrong, best_value) = judged("last"), judged("best")
    assert (best_wrong >= wrong).all()
    same = best_wrong == wrong
    assert (best_value >= value - 1e-4)[same].all()
    assert (best_value > value + 1e-2)[same].any()  # and it is worth its pass


def test_a_distribution_as_label():
    f = lambda z: jnp.tanh(z @ jnp.float32(HIDDEN)) @ jnp.float32(HEAD)
    clean = jax.nn.softmax(f(jnp.float32(START)))
    attack = attacks.pgd(
        threats.linf(0.1),
        step_size=0.03,
        num_steps=5,
        objective=objectives.kl,
        random_start=threats.gaussian_start(0.001),
        iterate="best",
    )
    x_adv = attacked(attack, f, START, clean)
    assert (objectives.kl(f(jnp.float32(x_adv)), clean) > 1e-2).all()
    assert np.abs(x_adv - START).max() <= 0.1 + 1e-6


def test_any_optax_rule():
    # Adam's first step is the learning rate times the sign.
    attack = attacks.projected_gradient(
        threats.linf(0.5), optax.adam(-0.05), num_steps=1, random_start=None
    )
    np.testing.assert_allclose(
        attacked(attack), X + 0.05 * np.sign(ascent()), atol=1e-4
    )
