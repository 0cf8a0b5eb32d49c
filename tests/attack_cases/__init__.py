"""One file of cases per family of attacks; `cases.py` joins them."""

import dataclasses
from collections.abc import Callable

from robustjax.types import Attack, Threat


@dataclasses.dataclass(frozen=True)
class AttackCase:
    """An attack in its shortest form, and what is promised of it.

    Attributes:
      make: Threat to attack; an attack without a radius ignores it.
      threats: The threats that it runs under.
      bounded: The result lies in the ball of the threat. Without it, only in the box.
      boxed: The result lies in the pixel box.
      independent: An image's result depends on its own key, pixels and label only.
      iterated: It is an `IteratedAttack`.
      maps_over_eps: The radius may be traced.
      moves: It changes the images of the shared suite.
      breaks: An image that is misclassified already comes back misclassified.
      on_host: It cannot run inside `jit`.
      least_classes: With fewer it refuses, in one clear line.
      representative: Of its family: its tests run in CI, those of others are `slow`.
    """

    make: Callable[[Threat], Attack]
    threats: tuple[str, ...] = ("linf", "l2", "l1")
    bounded: bool = True
    boxed: bool = True
    independent: bool = True
    iterated: bool = True
    maps_over_eps: bool = True
    moves: bool = True
    breaks: bool = True
    on_host: bool = False
    least_classes: int = 2
    representative: bool = False
