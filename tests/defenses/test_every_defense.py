"""What every defense must do, over the list of them."""

import cases
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustjax import InputError, defenses, models, threats, training
from robustjax.attacks import pgd
from robustjax.training import sharding
from robustjax.types import Batch

every_defense = pytest.mark.parametrize("name", cases.DEFENSES)
BATCH = cases.fake_batch()


def small_model():
    return models.from_linen(models.small_cnn(num_classes=4, stages=((4,),), dense=16))


@every_defense
def test_one_device_and_eight_agree_and_the_loss_falls(name):
    model = small_model()
    loss_fn = cases.DEFENSES[name](model)
    params, state = model.init(jax.random.key(0), BATCH.x)
    optimizer = training.sgd(training.constant(0.05))
    host = jax.tree.map(np.asarray, BATCH)
    start = training.create_state(params, state, optimizer, jax.random.key(1))
    losses, finals = {}, {}
    for count in (1, 8):
        mesh = sharding.data_mesh(jax.devices()[:count])
        chex.clear_trace_counter()
        train_step = training.make_train_step(loss_fn, optimizer)
        traced = chex.assert_max_traces(train_step, n=1)
        step = jax.jit(traced, out_shardings=sharding.replicated(mesh))
        current = jax.device_put(start, sharding.replicated(mesh))
        batch = sharding.global_rows(mesh, host)
        losses[count] = []
        for _ in range(3):
            current, metrics = step(current, batch)
            losses[count].append(float(metrics["loss/total"]))
        finals[count] = jax.device_get(current.params)
    np.testing.assert_allclose(losses[1], losses[8], atol=1e-6, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), finals[1], finals[8]
    )
    assert losses[1][2] < losses[1][0]
    assert all(np.isfinite(float(v)) for v in metrics.values())
    assert all(v.shape == () for v in metrics.values())


@every_defense
def test_statistics_move_as_documented(name):
    """One forward pass keeps 0.9 of the old statistics, two ("both") keep 0.81; an
    attack that moved them would keep less."""
    model, params, state = cases.batch_norm_model()
    before = jax.tree.map(np.array, state)
    run = jax.jit(cases.DEFENSES[name](model))

    def new(state):
        _, aux = run(params, state, jax.random.key(0), BATCH)
        return aux.model_state["batch_stats"]["norm"]

    # The attack reads them too and finds another x_adv, which is nothing beside 1e4.
    shift = 1e4
    norm = state["batch_stats"]["norm"]
    moved = {"batch_stats": {"norm": {**norm, "mean": norm["mean"] + shift}}}
    kept = (new(moved)["mean"] - new(state)["mean"]) / shift
    jax.tree.map(np.testing.assert_array_equal, before, state)
    np.testing.assert_allclose(kept, 0.81 if name.endswith("both") else 0.9, atol=1e-3)


@every_defense
def test_dropout_needs_its_key_and_gets_it(name):
    model = models.from_linen(models.wnll_mnist_cnn(num_classes=4, buffer=0))
    x = jnp.zeros((2, 28, 28, 1))
    params, state = jax.eval_shape(model.init, jax.random.key(0), x)
    loss_fn = cases.DEFENSES[name](model)
    batch = Batch(x, jnp.array([0, 1]))
    loss, _ = jax.eval_shape(
        lambda p, s: loss_fn(p, s, jax.random.key(0), batch), params, state
    )
    assert loss.shape == ()


@pytest.mark.parametrize("make", [defenses.adversarial, defenses.trades, defenses.mart])
def test_attack_mode_is_visible(make):
    model, params, state = cases.batch_norm_model()
    seen = []

    def spy(key, logits_fn, x, y):
        seen.append(logits_fn(x))
        return x

    for mode in ("eval", "batch"):
        make(model, spy, attack_mode=mode).craft(
            params, state, jax.random.key(0), BATCH
        )
    for logits, mode in zip(seen, ("eval", "batch"), strict=True):
        expected = model.apply(params, state, BATCH.x, mode=mode).logits
        np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert not np.allclose(seen[0], seen[1], atol=1e-2)


@pytest.mark.parametrize("make", [defenses.adversarial, defenses.trades, defenses.mart])
def test_attack_in_batch_mode_with_dropout(make):
    """One mask for the whole attack: the WNLL papers' setting, legal to the checker."""
    model = models.from_linen(models.wnll_mnist_cnn(num_classes=4, buffer=0))
    x = jnp.zeros((2, 28, 28, 1))
    params, state = jax.eval_shape(model.init, jax.random.key(0), x)
    attack = pgd(threats.linf(0.1), step_size=0.05, num_steps=2)
    loss_fn = make(model, attack, attack_mode="batch")
    batch = Batch(x, jnp.array([0, 1]))
    loss, _ = jax.eval_shape(
        lambda p, s: loss_fn(p, s, jax.random.key(0), batch), params, state
    )
    assert loss.shape == ()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: defenses.standard(m, label_smoothing=2.0), "`label_smoothing`"),
        (lambda m: defenses.adversarial(m, None, clean_weight=-0.5), "`clean_weight`"),
        (lambda m: defenses.trades(m, None, beta=-1.0), r"`beta` .* got -1\.0"),
        (lambda m: defenses.mart(m, None, beta=-1.0), r"`beta` .* got -1\.0"),
        (
            lambda m: defenses.trades(m, None, statistics="clean"),
            "'adversarial', 'both'",
        ),
        (lambda m: defenses.mart(m, None, statistics="clean"), "'adversarial', 'both'"),
        (lambda m: defenses.awp(defenses.standard(m), gamma=-0.1), "`gamma`"),
    ],
)
def test_errors_name_the_argument_the_value_and_the_fix(call, message):
    with pytest.raises(InputError, match=message):
        call(small_model())
