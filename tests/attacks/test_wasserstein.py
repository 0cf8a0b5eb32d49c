"""Wasserstein PGD: the projection against a linear programme's conditions in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import InputError
from robustjax.attacks import wasserstein
from robustjax.attacks.wasserstein import wasserstein_pgd

KEYS = jax.random.split(jax.random.key(0))
X = jax.random.uniform(KEYS[0], (3, 5, 4, 2), maxval=0.9).at[0, 0, 0, 0].set(0.0)
Y = jnp.array([0, 1, 0])
WEIGHTS = jax.random.normal(KEYS[1], (40, 2)) * 2


def logits_fn(x):
    return x.reshape(x.shape[0], -1) @ WEIGHTS


def offsets(k):
    cells = [(i, j) for i in range(k) for j in range(k)]
    return [(i - k // 2, j - k // 2) for i, j in cells]


def numpy_cost(plan, k):
    """Mass times distance, per image."""
    far = np.array([np.sqrt(i * i + j * j) for i, j in offsets(k)])
    return np.einsum("bkhwc,k->b", np.asarray(plan, np.float64), far)


def numpy_image(plan, k):
    """The image of a plan, one cell at a time."""
    plan = np.asarray(plan, np.float64)
    out = np.zeros((plan.shape[0], *plan.shape[2:]))
    height, width = out.shape[1:3]
    for cell, (down, right) in enumerate(offsets(k)):
        for i in range(height):
            for j in range(width):
                if 0 <= i + down < height and 0 <= j + right < width:
                    out[:, i + down, j + right] += plan[:, cell, i, j]
                else:
                    assert not plan[:, cell, i, j].any()
    return out


def numpy_simplex(v, mass):
    """The nearest point with non-negative entries of sum `mass`, by sorting."""
    ordered = np.sort(v)[::-1]
    excess = (np.cumsum(ordered) - mass) / np.arange(1, len(v) + 1)
    return np.maximum(v - excess[np.flatnonzero(ordered >= excess)[-1]], 0)


def numpy_project(plan, x, eps, k):
    """The projection in float64: 80 halvings of the multiplier, rows one by one."""
    height, width = x.shape[1:3]
    out = np.zeros_like(plan)
    far = np.array([np.hypot(*cell) for cell in offsets(k)])

    def send(b, lam):
        sent = np.zeros_like(plan[b])
        for i in range(height):
            for j in range(width):
                allowed = [
                    0 <= i + d < height and 0 <= j + r < width for d, r in offsets(k)
                ]
                for c in range(x.shape[3]):
                    row = (plan[b, :, i, j, c] - lam * far)[allowed]
                    sent[allowed, i, j, c] = numpy_simplex(row, x[b, i, j, c])
        return sent, np.einsum("khwc,k->", sent, far)

    for b in range(x.shape[0]):
        budget = eps * x[b].sum()
        low, high = 0.0, 10.0
        sent, cost = send(b, 0.0)
        for _ in range(40 if cost > budget else 0):
            middle = (low + high) / 2
            sent, cost = send(b, middle)
            low, high = (middle, high) if cost > budget else (low, middle)
        out[b] = sent if cost <= budget else send(b, high)[0]
    return out


@pytest.mark.parametrize("kernel_size", [2, 3, 5])
def test_the_projection(kernel_size):
    shape = (2, kernel_size**2, 3, 4, 1)
    plan = 0.3 * jax.random.normal(jax.random.key(20 + kernel_size), shape)
    x = X[:2, :3, :, :1]
    ours = jax.jit(lambda p: wasserstein.project(p, x, 0.1, search_steps=40))(plan)
    expected = numpy_project(
        np.asarray(plan, np.float64), np.asarray(x, np.float64), 0.1, kernel_size
    )
    np.testing.assert_allclose(ours, expected, atol=2e-5)
    np.testing.assert_allclose(ours.sum(1), x, atol=1e-5)
    budget = 0.1 * np.asarray(x).sum((1, 2, 3))
    assert (numpy_cost(ours, kernel_size) <= budget * (1 + 1e-3)).all()
    assert (numpy_cost(ours, kernel_size) >= budget * (1 - 1e-2)).all()  # it binds


def test_a_plan_within_the_budget_stays_as_it_is():
    plan = jnp.zeros((3, 9, 5, 4, 2)).at[:, 4].set(X)
    plan = (
        plan.at[:, 4, 2, 2].add(-0.5 * X[:, 2, 2]).at[:, 5, 2, 2].add(0.5 * X[:, 2, 2])
    )
    ours = jax.jit(lambda p: wasserstein.project(p, X, 0.9))(plan)
    np.testing.assert_allclose(ours, plan, atol=1e-6)


@pytest.mark.parametrize("kernel_size", [3, 4])
def test_images_of_plans_and_plans_of_gradients(kernel_size):
    # A plan that the projection allows, then the scatter by loops.
    shape = (2, kernel_size**2, 3, 4, 1)
    noise = jax.random.normal(jax.random.key(30 + kernel_size), shape)
    x = X[:2, :3, :, :1]

    @jax.jit
    def both(noise):
        plan = wasserstein.project(noise, x, 10.0)
        image = wasserstein.transported(plan, x)
        return plan, image, wasserstein.received(image, kernel_size)

    plan, image, back = both(noise)
    np.testing.assert_allclose(image, numpy_image(plan, kernel_size), atol=1e-5)
    # <gradient at the image, what a plan makes> = <received gradient, plan>.
    np.testing.assert_allclose(
        np.sum(np.asarray(image) * numpy_image(plan, kernel_size)),
        np.sum(np.asarray(back) * np.asarray(plan)),
        rtol=1e-4,
    )


def test_the_gradient_map_is_that_of_finite_differences():
    x = X[:1, :3, :3, :1]
    value = lambda image: np.sum(np.sin(3 * image))
    plan = np.asarray(
        wasserstein.project(jax.random.normal(jax.random.key(8), (1, 9, 3, 3, 1)), x, 9)
    ).astype(np.float64)
    image = numpy_image(plan, 3)
    ours = wasserstein.received(jnp.asarray(3 * np.cos(3 * image), jnp.float32), 3)
    for cell, row, column in [(4, 1, 1), (0, 1, 1), (5, 0, 1), (7, 1, 2)]:
        moved = plan.copy()
        moved[0, cell, row, column, 0] += 1e-5
        slope = (value(numpy_image(moved, 3)) - value(image)) / 1e-5
        np.testing.assert_allclose(ours[0, cell, row, column, 0], slope, atol=1e-3)
    assert ours[0, 0, 0, 0, 0] == 0  # beyond the edge


@pytest.fixture(scope="module")
def attacked():
    """A run whose budget binds: the state after the last step."""
    attack = wasserstein_pgd(eps=0.05, num_steps=8, step_size=0.2, clip=False)

    @jax.jit
    def run(x):
        state = attack.init(jax.random.key(0), logits_fn, x, Y)
        state, _ = jax.lax.scan(
            lambda s, _: (attack.step(s, logits_fn, x, Y), None), state, length=8
        )
        return state

    return run(X)


def test_mass_is_conserved_and_the_budget_kept(attacked):
    np.testing.assert_allclose(
        attacked.x_adv.sum((1, 2)), X.sum((1, 2)), rtol=1e-5, atol=1e-5
    )
    assert attacked.x_adv.min() >= 0
    budget = 0.05 * np.asarray(X).sum((1, 2, 3))
    cost = numpy_cost(attacked.plan, 5)
    assert (cost <= budget * (1 + 1e-3)).all()
    assert (cost > 0.9 * budget).all()
    np.testing.assert_allclose(attacked.x_adv, numpy_image(attacked.plan, 5), atol=1e-5)


def test_the_objective_rises(attacked):
    log = lambda x: jax.nn.log_softmax(logits_fn(x))[jnp.arange(3), Y]
    assert (log(attacked.x_adv) < log(X)).all()


@pytest.mark.parametrize(
    "options", [{"eps": 0.5, "kernel_size": 1}, {"eps": 0.0}], ids=str
)
def test_no_window_or_no_budget_is_the_identity(options):
    attack = wasserstein_pgd(num_steps=2, step_size=0.2, **options)
    x_adv = jax.jit(lambda k: attack(k, logits_fn, X, Y))(jax.random.key(0))
    np.testing.assert_array_equal(x_adv, X)


def test_on_one_pixel_that_may_move_one_step_the_answer_is_known():
    # All mass of the left pixel wants to go right; the budget lets 0.2 of it.
    x = jnp.array([1.0, 0.0]).reshape(1, 1, 2, 1)
    brighter = lambda z: jnp.stack([-4 * z[:, 0, 1, 0], 0 * z[:, 0, 1, 0]], 1)
    attack = wasserstein_pgd(eps=0.2, num_steps=4, step_size=0.5, kernel_size=3)
    x_adv = jax.jit(lambda k: attack(k, brighter, x, jnp.array([1])))(jax.random.key(0))
    np.testing.assert_allclose(x_adv.ravel(), [1.0, 0.0], atol=1e-6)  # y is 1: no gain
    x_adv = jax.jit(lambda k: attack(k, brighter, x, jnp.array([0])))(jax.random.key(0))
    np.testing.assert_allclose(x_adv.ravel(), [0.8, 0.2], atol=1e-4)


def test_clipping_takes_what_is_above_one():
    x = jnp.array([0.9, 0.9]).reshape(1, 1, 2, 1)
    towards = lambda z: jnp.stack([-4 * z[:, 0, 0, 0], 0 * z[:, 0, 0, 0]], 1)
    options = {"eps": 0.4, "num_steps": 4, "step_size": 0.5, "kernel_size": 3}

    def run(clip):
        attack = wasserstein_pgd(**options, clip=clip)
        return jax.jit(lambda k: attack(k, towards, x, jnp.array([0])))(
            jax.random.key(0)
        )

    loose = run(False)
    assert loose.max() > 1.0
    share = wasserstein.mass_above_one(loose)
    np.testing.assert_allclose(share, (loose.max() - 1) / 1.8, rtol=1e-4)
    np.testing.assert_allclose(run(True), jnp.minimum(loose, 1.0), atol=1e-6)
    np.testing.assert_array_equal(wasserstein.mass_above_one(run(True)), [0.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": -0.1}, r"`eps` .* got -0\.1"),
        ({"eps": 0.1, "kernel_size": 2.0}, r"`kernel_size` .* got 2\.0"),
        ({"eps": 0.1, "step_size": 0.0}, r"`step_size` .* got 0\.0"),
        ({"eps": 0.1, "search_steps": 0}, "`search_steps` .* got 0"),
    ],
)
def test_errors(options, message):
    with pytest.raises(InputError, match=message):
        wasserstein_pgd(**options)
