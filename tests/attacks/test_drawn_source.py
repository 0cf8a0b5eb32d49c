"""One source per key: how often, at what cost, and in training."""

import collections

import cases
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from jax.tree_util import Partial

from robustjax import (
    InputError,
    _random,
    attacks,
    defenses,
    models,
    objectives,
    threats,
    training,
)
from robustjax.types import as_pytree

X = jax.random.uniform(jax.random.key(0), (16, 6))
Y = jnp.arange(16) % 4
LINF = threats.linf(0.1)


def sine(weights, x):
    return jnp.sin(6 * (x @ weights))


def classifier(seed):
    """A pytree of its weights."""
    return Partial(sine, jax.random.normal(jax.random.key(seed), (6, 4)))


SOURCES, CURRENT = [classifier(seed) for seed in (1, 2, 3)], classifier(4)


def answering(number):
    """A source of which `told` tells which it is."""
    return lambda x: jnp.full((x.shape[0], 4), 0.1 * number)


def told(key, logits_fn, x, y):
    return jnp.broadcast_to(logits_fn(x)[:, :1], x.shape)


NUMBERED = attacks.drawn_source(told, [answering(i) for i in range(3)])


def drawn(x_adv):
    """The numbers of the sources, of an attack by `told`."""
    return np.rint(10 * np.asarray(x_adv)).astype(int)


def test_every_source_is_drawn_equally_often():
    keys = jax.random.split(jax.random.key(5), 2000)
    draw = jax.jit(jax.vmap(lambda k: NUMBERED(k, answering(3), X[:2], Y[:2])))
    whole = drawn(draw(jax.random.clone(keys)))
    assert (whole == whole[:, :1, :1]).all()  # one for the whole batch
    x, y = jnp.zeros((2000, 1)), jnp.zeros(2000, int)
    apart = drawn(jax.jit(NUMBERED, static_argnums=1)(keys, answering(3), x, y))
    for found in (whole[:, 0, 0], apart[:, 0]):
        counts = np.bincount(found, minlength=4)
        assert len(counts) == 4
        assert scipy.stats.chisquare(counts).pvalue > 0.01
    follows = np.bincount(4 * apart[:-1, 0] + apart[1:, 0], minlength=16)
    assert scipy.stats.chisquare(follows).pvalue > 0.01


def test_one_compilation_serves_all_draws_and_other_weights():
    chex.clear_trace_counter()
    pgd = attacks.pgd(LINF, step_size=0.05, num_steps=2)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(attack, key, logits_fn, x, y):
        return attack(key, logits_fn, x, y)

    attack = attacks.drawn_source(pgd, SOURCES)
    candidates = jax.jit(
        lambda k, x, y: jnp.stack([pgd(k, f, x, y) for f in (*SOURCES, CURRENT)])
    )
    seen = set()
    for seed in range(12):
        x_adv = run(attack, jax.random.key(seed), CURRENT, X, Y)
        key = jax.random.fold_in(jax.random.key(seed), 0)
        gap = np.abs(candidates(key, X, Y) - x_adv[None]).max((1, 2))
        assert gap.min() < 1e-5
        assert np.sort(gap)[1] > 1e-2
        seen.add(gap.argmin())
    assert seen == {0, 1, 2, 3}
    others = attacks.drawn_source(pgd, SOURCES[::-1])
    run(others, jax.random.key(0), CURRENT, X, Y)


def test_only_the_drawn_source_is_attacked():
    runs = collections.Counter()

    def counting(number):
        def source(x):
            jax.debug.callback(lambda _: runs.update([number]), x[0, 0])
            return answering(number)(x)

        return source

    attack = attacks.drawn_source(told, [counting(i) for i in range(3)])
    run = jax.jit(lambda k: attack(k, answering(3), X, Y))
    expected = collections.Counter()
    for seed in range(12):
        (number,) = set(drawn(run(jax.random.key(seed))).ravel().tolist())
        expected.update([number] if number < 3 else [])
    jax.effects_barrier()
    assert runs == expected
    assert len(runs) == 3


def test_keys_of_images_draw_for_each():
    attack = attacks.drawn_source(attacks.r_fgsm(LINF), SOURCES)
    keys = jax.random.split(jax.random.key(6), 16)
    run = jax.jit(lambda k, x, y: attack(k, CURRENT, x, y))
    x_adv = run(jax.random.clone(keys), X, Y)
    single = _random.fold_in(keys, 0)
    alone = jax.jit(lambda k, f, x, y: attacks.r_fgsm(LINF)(k, f, x, y))
    candidates = np.stack(
        [alone(jax.random.clone(single), f, X, Y) for f in (*SOURCES, CURRENT)]
    )
    gap = np.abs(candidates - x_adv[None]).max(2)
    np.testing.assert_allclose(gap.min(axis=0), 0, atol=1e-6)
    assert set(gap.argmin(axis=0)) == {0, 1, 2, 3}
    rows = jnp.array([11, 2, 7])
    np.testing.assert_allclose(run(keys[rows], X[rows], Y[rows]), x_adv[rows])


