"""Passes are counted as they are made; an estimate is of the right size."""

import importlib
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import attacks, evaluation, threats, training
from robustjax.data import Dataset
from robustjax.evaluation import NamedAttack

LINF = threats.linf(0.1)
PGD = attacks.pgd(LINF, step_size=0.02, num_steps=7)
SHAPE = (4, 3, 2)


@pytest.fixture
def large(monkeypatch):
    """As if the small networks of these tests took as long as they multiply."""
    module = importlib.import_module("robustjax.evaluation.estimate")
    monkeypatch.setattr(module, "_SLOWEST", math.inf)


@pytest.mark.parametrize(
    ("attack", "forward", "backward"),
    [
        (attacks.fgsm(LINF), 1, 1),
        (PGD, 7, 7),
        (attacks.restarts(PGD, 3), 3 * 8, 3 * 7),
        (attacks.restarts(PGD, 3, at_once=1), 3 * 8, 3 * 7),
        (attacks.worst_case([PGD, attacks.fgsm(LINF)]), 7 + 1 + 3, 7 + 1),
        (attacks.uniform_noise(LINF), 0, 0),
    ],
    ids=["fgsm", "pgd", "at once", "in turn", "worst case", "noise"],
)
def test_passes_are_those_of_the_formula(attack, forward, backward):
    found = evaluation.count_passes(attack, SHAPE, 5)
    assert found == (forward, backward)


@pytest.mark.parametrize(
    "attack", [attacks.apgd(LINF, num_steps=9), attacks.mi_fgsm(LINF, num_steps=4)]
)
def test_passes_are_those_that_are_made(attack):
    made = []

    @jax.custom_vjp
    def counted(x):
        jax.debug.callback(lambda: made.append("forward"))
        return x

    def forward(x):
        jax.debug.callback(lambda: made.append("forward"))
        return x, None

    def backward(_, g):
        jax.debug.callback(lambda: made.append("backward"))
        return (g,)

    counted.defvjp(forward, backward)
    weights = jax.random.normal(jax.random.key(0), (24, 5))
    model = lambda x: counted(x).reshape(len(x), -1) @ weights
    x, y = jnp.full((1, *SHAPE), 0.5), jnp.zeros(1, jnp.int32)
    jax.jit(attack, static_argnums=1)(jax.random.key(1), model, x, y)
    jax.effects_barrier()
    found = evaluation.count_passes(attack, SHAPE, 5)
    assert found == (made.count("forward"), made.count("backward"))


def test_autoattack_counts_every_round():
    found = evaluation.count_passes(attacks.autoattack(LINF), (8, 8, 1), 10)
    # 5,000 queries of Square, 100 steps of APGD and of 9 targets, twice.
    assert 5000 + 100 + 2 * 900 <= found.forward <= 1.1 * 7316
    assert 100 + 2 * 900 <= found.backward <= 1.1 * 1900


def test_what_cannot_be_counted_is_not_the_end():
    def odd(key, logits_fn, x, y):
        raise ValueError(logits_fn)

    data = Dataset(
        np.zeros((4, *SHAPE), np.float32), np.zeros(4, np.int32), np.arange(4), ("a",)
    )
    model = lambda x: x.reshape(len(x), -1)
    named = [NamedAttack("odd", odd), NamedAttack("pgd", PGD)]
    found = evaluation.estimate(model, data, named)
    assert np.isnan(found.seconds[0])
    assert 0 < found.seconds[1] < found.total < 60


def test_a_source_may_answer_more_than_classes():
    def climb(key, logits_fn, x, y):
        return x + jax.grad(lambda z: logits_fn(z)[:, 2, 4].sum())(x)

    images, four = np.zeros((4, *SHAPE), np.float32), np.arange(4)
    data = Dataset(images, np.zeros(4, np.int32), four, tuple("abcde"))
    flat = lambda x: x.reshape(len(x), -1)
    candidates = lambda x: flat(x)[:, :15].reshape(-1, 3, 5)
    named = NamedAttack("climb", climb, source=candidates)
    found = evaluation.estimate(lambda x: flat(x)[:, :5], data, [named])
    assert found.passes == ((1.0, 1.0),)
    assert np.isfinite(found.seconds[0])


@pytest.mark.parametrize("drawn", [False, True], ids=["one", "one of two"])
def test_networks_that_an_attack_brings_along_cost_their_work(drawn, large):
    draw = lambda *shape: jnp.asarray(np.random.default_rng(0).normal(size=shape))
    first, last = draw(24, 200), draw(200, 5)
    judged, kernel = draw(24, 5), draw(3, 3, 2, 8)

    def own(x):
        hidden = jnp.tanh(x.reshape(-1, 24) @ first)
        maps = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return hidden @ last + maps.mean((1, 2))[:, :5]

    def attack(key, logits_fn, x, y):
        heads = jax.random.bernoulli(jax.random.fold_in(key, 0))
        light = lambda z: z.reshape(-1, 24)[:, :5]
        either = lambda z: jax.lax.cond(heads, light, own, z)
        return PGD(jax.random.fold_in(key, 1), either if drawn else own, x, y)

    images, four = np.zeros((4, *SHAPE), np.float32), np.arange(4)
    data = Dataset(images, np.zeros(4, np.int32), four, tuple("abcde"))
    model = lambda x: x.reshape(len(x), -1) @ judged
    found = evaluation.estimate(model, data, [NamedAttack("own", attack)])
    assert found.passes == ((0.0, 0.0),)
    asked = (found.seconds[0] - found.compiling) / (4 * found.per_pass) - 1
    forward = 24 * 200 + 200 * 5 + (4 * 3 * 8) * (3 * 3 * 2)
    assert asked == pytest.approx(7 * 2 * forward / (24 * 5), rel=0.05)


