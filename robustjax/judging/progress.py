"""What an evaluation will take, and how far it is."""

import math
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from robustjax.evaluation import Estimate, NamedAttack

_BESIDE = "indicators and pictures"


def in_words(
    found: Estimate, attacks: Sequence[NamedAttack], beside: float = 0.0
) -> str:
    """An estimate as a line.

    Args:
      found: The estimate.
      attacks: What it is of.
      beside: Seconds of what is measured after the attacks.

    Example:
      >>> from robustjax.evaluation import Passes
      >>> named = [NamedAttack("a", print), NamedAttack("b", print)]
      >>> one = Passes(1.0, 1.0)
      >>> in_words(Estimate((30.0, 600.0), (False, True), (one, one), 632.0), named)
      'About 11 min at most: a 30 s; b 10 min.'
    """
    parts = [
        f"{named.name} {_duration(seconds)}"
        for named, seconds in zip(attacks, found.seconds, strict=True)
    ]
    most = " at most" if any(found.at_most) else ""
    if beside:
        parts.append(f"{_BESIDE} {_duration(beside)}")
    return f"About {_duration(found.total + beside)}{most}: {'; '.join(parts)}."


class Bar:
    """A progress bar over the seconds that were estimated.

    The estimate is printed once the clean pass has begun: what is wrong with the input
    has been said by then.

    Args:
      found: The estimate.
      attacks: What it is of.
      shown: False prints nothing, None no bar where nobody looks.
      beside: Seconds of what is measured after the attacks.
    """

    def __init__(
        self,
        found: Estimate,
        attacks: Sequence[NamedAttack],
        shown: bool | None,
        beside: float = 0.0,
    ):
        self._words = None
        if shown is not False:
            self._words = in_words(found, attacks, beside)
        known = [0.0 if math.isnan(s) else s for s in found.seconds]
        self._weights = [*known, beside, max(found.total - sum(known), 0.0)]
        self._names = [*(named.name for named in attacks), _BESIDE, "clean"]
        self._bar: Any = tqdm(
            total=100.0,
            unit="%",
            disable=None if shown is None else not shown,
            bar_format="{desc}{percentage:3.0f}%|{bar}| {elapsed}<{remaining}",
        )

    def advance(self, position: int, share: float) -> None:
        """Takes in that a share of an attack, or of the clean pass (-1), is done."""
        if self._words is not None:
            self._bar.write(self._words)
            self._words = None
        self._bar.set_description(self._names[position], refresh=False)  # adds ": "
        whole = sum(self._weights) or 1.0
        self._bar.update(min(100 * share * self._weights[position] / whole, self._left))

    @property
    def _left(self) -> float:
        return max(100.0 - self._bar.n, 0.0)

    def advance_beside(self) -> None:
        """Takes in that what is measured after the attacks is done."""
        self.advance(len(self._weights) - 2, 1.0)

    def write(self, line: str) -> None:
        """A line above the bar."""
        self._bar.write(line)

    def close(self) -> None:
        """Leaves it as it stands."""
        self._bar.close()


def _duration(seconds: float) -> str:
    if math.isnan(seconds):
        return "of unknown length"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
