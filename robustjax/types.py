"""The contracts: only these shapes exist, so everything composes.

Axes: `B` batch, `H, W, C` image, `K` classes, `D` features. Pixels are float32 in
[0, 1] everywhere outside the model, whose first layer normalises.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import jax
import optax

Array = jax.Array
Key = jax.Array
PyTree = Any

LogitsFn = Callable[[Array], Array]
"""Images [B, H, W, C] to unnormalised logits [B, K]."""

RandomLogitsFn = Callable[[Key, Array], Array]
"""Keys, one per image [B], and images to logits [B, K]: a randomised classifier."""

Mode = Literal["train", "batch", "eval"]
"""BatchNorm: batch statistics and new running ones | the batch's | the running ones."""


class Batch(NamedTuple):
    """Images and labels of one step.

    Attributes:
      x: [B, H, W, C], float32 in [0, 1].
      y: [B], int32 class index.
    """

    x: Array
    y: Array


class Objective(Protocol):
    """What an attack climbs: `(logits [B, K], y) -> [B]`, float32, one per example.

    `y` is labels [B] or a distribution [B, K]. Never reduced over the batch: the
    gradient of the sum keeps examples independent.
    """

    def __call__(self, logits: Array, y: Array, /) -> Array: ...


class Threat(NamedTuple):
    """What the adversary may do: a norm ball of radius `eps` inside the pixel box.

    Attributes:
      name: The norm's name, `"linf"`, `"l2"` or `"l1"`.
      eps: Radius on the pixel scale; a float, or a traced scalar under `vmap`.
      bounds: (low, high) of a pixel.
      norm: `delta [B, ...] -> [B]`.
      sample: `(key, x) -> x'`, uniform in the ball, then in the box. `key` is one key
        or one per image, [B].
      steepest: `grad [B, ...] -> direction` of unit norm (zero where `grad` is zero)
        with the largest inner product with `grad`.
      project: `(x_adv, x) -> x'`, the Euclidean projection onto ball and box together.
      with_eps: The same threat with another radius.
    """

    name: str
    eps: float | Array
    bounds: tuple[float, float]
    norm: Callable[[Array], Array]
    sample: Callable[[Key, Array], Array]
    steepest: Callable[[Array], Array]
    project: Callable[[Array, Array], Array]
    with_eps: Callable[[float | Array], "Threat"]


class Attack(Protocol):
    """Clean inputs to adversarial ones; pure, jittable, lets no gradient out.

    Args:
      key: One key, folded with the position in the batch, or one key per image, [B].
      logits_fn: The classifier under attack.
      x: [B, H, W, C] in [0, 1].
      y: Labels [B], or a distribution [B, K] where the objective takes one.

    Returns:
      x_adv, of the shape and dtype of `x`.
    """

    def __call__(
        self, key: Key, logits_fn: LogitsFn, x: Array, y: Array, /
    ) -> Array: ...


@dataclasses.dataclass(frozen=True)
class IteratedAttack:
    """An attack as its three pure parts; calling it runs the closed form.

    Attributes:
      init: `(key, logits_fn, x, y) -> state`. A state has the field `x_adv`, the
        current iterate; the rest is the attack's own.
      step: `(state, logits_fn, x, y) -> state`, one iteration.
      finish: `(state, logits_fn, x, y) -> x_adv`, what the attack returns.
      num_steps: How often `step` runs.
      broken: `state -> [B] bool`, the images for which `finish` would return a
        misclassified point, where the state knows and `finish` makes no passes.
      seen: `state -> (objective [B], broken [B])` of the iterate that the last `step`
        evaluated, broken also if an earlier one was, where the state knows.
    """

    init: Callable[[Key, LogitsFn, Array, Array], Any]
    step: Callable[[Any, LogitsFn, Array, Array], Any]
    finish: Callable[[Any, LogitsFn, Array, Array], Array]
    num_steps: int
    broken: Callable[[Any], Array] | None = None
    seen: Callable[[Any], tuple[Array, Array]] | None = None

    def __call__(self, key: Key, logits_fn: LogitsFn, x: Array, y: Array) -> Array:
        """Runs the attack; an `Attack`."""
        state = self.init(key, logits_fn, x, y)
        state, _ = jax.lax.scan(
            lambda state, _: (self.step(state, logits_fn, x, y), None),
            state,
            length=self.num_steps,
        )
        return jax.lax.stop_gradient(self.finish(state, logits_fn, x, y))


