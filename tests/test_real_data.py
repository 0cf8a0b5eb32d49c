"""The main job on the real thing, in small; needs TFDS_DATA_DIR."""

import os

import jax
import numpy as np
import pytest

from robustjax import attacks, data, defenses, evaluation, models, threats, training
from robustjax.data import Dataset

pytestmark = [
    pytest.mark.usefixtures("compile_fully"),
    pytest.mark.data,
    pytest.mark.skipif(
        "TFDS_DATA_DIR" not in os.environ,
        reason="set TFDS_DATA_DIR to a directory where TFDS prepared cifar10 and mnist",
    ),
]

MESH = training.data_mesh(jax.devices()[:1])


def train(module, train_set: Dataset, *, eps: float, steps: int, augment=None):
    model = models.from_linen(module)
    attack = attacks.fgsm(threats.linf(eps), random_start=threats.linf(eps).sample)
    optimizer = training.adam(training.one_cycle(5e-3, total_steps=steps))

    def prepare(key, images):
        x = data.as_float(images)
        return x if augment is None else augment(key, x)

    step = jax.jit(
        training.make_train_step(
            defenses.adversarial(model, attack), optimizer, prepare=prepare
        ),
        donate_argnums=0,
    )
    sample = data.as_float(train_set.images[:1])
    params, model_state = jax.jit(model.init)(jax.random.key(0), sample)
    state = training.create_state(params, model_state, optimizer, jax.random.key(1))
    batches = iter(data.shuffled_batches(train_set, 128, seed=0))
    losses = []
    for _ in range(steps):
        batch = training.sharding.local_rows(MESH, next(batches))
        state, metrics = step(state, batch)
        losses.append(metrics["loss/total"])
    return models.logits_fn(model, state.params, state.model_state), np.array(losses)


@pytest.mark.slow
def test_mnist_is_learned_robustly():
    splits = data.load("mnist")
    assert (len(splits.train), len(splits.test)) == (60_000, 10_000)
    logits_fn, _ = train(
        models.small_cnn(stages=((8,), (16,)), dense=64),
        splits.train,
        eps=0.1,
        steps=150,
    )
    pgd = attacks.pgd(threats.linf(0.1), step_size=0.025, num_steps=10)
    result = evaluation.evaluate(
        logits_fn,
        splits.test,
        [evaluation.NamedAttack("pgd", pgd)],
        key=jax.random.key(2),
        num_examples=512,
        mesh=MESH,
    )
    assert result.clean_correct.mean() > 0.9
    assert result.worst_case_correct.mean() > 0.7
    assert result.attacks[0].distance["linf"].max() <= 0.1 + 1e-6


def test_cifar10_loss_falls():
    splits = data.load("cifar10", validation=1000)
    assert (len(splits.train), len(splits.validation)) == (49_000, 1_000)
    augment = data.chain(data.random_crop(4), data.flip())
    module = models.small_cnn(stages=((16,), (32,)), dense=64)
    _, losses = train(module, splits.train, eps=8 / 255, steps=60, augment=augment)
    assert np.isfinite(losses).all()
    assert losses[-10:].mean() < losses[:5].mean() - 0.1