@pytest.mark.parametrize("draws", [1, 10])
def test_loops_of_what_is_judged_or_climbed_count_every_turn(draws, large):
    images, four = np.zeros((4, *SHAPE), np.float32), np.arange(4)
    data = Dataset(images, np.zeros(4, np.int32), four, tuple("abcde"))
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(10, 24, 5)))

    def mean_of(count):
        once = lambda x: lambda w: jnp.tanh(x.reshape(len(x), -1) @ w)
        return lambda x: jax.lax.map(once(x), weights[:count]).mean(0)

    named = NamedAttack("climb", PGD, source=mean_of(draws))
    found = evaluation.estimate(mean_of(5), data, [named])
    asked = (found.seconds[0] - found.compiling) / (4 * found.per_pass) - 1
    assert asked == pytest.approx(found.passes[0].cost * draws / 5, rel=0.15)


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_what_an_attack_moves_along_is_shared_by_a_batch(batch_size, large):
    draw = lambda *shape: jnp.asarray(np.random.default_rng(0).normal(size=shape))
    own, judged, along = draw(24, 50), draw(24, 5), draw(30, *SHAPE)
    flat = lambda x: x.reshape(-1, 24)

    def attack(key, logits_fn, x, y):
        every = jnp.concatenate([along, x])
        answer = lambda z: (flat(z) @ own)[:, :5] + jnp.tanh(flat(z) @ own)[:, -5:]
        labels = jnp.concatenate([jnp.zeros(30, y.dtype), y])
        return PGD(key, answer, every, labels)[30:]

    images, four = np.zeros((4, *SHAPE), np.float32), np.arange(4)
    data = Dataset(images, np.zeros(4, np.int32), four, tuple("abcde"))
    model = lambda x: flat(x) @ judged
    named = [NamedAttack("along", attack)]
    mesh = training.data_mesh(jax.devices()[:1])
    found = evaluation.estimate(model, data, named, batch_size=batch_size, mesh=mesh)
    asked = (found.seconds[0] - found.compiling) / (4 * found.per_pass) - 1
    rows = (30 + batch_size) / batch_size
    assert asked == pytest.approx(7 * 2 * rows * 2 * 10, rel=0.05)


def test_a_pass_that_multiplies_nothing_is_no_price_of_products():
    weights = np.random.default_rng(0).normal(size=(3072, 5)).astype(np.float32)
    flat = lambda x: x.reshape(len(x), -1)

    def on_the_host(x):
        found = jax.ShapeDtypeStruct((len(x), 5), jnp.float32)
        answer = lambda x: flat(np.asarray(x)) @ weights
        return jax.pure_callback(answer, found, x, vmap_method="sequential")

    images = np.zeros((64, 32, 32, 3), np.float32)
    data = Dataset(images, np.zeros(64, np.int32), np.arange(64), tuple("abcde"))
    device = jnp.asarray(weights)
    named = NamedAttack("surrogate", PGD, source=lambda x: flat(x) @ device)
    found = evaluation.estimate(on_the_host, data, [named])
    # 21 passes of 15,360 products per image, and PGD's own: milliseconds.
    assert found.seconds[0] - found.compiling < 64 * (found.per_pass + 1e-3)


@pytest.mark.slow
def test_an_estimate_is_of_the_right_size():
    rng = np.random.default_rng(0)
    images = rng.random((256, 24, 24, 3), np.float32)
    data = Dataset(images, np.zeros(256, np.int32), np.arange(256), tuple("abcdefgh"))
    weights = jnp.asarray(rng.normal(size=(1728, 1024)), jnp.float32)
    last = jnp.asarray(rng.normal(size=(1024, 8)), jnp.float32)

    def mlp(weights, last, x):
        return jnp.tanh(x.reshape(len(x), -1) @ weights) @ last

    model = jax.tree_util.Partial(mlp, weights, last)
    pgd = attacks.pgd(LINF, step_size=0.02, num_steps=200)
    named = [NamedAttack("pgd", pgd)]
    found = evaluation.estimate(model, data, named)
    start = time.monotonic()
    evaluation.evaluate(model, data, named, key=jax.random.key(0))
    took = time.monotonic() - start
    assert took / 4 < found.total < 4 * took
