"""What a training step costs beyond its gradients: python benchmarks/train_step.py.

Time of an adversarial training step over k input gradients and one value_and_grad of
the parameters, all jitted, the same model and batch; the target is <= 1.10.
"""

import common
import jax
import numpy as np
from absl import app, flags
from attack_overhead import input_gradient

from robustjax import attacks, defenses, models, objectives, threats, training
from robustjax.types import Batch

_BATCH_SIZE = flags.DEFINE_integer("train_batch_size", 128, "Images per batch.")
_STEPS = flags.DEFINE_integer("attack_steps", 10, "Steps of PGD.")
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Interleaved rounds; the median counts.")
_MODELS = flags.DEFINE_list("networks", ["small_cnn", "resnet20"], "Which networks.")


def main(_: list[str]) -> None:
    """Prints the table."""
    print(
        f"{jax.device_count()} x {jax.devices()[0].device_kind}, jax {jax.__version__}"
    )
    steps = _STEPS.value
    for name, network in common.networks(_MODELS.value).items():
        model, params, model_state, shape = network
        x, y = common.images(shape, _BATCH_SIZE.value)
        batch = Batch(x, y)

        def loss(params, model_state, batch, model=model):
            out = model.apply(params, model_state, batch.x, mode="train")
            value = objectives.cross_entropy(out.logits, batch.y).mean()
            return value, out.model_state

        attack = attacks.pgd(threats.linf(8 / 255), step_size=2 / 255, num_steps=steps)
        optimizer = training.sgd(training.constant(1e-3), weight_decay=5e-4)
        step = jax.jit(
            training.make_train_step(defenses.adversarial(model, attack), optimizer),
            donate_argnums=0,
        )
        state = training.create_state(params, model_state, optimizer, jax.random.key(0))
        holder = [jax.tree.map(jax.numpy.copy, state)]  # each call donates the last

        def train(holder=holder, step=step, batch=batch):
            holder[0], metrics = step(holder[0], batch)
            return metrics

        parameters = jax.jit(jax.value_and_grad(loss, has_aux=True))
        logits_fn = models.logits_fn(model, params, model_state)
        seconds = common.interleaved(
            {
                "input": lambda f=logits_fn, x=x, y=y: input_gradient(f, x, y),
                "parameters": lambda g=parameters, p=params, s=model_state, b=batch: g(
                    p, s, b
                ),
                "step": train,
            },
            repeats=_ROUNDS.value,
        )
        share = common.ratio(seconds, {"input": steps, "parameters": 1}, "step")
        title = f"{name}: step / ({steps} x input + 1 x parameters), batch {len(x)}"
        common.print_row(title, f"{share:.3f}", "<= 1.10", met=share <= 1.1)
        parts = ", ".join(
            f"{k} {1e3 * np.median(v):.0f} ms" for k, v in seconds.items()
        )
        print(f"  medians: {parts}")


if __name__ == "__main__":
    app.run(main)
