"""Input transforms of a run, built from their block."""

import dataclasses
import functools
from typing import Any

import jax

from robustjax._checks import one_of
from robustjax.config import names
from robustjax.config.blocks import Block, make
from robustjax.types import Array, InputTransform, Key, LogitsFn


def build_transform(block: Block) -> InputTransform | None:
    """The transform of a block; none of an empty one."""
    if not block:
        return None
    one_of(
        (*names.TRANSFORMS, *names.DEFENSES), **{"transform name": block.get("name")}
    )
    given = {k: v for k, v in block.items() if k != "seed"}
    return _made(tuple(sorted(given.items())))


@functools.cache
def _made(items: tuple[tuple[str, Any], ...]) -> InputTransform:
    """One object per block, so that code compiled for it is found again."""
    return make("transform", names.TRANSFORMS, dict(items))


@functools.partial(jax.jit, static_argnums=0)
def transformed(
    transform: InputTransform, keys: Key, logits_fn: LogitsFn, x: Array
) -> Array:
    """Transformed images, [B, H, W, C]."""
    return transform.apply((), keys, logits_fn, x)


@dataclasses.dataclass(frozen=True)
class Transformed:
    """A transform followed by a classifier, for keys of images."""

    apply: Any

    def __call__(self, fun: LogitsFn, keys: Key, x: Array) -> Array:
        """Logits, [B, K]."""
        return fun(self.apply((), keys, fun, x))
