"""Planted failures: classifiers that look robust to who attacks them naively.

And soundly trained ones, which no indicator may be raised by. All on digits, at an
L-infinity radius of 0.1.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from robustjax import attacks, data, defenses, models, threats, training
from robustjax import interpolation as wnll
from robustjax.evaluation import NamedAttack, evaluate, indicators
from robustjax.objectives import kl
from robustjax.transforms import nip, total_variation
from robustjax.types import Batch, defended_logits_fn

EPS, STEP, STEPS = 0.1, 0.025, 20
THREAT = threats.linf(EPS)
NAIVE = NamedAttack(
    f"PGD-{STEPS}", attacks.pgd(THREAT, step_size=STEP, num_steps=STEPS)
)
KEY = jax.random.key(0)


class Plant(NamedTuple):
    """A classifier with a failure in it.

    Attributes:
      build: Images to judge to `logits_fn`, and what attacks climb if it is another.
      named: The indicators of which one at least has to be raised.
    """

    build: Any
    named: tuple[str, ...]


class Net(nn.Module):
    """A small convolutional network with BatchNorm."""

    @nn.compact
    def __call__(self, x, *, train):
        for width in (16, 32):
            x = nn.Conv(width, (3, 3))(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        return nn.Dense(10)(nn.avg_pool(x, (2, 2), (2, 2)).reshape(len(x), -1))


def losses(model):
    """How sound models are trained, by name."""
    step = functools.partial(attacks.pgd, THREAT, step_size=0.03)
    start = threats.gaussian_start(0.001)
    return dict(
        standard=defenses.standard(model),
        pgd=defenses.adversarial(model, step(num_steps=7)),
        trades=defenses.trades(
            model, step(num_steps=7, objective=kl, random_start=start)
        ),
    )


@functools.cache
def trained(name, seed=0, num_steps=400, norm=False):
    """(model, params, state) of a small network, trained by this loss."""
    train = data.load("digits").train
    rng = np.random.default_rng(seed)
    model = models.from_linen(Net() if norm else models.small_cnn())
    weights = model.init(jax.random.key(seed), jnp.asarray(train.images[:1]))
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, num_steps))
    step = jax.jit(training.make_train_step(losses(model)[name], optimizer))
    state = training.create_state(*weights, optimizer, jax.random.key(seed + 1))
    for _ in range(num_steps):
        rows = rng.integers(len(train), size=128)
        state, _ = step(state, Batch(train.images[rows], train.labels[rows]))
    return model, state.params, state.model_state


def images(count=200):
    """Of the test split."""
    return data.load("digits").test.take(slice(count))


def sound(name, seed=0, **options):
    """A soundly trained classifier."""
    return models.logits_fn(*trained(name, seed, **options))


def judge(logits_fn, dataset, source=None, attack=NAIVE, **options):
    """What a naive author would find, and the indicators of it."""
    mesh = training.data_mesh(jax.devices()[:1])
    named = (
        NAIVE
        if source is None
        else NamedAttack(attack.name, attack.attack, source=source)
    )
    result = evaluate(
        logits_fn, dataset, [named], key=KEY, mesh=mesh, batch_size=len(dataset)
    )
    walk = dict(key=KEY, step_size=STEP, num_steps=STEPS, mesh=mesh, source=source)
    found = indicators(result, logits_fn, dataset, THREAT, **walk, **options)
    return result, {one.name: one for one in found}


def base():
    return sound("standard")


def quantised(dataset):
    """Eight grey levels, which have no gradient."""
    fun = base()
    return lambda x: fun(jnp.round(8 * x) / 8)


def rounded(dataset):
    """Rounding turns the slope of every pixel round."""
    fun = base()
    return lambda x: fun(2 * jnp.round(16 * x) / 16 - x)


def random(dataset):
    """Noise of the host's own, and nobody averages over it."""
    fun, rng = base(), np.random.default_rng(0)

    def noisy(x):
        draw = lambda: rng.uniform(-0.3, 0.3, x.shape).astype(np.float32)
        return fun(x + jax.pure_callback(draw, jax.ShapeDtypeStruct(x.shape, x.dtype)))

    return noisy


def scaled(dataset):
    """Logits so large that the cross-entropy has no gradient."""
    fun = base()
    return lambda x: 1e4 * fun(x)


def saturated(dataset):
    """A sharp softmax that is handed out as logits."""
    fun = base()
    return lambda x: jax.nn.softmax(20 * fun(x))


def nearest(x, points):
    """L-infinity distance to the nearest of these points, and which it is."""
    gaps = jnp.abs(x[:, None] - jnp.asarray(points)[None]).max(axis=(2, 3, 4))
    return gaps.min(axis=1), gaps.argmin(axis=1)


