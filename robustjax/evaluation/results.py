"""Accuracy under attack: per example, per attack, and the worst case over attacks."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from robustjax import _checks
from robustjax._checks import InputError
from robustjax.attacks import StagedAttack, StageOutcome
from robustjax.data import Dataset
from robustjax.evaluation._judging import worst_so_far
from robustjax.evaluation.statistics import wilson_interval as wilson_interval
from robustjax.types import Array, Attack, LogitsFn

RESERVED = ("clean", "worst case")  # rows of every report


@dataclasses.dataclass(frozen=True)
class NamedAttack:
    """An attack as the report names it.

    Attributes:
      name: Its name in tables and files.
      attack: The attack, or a `StagedAttack` such as `autoattack(threat)`.
      parameters: All its parameters, JSON-able. By them and the name an attack of a
        killed evaluation is known again: without them it starts again.
      counts: Whether it is part of the worst case. An attack that is held to no radius,
        or to another threat, should not be.
      norm: Of a minimum-norm attack without a limit, the norm that it keeps small. The
        report then gives the accuracy at each of `radii`.
      radii: See `norm`.
      source: What the attack climbs in place of the classifier that is judged: another
        model, or the same with another gradient. None is the classifier itself.
      judges: Classifiers that must be right too, such as one with other templates: the
        worst over them is what such a row shows.
      repeats: Runs of the attack with keys of their own, each judged: restarts on a
        `source`, which cannot tell which of them the judges mind most. A staged attack
        has one.
    """

    name: str
    attack: Attack
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    counts: bool = True
    norm: str | None = None
    radii: tuple[float, ...] = ()
    source: LogitsFn | None = None
    judges: tuple[LogitsFn, ...] = ()
    repeats: int = 1

    def __post_init__(self):
        """Raises an InputError if it could not be run, or told in a report."""
        if not isinstance(self.name, str) or self.name in ("", *RESERVED):
            raise InputError(
                f"`name` of an attack must be a word of its own, got {self.name!r}: "
                f"reports have {' and '.join(map(repr, RESERVED))} themselves."
            )
        if not isinstance(self.counts, bool):
            raise InputError(
                f"`counts` of {self.name!r} must be True or False, got {self.counts!r}."
            )
        if not callable(self.attack):
            raise InputError(
                f"`attack` of {self.name!r} must be an attack such as "
                f"attacks.fgsm(threat), got {type(self.attack).__name__}."
            )
        if not _takes_images(self.attack):
            raise InputError(
                f"`attack` of {self.name!r} must take (key, logits_fn, x, y), got "
                f"{self.attack!r}, which does not: wrap it in a function that does."
            )
        if self.source is not None and not callable(self.source):
            raise InputError(
                f"`source` of {self.name!r} must be a function of images to logits, "
                f"got {self.source!r}."
            )
        several = isinstance(self.judges, tuple | list)
        if not several or not all(map(callable, self.judges)):
            raise InputError(
                f"`judges` of {self.name!r} must be a tuple of functions of images to "
                f"logits, got {self.judges!r}."
            )
        if not isinstance(self.parameters, Mapping):
            raise InputError(
                f"`parameters` of {self.name!r} must be a dict, got "
                f"{self.parameters!r}."
            )
        _checks.positive_int(repeats=self.repeats)
        if self.repeats > 1 and isinstance(self.attack, StagedAttack):
            raise InputError(
                f"`repeats` of {self.name!r} must be 1, got {self.repeats}: its stages "
                "have restarts of their own."
            )


def _takes_images(attack: Any) -> bool:
    """Whether a call as an attack binds; what has no signature may do as it likes."""
    try:
        inspect.signature(attack).bind("key", "logits_fn", "x", "y")
    except TypeError:
        return False
    except ValueError:
        pass
    return True


class Fooled(NamedTuple):
    """Some images that an attack broke.

    Attributes:
      rows: Their places in the evaluation, [S].
      clean: x, [S, H, W, C].
      adversarial: x_adv, [S, H, W, C].
    """

    rows: np.ndarray | Array
    clean: np.ndarray | Array
    adversarial: np.ndarray | Array


@dataclasses.dataclass(frozen=True)
class AttackResult:
    """What one attack did.

    Attributes:
      name: The attack's name.
      parameters: Its parameters.
      correct: Whether the classifier is right on x_adv, [N] bool; of a random one the
        share of draws that are, [N] float.
      distance: Norms of x_adv - x by name ("linf", "l2", "l1"), each [N].
      lowest: Smallest pixel of all x_adv.
      highest: Largest pixel of all x_adv.
      mass_above_one: Largest share of an image's mass that lies above 1, which only
        attacks that conserve mass leave there.
      seconds: Wall time, compilation included.
      x_adv: [N, H, W, C] if it was asked for.
      counts: Whether it is part of the worst case.
      norm: The norm of a minimum-norm attack without a limit, else None.
      radii: The radii at which the report judges it.
      stages: What each stage of a staged attack did.
      warnings: What makes the result doubtful, one line each.
      seen: `correct` on the draws by which the adversary picks among attacks; None is
        `correct` itself.
      predicted: The class predicted on x_adv, [N]; of a random classifier that of the
        mean probabilities; -1 where logits hold NaN. None where it is unknown, and so
        below.
      confidence: The probability of that class, [N]; 0 where logits hold NaN.
      num_nan: Images whose logits hold NaN on x_adv; they count as broken.
      losses: The objective at the iterates that the attack's steps evaluated, [N, T],
        of attacks that say (`IteratedAttack.seen`).
      broken_along: Whether such an iterate or one before was misclassified, [N, T].
      shown: x_adv of the first few images, kept in any case.
      fooled: The first few images that it moved and broke, kept in any case.
      own: Whether it climbed the classifier that is judged, not another `source`.
    """

    name: str
    parameters: Mapping[str, Any]
    correct: np.ndarray
    distance: Mapping[str, np.ndarray]
    lowest: float
    highest: float
    mass_above_one: float
    seconds: float
    x_adv: np.ndarray | None = None
    counts: bool = True
    norm: str | None = None
    radii: tuple[float, ...] = ()
    stages: tuple[StageOutcome, ...] = ()
    warnings: tuple[str, ...] = ()
    seen: np.ndarray | None = None
    predicted: np.ndarray | None = None
    confidence: np.ndarray | None = None
    num_nan: int = 0
    losses: np.ndarray | None = None
    broken_along: np.ndarray | None = None
    shown: np.ndarray | None = None
    fooled: Fooled | None = None
    own: bool = True


@dataclasses.dataclass(frozen=True)
class Robustness:
    """The outcome of an evaluation.

    Attributes:
      index: Position of each example in its split, [N].
      labels: [N].
      clean_correct: Whether the classifier is right on x, [N] bool; of a random one
        the share of draws that are, [N] float.
      clean_seconds: Wall time of the clean pass.
      attacks: One result each, in the order run.
      clean_seen: As `AttackResult.seen`.
      draws: Of a random classifier, a third of which judges; else 1.
      clean_predicted: The class predicted on x, [N]; -1 where logits hold NaN.
      clean_confidence: The probability of that class, [N]; 0 where logits hold NaN.
      num_nan: Images whose logits hold NaN; they count as broken.
      probabilities: Whether the logits look like probabilities.
      images: Digest of the images, to 8 bits a pixel, by which two evaluations of the
        same ones are known; None is not known.
      state: How the names of the files begin that were left in the `state_dir`, if any
        were; see `forget`.
    """

    index: np.ndarray
    labels: np.ndarray
    clean_correct: np.ndarray
    clean_seconds: float
    attacks: tuple[AttackResult, ...]
    clean_seen: np.ndarray | None = None
    draws: int = 1
    clean_predicted: np.ndarray | None = None
    clean_confidence: np.ndarray | None = None
    num_nan: int = 0
    probabilities: bool = False
    images: str | None = None
    state: str | None = None

    @property
    def worst_case_correct(self) -> np.ndarray:
        """Right on x and under every attack, [N]: the adversary picks per example.

        Only attacks that count. Of a random classifier the share of draws that are
        right on the point that other draws are wrong on most often, see `evaluate`.
        """
        found = [(self.clean_correct, self.clean_seen)]
        found += [(a.correct, a.seen) for a in self.attacks if a.counts]
        correct = np.stack([right for right, _ in found])
        seen = np.stack([right if seen is None else seen for right, seen in found])
        return worst_so_far(correct, seen, self.draws)[-1]


def check_same_images(result: Robustness, dataset: Dataset) -> None:
    """Raises unless a result is of the first images of this data."""
    if not np.array_equal(dataset.index[: len(result.index)], result.index):
        raise InputError(
            "`dataset` must be what `result` was evaluated on, in the same order; its "
            "`index` differs."
        )


def check_kept(result: Robustness, dataset: Dataset) -> None:
    """Raises unless a result has its adversarial images, and they are of this data."""
    check_same_images(result, dataset)
    for attack in result.attacks:
        if attack.x_adv is None:
            raise InputError(
                f"`result` has no x_adv of {attack.name!r}: evaluate with "
                "keep_adversarial=True."
            )
