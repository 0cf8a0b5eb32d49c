"""A toy that trains in milliseconds and depends on everything a run may depend on."""

import subprocess
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from robustjax import training
from robustjax.data import Dataset, shuffled_batches
from robustjax.types import LossAux, Stage

STEPS_PER_EPOCH = 3


def _dataset():
    rng = np.random.default_rng(0)
    images = rng.random((48, 4, 4, 1), np.float32)
    labels = (images.mean((1, 2, 3)) > 0.5).astype(np.int32)
    return Dataset(images, labels, np.arange(48), ("dark", "bright"))


def _init(key):
    model_key, critic_key = jax.random.split(key)
    params = {
        "model": {"w": 0.1 * jax.random.normal(model_key, (16, 2)), "b": jnp.zeros(2)},
        "critic": {"w": 0.1 * jax.random.normal(critic_key, (16, 2))},
    }
    return params, {"count": jnp.zeros(())}


def _logits(params, x):
    flat = x.reshape(x.shape[0], -1)
    model, critic = params["model"], params["critic"]
    return flat @ (model["w"] + critic["w"]) + model["b"][None]


def _loss(params, model_state, key, batch):
    x = batch.x + 0.2 * jax.random.uniform(key, batch.x.shape)  # so that keys matter
    logits = _logits(params, x)
    value = optax.softmax_cross_entropy_with_integer_labels(logits, batch.y).mean()
    accuracy = (logits.argmax(1) == batch.y).mean()
    new = {"count": model_state["count"] + 1.0}
    return value, LossAux(new, {"accuracy/clean": accuracy})


def _stage(name="train", **changes):
    stream = shuffled_batches(_dataset(), 16, seed=len(name))
    rest = dict(loss_fn=_loss, optimizer=optax.adam(0.02), num_epochs=4, data=stream)
    return Stage(name=name, **{**rest, **changes})


def _validate(params, model_state):
    dataset = _dataset()
    right = _logits(params, jnp.asarray(dataset.images)).argmax(1) == dataset.labels
    return {"validation/robust_accuracy": float(right.mean())}


def _train(workdir, stages=None, *, seed=0, validate=_validate, mesh=None, **options):
    """A run; `options` are those of the loop."""
    options = {"log_every": 2, "progress_bar": False, **options}
    return training.train(
        [_stage()] if stages is None else stages,
        _init,
        key=jax.random.key(seed),
        workdir=workdir,
        validate=validate,
        options=training.LoopOptions(**options),
        mesh=mesh or training.data_mesh(jax.devices()[:1]),
    )


def _load(workdir, stages=None, **rest):
    mesh = training.data_mesh(jax.devices()[:1])
    return training.load(
        stages or [_stage()], _init, workdir=workdir, mesh=mesh, **rest
    )


def _bits(tree):
    """All leaves as bytes."""

    def plain(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        return np.asarray(leaf).tobytes()

    return [plain(leaf) for leaf in jax.tree.leaves(tree)]


@pytest.fixture(scope="session")
def toy():
    return types.SimpleNamespace(
        dataset=_dataset(),
        init=_init,
        logits=_logits,
        loss=_loss,
        stage=_stage,
        validate=_validate,
        train=_train,
        load=_load,
        bits=_bits,
        steps_per_epoch=STEPS_PER_EPOCH,
    )


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a file system of a size; skips where none can be mounted."""
    directory = tmp_path / "disk"
    directory.mkdir()

    def mount(size):
        line = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(directory)]
        try:
            subprocess.run(line, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("mounting a small disk needs root and CAP_SYS_ADMIN")
        return directory

    yield mount
    subprocess.run(["umount", "--lazy", str(directory)], capture_output=True)
