"""What NAMID costs beside adversarial training: python benchmarks/namid.py.

A step of the third stage over a step of adversarial training with the same attack,
ResNet-18 on 32x32 images with critics of U = 2048, at the batch that fits the machine;
the target is <= 1.25. And the critics' memory: their weights, what a training step of
the critics' own needs, and what the third stage needs beyond adversarial training.
"""

import math

import common
import jax
import numpy as np
from absl import app, flags

from robustjax import attacks, defenses, models, threats, training
from robustjax.types import Batch

_BATCH_SIZE = flags.DEFINE_integer("namid_batch_size", 32, "Images per batch.")
_UNITS = flags.DEFINE_integer("units", 2048, "U of the critics.")
_STEPS = flags.DEFINE_integer("namid_attack_steps", 10, "Steps of PGD.")
_ROUNDS = flags.DEFINE_integer("namid_rounds", 5, "Interleaved rounds.")
_MIB = 2**20


def main(_: list[str]) -> None:
    """Prints the table."""
    print(
        f"{jax.device_count()} x {jax.devices()[0].device_kind}, jax {jax.__version__}"
    )
    x, y = common.images((32, 32, 3), _BATCH_SIZE.value)
    batch = Batch(x, y)
    model = models.part(models.from_linen(models.resnet18(stem_padding=0)), "model")
    critic = models.logits_critic(_UNITS.value)

    @jax.jit
    def init(key):
        keys = jax.random.split(key, 3)
        params, states = model.init(keys[0], x[:1])
        z = jax.numpy.zeros((1, 10))
        for name, own in zip(("natural", "adversarial"), keys[1:], strict=True):
            params[name], states[name] = critic.init(own, x[:1], z)
        return params, states

    params, states = init(jax.random.key(0))
    attack = attacks.pgd(
        threats.linf(8 / 255), step_size=2 / 255, num_steps=_STEPS.value
    )
    base = defenses.adversarial(model, attack)
    losses = {
        "adversarial": (base, {"model": True}),
        "namid": (defenses.namid(model, base, critic, critic), {"model": True}),
        "critics": (
            defenses.critics(model, attack, critic, critic),
            {"natural": True, "adversarial": True},
        ),
    }
    calls, memory = {}, {}
    for name, (loss_fn, trained) in losses.items():
        trainable = {part: part in trained for part in params}
        optimizer = training.freeze(
            training.sgd(training.constant(1e-3), weight_decay=2e-4), trainable
        )
        step = training.make_train_step(loss_fn, optimizer, trainable=trainable)
        state = training.create_state(params, states, optimizer, jax.random.key(0))
        compiled = jax.jit(step).lower(state, batch).compile()
        analysis = compiled.memory_analysis()
        memory[name] = analysis.temp_size_in_bytes / _MIB if analysis else math.nan
        if name != "critics":
            calls[name] = lambda run=compiled, s=state: run(s, batch)[1]
    seconds = common.interleaved(calls, repeats=_ROUNDS.value)
    share = common.ratio(seconds, {"adversarial": 1}, "namid")
    title = f"stage 3 / adversarial training, U {_UNITS.value}, batch {len(x)}"
    common.print_row(title, f"{share:.3f}", "<= 1.25", met=share <= 1.25)
    for name, rounds in seconds.items():
        print(f"  {name}: median {np.median(rounds):.2f} s")
    count = sum(leaf.size for leaf in jax.tree.leaves(params["natural"]))
    print(f"  a critic: {count:,} parameters, {4 * count / _MIB:.0f} MiB in float32")
    for name, amount in memory.items():
        print(f"  temporaries of a step, {name}: {amount:,.0f} MiB")


if __name__ == "__main__":
    app.run(main)