def test_the_current_model_has_an_attack_of_its_own():
    still = lambda key, logits_fn, x, y: x
    attack = attacks.drawn_source(told, [answering(1)], own=still)
    run = jax.jit(lambda k: attack(k, answering(2), jnp.zeros_like(X), Y))
    found = {int(drawn(run(jax.random.key(seed)))[0, 0]) for seed in range(8)}
    assert found == {0, 1}


# --- in training ---------------------------------------------------------------------

BATCH = cases.fake_batch(16)
FGSM = attacks.unlabelled(attacks.fgsm(LINF))


@pytest.fixture(scope="module")
def networks():
    """The model, and the weights of three."""
    model = models.from_linen(models.small_cnn(num_classes=4, stages=((4,),), dense=8))
    return model, [model.init(jax.random.key(i), BATCH.x) for i in range(3)]


def _kl_pgd():
    start = threats.gaussian_start(0.05)
    return attacks.pgd(
        LINF, step_size=0.05, num_steps=2, objective=objectives.kl, random_start=start
    )


LOSSES = {
    "adversarial": lambda m, s: defenses.adversarial(
        m, attacks.drawn_source(FGSM, s), clean_weight=0.5
    ),
    "at_alp": lambda m, s: defenses.at_alp(
        m,
        attacks.drawn_source(
            FGSM, s, own=attacks.pgd(LINF, step_size=0.05, num_steps=2)
        ),
        layers=("relu1_1",),
    ),
    "trades": lambda m, s: defenses.trades(m, attacks.drawn_source(_kl_pgd(), s)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_any_loss_trains_with_it_and_leaves_the_sources_alone(networks, name):
    model, ((params, state), *others) = networks
    optimizer = training.adam(training.constant(0.01))

    def loss_with(weights, params, key):
        sources = [models.logits_fn(model, *w) for w in weights]
        return LOSSES[name](model, sources)(params, state, key, BATCH)

    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(weights, params, opt_state, key):
        grad_fn = jax.value_and_grad(loss_with, (0, 1), has_aux=True)
        (value, _), (theirs, grads) = grad_fn(weights, params, key)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value, theirs

    opt_state, losses = optimizer.init(params), []
    for number in range(24):
        key = jax.random.key(number)
        params, opt_state, value, theirs = step(others, params, opt_state, key)
        losses.append(float(value))
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(theirs))
    assert np.isfinite(losses).all()
    assert np.mean(losses[-8:]) < np.mean(losses[:8]) - 0.05


def test_training_sees_each_source_and_its_own_answers(networks):
    model, ((params, state), *others) = networks
    sources = [models.logits_fn(model, *w) for w in others]
    loss_fn = LOSSES["adversarial"](model, sources)
    craft = jax.jit(loss_fn.craft)
    everything = (*sources, models.logits_fn(model, params, state))

    @jax.jit
    def away_from_its_own_answer(source, x):
        own = source(x).argmax(axis=1)
        return attacks.fgsm(LINF)(jax.random.key(0), source, x, own)

    candidates = [away_from_its_own_answer(source, BATCH.x) for source in everything]
    wrong = BATCH._replace(y=(BATCH.y + 1) % 4)  # which changes nothing
    seen = set()
    for seed in range(10):
        x_adv = craft(params, state, jax.random.key(seed), wrong)
        gap = np.abs(np.stack(candidates) - x_adv[None]).max((1, 2, 3, 4))
        assert gap.min() < 1e-6
        seen.add(gap.argmin())
    assert seen == {0, 1, 2}


@pytest.mark.parametrize("name", LOSSES)
def test_weights_of_sources_are_not_in_the_text_of_a_training_step(networks, name):
    model, ((params, state), *others) = networks
    loss_fn = LOSSES[name](model, [models.logits_fn(model, *w) for w in others])

    def gradient(loss_fn, params):
        value = lambda p: loss_fn(p, state, jax.random.key(0), BATCH)[0]
        return jax.grad(value)(params)

    held = as_pytree(loss_fn)
    weights = sum(leaf.size for leaf in jax.tree.leaves(others))
    assert sum(leaf.size for leaf in jax.tree.leaves(held)) >= weights
    apart = jax.jit(gradient).lower(held, params).as_text()
    inside = jax.jit(lambda p: gradient(loss_fn, p)).lower(params).as_text()
    assert len(apart) < len(inside) - weights


# --- errors --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sources", "key", "message"),
    [
        ([], jax.random.key(0), "`sources` must hold at least one model, got none"),
        (
            [CURRENT, lambda x: CURRENT(x)[:, :3]],
            jax.random.key(0),
            "`sources` must have the classes of the model under attack, 4, got 3",
        ),
        ([CURRENT], jax.random.split(jax.random.key(0), 3), r"`key` .* \(3,\)"),
        ([CURRENT], jnp.zeros(2, jnp.uint32), "`key` must be a typed key"),
    ],
)
def test_errors_are_one_line(sources, key, message):
    with pytest.raises(InputError, match=message) as error:
        attacks.drawn_source(FGSM, sources)(key, CURRENT, X, Y)
    assert "\n" not in str(error.value)
