"""Runs that others attack from, or that a run learns from."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from robustjax import attacks
from robustjax._checks import InputError
from robustjax.attacks.penalty import Penalty
from robustjax.config.blocks import Block
from robustjax.config.classifiers import Classifier
from robustjax.config.inside import joint_guides
from robustjax.config.networks import MODEL
from robustjax.config.runs import Restored, Run, restore
from robustjax.types import Attack, LogitsFn, ModelFn


@dataclasses.dataclass(frozen=True)
class Jointly:
    """Several runs' classifiers, looked into as one: see `attacks.ensemble`.

    Attributes:
      find: A source to its classifier, which is read only when something is asked.
      sources: Which.
      layers: Whose maps are compared in those that pair none themselves.
      image: Shape of the images, to look for layers; empty if they are not checked.
    """

    find: Callable[[str], Classifier]
    sources: Sequence[str]
    layers: tuple[str, ...] = ()
    image: tuple[int, ...] = ()

    def shows(self, *layers: str) -> bool:
        """Whether all of them have these layers."""
        return all(_has(self.find(each), layers, self.image) for each in self.sources)

    def compares(self) -> bool:
        """Whether all of them have maps to compare, by which they pair or `layers`."""
        return all(self._layers(each) for each in self.sources)

    def guides(self, changes: Block) -> dict[str, Any]:
        """What a collision with the features of all of them needs."""
        return joint_guides([self.find(each).guides(changes) for each in self.sources])

    def penalised(self, attack: Attack, kind: str, changes: Block) -> Attack:
        """The attack with the mean of their distances of pairs beside its objective.

        Raises:
          InputError: another kind of penalty, a value that is wrong, or a run that has
            no layers to compare.
        """
        if kind != "pairing":
            raise InputError(f"`{kind}` of other runs is not known here.")
        penalties = [self._penalty(each, changes) for each in self.sources]
        return attacks.penalised(attack, attacks.mean_penalty(penalties))

    def _penalty(self, source: str, changes: Block) -> Penalty:
        if changes.get("attention") and "layers" not in changes:
            layers = self._layers(source)
            if not layers:
                wanted = f" {list(self.layers)}" if self.layers else ""
                raise InputError(
                    f"`source` {source} has no `layers`{wanted} whose attention maps a "
                    "penalty could compare: name layers of it in the attack's block, "
                    "or leave the run out."
                )
            changes = dict(changes) | dict(layers=layers)
        return self.find(source).pairing(changes)

    def _layers(self, source: str) -> tuple[str, ...]:
        found = self.find(source)
        for layers in (found.paired_layers, self.layers):
            if layers and (not self.image or _has(found, layers, self.image)):
                return layers
        return ()


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
        if self._own is None:
            return Jointly(self._classifier, sources)
        layers = self._own.classifier.paired_layers
        image = self._own.run.splits.test.images.shape[1:]
        return Jointly(self._classifier, sources, layers, image)

    def model_fn(self, source: str) -> ModelFn:
        """The network of a source, which may have other classes: who asks, checks.

        Raises:
          InputError: there is none.
        """
        if source not in self._known:
            return self._read(source, check=False).model_fn
        return self._known[source].model_fn

    def _classifier(self, source: str) -> Classifier:
        if source not in self._known:
            self._known[source] = self._read(source, check=True)
        return self._known[source]

    def _read(self, source: str, *, check: bool) -> Classifier:
        given, _, network = source.partition(":")
        if given:
            found = restore(Path(given), self._mesh, network=network or MODEL)
            if check and self._own is not None:
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


def _has(classifier: Classifier, layers: Sequence[str], image: Sequence[int]) -> bool:
    look = lambda x: classifier.model_fn(x, capture=tuple(layers)).features
    try:
        jax.eval_shape(look, jax.ShapeDtypeStruct((1, *image), jnp.float32))
    except InputError:  # which lists those that there are
        return False
    return True


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
