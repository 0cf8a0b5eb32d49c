"""Attacks on defended classifiers: what the attacker is handed instead of the defense.

An attack sees one function, its `logits_fn`. The adaptive attacker is handed the
defense itself, with surrogate gradients where its own are useless (`with_surrogate`,
`against`) and averaged over its randomness (`expectation`); the oblivious one attacks
the bare model, the black-box one another model (`oblivious`, `transfer`). All of them
return pytrees of the weights they hold, so that nothing is baked into compiled code.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from robustjax import _checks, _random
from robustjax._gradients import with_gradient_of
from robustjax.attacks import _outcome
from robustjax.attacks._outcome import Candidate
from robustjax.objectives import cross_entropy
from robustjax.types import (
    Array,
    Attack,
    InputTransform,
    Key,
    LogitsFn,
    Objective,
    PyTree,
    RandomLogitsFn,
    as_pytree,
)

ArrayFn = Callable[[Array], Array]


def _identity(x: Array) -> Array:
    return x


def with_surrogate(fun: ArrayFn, surrogate: ArrayFn = _identity) -> ArrayFn:
    """`fun` forwards, the derivative of `surrogate` backwards (BPDA).

    See "Obfuscated Gradients Give a False Sense of Security" (Athalye et al., 2018),
    section 4.1: a defense without useful gradients is differentiated as if it were a
    smooth function near it, in the simplest case the identity.

    Args:
      fun: Array to array; any function, differentiable or not.
      surrogate: A differentiable function of the same input and output shape.

    Raises:
      InputError: at the call, if the shapes of the two outputs differ.

    Example:
      >>> rounded = with_surrogate(jnp.round)
      >>> float(rounded(0.7)), float(jax.grad(rounded)(0.7))
      (1.0, 1.0)
    """

    def run(x: Array) -> Array:
        x = jnp.asarray(x)
        value, smooth = jax.lax.stop_gradient(fun(x)), surrogate(x)
        if value.shape != smooth.shape:
            raise _checks.InputError(
                f"`surrogate` must return the shape of `fun`, {value.shape}, got "
                f"{smooth.shape}."
            )
        return with_gradient_of(value, smooth)

    return run


def against(
    transform: InputTransform,
    state: PyTree,
    key: Key,
    logits_fn: LogitsFn,
    *,
    surrogate: ArrayFn | None = None,
) -> LogitsFn:
    """The transform followed by the model: what the adaptive attacker climbs.

    Args:
      transform: The input transformation under attack.
      state: What its `fit` returned.
      key: Its randomness; for a random transform see `expectation`.
      logits_fn: The bare model.
      surrogate: Differentiated in place of the transform, e.g. `lambda x: x`; None
        differentiates the transform itself.

    Example:
      >>> from robustjax.types import InputTransform
      >>> rounding = InputTransform(
      ...     fit=lambda *_: (), apply=lambda state, key, f, x: jnp.round(x))
      >>> f = against(rounding, (), jax.random.key(0), lambda z: 2 * z,
      ...     surrogate=lambda x: x)
      >>> jax.grad(lambda x: f(x).sum())(jnp.array([[0.7]])).tolist()
      [[2.0]]
    """
    return Partial(
        Static(_transformed, (transform.apply, surrogate)),
        state,
        key,
        as_pytree(logits_fn),
    )


def _transformed(apply, surrogate, state, key, logits_fn, x: Array) -> Array:
    key = jax.random.clone(key)  # the same draws at every iterate, on purpose
    transform = functools.partial(apply, state, key, logits_fn)
    if surrogate is not None:
        transform = with_surrogate(transform, surrogate)
    return logits_fn(transform(x))


def expectation(
    random_logits_fn: RandomLogitsFn,
    key: Key,
    num_samples: int,
    *,
    average: Literal["objective", "logits", "probabilities"] = "objective",
) -> LogitsFn:
    """A randomised classifier, averaged over its keys (EOT).

    See "Synthesizing Robust Adversarial Examples" (Athalye et al., 2018). The draws are
    new for every image and every iterate: an image's keys are folded with its own
    pixels, so that a result depends neither on the batch nor on the attack's state.

    Args:
      random_logits_fn: `(keys [B], x) -> logits [B, K]`; a `Partial` keeps its weights
        out of the compiled code.
      key: A single key.
      num_samples: Draws per evaluation, run one after the other.
      average: `"objective"` hands the attack all draws, [S, B, K], and gradient attacks
        climb the mean of their objective. Other attacks need [B, K]: `"logits"` is the
        mean of the logits, `"probabilities"` the log of the mean softmax.

    Raises:
      InputError: an argument is out of range.

    Example:
      >>> noisy = lambda keys, x: x + 0.1 * jax.vmap(jax.random.normal)(keys)[:, None]
      >>> f = expectation(noisy, jax.random.key(0), 100, average="logits")
      >>> f(jnp.zeros((1, 2))).round(1).tolist()
      [[0.0, 0.0]]
    """
    _checks.positive_int(num_samples=num_samples)
    _checks.one_of(("objective", "logits", "probabilities"), average=average)
    return Partial(
        Static(_sampled, (num_samples, average)),
        as_pytree(random_logits_fn),
        key,
    )


def num_averaged(logits_fn: LogitsFn) -> int:
    """How many draws each answer of an `expectation` is the mean of; 1 of all else."""
    function = getattr(logits_fn, "func", None)
    if not isinstance(function, Static) or function.fun is not _sampled:
        return 1
    num_samples, average = function.given
    return 1 if average == "objective" else num_samples


def _sampled(num_samples: int, average: str, fun, key: Key, x: Array) -> Array:
    pixels = jax.lax.stop_gradient(x).astype(jnp.float32)
    bits = jax.lax.bitcast_convert_type(pixels.reshape(x.shape[0], -1), jnp.uint32)
    # Odd factors tell images apart whose pixels are the same in another order.
    place = 2 * jnp.arange(bits.shape[1], dtype=jnp.uint32) + 1
    digest = (bits * place[None]).sum(axis=1, dtype=jnp.uint32)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, digest)
    draws = jax.lax.map(
        lambda index: fun(_random.fold_in(keys, index), x), jnp.arange(num_samples)
    )
    if average == "objective":
        return draws.reshape(-1, *draws.shape[-2:])  # `fun` may have draws of its own
    if average == "logits":
        return draws.mean(axis=0)
    wide = draws.astype(jnp.promote_types(draws.dtype, jnp.float32))
    logs = jax.nn.log_softmax(wide)
    return jax.nn.logsumexp(logs, axis=0) - jnp.log(
        jnp.asarray(num_samples, logs.dtype)
    )


def oblivious(attack: Attack, bare_logits_fn: LogitsFn) -> Attack:
    """The attack by somebody who does not know the defense: on the bare model.

    Whatever classifier the result is called with, the attack runs on `bare_logits_fn`.
    The adaptive attack on the same defense is the plain `attack`.

    Example:
      >>> from robustjax import attacks, threats
      >>> attack = oblivious(attacks.fgsm(threats.linf(0.25)), lambda z: z)
      >>> x, y = jnp.array([[0.5, 0.5]]), jnp.array([0])
      >>> attack(jax.random.key(0), lambda z: -z, x, y).tolist()
      [[0.25, 0.75]]
    """
    return Partial(Static(_elsewhere, (attack,)), as_pytree(bare_logits_fn))


def _elsewhere(attack, source, key: Key, logits_fn, x: Array, y: Array) -> Array:
    _outcome.check_call(logits_fn, x, y)
    _outcome.check_same_classes(source, logits_fn, x, "bare_logits_fn")
    return jax.lax.stop_gradient(attack(key, source, x, y))


def transfer(
    attack: Attack,
    sources: Sequence[LogitsFn],
    *,
    objective: Objective = cross_entropy,
) -> Attack:
    """Examples crafted on other models, the worst per image for the one under attack.

    Worst means misclassified by the target first, then the largest objective on it;
    the target is asked once per source and gives no gradients.

    Args:
      attack: Runs on each source with its own draws.
      sources: At least one surrogate.
      objective: Decides between sources that agree on misclassification.

    Raises:
      InputError: `sources` is empty; at the call, a source has other classes.

    Example:
      >>> from robustjax import attacks, threats
      >>> fgsm = attacks.fgsm(threats.linf(0.25))
      >>> attack = transfer(fgsm, [lambda z: -z, lambda z: z])
      >>> x, y = jnp.array([[0.625, 0.5]]), jnp.array([0])
      >>> attack(jax.random.key(0), lambda z: 3 * z, x, y).tolist()
      [[0.375, 0.75]]
    """
    if not sources:
        raise _checks.InputError("`sources` must hold at least one model, got none.")
    return Partial(
        Static(_transferred, (attack, objective)),
        tuple(map(as_pytree, sources)),
    )


def _transferred(attack, objective, sources, key, logits_fn, x, y) -> Array:
    _outcome.check_call(logits_fn, x, y)
    keys = _random.per_image_keys(key, x.shape[0])
    evaluate = _outcome.climbed(objective, logits_fn, y)
    worst = None
    for number, source in enumerate(sources):
        _outcome.check_same_classes(source, logits_fn, x)
        x_adv = attack(_random.fold_in(keys, number), source, x, y)
        found = Candidate(x_adv, *evaluate(x_adv))
        worst = found if worst is None else _outcome.keep_worse(worst, found)
    assert worst is not None
    return jax.lax.stop_gradient(worst.x_adv)


def ensemble(sources: Sequence[LogitsFn]) -> LogitsFn:
    """The mean of several models' logits, to attack them jointly.

    See "Boosting Adversarial Attacks with Momentum" (Dong et al., 2018), section 3.3.

    Args:
      sources: At least one, of the same classes.

    Raises:
      InputError: `sources` is empty.

    Example:
      >>> ensemble([lambda z: z, lambda z: 3 * z])(jnp.ones((1, 2))).tolist()
      [[2.0, 2.0]]
    """
    if not sources:
        raise _checks.InputError("`sources` must hold at least one model, got none.")
    return Partial(Static(_mean_logits, ()), tuple(map(as_pytree, sources)))


def _mean_logits(sources, x: Array) -> Array:
    for source in sources[1:]:
        _outcome.check_same_classes(source, sources[0], x)
    return jnp.stack([source(x) for source in sources]).mean(axis=0)


@dataclasses.dataclass(frozen=True)
class Static:
    """A function with its first arguments, by whose values `jit` knows it again.

    A `functools.partial` would be another function each time.
    """

    fun: Callable[..., Any]
    given: tuple[Any, ...]

    def __call__(self, *arguments: Any) -> Any:
        """The function of its first arguments and these."""
        return self.fun(*self.given, *arguments)
