"""What the failure indicators have seen of a classifier, each thing looked at once."""

import dataclasses
import functools
import math
from typing import NamedTuple

import numpy as np

from robustjax import _checks
from robustjax.evaluation import _probes
from robustjax.evaluation._climbs import Path
from robustjax.evaluation._parameters import climbs_another
from robustjax.evaluation._probes import STARTS, Subject
from robustjax.evaluation.results import AttackResult, Robustness


class Found(NamedTuple):
    """A measurement before it is judged.

    Attributes:
      value: None if it could not be made.
      detail: One line.
      images: How many it rests on, where one is too few; None where one is enough.
      doubt: What the value must exceed the threshold by, as draws are few.
    """

    value: float | None
    detail: str
    images: int | None = None
    doubt: float = 0.0


@dataclasses.dataclass(frozen=True)
class Seen:
    """What several indicators need, each looked at when the first one asks.

    Attributes:
      result: The evaluation.
      of: The classifier and the subset.
      rows: The subset's places in the result, [n].
    """

    result: Robustness
    of: Subject
    rows: np.ndarray

    @functools.cached_property
    def draws(self) -> tuple[int, int]:
        """That judge, and that are climbed; 1 without any."""
        return _probes.has_draws(self.of)

    @functools.cached_property
    def logits(self) -> np.ndarray:
        """Of the clean images, [n, K] or [n, S, K]."""
        return _probes.logits(self.of)

    @functools.cached_property
    def changing(self) -> np.ndarray:
        """Whether two calls differ, [n]."""
        again = _probes.logits(self.of)  # by the same program
        return _checks.differing_rows(self.logits, again, tolerance=1e-5)

    @property
    def exact(self) -> bool:
        """Whether the same image always gets the same answer."""
        return self.draws[0] == 1 and not self.changing.any()

    @functools.cached_property
    def gradients(self) -> dict[str, np.ndarray] | None:
        """As `_probes.useless_gradients`."""
        return _probes.useless_gradients(self.of)

    @property
    def recorded(self) -> list[AttackResult]:
        """Attacks that count and climbed what judges: what they met on the way is its.

        On the way of others it is the source that was broken, which says nothing.
        """
        return [
            attack
            for attack in self.result.attacks
            if attack.counts and attack.own and not climbs_another(attack.parameters)
        ]

    @property
    def no_radius(self) -> str:
        """Why there is no ball to look in; empty where there is one."""
        radius = float(self.of.threat.eps)
        if 0 < radius < math.inf:
            return ""
        return f"There is no radius to walk in: eps is {radius:g}."

    @property
    def obstacle(self) -> str:
        """Why nothing can walk; empty where something can."""
        if self.gradients is None:
            return "The classifier has no gradient."
        return self.no_radius

    @functools.cached_property
    def walks(self) -> list[Path]:
        """PGD from several starts; none where there is an obstacle."""
        if self.obstacle:
            return []
        return [_probes.path(self.of, number) for number in range(STARTS)]

    @functools.cached_property
    def standing(self) -> np.ndarray:
        """What the worst case leaves of the subset, shares, [n]."""
        left = np.asarray(self.result.worst_case_correct, float)[self.rows]
        if self.walks and not any(attack.counts for attack in self.result.attacks):
            # Nothing was attacked yet: the first walk stands for the evaluation.
            left = _probes.worst([left, self.right(self.walks[0])], self.exact)
        return left

    @functools.cached_property
    def left(self) -> np.ndarray:
        """What the worst case and all walks leave, shares, [n]."""
        rows = [self.standing, *map(self.right, self.walks)]
        return _probes.worst(rows, self.exact)

    @functools.cached_property
    def curve(self) -> list[tuple[float, float]]:
        """Radius and accuracy under one walk each, ascending."""
        found = []
        for eps in _probes.radii(self.of):
            same = eps == self.of.radius
            walk = self.walks[0] if same else _probes.path(self.of, eps=eps)
            found.append((eps, float(np.mean(walk.correct))))
        return found

    def right(self, path: Path) -> np.ndarray:
        """Right after a run, anywhere on its way where that can be said, [n]."""
        return _probes.right(self.of, path, self.exact)