def flipping(dataset):
    """At the border of the ball the label of the image in the middle comes back."""
    fun, stored = base(), dataset.images

    def flipped(x):
        gap, which = nearest(x, stored)
        there = jnp.asarray(stored)[which]
        return jnp.where((gap > 0.9 * EPS)[:, None], fun(there), fun(x))

    return attacks.with_surrogate(flipped, fun)


def templates():
    """Embedded training images, for interpolating heads."""
    train = data.load("digits").train
    x = jnp.asarray(train.images[:200])
    features = wnll.embed(*trained("standard"), x, layer="flatten")
    return wnll.make_template(
        features, jnp.asarray(train.labels[:200]), wnll.Similarity(15, 8)
    )


def transductive(dataset):
    """Interpolates the whole batch together."""
    head = wnll.wnll(templates(), 10, queries="batch")
    return wnll.interpolated_logits_fn(*trained("standard"), head, layer="flatten")


def straight_through(dataset):
    """WNLL with the derivative of the linear head, as in the papers."""
    head = wnll.wnll(templates(), 10, queries="single")
    return wnll.interpolated_logits_fn(
        *trained("standard"), head, layer="flatten", gradient="straight_through"
    )


def predicted(dataset):
    """NIP that moves the image towards the predicted class."""
    train = data.load("digits").train
    batch = Batch(jnp.asarray(train.images[:500]), jnp.asarray(train.labels[:500]))
    model_fn = models.model_fn(*trained("standard"))
    defense = nip(policy="predicted", size=0.1)
    state = defense.fit(KEY, model_fn, batch)
    return defended_logits_fn(defense.apply, state, KEY, model_fn)


def smoothed(dataset):
    """Total variation is minimised, and its derivative is nobody's business."""
    transform = total_variation(weight=0.1, p_drop=0.0, tolerance=1e-2, max_steps=50)
    fun = base()

    def without_gradient(x):
        clean = transform.apply(
            (), jax.random.clone(KEY), fun, jax.lax.stop_gradient(x)
        )
        return fun(jax.lax.stop_gradient(clean) + 0 * x)

    return without_gradient


def train_mode(dataset):
    """BatchNorm by the statistics of the images that are judged together."""
    model, params, state = trained("standard", norm=True)
    return lambda x: model.apply(params, state, x, mode="batch").logits


def memorised(dataset):
    """Knows the points that the evaluation's own draws lead to."""
    fun = base()
    mesh = training.data_mesh(jax.devices()[:1])
    found = evaluate(
        *(fun, dataset, [NAIVE]),
        key=KEY,
        mesh=mesh,
        keep_adversarial=True,
        batch_size=len(dataset),
    )
    points = found.attacks[0].x_adv
    answers = 10.0 * jax.nn.one_hot(dataset.labels, 10)

    def remembering(x):
        gap, which = nearest(x, points)
        return jnp.where((gap < 1e-3)[:, None], answers[which], fun(x))

    return attacks.with_surrogate(remembering, fun)


PLANTS = {
    "quantised input without gradient": Plant(quantised, ("gradient", "queries")),
    "rounding that shatters gradients": Plant(rounded, ("unbounded", "queries")),
    "random outputs without EOT": Plant(random, ("random",)),
    "logits times 1e4": Plant(scaled, ("gradient", "logit_scale")),
    "saturated softmax": Plant(saturated, ("probabilities",)),
    "label-flipping at eps": Plant(flipping, ("monotone", "chance")),
    "a transductive head": Plant(transductive, ("transductive",)),
    "WNLL with straight-through gradients": Plant(
        straight_through, ("gradient", "queries")
    ),
    "NIP with predicted labels": Plant(predicted, ("queries", "more_restarts")),
    "TVM without BPDA": Plant(smoothed, ("gradient", "queries")),
    "train-mode BatchNorm at test time": Plant(train_mode, ("transductive",)),
    "memorised evaluation noise": Plant(memorised, ("more_restarts",)),
}
SOUND = ("standard", "pgd", "trades")


LIGHT = dict(subset=100, num_draws=1000, num_queries=200)


def measured(name):
    """What the tables of docs/zoo.md say of one classifier, JSON-able."""
    dataset, plant = images(), PLANTS.get(name)
    fun = sound(name) if plant is None else plant.build(dataset)
    result, found = judge(fun, dataset, **LIGHT)
    fields = ("name", "value", "threshold", "flagged")
    return dict(
        clean=float(result.clean_correct.mean()),
        robust=float(result.worst_case_correct.mean()),
        named=[] if plant is None else list(plant.named),
        indicators=[
            {field: one._asdict()[field] for field in fields} for one in found.values()
        ],
    )
