"""What an evaluation will cost, before it starts.

An attack's passes are counted in its program, traced on a linear classifier that costs
nothing; a pass of the real one is timed once. Where the attack climbs another function
or brings networks along, their work is weighed against that pass by what they multiply.
"""

import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from robustjax._checks import InputError
from robustjax.attacks import Stage, StagedAttack
from robustjax.data import Dataset, as_float
from robustjax.evaluation._batching import batches_of
from robustjax.evaluation._programs import multiplications, multiply_adds, products
from robustjax.evaluation.results import NamedAttack
from robustjax.types import Attack, LogitsFn, as_pytree

_BACKWARD = 2.0  # passes forward that a pass backward costs
_SLOWEST = 1e-9  # seconds of a product; passes that take longer do something else
_COMPILATIONS = 4.0  # an attack compiles as long as this many forward passes


class Passes(NamedTuple):
    """How often an attack asks the classifier, per image.

    Attributes:
      forward: Forward passes; loops that may stop early are counted to their limit.
      backward: Backward passes.
    """

    forward: float
    backward: float

    @property
    def cost(self) -> float:
        """In forward passes."""
        return self.forward + _BACKWARD * self.backward


def count_passes(attack: Attack, shape: Sequence[int], num_classes: int) -> Passes:
    """The passes of an attack on one image, from its program: nothing is run.

    A staged attack is counted as if no stage broke an image.

    Args:
      attack: Any attack.
      shape: [H, W, C].
      num_classes: K.

    Example:
      >>> from robustjax import attacks, threats
      >>> pgd = attacks.pgd(threats.linf(0.1), step_size=0.02, num_steps=20)
      >>> count_passes(attacks.restarts(pgd, 5, at_once=1), (8, 8, 1), 10)
      Passes(forward=105.0, backward=100.0)
    """
    return _count(attack, shape, (num_classes,)).passes


class _Count(NamedTuple):
    """Per image: passes, and the multiplications on networks of the attack's own."""

    passes: Passes
    beside: float


def _count(
    attack: Attack, shape: Sequence[int], answer: Sequence[int], images: int = 1
) -> _Count:
    """On a linear function of an image whose answers have the shape `answer`.

    What an attack does once for a batch, such as moving templates along, its `images`
    share.
    """
    if isinstance(attack, StagedAttack):
        stages = attack.stages(answer[-1])
        found = [_count_stage(stage, shape, answer[-1], images) for stage in stages]
        passes, beside = zip(*found, strict=True)
        return _Count(Passes(*map(sum, zip(*passes, strict=True))), sum(beside))
    sizes = math.prod(shape), math.prod(answer)
    weights = jax.ShapeDtypeStruct(sizes, jnp.float32)

    def run(weights, x, y):
        flat = lambda z: z.reshape(z.shape[0], -1)
        linear = lambda z: (flat(z) @ weights).reshape(z.shape[0], *answer)
        return attack(jax.random.key(0), linear, x, y)

    x = jax.ShapeDtypeStruct((images, *shape), jnp.float32)
    y = jax.ShapeDtypeStruct((images,), jnp.int32)
    jaxpr = jax.make_jaxpr(run)(weights, x, y).jaxpr
    forward = backward = beside = 0.0
    for eqn, times in products(jaxpr):
        shapes = [v.aval.shape for v in eqn.invars]
        if eqn.primitive.name == "mul" or weights.shape not in shapes:
            beside += times * multiplications(eqn)
            continue
        other = shapes[1 - shapes.index(weights.shape)]
        contracted = eqn.params["dimension_numbers"][0][shapes.index(weights.shape)]
        size = weights.shape[contracted[0]]
        rows = times * math.prod(other) / size
        forward += rows * (contracted[0] == 0)
        backward += rows * (contracted[0] == 1)
    return _Count(Passes(forward / images, backward / images), beside / images)


def _count_stage(
    stage: Stage, shape: Sequence[int], num_classes: int, images: int = 1
) -> _Count:
    once = _count(stage.attack(jnp.int32(0)), shape, (num_classes,), images)
    passes = Passes(*(stage.rounds * passes for passes in once.passes))
    return _Count(passes, stage.rounds * once.beside)


