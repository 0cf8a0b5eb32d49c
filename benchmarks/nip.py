"""What neuron influence and NIP cost: python benchmarks/nip.py.

On ResNet-20 and images of CIFAR's size: the influence of a layer on 1,000 images over
one forward pass of the model plus one backward pass from the logits to that layer, each
timed on its own (target <= 1.2); `candidates` with 10 universal directions over 11
forward passes (target <= 1.15); and that another batch of the same shape compiles
nothing.
"""

import common
import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from robustjax import influence, models
from robustjax.transforms import nip
from robustjax.types import Batch

_NUM = flags.DEFINE_integer("nip_images", 1000, "Images whose influence is measured.")
_BATCH = flags.DEFINE_integer("nip_batch", 128, "Images that are defended at a time.")
_ROUNDS = flags.DEFINE_integer("nip_rounds", 5, "Interleaved rounds.")
_LAYERS = flags.DEFINE_multi_string(
    "nip_layer", ["features", "stage3", "stage2"], "Layers whose influence is measured."
)


def main(_: list[str]) -> None:
    """Prints the table."""
    print(
        f"{jax.device_count()} x {jax.devices()[0].device_kind}, jax {jax.__version__}"
    )
    model, params, state, shape = common.networks(["resnet20"])["resnet20"]
    model_fn = models.model_fn(model, params, state)
    x, y = common.images(shape, _NUM.value)
    for layer in _LAYERS.value:
        influences(model_fn, x, y, layer)
    candidates(model_fn, x)


def influences(model_fn, x, y, layer: str) -> None:
    """The row of one layer."""
    forward = jax.jit(lambda f, x: f(x).logits)
    measured = jax.jit(
        lambda f, x, y: influence.activation_x_gradient(f, x, y, layer=layer)
    )
    # The part above the layer alone, from what a forward pass has kept for it.
    backward = jax.jit(lambda pull_back, rows: pull_back(rows)[0])
    logits, pull_back = jax.jit(_above, static_argnums=2)(model_fn, x, layer)
    rows = jax.nn.one_hot(y, logits.shape[1], dtype=logits.dtype)
    calls = {
        "forward": lambda: forward(model_fn, x),
        "backward": lambda: backward(pull_back, rows),
        "influence": lambda: measured(model_fn, x, y),
    }
    seconds = common.interleaved(calls, repeats=_ROUNDS.value)
    medians = {name: float(np.median(s)) for name, s in seconds.items()}
    share = common.ratio(seconds, {"forward": 1, "backward": 1}, "influence")
    title = f"influence of {layer} / forward + its backward, {len(x)} images"
    common.print_row(title, f"{share:.3f}", "<= 1.2", met=share <= 1.2)
    print("  " + ", ".join(f"{n}: median {s:.3f} s" for n, s in medians.items()))


def _above(model_fn, x, layer: str):
    """Logits, and their derivative with respect to a layer's output."""
    shape = jax.eval_shape(lambda x: model_fn(x, capture=(layer,)).features[layer], x)
    tap = jnp.zeros(shape.shape, shape.dtype)
    return jax.vjp(lambda tap: model_fn(x, taps={layer: tap}).logits, tap)


def candidates(model_fn, x) -> None:
    """The row of NIP at test time."""
    defense = nip(layer="features", size=0.01)
    # The network is not trained: a state of the right shapes stands for a fitted one.
    benign = Batch(x[:200], jnp.zeros(len(x[:200]), int))
    fit = lambda key, batch: defense.fit(key, model_fn, batch)
    state = jax.eval_shape(fit, jax.random.key(0), benign)
    state = jax.tree.map(lambda a: jnp.ones(a.shape, a.dtype), state)
    batch, other = x[: _BATCH.value], x[_BATCH.value : 2 * _BATCH.value]
    forward = jax.jit(lambda f, x: f(x).logits)
    traces = []

    @jax.jit
    def apply(state, model_fn, x):
        traces.append(1)
        return defense.apply(state, jax.random.key(0), model_fn, x)

    eleven = jnp.tile(batch, (11, 1, 1, 1))
    calls = {
        "11 forwards": lambda: [forward(model_fn, batch) for _ in range(11)],
        "11 at once": lambda: forward(model_fn, eleven),
        "candidates": lambda: apply(state, model_fn, batch),
    }
    seconds = common.interleaved(calls, repeats=_ROUNDS.value)
    for name in ("11 forwards", "11 at once"):
        share = common.ratio(seconds, {name: 1}, "candidates")
        title = f"candidates of 10 classes / {name}, batch {len(batch)}"
        common.print_row(title, f"{share:.3f}", "<= 1.15", met=share <= 1.15)
    jax.block_until_ready(apply(state, model_fn, other))
    again = len(traces) - 1
    common.print_row("compilations for another batch", str(again), "0", met=not again)


if __name__ == "__main__":
    app.run(main)
