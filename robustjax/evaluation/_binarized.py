"""One image's binarization test, compiled whole and mapped over images."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from robustjax import _checks
from robustjax._gradients import loop_safe
from robustjax.data import as_float
from robustjax.evaluation._batching import image_keys
from robustjax.evaluation._planted import inside, on_surface
from robustjax.evaluation._readout import Readout, fit_readout
from robustjax.types import Array, Attack, Key, Threat

FeaturesFn = Callable[[Array], Any]
"""Images [B, H, W, C] to features [B, ...], or to a pair (features, logits [B, K])."""

_SLACK = 1e-4  # of the radius, for rounding,
_ROUNDING = 1e-6  # or of the box, where that is more
_STILL = 1e-5  # of a feature's size, what sums in float32 are rounded by


class Outcome(NamedTuple):
    """The arrays of a `Binarization`, on the devices."""

    index: Array
    separable: Array
    success: Array
    random_success: Array
    outside: Array
    margin: Array
    still: Array


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is compiled in; see `binarization`."""

    threat: Threat
    num_inner: int
    inner_share: float
    corners: bool
    closeness: float
    at_once: int  # points of an image through the network at a time


@functools.partial(jax.jit, static_argnums=0)
def binarized(
    settings: Settings,
    features_fn: FeaturesFn,
    source: FeaturesFn,
    attack: Attack,
    key: Key,
    pixels: Array,
    index: Array,
) -> Outcome:
    """The test on images [B, H, W, C] with these positions in their split."""
    one = functools.partial(_of_one, settings, features_fn, source, attack)
    x = as_float(pixels)
    return jax.vmap(one)(image_keys(key, index), x, index)


def _of_one(
    settings: Settings,
    features_fn: FeaturesFn,
    source: FeaturesFn,
    attack: Attack,
    key: Key,
    x: Array,
    index: Array,
) -> Outcome:
    """The whole test on one image [H, W, C]."""
    threat, count = settings.threat, settings.num_inner
    inner_key, boundary_key, random_key, attack_key = jax.random.split(key, 4)
    surface = on_surface(threat, corners=settings.corners)
    look = functools.partial(_by_blocks, settings.at_once, x)

    boundary = surface(boundary_key[None], x[None])
    known = functools.partial(_features_and_logits, features_fn)
    sampled = look(inside(threat, settings.inner_share), known, inner_key, count)
    # The image, the boundary point, and what is around them.
    own = known(jnp.concatenate([x[None], boundary]))
    features, logits = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), own, sampled)
    inner = jnp.delete(features, 1, axis=0, assume_unique_indices=True)
    fit = fit_readout(inner, features[1], closeness=settings.closeness)
    scale = _ratio(jnp.ptp(logits), jnp.abs(fit.readout(features)).max())

    def score(z: Array) -> Array:
        return fit.readout(known(z)[0])

    drawn = look(surface, score, random_key, count)
    two_way = Partial(_two_way, source, fit.readout, scale)
    x_adv = attack(attack_key[None], two_way, x[None], jnp.zeros(1, jnp.int32))
    _checks.same_shape(x_adv=x_adv, x=x[None])
    # As the attack was answered, not as the fit was made.
    again = score(jnp.concatenate([boundary, x[None], x_adv]))
    allowed = _is_allowed(threat, jnp.concatenate([boundary, x_adv]), x)
    still = _stand_still(features)
    separable = fit.separable & ~still & (again[0] > 0) & (again[1] < 0) & allowed[0]
    return Outcome(
        index=index,
        separable=separable,
        success=separable & (again[2] > 0) & allowed[1],
        random_success=separable & (drawn > 0).any(),
        outside=~allowed[1],
        margin=fit.margin,
        still=still,
    )


def _stand_still(features: Array) -> Array:
    """Whether features [N, D] are N times the same but for rounding, scalar."""
    size = jnp.abs(features).max(axis=0)
    # Log-probabilities near 0 are rounded like those far below.
    size = jnp.maximum(size, jnp.median(size))
    return (jnp.ptp(features, axis=0) <= _STILL * size).all()


def _by_blocks(
    at_once: int,
    x: Array,
    sample: Callable[[Key, Array], Array],
    look: Callable[[Array], Any],
    key: Key,
    count: int,
) -> Any:
    """`look` at `count` points around x [H, W, C], a few at a time."""
    at_once = min(at_once, count)
    blocks = -(-count // at_once)
    around = jnp.broadcast_to(x[None], (at_once, *x.shape))

    @loop_safe
    def one(numbers: Array) -> Any:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
        return look(sample(keys, around))

    numbers = jnp.arange(blocks * at_once).reshape(blocks, at_once)
    found = jax.lax.map(one, numbers)
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:count], found)


def _features_and_logits(fun: FeaturesFn, z: Array) -> tuple[Array, Array]:
    """Features [B, D], and what their scale is taken from."""
    found = fun(z)
    features, logits = found if isinstance(found, tuple) else (found, found)
    return features.reshape(len(z), -1), logits.reshape(len(z), -1)


def _two_way(
    features_fn: FeaturesFn, readout: Readout, scale: Array, z: Array
) -> Array:
    """The binarized classifier: images [B, ...] to logits [B, 2]."""
    half = 0.5 * scale * readout(_features_and_logits(features_fn, z)[0])
    return jnp.stack([-half, half], axis=1)


def _is_allowed(threat: Threat, z: Array, x: Array) -> Array:
    """Whether points [B, ...] are in ball and box around one image, [B]."""
    low, high = threat.bounds
    slack = jnp.maximum(_SLACK * threat.eps, _ROUNDING * (high - low))
    flat = z.reshape(len(z), -1)
    in_box = (flat >= low - slack).all(axis=1) & (flat <= high + slack).all(axis=1)
    return in_box & (threat.norm(z - x[None]) <= threat.eps + slack)


def _ratio(wanted: Array, had: Array) -> Array:
    """`wanted` / `had`, or 1 where either says nothing."""
    says = jnp.isfinite(wanted) & jnp.isfinite(had) & (wanted > 0) & (had > 0)
    return jnp.where(says, wanted, 1.0) / jnp.where(says, had, 1.0)
