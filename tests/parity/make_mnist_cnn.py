"""Trains the network of the comparison: python tests/parity/make_mnist_cnn.py.

52,138 weights, trained on MNIST against FGSM from random starts within 0.1, so that
accuracies under attack are neither 0 nor 100%. Needs TFDS_DATA_DIR; under a minute.
Writes mnist_cnn.npz beside this file.
"""

import jax
import mnist_cnn
import numpy as np
from tqdm import tqdm

from robustjax import attacks, data, defenses, models, threats, training

EPS, STEPS, BATCH_SIZE = 0.1, 1000, 128


def main():
    train_set = data.load("mnist").train
    model = models.from_linen(mnist_cnn.MODULE)
    threat = threats.linf(EPS)
    fgsm = attacks.fgsm(threat, step_size=1.25 * EPS, random_start=threat.sample)
    optimizer = training.adam(training.one_cycle(5e-3, total_steps=STEPS))
    step = jax.jit(
        training.make_train_step(
            defenses.adversarial(model, fgsm),
            optimizer,
            prepare=lambda key, images: data.as_float(images),
        ),
        donate_argnums=0,
    )
    sample = data.as_float(train_set.images[:1])
    params, model_state = jax.jit(model.init)(jax.random.key(0), sample)
    state = training.create_state(params, model_state, optimizer, jax.random.key(1))
    mesh = training.data_mesh(jax.devices()[:1])
    batches = iter(data.shuffled_batches(train_set, BATCH_SIZE, seed=0))
    progress = tqdm(range(STEPS))
    for index in progress:
        batch = training.sharding.local_rows(mesh, next(batches))
        state, metrics = step(state, batch)
        if index % 50 == 0:
            progress.set_postfix(loss=float(metrics["loss/total"]))
    arrays = {
        f"{layer}/{name}": np.asarray(value)
        for layer, leaves in state.params.items()
        for name, value in leaves.items()
    }
    np.savez_compressed(mnist_cnn.WEIGHTS, **arrays)


if __name__ == "__main__":
    main()
