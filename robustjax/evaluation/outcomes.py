"""What became of each image: the file by which evaluations are compared in pairs.

`report.json` says how many images a classifier gets right, `outcomes.npz` which: two
classifiers that are right about the same number of images may be right about others.
"""

import dataclasses
import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robustjax import _files
from robustjax._checks import InputError
from robustjax.evaluation.results import Robustness

OUTCOMES = "outcomes.npz"
NOT_COUNTED = " (not counted)"


@dataclasses.dataclass(frozen=True)
class Outcomes:
    """Which images a classifier gets right.

    Attributes:
      index: Position of each image in its split, [N] int64.
      labels: [N] int32.
      clean: Whether the classifier is right on x, [N] bool; of a random one the share
        of draws that are, [N] float32.
      worst_case: The same under the worst of the attacks that count.
      attacks: The same under each attack, by its name, in the order run; those that
        share a name are numbered.
      counted: The names of the attacks that are part of the worst case.
      draws: Of a random classifier, else 1.
      images: As in `Robustness`; None of reports that do not say.
    """

    index: np.ndarray
    labels: np.ndarray
    clean: np.ndarray
    worst_case: np.ndarray
    attacks: Mapping[str, np.ndarray]
    counted: tuple[str, ...]
    draws: int = 1
    images: str | None = None

    def rows(self) -> dict[str, np.ndarray]:
        """All of them by the names that reports show: clean, attacks, worst case."""
        shown = {
            name + ("" if name in self.counted else NOT_COUNTED): correct
            for name, correct in self.attacks.items()
        }
        return {"clean": self.clean, **shown, "worst case": self.worst_case}


def distinct(names: Sequence[str]) -> list[str]:
    """Names with a number behind those that were there before.

    Example:
      >>> distinct(["PGD", "Square", "PGD"])
      ['PGD', 'Square', 'PGD (2)']
    """
    found: list[str] = []
    for name in names:
        number, fresh = 1, name
        while fresh in found:
            number += 1
            fresh = f"{name} ({number})"
        found.append(fresh)
    return found


def save_outcomes(directory: Path, result: Robustness) -> Path:
    """Writes `outcomes.npz`, whole or not at all, and returns its path.

    The file holds `index`, `labels`, `clean`, `worst_case`, `draws`, `images` (a digest
    of them), `names` and `counts` of A attacks and their arrays `attack_0` to
    `attack_{A - 1}`.

    Args:
      directory: Created if needed.
      result: From `evaluate`.

    Raises:
      InputError: the directory cannot be written.

    Example:
      >>> import tempfile
      >>> result = Robustness(
      ...     index=np.arange(2), labels=np.int32([0, 1]),
      ...     clean_correct=np.array([True, False]), clean_seconds=0.1, attacks=(),
      ... )
      >>> save_outcomes(Path(tempfile.mkdtemp()), result).name
      'outcomes.npz'
    """
    path = Path(directory) / OUTCOMES
    _files.write(path, lambda file: file.write(outcomes_file(result)))
    return path


def outcomes_file(result: Robustness) -> bytes:
    """The bytes of `outcomes.npz`, see `save_outcomes`."""
    names = distinct([attack.name for attack in result.attacks])
    content: dict[str, Any] = dict(
        index=np.asarray(result.index, np.int64),
        labels=np.asarray(result.labels, np.int32),
        clean=result.clean_correct,
        worst_case=result.worst_case_correct,
        draws=np.int64(result.draws),
        images=np.array(result.images or "", dtype=np.str_),
        names=np.array(names, dtype=np.str_),
        counts=np.array([attack.counts for attack in result.attacks], bool),
    )
    for number, attack in enumerate(result.attacks):
        content[f"attack_{number}"] = attack.correct
    file = io.BytesIO()
    np.savez_compressed(file, **content)
    return file.getvalue()


def load_outcomes(directory: Path) -> Outcomes:
    """What `save_outcomes` wrote to a directory.

    Raises:
      InputError: there is no such file, or it is damaged: one line that says so.

    Example:
      >>> import tempfile
      >>> result = Robustness(
      ...     index=np.arange(2), labels=np.int32([0, 1]),
      ...     clean_correct=np.array([True, False]), clean_seconds=0.1, attacks=(),
      ... )
      >>> path = save_outcomes(Path(tempfile.mkdtemp()), result)
      >>> load_outcomes(path.parent).clean
      array([ True, False])
    """
    path = Path(directory) / OUTCOMES
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        return _checked(found)
    except FileNotFoundError as error:
        raise InputError(
            f"{directory} has no {OUTCOMES}, which says what became of each image: run "
            "eval.py again, without which nothing can be compared image by image."
        ) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from (
            error
        )
    except (
        *(ValueError, KeyError, EOFError, TypeError, AttributeError),
        *(zipfile.BadZipFile, zlib.error, NotImplementedError),
    ) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{path} is damaged ({reason}): delete it and run eval.py again."
        ) from error


def _checked(found: Mapping[str, np.ndarray]) -> Outcomes:
    """Outcomes from the arrays of a file; ValueError or KeyError if they are none."""
    index, labels, names = found["index"], found["labels"], found["names"]
    counts = found["counts"]
    if index.ndim != 1 or labels.shape != index.shape or counts.shape != names.shape:
        raise ValueError("arrays of different lengths")
    if index.dtype.kind != "i" or labels.dtype.kind != "i" or names.dtype.kind != "U":
        raise ValueError("arrays of other dtypes")
    if len(np.unique(index)) != len(index):
        raise ValueError("an image is there twice")
    attacks = {str(n): found[f"attack_{i}"] for i, n in enumerate(names)}
    if len(attacks) != len(names):
        raise ValueError("an attack is there twice")
    for name, correct in {
        **attacks,
        "clean": found["clean"],
        "worst_case": found["worst_case"],
    }.items():
        if correct.shape != index.shape or correct.dtype.kind not in "bf":
            raise ValueError(f"{name!r} is {correct.dtype} {correct.shape}")
        if correct.dtype.kind == "f" and not ((correct >= 0) & (correct <= 1)).all():
            raise ValueError(f"{name!r} has shares outside [0, 1]")
    return Outcomes(
        index=index,
        labels=labels,
        clean=found["clean"],
        worst_case=found["worst_case"],
        attacks=attacks,
        counted=tuple(str(n) for n, c in zip(names, counts, strict=True) if c),
        draws=int(found["draws"]),
        images=str(found.get("images", "")) or None,
    )
