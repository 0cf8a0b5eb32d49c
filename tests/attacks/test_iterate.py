"""Attacks that end early, and attacks seen along their way."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import InputError, attacks, objectives, threats
from robustjax.attacks import _outcome

KEYS = jax.random.split(jax.random.key(0), 4)
X = jax.random.uniform(KEYS[0], (8, 3, 3, 1))
HIDDEN = jax.random.normal(KEYS[1], (9, 6))
HEAD = jax.random.normal(KEYS[2], (6, 4))
IMAGE_KEYS = jax.random.split(KEYS[3], 8)


def logits_fn(x):
    return jnp.tanh((x.reshape(-1, 9) - 0.5) @ HIDDEN) @ HEAD


Y = logits_fn(X).argmax(1).at[7].add(1) % 4  # wrong about the last
LINF = threats.linf(0.3)
# Slow enough for images to fall one after the other.
PGD = attacks.pgd(LINF, step_size=0.02, num_steps=15)
SQUARE = attacks.square(LINF, num_queries=40)  # which knows what it has broken


def keys():
    return jax.random.clone(IMAGE_KEYS)


def counted(attack, counts):
    """The attack, which also counts the steps that run."""

    def step(state, logits_fn, x, y):
        jax.debug.callback(lambda: counts.append("step"))
        return attack.step(state, logits_fn, x, y)

    return dataclasses.replace(attack, step=step)


def counting(logits_fn, passes):
    def run(x):
        jax.debug.callback(lambda: passes.append(x.shape))
        return logits_fn(x)

    return run


def by_hand(attack, check_every):
    """The first misclassified point at a look, else the last; and the step of each."""
    step = jax.jit(lambda state: attack.step(state, logits_fn, X, Y))
    state = attack.init(keys(), logits_fn, X, Y)
    kept, at = np.array(X), np.full(8, -1)
    for number in range(attack.num_steps + 1):
        if number:
            state = step(state)
        point = np.asarray(attack.finish(state, logits_fn, X, Y))
        wrong = np.asarray(logits_fn(jnp.asarray(point)).argmax(1) != Y)
        if number % check_every == 0:
            fresh = wrong & (at < 0)
            kept[fresh], at[fresh] = point[fresh], number
    kept[at < 0] = point[at < 0]
    return kept, at


@pytest.mark.parametrize("check_every", [1, 4])
@pytest.mark.parametrize("attack", [PGD, SQUARE], ids=["pgd", "square"])
def test_the_first_misclassified_point_is_kept(attack, check_every):
    early = attacks.early_stop(attack, check_every=check_every)
    x_adv = jax.jit(lambda k: early(k, logits_fn, X, Y))(keys())
    expected, at = by_hand(attack, check_every)
    assert len(set(at)) > 1
    np.testing.assert_allclose(x_adv, expected, atol=1e-5)


def test_neighbours_do_not_matter_and_work_is_saved():
    counts = []
    run = jax.jit(attacks.early_stop(counted(PGD, counts)), static_argnums=1)
    _, at = by_hand(PGD, 1)
    together = run(keys(), logits_fn, X, Y)
    jax.effects_barrier()
    lasts = at.max() if (at >= 0).all() else PGD.num_steps
    assert len(counts) == lasts
    # Those that fall early, alone: fewer steps, the same points.
    quick = np.flatnonzero((at >= 0) & (at <= np.median(at[at >= 0])))
    counts.clear()
    alone = run(keys()[quick], logits_fn, X[quick], Y[quick])
    jax.effects_barrier()
    assert len(counts) == at[quick].max() < lasts
    np.testing.assert_allclose(alone, together[quick], atol=1e-5)


def test_nothing_runs_for_images_that_are_misclassified():
    counts = []
    run = jax.jit(attacks.early_stop(counted(SQUARE, counts)), static_argnums=1)
    x_adv = run(keys(), logits_fn, X, (logits_fn(X).argmax(1) + 1) % 4)
    jax.effects_barrier()
    assert not counts
    np.testing.assert_array_equal(x_adv, X)


def test_an_attack_that_knows_makes_no_pass_to_look():
    never = lambda x: logits_fn(x) * 0 + jnp.array([[99.0, 0, 0, 0]])
    y, few = jnp.zeros(8, jnp.int32), attacks.square(LINF, num_queries=5)

    def passes(attack):
        seen = []
        jax.jit(lambda k: attack(k, counting(never, seen), X, y))(keys())
        jax.effects_barrier()
        return len(seen)

    plain = passes(few)
    assert passes(attacks.early_stop(few)) == plain
    ignorant = dataclasses.replace(few, broken=None)
    assert passes(attacks.early_stop(ignorant)) == plain + 6  # the start, and 5 looks
    assert passes(attacks.early_stop(ignorant, check_every=2)) == plain + 3


@pytest.mark.parametrize(
    "make", [lambda t: attacks.ddn(t, num_steps=20), lambda t: attacks.boundary(t)]
)
def test_a_minimum_norm_attack_stays_within_its_limit(make):
    threat = threats.l2(0.3)
    attack = dataclasses.replace(make(threat), num_steps=20)
    x_adv = attacks.early_stop(attack)(keys(), logits_fn, X, Y)
    assert (threat.norm(x_adv - X) <= 0.3 + 1e-6).all()


# --- along the way ------------------------------------------------------------------


@pytest.mark.parametrize("steps", [(0, 3, 4, 15), (7,), range(16)])
def test_a_trajectory_is_that_of_a_loop(steps):
    seeing = attacks.keep_trajectory(PGD, steps, objective=objectives.margin)
    run = jax.jit(lambda k: seeing(k, logits_fn, X, Y))
    x_adv, seen = run(keys())
    step = jax.jit(lambda state: PGD.step(state, logits_fn, X, Y))
    state = PGD.init(keys(), logits_fn, X, Y)
    points = [state.x_adv]
    for _ in range(15):
        state = step(state)
        points.append(state.x_adv)
    chosen = np.stack(points)[list(steps)]
    np.testing.assert_array_equal(seen.steps, list(steps))
    np.testing.assert_allclose(seen.x_adv, chosen, atol=1e-5)
    logits = np.float64([logits_fn(jnp.asarray(point)) for point in chosen])
    right = np.eye(4, dtype=bool)[np.asarray(Y)]
    others = np.where(right, -np.inf, logits).max(-1)
    np.testing.assert_allclose(seen.value, others - logits[:, right], atol=1e-5)
    np.testing.assert_array_equal(seen.broken, logits.argmax(-1) != np.asarray(Y))
    np.testing.assert_allclose(x_adv, PGD(keys(), logits_fn, X, Y), atol=1e-5)
    if steps[-1] == 15:
        np.testing.assert_array_equal(seen.x_adv[-1], x_adv)


def test_a_trajectory_shows_iterates_and_the_result_is_the_best():
    best = attacks.pgd(LINF, step_size=0.3, num_steps=4, iterate="best")
    seeing = attacks.keep_trajectory(best, range(5))
    x_adv, seen = jax.jit(lambda k: seeing(k, logits_fn, X, Y))(keys())
    rows = np.arange(8)
    order = np.lexsort((np.asarray(seen.value), np.asarray(seen.broken)), axis=0)[-1]
    np.testing.assert_allclose(x_adv, np.asarray(seen.x_adv)[order, rows], atol=1e-5)
    assert (order != 4).any()


def test_a_trajectory_takes_samples_and_lets_no_gradient_out():
    noisy = lambda keys, x: (
        logits_fn(x) + 0.1 * jax.vmap(lambda key: jax.random.normal(key, (4,)))(keys)
    )
    climbed = attacks.expectation(noisy, jax.random.key(1), 3)
    seeing = attacks.keep_trajectory(attacks.bim(LINF, step_size=0.1, num_steps=1), [1])
    _, seen = seeing(keys(), climbed, X, Y)
    value, broken = _outcome.climbed(objectives.cross_entropy, climbed, Y)(
        seen.x_adv[0]
    )
    np.testing.assert_allclose(seen.value[0], value, atol=1e-4)
    np.testing.assert_array_equal(seen.broken[0], broken)

    def through(x):
        x_adv, seen = seeing(keys(), logits_fn, x, Y)
        return x_adv.sum() + seen.x_adv.sum() + seen.value.sum()

    assert not np.any(jax.grad(through)(X))


@pytest.mark.parametrize("steps", [(), (3, 1), (1, 1), (-1, 2), (0, 16), [[1]], (0.5,)])
def test_steps_out_of_range_are_refused(steps):
    with pytest.raises(InputError, match=r"`steps` must be .* \[0, 15\]") as error:
        attacks.keep_trajectory(PGD, steps)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("check_every", [0, 1.5])
def test_looks_are_counted_in_whole_steps(check_every):
    whole = attacks.restarts(attacks.fgsm(threats.linf(0.1)), 2)
    for wrapped in (attacks.early_stop, lambda a: attacks.keep_trajectory(a, (0, 1))):
        with pytest.raises(InputError, match="`attack` must be an `IteratedAttack`"):
            wrapped(whole)
    with pytest.raises(InputError, match="`check_every`"):
        attacks.early_stop(PGD, check_every=check_every)