class ModelOutput(NamedTuple):
    """One forward pass.

    Attributes:
      logits: [B, K], unnormalised, float32.
      features: Only the layers asked for by `capture`, after their taps.
      model_state: BatchNorm statistics; new ones only if `mode == "train"`.
    """

    logits: Array
    features: dict[str, Array]
    model_state: PyTree


class ApplyFn(Protocol):
    """`Model.apply`: see there."""

    def __call__(
        self,
        params: PyTree,
        model_state: PyTree,
        x: Array,
        *,
        mode: Mode = "eval",
        capture: Sequence[str] = (),
        taps: Mapping[str, Array] | None = None,
        key: Key | None = None,
    ) -> ModelOutput: ...


class Model(NamedTuple):
    """A classifier as two pure functions.

    Attributes:
      init: `(key, x) -> (params, model_state)`, `x` an example batch.
      apply: `(params, model_state, x, *, mode, capture, taps, key) -> ModelOutput`.
        `mode` says what BatchNorm does; `capture` names layers by path whose outputs
        are returned; `taps` are values added to layers' outputs; `key` drives dropout,
        which is active in the modes "train" and "batch".
    """

    init: Callable[[Key, Array], tuple[PyTree, PyTree]]
    apply: ApplyFn


class ModelFn(Protocol):
    """A classifier with its weights bound: what a test-time defense may look into."""

    def __call__(
        self,
        x: Array,
        *,
        capture: Sequence[str] = (),
        taps: Mapping[str, Array] | None = None,
    ) -> ModelOutput: ...


class LossAux(NamedTuple):
    """What a loss hands back beside its value.

    Attributes:
      model_state: The new BatchNorm statistics.
      metrics: Scalars by name, "group/name".
    """

    model_state: PyTree
    metrics: dict[str, Array]


class LossFn(Protocol):
    """A defense: `(params, model_state, key, batch) -> (scalar, LossAux)`."""

    def __call__(
        self, params: PyTree, model_state: PyTree, key: Key, batch: Batch, /
    ) -> tuple[Array, LossAux]: ...


@dataclasses.dataclass(frozen=True)
class AdversarialLoss:
    """A `LossFn` in its two halves, for those who need to come between them (AWP).

    Attributes:
      craft: `(params, model_state, key, batch) -> x_adv`, without gradient.
      objective: `(params, model_state, key, batch, x_adv) -> (scalar, LossAux)`.
      terms: `(logits of x, logits of x_adv, y) -> (scalar, metrics)`, the objective as
        a function of logits, for losses that add to it; None where it is none.
    """

    craft: Callable[[PyTree, PyTree, Key, Batch], Array]
    objective: Callable[[PyTree, PyTree, Key, Batch, Array], tuple[Array, LossAux]]
    terms: Callable[[Array, Array, Array], tuple[Array, dict[str, Array]]] | None = None

    def __call__(
        self, params: PyTree, model_state: PyTree, key: Key, batch: Batch
    ) -> tuple[Array, LossAux]:
        """The loss at adversarial examples of these very weights."""
        craft_key, objective_key = jax.random.split(key)
        x_adv = self.craft(params, model_state, craft_key, batch)
        return self.objective(params, model_state, objective_key, batch, x_adv)


class CriticFn(Protocol):
    """A half of an estimator: see `MIEstimator`."""

    def __call__(
        self, params: PyTree, state: PyTree, sample: Array, *, mode: Mode = "eval"
    ) -> tuple[Array, PyTree]: ...


class MIEstimator(NamedTuple):
    """A critic of pairs as two nets, whose inner products are the scores of a bound.

    Attributes:
      init: `(key, x, z) -> (params, state)`, of example batches.
      local_features: `(params, state, x, mode) -> ([N, U, L], state)`: a vector for
        each of L places of x.
      global_features: `(params, state, z, mode) -> ([N, U, M], state)`.
      layer: The layer of a classifier whose output z is; None for its logits.
    """

    init: Callable[[Key, Array, Array], tuple[PyTree, PyTree]]
    local_features: CriticFn
    global_features: CriticFn
    layer: str | None = None

    def features(
        self, params: PyTree, state: PyTree, x: Array, z: Array, *, mode: Mode = "eval"
    ) -> tuple[Array, Array, PyTree]:
        """Local features of x, global features of z, and the new state."""
        local_features, state = self.local_features(params, state, x, mode=mode)
        global_features, state = self.global_features(params, state, z, mode=mode)
        return local_features, global_features, state