def stage_cost(stage: Stage, shape: Sequence[int], num_classes: int) -> float:
    """Of a stage of a staged attack on an image that it does not break, as `Passes`."""
    return _count_stage(stage, shape, num_classes).passes.cost


def _counted(
    named: NamedAttack, shape: Sequence[int], num_classes: int, images: int
) -> _Count:
    """NaN for attacks that a linear classifier does not serve."""
    answer: tuple[int, ...] = (num_classes,)
    try:
        if named.source is not None:  # it may answer for every candidate of a defense
            x = jax.ShapeDtypeStruct((images, *shape), jnp.float32)
            answer = jax.eval_shape(named.source, x).shape[1:]
        return _count(named.attack, shape, answer, images)
    except InputError:
        if named.source is None:  # better now than after the attacks before it
            raise
    except Exception:  # an estimate is not worth an evaluation
        pass
    return _Count(Passes(math.nan, math.nan), math.nan)


class Estimate(NamedTuple):
    """Seconds that an evaluation takes.

    Attributes:
      seconds: By attack, compilation included; NaN where it cannot be said.
      at_most: Whether it is less where stages before break images, by attack.
      passes: By attack.
      total: Of all.
      per_pass: Of one image forwards.
      compiling: Of one program.
    """

    seconds: tuple[float, ...]
    at_most: tuple[bool, ...]
    passes: tuple[Passes, ...]
    total: float
    per_pass: float = 0.0
    compiling: float = 0.0


def estimate(
    logits_fn: LogitsFn,
    dataset: Dataset,
    attacks: Sequence[NamedAttack],
    *,
    batch_size: int = 512,
    num_examples: int | None = None,
    mesh: Mesh | None = None,
) -> Estimate:
    """How long `evaluate` will take, from one timed forward pass.

    Args:
      logits_fn: The classifier.
      dataset: What it is judged on.
      attacks: By which attacks.
      batch_size: Images at a time.
      num_examples: Only the first that many; None for all.
      mesh: Devices, by default all of them.

    Raises:
      InputError: `batch_size` does not fit the classifier, as in `evaluate`, or an
        attack does not fit the images or the number of classes.

    Example:
      >>> from robustjax import attacks, threats
      >>> data = Dataset(np.zeros((4, 2, 1, 1), np.float32), np.zeros(4, np.int32),
      ...     np.arange(4), ("a", "b"))
      >>> fgsm = NamedAttack("fgsm", attacks.fgsm(threats.linf(0.1)))
      >>> found = estimate(lambda x: x.reshape(-1, 2), data, [fgsm])
      >>> found.passes, found.total > 0
      ((Passes(forward=1.0, backward=1.0),), True)
    """
    predict = as_pytree(logits_fn)
    count = len(dataset) if num_examples is None else num_examples
    first = next(batches_of(predict, dataset, batch_size, num_examples, mesh))
    x = as_float(jnp.asarray(first.x))
    rows = min(len(x), count)
    compiling, *seconds = (_seconds(_forward, predict, x) for _ in range(4))
    per_image = float(np.median(seconds)) / rows
    work = multiply_adds(predict, x) / len(x)
    per_product = min(per_image / work, _SLOWEST) if work else _SLOWEST
    starting = _COMPILATIONS * compiling
    spent, found = [], []
    for named in attacks:
        passes, beside = _counted(named, x.shape[1:], dataset.num_classes, len(x))
        climbed = work
        if named.source is not None:
            climbed = multiply_adds(named.source, x) / len(x)
        price = per_image if climbed in (0.0, work) else climbed * per_product
        asked = passes.cost * price + beside * per_product
        judged = (1 + len(named.judges)) * per_image
        spent.append(named.repeats * (asked + judged) * count + starting)
        found.append(passes)
    at_most = tuple(isinstance(named.attack, StagedAttack) for named in attacks)
    whole = float(np.nansum(spent)) + per_image * count
    return Estimate(tuple(spent), at_most, tuple(found), whole, per_image, starting)


@jax.jit
def _forward(predict: LogitsFn, x: jax.Array) -> jax.Array:
    return predict(x)


def _seconds(fun: Any, *given: Any) -> float:
    start = time.perf_counter()
    jax.block_until_ready(fun(*given))
    return time.perf_counter() - start
