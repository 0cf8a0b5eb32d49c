"""The compiled loop of an attack holds canonical convolutions only (CPU).

XLA on CPU runs any other layout inside a `while` body on a naive kernel, 10 to 20 times
slower, and nothing but the clock would tell.
"""

import functools
import re

import cases
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from robustjax import attacks, models, objectives, threats
from robustjax._gradients import loop_safe
from robustjax.models.residual import PreActBlock
from robustjax.models.stems import BareStem
from robustjax.models.trunk import ResNet

pytestmark = pytest.mark.skipif(
    jax.default_backend() != "cpu", reason="loop_safe does nothing elsewhere"
)
CANONICAL = {"b01f_01io->b01f", "b0f_0io->b0f", "b012f_012io->b012f"}


def layouts_in_loops(hlo):
    """dim_labels of every convolution in a computation that a `while` body reaches."""
    bodies, name = {}, None
    for line in hlo.splitlines():
        if header := re.match(r"(?:ENTRY )?%?([\w.\-]+) .*\{$", line):
            name, bodies[header[1]] = header[1], []
        elif name:
            bodies[name].append(line)
    called = {
        name: set(re.findall(r"%([\w.\-]+)", " ".join(lines))) & bodies.keys()
        for name, lines in bodies.items()
    }
    reached, waiting = set(), set(re.findall(r"body=%?([\w.\-]+)", hlo))
    while waiting:
        name = waiting.pop()
        reached.add(name)
        waiting |= called[name] - reached
    text = "\n".join(line for name in reached for line in bodies[name])
    return re.findall(r"dim_labels=([^,\s]+)", text)


def compiled(model, size, channels, attack):
    """The optimised HLO of an attack on a model that nobody has initialised."""
    x = jax.ShapeDtypeStruct((2, size, size, channels), jnp.float32)
    y = jax.ShapeDtypeStruct((2,), jnp.int32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    params, state = jax.eval_shape(model.init, key, x)

    @jax.jit
    def run(params, state, key, x, y):
        return attack(key, models.logits_fn(model, params, state), x, y)

    return run.lower(params, state, key, x, y).compile().as_text()


def pgd(num_steps=3):
    return attacks.pgd(threats.linf(0.03), step_size=0.01, num_steps=num_steps)


class Theirs(nn.Module):
    """Strides, dilation and a transposed convolution, which no model of ours has."""

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.relu(nn.Conv(6, (3, 3), strides=2)(x))
        x = nn.relu(nn.Conv(6, (3, 3), kernel_dilation=2, padding="VALID")(x))
        x = nn.relu(nn.ConvTranspose(5, (3, 3), strides=(2, 2))(x))
        return nn.Dense(4)(x.mean((1, 2)))


def theirs_nnx(rngs):
    return nnx.Sequential(
        nnx.Conv(3, 6, (5, 5), strides=2, rngs=rngs),
        nnx.BatchNorm(6, rngs=rngs),
        nnx.relu,
        nnx.Conv(6, 5, (3, 3), rngs=rngs),
        lambda x: x.mean((1, 2)),
        nnx.Linear(5, 4, rngs=rngs),
    )


def small_wide_resnet():
    # The blocks of WideResNet-28-10 and 34-10, one to a stage, a tenth as wide.
    return ResNet(
        functools.partial(BareStem, 16, 1),
        PreActBlock,
        (1, 1, 1),
        (16, 32, 64),
        final_norm=True,
    )


LINEN = {
    "small_cnn": (models.small_cnn, 8, 1),
    "wnll_mnist_cnn": (models.wnll_mnist_cnn, 28, 1),
    "resnet20": (models.resnet20, 16, 3),
    "resnet18": (models.resnet18, 8, 3),
    "preact_resnet18": (models.preact_resnet18, 8, 3),
    "wide_resnet": (small_wide_resnet, 16, 3),
    "vgg19_bn": (models.vgg19_bn, 32, 3),
    "resnet50": (models.resnet50, 32, 3),
    "theirs": (Theirs, 16, 3),
}


@pytest.mark.parametrize("name", LINEN)
def test_every_model_of_ours_and_a_linen_one_that_is_not(name):
    module, size, channels = LINEN[name]
    hlo = compiled(models.from_linen(module()), size, channels, pgd())
    layouts = layouts_in_loops(hlo)
    assert layouts
    assert set(layouts) <= CANONICAL


def test_an_nnx_model_that_is_not_ours():
    layouts = layouts_in_loops(compiled(models.from_nnx(theirs_nnx), 16, 3, pgd()))
    assert layouts
    assert set(layouts) <= CANONICAL


@pytest.mark.parametrize(
    "attack",
    [
        attacks.restarts(pgd(), 3),
        attacks.pgd(
            threats.l1(2.0, sparsity=0.1),
            step_size=0.1,
            num_steps=3,
            objective=objectives.dlr,
            iterate="best",
        ),
        lambda key, f, x, y: jax.vmap(
            lambda e: attacks.mi_fgsm(threats.l2(e))(jax.random.clone(key), f, x, y)
        )(jnp.array([0.1, 0.2])),
    ],
    ids=["restarts", "best-l1", "vmap-eps"],
)
def test_every_way_to_loop(attack):
    model = models.from_linen(models.small_cnn())
    layouts = layouts_in_loops(compiled(model, 8, 1, attack))
    assert layouts
    assert set(layouts) <= CANONICAL


def every_case():
    """Attacks of the shared suite; three ways to differentiate run in CI."""
    for name, case in cases.ATTACKS.items():
        if not case.on_host:
            quick = name in ("apgd", "fab", "carlini-wagner")
            yield pytest.param(name, marks=() if quick else (pytest.mark.slow,))


@pytest.mark.parametrize("name", every_case())
def test_every_attack(name):
    case = cases.ATTACKS[name]
    make, eps = cases.THREATS[case.threats[0]]
    model = models.from_linen(models.small_cnn(stages=((4,), (6,)), num_classes=4))
    assert (
        set(layouts_in_loops(compiled(model, 8, 1, case.make(make(eps))))) <= CANONICAL
    )


def test_the_usual_loop_is_caught():
    """The negative control: this file can fail."""
    model = models.from_linen(models.small_cnn())

    def naive(key, logits_fn, x, y):
        gradient = jax.grad(lambda z: objectives.cross_entropy(logits_fn(z), y).sum())
        step = lambda z, _: (z + 0.1 * jnp.sign(gradient(z)), None)
        return jax.lax.scan(step, x, length=3)[0]

    assert not set(layouts_in_loops(compiled(model, 8, 1, naive))) <= CANONICAL

    def fixed(key, logits_fn, x, y):
        gradient = loop_safe(
            jax.grad(lambda z: objectives.cross_entropy(logits_fn(z), y).sum())
        )
        return jax.lax.scan(
            lambda z, _: (z + 0.1 * jnp.sign(gradient(z)), None), x, length=3
        )[0]

    assert set(layouts_in_loops(compiled(model, 8, 1, fixed))) <= CANONICAL