class Head(Protocol):
    """Features to logits: `(features [B, D], valid [B]) -> [B, K]`.

    Rows with `valid=False` are padding: for the other rows they do not exist (no
    edges, no statistics), which matters to heads that look at the whole batch.
    """

    def __call__(self, features: Array, valid: Array, /) -> Array: ...


def as_pytree(fun: Callable[..., Any]) -> jax.tree_util.Partial:
    """A function as an argument of `jit`: its arrays are data, its code static."""
    if isinstance(fun, jax.tree_util.Partial):
        return fun
    if isinstance(fun, AdversarialLoss) and isinstance(
        fun.craft, jax.tree_util.Partial
    ):
        return jax.tree_util.Partial(_AtCrafted(fun.objective), fun.craft)
    return jax.tree_util.Partial(fun)


@dataclasses.dataclass(frozen=True)
class _AtCrafted:
    objective: Callable[..., tuple[Array, LossAux]]

    def __call__(self, craft, *given) -> tuple[Array, LossAux]:
        return AdversarialLoss(craft, self.objective)(*given)


def is_transductive(fun: Callable[..., Any]) -> bool:
    """Whether a head's or classifier's answer depends on the rows beside it.

    It says so by an attribute `transductive` of its static part, or the functions that
    it was made of do. Such a classifier must not be asked about padded or compacted
    batches.
    """
    if not isinstance(fun, jax.tree_util.Partial):
        return bool(getattr(fun, "transductive", False))
    if hasattr(fun.func, "transductive"):
        return bool(fun.func.transductive)  # pyright: ignore[reportFunctionMemberAccess]
    return any(map(is_transductive, filter(callable, fun.args)))


class Defended(Protocol):
    """Any test-time defense: `(state, key, model_fn, x) -> logits [B, K]`."""

    def __call__(
        self, state: PyTree, key: Key, model_fn: ModelFn, x: Array, /
    ) -> Array: ...


class Defense(NamedTuple):
    """A test-time defense with what it learns from benign images.

    Attributes:
      fit: `(key, model_fn, batch) -> state`, a small pytree.
      apply: `(state, key, model_fn, x) -> logits`.
      random: Whether the answer depends on `key`.
    """

    fit: Callable[[Key, ModelFn, Batch], PyTree]
    apply: Defended
    random: bool = False


class InputTransform(NamedTuple):
    """The test-time defense that returns an image.

    Attributes:
      fit: `(params, model_state, key, batch) -> state`.
      apply: `(state, key, logits_fn, x) -> x'`.
    """

    fit: Callable[[PyTree, PyTree, Key, Batch], PyTree]
    apply: Callable[[PyTree, Key, LogitsFn, Array], Array]

    def defended(self) -> Defended:
        """This transform followed by the model, as a `Defended`."""

        def apply(state: PyTree, key: Key, model_fn: ModelFn, x: Array) -> Array:
            def logits_fn(z: Array) -> Array:
                return model_fn(z).logits

            return logits_fn(self.apply(state, key, logits_fn, x))

        return apply


def defended_logits_fn(
    defended: Defended, state: PyTree, key: Key, model_fn: ModelFn
) -> LogitsFn:
    """The defended classifier as a `LogitsFn`.

    An adaptive attack is handed this function, an oblivious one the bare model's:
    the two differ by this one argument.
    """
    return lambda x: defended(state, key, model_fn, x)


class BatchIterator(Protocol):
    """Batches without end; its state is a small JSON-able dictionary."""

    def __next__(self) -> Batch: ...
    def __iter__(self) -> Iterator[Batch]: ...
    def get_state(self) -> dict[str, Any]: ...
    def set_state(self, state: dict[str, Any]) -> None: ...


class BatchStream(Protocol):
    """Where a stage's batches come from; iterating twice gives the same batches."""

    @property
    def steps_per_epoch(self) -> int: ...
    def __iter__(self) -> BatchIterator: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One part of a run; a run is a list of stages executed by one loop.

    Attributes:
      name: For checkpoints, metrics and messages.
      loss_fn: What is minimised. Auxiliary networks are entries of `params`.
      optimizer: Any optax transformation, schedules counted in this stage's steps.
      num_epochs: Passes over `data`.
      data: The batches.
      trainable: `params -> pytree of bools`, a prefix of `params`; None trains
        everything.
      selection: Which parameters the run goes on with after this stage: `"last"`, or
        the name of a validation metric, the larger the better.
    """

    name: str
    loss_fn: LossFn
    optimizer: optax.GradientTransformation
    num_epochs: int
    data: BatchStream
    trainable: Callable[[PyTree], PyTree] | None = None
    selection: str = "last"
