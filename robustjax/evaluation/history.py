"""What else a report shows, made ready for it: training, examples, templates."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robustjax._checks import InputError
from robustjax.evaluation._style import short
from robustjax.evaluation.results import AttackResult, Robustness

_KINDS = ("accuracy", "loss")
_SHOWN, _STANDING = 6, 2  # images, and those of them that stand

_Kept = tuple[AttackResult, np.ndarray]
_Example = tuple[AttackResult, np.ndarray, np.ndarray]


def training_history(workdir: Path, chosen: int | None = None) -> dict[str, Any] | None:
    """The curves of a run's metrics.jsonl, JSON-able.

    Args:
      workdir: Of the run.
      chosen: The step of the checkpoint that is judged.

    Returns:
      `series`, one per split and metric that is an accuracy or a loss, each with
      `name`, `split`, `step` and `value`; and `chosen`. None where there is nothing, as
      in a run whose weights came from elsewhere. A broken line is left out: a run that
      was killed may end in one.

    Raises:
      InputError: the file cannot be read.

    Example:
      >>> import pathlib, tempfile
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> row = '{"step": 4, "split": "train", "epoch": 1.0, "loss/total": 0.5}'
      >>> _ = (folder / "metrics.jsonl").write_text(row)
      >>> training_history(folder, 4)["series"]
      [{'name': 'loss/total', 'split': 'train', 'step': [4], 'value': [0.5]}]
    """
    path = workdir / "metrics.jsonl"
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read {path}: {error}.") from error
    found: dict[tuple[str, str], tuple[list, list]] = {}
    for row in filter(None, map(_row, lines)):
        for name, value in row.items():
            number = isinstance(value, (int, float)) and np.isfinite(value)
            if number and any(kind in name for kind in _KINDS):
                steps, values = found.setdefault((row["split"], name), ([], []))
                steps.append(row["step"])
                values.append(value)
    if not found:
        return None
    series = [
        dict(name=name, split=split, step=steps, value=values)
        for (split, name), (steps, values) in found.items()
    ]
    return dict(series=series, chosen=chosen)


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    whole = isinstance(row, dict) and isinstance(row.get("step"), int)
    return {"split": "train", **row} if whole else None


def examples_of(
    result: Robustness, images: np.ndarray, names: Sequence[str] | None = None
) -> dict[str, Any] | None:
    """Up to six images, clean and as an attack left them; broken ones come first.

    Broken ones are looked for everywhere, first among images that are right without an
    attack; two places are for those that stand, of the first images. Of several attacks
    that broke an image it is the one that is strongest on all, of those that did not
    the strongest that moved it.

    Args:
      result: Of `evaluate`.
      images: The first clean ones, float [S, H, W, C]; more does no harm.
      names: Of the classes.

    Returns:
      `clean` and `adversarial` [S, H, W, C], and `words`: for each image its titles
      `clean`, `adversarial` and `size` (of the difference), and whether it is `broken`.
      None where no attack has kept adversarial images.
    """
    kept = [(a, _kept(a)) for a in result.attacks]
    kept = [(a, x) for a, x in kept if x is not None]
    counted = [pair for pair in kept if pair[0].counts] or kept
    if not counted:
        return None
    counted.sort(key=lambda pair: pair[0].correct.mean())
    broken = _broken(counted, images)
    standing = _standing(counted, images)
    most = _SHOWN - min(len(standing), _STANDING)
    wrong = result.clean_correct < 0.5
    chosen = sorted(broken.items(), key=lambda item: (wrong[item[0]], item[0]))[:most]
    chosen += list(standing.items())[: _SHOWN - len(chosen)]
    called = lambda k: str(k) if names is None else names[int(k)]
    words = []
    for i, (attack, _, _) in chosen:
        first = _said(result.clean_predicted, result.clean_confidence, i, called)
        after = _said(attack.predicted, attack.confidence, i, called)
        words.append(
            dict(
                clean=f"label {called(result.labels[i])}\n"
                + (first and f"said {first}"),
                adversarial=f"{short(attack.name, 22)}\n" + (after and f"said {after}"),
                size=f"linf {attack.distance['linf'][i]:.3g}",
                broken=i in broken,
            )
        )
    return dict(
        clean=np.stack([np.asarray(x, np.float32) for _, (_, x, _) in chosen]),
        adversarial=np.stack([x_adv for _, (_, _, x_adv) in chosen]),
        words=words,
    )


def _broken(attacks: Sequence[_Kept], images: np.ndarray) -> dict[int, _Example]:
    """Images by row, each with the first attack that broke it."""
    found: dict[int, _Example] = {}
    for attack, moved in attacks:
        for row in np.flatnonzero(attack.correct[: min(len(images), len(moved))] < 0.5):
            found.setdefault(int(row), (attack, images[row], moved[row]))
        for row, clean, adversarial in zip(*(attack.fooled or ((),) * 3), strict=True):
            found.setdefault(int(row), (attack, clean, adversarial))
    return found


def _standing(attacks: Sequence[_Kept], images: np.ndarray) -> dict[int, _Example]:
    """Of the first images those that stand, with the first attack that moved them."""
    found: dict[int, _Example] = {}
    for row in range(min(len(images), *(len(moved) for _, moved in attacks))):
        if all(attack.correct[row] >= 0.5 for attack, _ in attacks):
            pairs = [pair for pair in attacks if pair[0].distance["linf"][row] > 0]
            attack, moved = (pairs or attacks)[0]
            found[row] = (attack, images[row], moved[row])
    return found


def _kept(attack: AttackResult) -> np.ndarray | None:
    return attack.shown if attack.x_adv is None else attack.x_adv


def _said(
    predicted: np.ndarray | None,
    sure: np.ndarray | None,
    i: int,
    called: Callable[[int], str],
) -> str:
    """The class predicted of image i, and how sure the classifier was."""
    if predicted is None:
        return ""
    if predicted[i] < 0:
        return "nothing"
    share = "" if sure is None else f" ({100 * sure[i]:.0f}%)"
    return f"{called(int(predicted[i]))}{share}"


def weights_by_class(
    weights: Mapping[str, np.ndarray],
    template_labels: np.ndarray,
    labels: Sequence[int],
    num_classes: int,
) -> dict[str, Any]:
    """How the weight of an interpolation's templates falls on classes, JSON-able.

    Args:
      weights: By condition ("clean", an attack) non-negative weights of templates,
        [Q, T]; each row is scaled to sum 1. Of WNLL these are rows of the weight
        matrix between query and templates, 0 but for the nearest.
      template_labels: [T].
      labels: Of the queries, [Q].
      num_classes: K.

    Returns:
      `names` of conditions [M], `labels` [Q], `by_class` [Q][M][K] and `nearest`
      [Q][M], the class of the template of the largest weight.

    Raises:
      InputError: shapes do not fit, or a weight is negative or not finite.

    Example:
      >>> found = weights_by_class({"clean": np.array([[3.0, 1.0]])}, [1, 0], [1], 2)
      >>> found["by_class"], found["nearest"]
      ([[[0.25, 0.75]]], [[1]])
    """
    kinds = np.asarray(template_labels)
    shape = (len(labels), len(kinds))
    columns, nearest = [], []
    for name, given in weights.items():
        rows = np.asarray(given, np.float64)
        if rows.shape != shape or not np.isfinite(rows).all() or (rows < 0).any():
            raise InputError(
                f"`weights` of {name!r} must be finite, at least 0 and {shape}, got "
                f"{rows.shape}."
            )
        total = rows.sum(axis=1, keepdims=True)
        rows = rows / np.where(total > 0, total, 1)
        columns.append(rows @ np.eye(num_classes)[kinds])
        nearest.append(kinds[rows.argmax(axis=1)])
    return dict(
        names=list(weights),
        labels=[int(label) for label in labels],
        by_class=np.stack(columns, axis=1).tolist(),
        nearest=np.stack(nearest, axis=1).tolist(),
    )
