import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from robustjax import InputError, attacks, data, defenses, models, threats, training
from robustjax.training import create_state, make_train_step, sharding
from robustjax.types import Batch, LossAux


def squares(params, model_state, key, batch):
    """Least squares, without noise."""
    del key
    error = batch.x @ params["w"] - batch.y
    return (error**2).mean(), LossAux(model_state, {"error/mean": error.mean()})


def batch_of(rows, features=3, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.random((rows, features), np.float32)
    return Batch(jnp.asarray(x), jnp.asarray(x.sum(1) > 1.5, jnp.int32))


def begin(optimizer, average=False):
    params = {"w": jnp.array([0.3, -0.2, 0.1])}
    return create_state(params, {}, optimizer, jax.random.key(0), average=average)


@pytest.mark.parametrize("variant", [jax.jit, lambda f: f], ids=["jit", "eager"])
def test_a_step_is_gradient_descent(variant):
    optimizer, batch = optax.sgd(0.1), batch_of(8)
    state = begin(optimizer)
    new, metrics = variant(make_train_step(squares, optimizer))(state, batch)
    x, y, w = (np.float64(a) for a in (batch.x, batch.y, state.params["w"]))
    grad = 2 * x.T @ (x @ w - y) / 8
    np.testing.assert_allclose(new.params["w"], w - 0.1 * grad, rtol=1e-5)
    assert float(metrics["grad/norm"]) == pytest.approx(np.linalg.norm(grad), rel=1e-5)
    assert float(metrics["loss/total"]) == pytest.approx(((x @ w - y) ** 2).mean())
    assert (int(new.step), set(metrics)) == (
        1,
        {"grad/norm", "loss/total", "error/mean"},
    )


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_accumulated_gradients_are_those_of_the_whole_batch(parts):
    optimizer, batch = optax.sgd(0.1), batch_of(8)
    whole, expected = make_train_step(squares, optimizer)(begin(optimizer), batch)
    accumulated = make_train_step(squares, optimizer, accumulate=parts)
    chex.clear_trace_counter()
    step = jax.jit(
        chex.assert_max_traces(lambda *arguments: accumulated(*arguments), 1)
    )
    state, metrics = step(begin(optimizer), batch)
    np.testing.assert_allclose(state.params["w"], whole.params["w"], rtol=1e-5)
    for name in expected:
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5)
    for seed in range(3):
        state, _ = step(state, batch_of(8, seed=seed))


def test_parts_draw_from_keys_of_their_own():
    def loss(params, model_state, key, batch):
        del batch
        noise = jax.random.uniform(key)
        return noise * params["w"].sum(), LossAux(model_state, {"noise": noise})

    optimizer = optax.sgd(1.0)
    _, one = make_train_step(loss, optimizer)(begin(optimizer), batch_of(8))
    _, two = make_train_step(loss, optimizer, accumulate=2)(
        begin(optimizer), batch_of(8)
    )
    assert float(one["noise"]) != float(two["noise"])


def test_batch_statistics_move_on_from_part_to_part():
    def loss(params, model_state, key, batch):
        del key, batch
        return params["w"].sum(), LossAux(model_state + 1, {})

    optimizer = optax.sgd(1.0)
    params = {"w": jnp.zeros(3)}
    state = create_state(params, jnp.zeros(()), optimizer, jax.random.key(0))
    state, _ = make_train_step(loss, optimizer, accumulate=4)(state, batch_of(8))
    assert float(state.model_state) == 4


def test_parts_must_divide_the_batch():
    optimizer = optax.sgd(0.1)
    step = make_train_step(squares, optimizer, accumulate=3)
    with pytest.raises(InputError, match="`accumulate` must divide the batch of 8"):
        step(begin(optimizer), batch_of(8))
    with pytest.raises(InputError, match="`accumulate`"):
        make_train_step(squares, optimizer, accumulate=0)
    with pytest.raises(InputError, match="`average_decay`"):
        make_train_step(squares, optimizer, average_decay=1.5)


def test_the_moving_average_has_its_closed_form():
    optimizer, decay = optax.sgd(0.2), 0.3
    step = jax.jit(make_train_step(squares, optimizer, average_decay=decay))
    state = begin(optimizer, average=True)
    expected = np.float64(state.params["w"])
    for t in range(6):
        state, _ = step(state, batch_of(8, seed=t))
        d = min(decay, (1 + t) / (10 + t))
        expected = d * expected + (1 - d) * np.float64(state.params["w"])
        np.testing.assert_allclose(state.average["w"], expected, rtol=1e-5)
    np.testing.assert_array_equal(state.evaluated_params["w"], state.average["w"])


def test_preparation_happens_on_the_device_with_a_key_per_step():
    seen = []

    def loss(params, model_state, key, batch):
        return squares(params, model_state, key, batch)

    def prepare(key, x):
        return x + jax.random.uniform(key)

    def record(params, model_state, key, batch):
        value, aux = loss(params, model_state, key, batch)
        return value, aux._replace(metrics={"x": batch.x[0, 0]})

    optimizer = optax.sgd(0.0)
    step = jax.jit(make_train_step(record, optimizer, prepare=prepare))
    state = begin(optimizer)
    for _ in range(3):
        state, metrics = step(state, batch_of(8))
        seen.append(float(metrics["x"]))
    assert len(set(seen)) == 3
    again = [float(step(begin(optimizer), batch_of(8))[1]["x"]) for _ in range(2)]
    assert again == [seen[0], seen[0]]


def test_the_old_state_is_given_away():
    optimizer = optax.adam(0.1)
    step = jax.jit(
        make_train_step(squares, optimizer, average_decay=0.9), donate_argnums=0
    )
    state = jax.jit(lambda: begin(optimizer, average=True))()
    old = jax.tree.leaves((state.params, state.opt_state, state.average))
    step(state, batch_of(8))
    assert all(leaf.is_deleted() for leaf in old)


class Small(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Conv(8, (3, 3))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(10)(x.mean((1, 2)))


def test_one_and_eight_devices_agree():
    """Three steps of PGD training of a network with BatchNorm, augmentation and all."""
    model = models.from_linen(Small())
    attack = attacks.pgd(threats.linf(0.1), step_size=0.05, num_steps=2)
    loss = defenses.adversarial(model, attack)
    augment = data.chain(data.random_crop(padding=1), data.flip())
    digits = data.load("digits").train
    stream = data.shuffled_batches(digits, 32, seed=0)
    optimizer = training.sgd(training.constant(0.05))
    traces = []

    def counted(*args):
        traces.append(1)
        return loss(*args)

    def run(devices):
        mesh = training.data_mesh(jax.devices()[:devices])
        replicated = sharding.replicated(mesh)

        def new():
            params, model_state = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
            return create_state(params, model_state, optimizer, jax.random.key(1))

        state = jax.jit(new, out_shardings=replicated)()
        step = make_train_step(counted, optimizer, prepare=augment)
        step = jax.jit(step, out_shardings=replicated, donate_argnums=0)
        losses, batches = [], iter(stream)
        for _ in range(3):
            state, metrics = step(state, sharding.local_rows(mesh, next(batches)))
            losses.append(float(metrics["loss/total"]))
        return losses, jax.device_get(state.params)

    one, eight = run(1), run(8)
    # Entries of its cache would count placements too, which compile nothing.
    assert len(traces) == 2
    np.testing.assert_allclose(one[0], eight[0], atol=1e-6)
