"""Runs that others attack from, or that a run learns from."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from robustjax import attacks
from robustjax._checks import InputError
from robustjax.config.blocks import Block
from robustjax.config.classifiers import Classifier
from robustjax.config.inside import joint_guides
from robustjax.config.networks import MODEL
from robustjax.config.runs import Restored, Run, restore
from robustjax.types import Attack, LogitsFn


@dataclasses.dataclass(frozen=True)
class Jointly:
    """Several runs' classifiers, looked into as one: see `attacks.ensemble`.

    Attributes:
      find: A source to its classifier, which is read only when something is asked.
      sources: Which.
    """

    find: Callable[[str], Classifier]
    sources: Sequence[str]

    def guides(self, changes: Block) -> dict[str, Any]:
        """What a collision with the features of all of them needs."""
        return joint_guides([self.find(each).guides(changes) for each in self.sources])

    def penalised(self, attack: Attack, kind: str, changes: Block) -> Attack:
        """The attack with the mean of their distances of pairs beside its objective.

        Raises:
          InputError: another kind of penalty, or a value that is wrong.
        """
        if kind != "pairing":
            raise InputError(f"`{kind}` of other runs is not known here.")
        penalties = [self.find(each).pairing(changes) for each in self.sources]
        return attacks.penalised(attack, attacks.mean_penalty(penalties))


class OtherRuns:
    """Finds the classifiers of other runs; each is read once."""

    def __init__(self, mesh: Mesh, own: Restored | None = None):
        """With or without a run of one's own, whose classes and images theirs must be.

        Args:
          mesh: Devices.
          own: The run that is judged.
        """
        self._mesh, self._own = mesh, own
        self._known: dict[str, Classifier] = {}

    def __call__(self, source: str) -> LogitsFn:
        """What a source leaves to climb.

        Args:
          source: A directory; "DIR:reference" is another classifier of the run than
            its model, ":reference" one of the own run.

        Raises:
          InputError: there is none, or it is of other classes or images.
        """
        found = self._classifier(source)
        return found.source or found.logits_fn

    def inside(self, sources: Sequence[str]) -> Jointly:
        """All of them, as one classifier that attacks look into."""
        return Jointly(self._classifier, sources)

    def _classifier(self, source: str) -> Classifier:
        if source not in self._known:
            self._known[source] = self._read(source)
        return self._known[source]

    def _read(self, source: str) -> Classifier:
        given, _, network = source.partition(":")
        if given:
            found = restore(Path(given), self._mesh, network=network or MODEL)
            if self._own is not None:
                _check_same(source, found.run, self._own.run)
            return found.classifier
        if self._own is None:
            raise InputError(f"`source` must name a run, got {source!r}.")
        return self._own.another(network)


def another_run(mesh: Mesh, own: Restored | None = None) -> OtherRuns:
    """Finds the classifiers of other runs, for those who attack from them.

    Args:
      mesh: Devices.
      own: The run that is judged, if one is.
    """
    return OtherRuns(mesh, own)


def _check_same(source: str, theirs: Run, own: Run) -> None:
    """Raises here, and not once an attack of a suite comes to it."""
    there, here = theirs.splits.test, own.splits.test
    if there.num_classes != here.num_classes:
        raise InputError(
            f"`source` {source} has {there.num_classes} classes, the run that is "
            f"judged {here.num_classes}: name a run on the same data."
        )
    shape, mine = there.images.shape[1:], here.images.shape[1:]
    if shape != mine:
        raise InputError(
            f"`source` {source} was trained on images {shape}, the run that is judged "
            f"on {mine}: name a run with the same config.data.image_size."
        )
