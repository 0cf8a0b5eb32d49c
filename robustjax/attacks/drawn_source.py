"""Adversarial examples from a source that is drawn anew for every batch."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from robustjax import _checks, _random
from robustjax._checks import InputError
from robustjax.attacks import _outcome
from robustjax.attacks.adaptive import Static
from robustjax.types import Array, Attack, Key, LogitsFn, as_pytree


def drawn_source(
    attack: Attack, sources: Sequence[LogitsFn], *, own: Attack | None = None
) -> Attack:
    """Examples of one of k static models or of the current one, all equally often.

    Any loss that trains with this attack is ensemble adversarial training: see
    "Ensemble Adversarial Training" (Tramer et al., 2018), section 3.3, whose sources
    are attacked by single steps, without labels: `unlabelled(fgsm(threat))`.

    One key draws one source for the whole batch, inside `jit` and without a new
    compilation; the attacks on the others are not run. Keys of single images draw for
    each of these, which costs as much as attacking all.

    Args:
      attack: What runs on the static models.
      sources: At least one; other models with the same classes. Weights of those that
        are pytrees (`models.logits_fn`) stay out of compiled code where this attack is
        an argument of `jit`, as that of an `AdversarialLoss` is in the steps of
        `training.train` (but inside `awp`); else they are constants of it.
      own: What runs on the current model, such as PGD; `attack` if None.

    Raises:
      InputError: `sources` is empty; at the call, a source has other classes.

    Example:
      >>> from robustjax import attacks, threats
      >>> attack = drawn_source(attacks.fgsm(threats.linf(0.25)), [lambda z: -z])
      >>> x, y = jnp.full((1, 2), 0.5), jnp.array([0])
      >>> found = [attack(jax.random.key(i), lambda z: z, x, y) for i in range(8)]
      >>> sorted({tuple(x_adv[0].tolist()) for x_adv in found})
      [(0.25, 0.75), (0.75, 0.25)]
    """
    if not sources:
        raise InputError("`sources` must hold at least one model, got none.")
    static = Static(_drawn, (attack, attack if own is None else own))
    return Partial(static, tuple(map(as_pytree, sources)))


def _drawn(attack, own, sources, key: Key, logits_fn, x: Array, y: Array) -> Array:
    _outcome.check_call(logits_fn, x, y)
    _checks.keys(key)
    key = key if key.ndim == 0 else _random.per_image_keys(key, x.shape[0])
    for source in sources:
        _outcome.check_same_classes(source, logits_fn, x)
    branches = [
        lambda data, run=run, model=model: run(wrap(data), model, x, y).astype(x.dtype)
        for run, model in (*((attack, source) for source in sources), (own, logits_fn))
    ]
    wrap = lambda data: jax.random.wrap_key_data(data, impl=jax.random.key_impl(key))
    # Raw keys, since a branch that is not taken would count as a second use.
    data = jax.random.key_data(_random.fold_in(key, 0))
    draw = lambda k: jax.random.randint(k, (), 0, len(branches))
    if key.ndim == 0:
        chosen = draw(jax.random.fold_in(key, 1))
        return jax.lax.stop_gradient(jax.lax.switch(chosen, branches, data))
    chosen = jax.vmap(draw)(_random.fold_in(key, 1))
    found = jnp.stack([branch(data) for branch in branches])
    picked = jax.vmap(lambda points, i: points[i], (1, 0))(found, chosen)
    return jax.lax.stop_gradient(picked)
