"""What pairing, step curves and denoising cost: python benchmarks/pairing.py.

Training steps of AT+ALP over those of ALP (target <= 1.10) and M-PGD (<= 1.15), all
with the same PGD, at the ResNet-20 and ResNet-18 shapes; a 200-step attack that is
looked at five times over the same attack (<= 1.05); and a Gaussian denoising block
forward and backward against the side of its maps.
"""

from typing import Any

import common
import jax
import jax.numpy as jnp
from absl import app, flags

from robustjax import attacks, defenses, models, threats
from robustjax.types import Batch

_BATCH_SIZE = flags.DEFINE_integer("pairs", 16, "Clean images per batch.")
_STEPS = flags.DEFINE_integer("pairing_steps", 10, "Of the training attack.")
_ROUNDS = flags.DEFINE_integer("pairing_rounds", 7, "Interleaved rounds.")
_CURVE = (10, 20, 50, 100, 200)
_NETWORKS = {
    "resnet20": (models.resnet20, ("stage1", "stage2", "stage3")),
    "resnet18": (models.resnet18, ("stage1", "stage2", "stage3", "stage4")),
}


def steps_of(name: str) -> None:
    """Prints the ratios of training steps on one network."""
    factory, layers = _NETWORKS[name]
    model = models.from_linen(factory())
    batch = Batch(*common.images((32, 32, 3), _BATCH_SIZE.value))
    params, state = jax.jit(model.init)(jax.random.key(0), batch.x[:1])
    linf = threats.linf(8 / 255)
    attack = attacks.pgd(linf, step_size=2 / 255, num_steps=_STEPS.value)

    def call(logit: float, attention: float):
        loss_fn = defenses.at_alp(
            *(model, attack),
            logit_weight=logit,
            attention_weight=attention,
            layers=layers,
        )
        run = jax.jit(jax.grad(lambda *a: loss_fn(*a)[0]))
        return lambda: run(params, state, jax.random.key(1), batch)

    calls = {"M-PGD": call(0, 0), "ALP": call(0.5, 0), "AT+ALP": call(0.5, 1)}
    seconds = common.interleaved(calls, repeats=_ROUNDS.value)
    for other, target in (("ALP", 1.10), ("M-PGD", 1.15)):
        found = common.ratio(seconds, {other: 1}, "AT+ALP")
        common.print_row(
            f"{name}, {_BATCH_SIZE.value} pairs: a step of AT+ALP over {other}",
            f"{found:.3f}",
            f"<= {target}",
            met=found <= target,
        )


def curve() -> None:
    """Prints what looking at an attack costs."""
    model, params, state, shape = common.networks(["resnet20"])["resnet20"]
    x, y = common.images(shape, _BATCH_SIZE.value)
    predict = models.logits_fn(model, params, state)
    attack = attacks.pgd(threats.linf(8 / 255), step_size=1 / 255, num_steps=200)
    run = jax.jit(attack)
    seen = jax.jit(attacks.keep_trajectory(attack, _CURVE))
    calls = {
        "attack": lambda: run(jax.random.key(0), predict, x, y),
        "curve": lambda: seen(jax.random.key(0), predict, x, y),
    }
    seconds = common.interleaved(calls, repeats=_ROUNDS.value)
    found = common.ratio(seconds, {"attack": 1}, "curve")
    name = "200 steps seen at 10, 20, 50, 100, 200 over 200 steps"
    common.print_row(name, f"{found:.3f}", "<= 1.05", met=found <= 1.05)


def denoising() -> None:
    """Prints seconds and memory of a Gaussian block against the side of its maps."""
    print("gaussian block, 16 images, 64 channels, forward and backward:")
    calls, sizes = {}, {}
    for side in (4, 8, 16, 32):
        block = models.DenoisingBlock("gaussian", train=True)
        x = jax.random.normal(jax.random.key(0), (16, side, side, 64))
        variables = jax.jit(block.init)(jax.random.key(1), x)

        def total(variables, x, block=block):
            return block.apply(variables, x, mutable=["batch_stats"])[0].sum()

        run = jax.jit(jax.grad(total, argnums=1))
        memory: Any = run.lower(variables, x).compile().memory_analysis()
        sizes[side] = memory.temp_size_in_bytes / 2**20
        calls[str(side)] = lambda run=run, v=variables, x=x: run(v, x)
    seconds = common.interleaved(calls, repeats=_ROUNDS.value)
    for side, size in sizes.items():
        median = float(jnp.median(jnp.asarray(seconds[str(side)])))
        print(f"  {side:3d} x {side:<3d} {1e3 * median:9.1f} ms {size:9.1f} MiB")


def main(_: list[str]) -> None:
    """Prints all."""
    print(
        f"{jax.device_count()} x {jax.devices()[0].device_kind}, jax {jax.__version__}"
    )
    for name in _NETWORKS:
        steps_of(name)
    curve()
    denoising()


if __name__ == "__main__":
    app.run(main)
