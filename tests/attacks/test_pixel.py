"""Pixel attacks where one pixel decides, and their parts against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import InputError, objectives
from robustjax.attacks.pixel import (
    _first_population,
    _mutants,
    _painted,
    pixel,
    single_pixel,
)

X = jax.random.uniform(jax.random.key(0), (4, 6, 5, 3), minval=0.3, maxval=0.7)
Y = jnp.zeros(4, jnp.int32)
ROWS, COLUMNS = np.array([0, 5, 2, 3]), np.array([4, 0, 2, 1])


def keys():
    return jax.random.split(jax.random.key(1), 4)


def decider(threshold):
    """Class 1 if the first channel of one pixel, by image, exceeds the threshold."""
    here = np.zeros((4, 6, 5), np.float32)
    here[np.arange(4), ROWS, COLUMNS] = 1

    def logits_fn(z):
        value = (z[..., 0] * jnp.asarray(here[: z.shape[0]])).sum((1, 2))
        return jnp.stack([jnp.full_like(value, threshold), value], axis=1)

    return logits_fn


def run(attack, f, y=Y):
    return np.asarray(jax.jit(lambda k: attack(k, f, X, y))(keys()))


def changed(x_adv):
    return (x_adv != np.asarray(X)).any(-1).reshape(4, -1)


def test_evolution_finds_the_pixel_that_decides():
    x_adv = run(pixel(num_steps=40, population=60), decider(0.9))
    assert (changed(x_adv).sum(1) == 1).all()
    assert changed(x_adv)[np.arange(4), ROWS * 5 + COLUMNS].all()
    assert (x_adv[np.arange(4), ROWS, COLUMNS, 0] > 0.9).all()


@pytest.mark.parametrize("num_pixels", [1, 3])
def test_no_more_pixels_change_than_allowed_and_the_objective_rises(num_pixels):
    weight = jax.random.normal(jax.random.key(2), (6, 5, 3))

    def f(z):  # never wrong
        score = (z * weight[None]).sum((1, 2, 3))
        return jnp.stack([100 + score, jnp.zeros_like(score)], axis=1)

    attack = pixel(
        num_pixels=num_pixels, num_steps=15, population=40, objective=objectives.margin
    )
    state = attack.init(keys(), f, X, Y)
    step = jax.jit(lambda s: attack.step(s, f, X, Y))
    for _ in range(15):
        new = step(state)
        assert (new.value >= state.value).all()
        assert (new.values >= state.values).all()
        found = objectives.margin(f(new.x_adv), Y)
        np.testing.assert_allclose(new.value, found, rtol=1e-5)
        assert (changed(np.asarray(new.x_adv)).sum(1) <= num_pixels).all()
        state = new
    assert new.x_adv.min() >= 0
    assert new.x_adv.max() <= 1
    # Exactly: the best pixels, each channel at its better end.
    steep, x = np.asarray(weight), np.asarray(X)
    room = np.maximum(-steep * (1 - x), steep * x).sum(-1).reshape(4, -1)
    best = np.sort(room, axis=1)[:, -num_pixels:].sum(1)
    gain = np.asarray(state.value - objectives.margin(f(X), Y))
    assert (gain <= best + 1e-4).all()
    assert (gain >= 0.5 * best).all()


def test_an_image_stops_once_broken():
    f = decider(0.8)
    attack = pixel(num_steps=12, population=30)
    y = Y.at[3].set(1)  # wrong from the beginning
    state = attack.init(keys(), f, X, y)
    step = jax.jit(lambda s: attack.step(s, f, X, y))
    for _ in range(12):
        new = step(state)
        np.testing.assert_array_equal(new.broken, f(new.x_adv).argmax(1) != y)
        same = np.all(new.x_adv == state.x_adv, axis=(1, 2, 3))
        assert same[np.asarray(state.broken)].all()
        state = new
    assert state.broken.sum() > 1
    np.testing.assert_array_equal(state.x_adv[3], X[3])


def test_mutants_are_made_of_three_different_individuals():
    people = jnp.asarray(10.0 ** -jnp.arange(5)).reshape(5, 1, 1)
    people = jnp.concatenate([people, people, people], axis=-1)  # place and one colour
    sums = {
        round(float(a + 0.5 * (b - c)), 6): (i, j, k)
        for i, a in enumerate(people[:, 0, 0])
        for j, b in enumerate(people[:, 0, 0])
        for k, c in enumerate(people[:, 0, 0])
    }
    seen = set()
    for seed in range(100):
        found = _mutants(jax.random.key(seed), people, 0.5, (-9.0, 9.0))[:, 0, 2]
        seen |= {sums[round(float(v), 6)] for v in found}
    assert all(len({i, j, k}) == 3 for i, j, k in seen)
    assert len(seen) == 5 * 4 * 3  # each triple


def test_genes_stay_in_their_ranges():
    people = _first_population(jax.random.key(0), (500, 2, 3), jnp.float32, (-1.0, 1.0))
    colours = np.asarray(people[..., 2:])
    # N(128, 127) of 255, on the range of the bounds, and clipped to it.
    inner = np.abs(colours) < 1
    np.testing.assert_allclose(inner.mean(), 0.683, atol=0.03)
    np.testing.assert_allclose((colours > 0).mean(), 0.5, atol=0.04)
    assert np.abs(colours).max() == 1
    mutants = _mutants(jax.random.key(1), people, 5.0, (-1.0, 1.0))
    for genes in (people, mutants):
        assert genes[..., :2].min() >= 0
        assert genes[..., :2].max() <= 1
        assert np.abs(genes[..., 2:]).max() == 1


def test_painting_against_indexing():
    x = np.asarray(X)
    people = np.random.default_rng(0).uniform(size=(4, 6, 5)).astype(np.float32)
    people[0, 0, :2] = 1.0  # the last place
    people[1, 5] = people[1, 4]  # the same place twice: the later colour
    people[1, 5, 2:] = 0.25
    expected = x.copy()
    for b in range(4):
        for gene in people[b]:
            r, c = min(int(gene[0] * 6), 5), min(int(gene[1] * 5), 4)
            expected[b, r, c] = gene[2:]
    np.testing.assert_array_equal(_painted(X, jnp.asarray(people)), expected)


def test_chunks_do_not_change_the_result():
    make = lambda size: pixel(num_steps=3, population=10, chunk_size=size)
    expected = run(make(16), decider(0.9))
    np.testing.assert_allclose(run(make(3), decider(0.9)), expected, atol=1e-6)


def test_passes():
    def counted(z):
        jax.debug.callback(lambda _: passes.append(1), z.sum())
        return decider(0.99)(z)

    for attack, expected in (
        (pixel(num_steps=3, population=6, chunk_size=2), 6 * 4 + 1),
        (single_pixel(num_steps=4), 2 * 4 + 1),
    ):
        passes = []
        run(attack, counted)
        jax.effects_barrier()
        assert len(passes) == expected


def test_single_pixels_are_all_tried_once():
    f = decider(0.9)
    attack = single_pixel(num_steps=30)
    x_adv = run(attack, f)
    expected = np.array(X)
    expected[np.arange(4), ROWS, COLUMNS] = 1
    np.testing.assert_array_equal(x_adv, expected)
    state = attack.init(keys(), f, X, Y)
    np.testing.assert_array_equal(np.sort(state.order, axis=1)[2], np.arange(30))
    # Before its turn nothing changes.
    turn = np.asarray(state.order == (ROWS * 5 + COLUMNS)[:, None]).argmax(1)
    step = jax.jit(lambda s: attack.step(s, f, X, Y))
    for index in range(30):
        state = step(state)
        np.testing.assert_array_equal(state.broken, turn <= index)
    # Where no pixel decides, x comes back; where x is wrong, too.
    np.testing.assert_array_equal(run(attack, decider(2.0)), X)
    np.testing.assert_array_equal(run(attack, f, y=Y + 1), X)


def test_bad_arguments():
    with pytest.raises(InputError, match=r"`population` .* at least 3, got 2"):
        pixel(population=2)
    for factory in (pixel, single_pixel):
        with pytest.raises(InputError, match=r"`bounds` .* low < high"):
            factory(bounds=(1.0, 0.0))
    with pytest.raises(InputError, match=r"`num_pixels` .* got 0"):
        pixel(num_pixels=0)
    for attack in (pixel(), single_pixel()):
        with pytest.raises(InputError, match=r"`x` .* \[B, H, W, C\].* \(4, 90\)"):
            attack(keys(), lambda z: z, X.reshape(4, -1), Y)
