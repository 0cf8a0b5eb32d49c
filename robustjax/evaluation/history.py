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
_SHOWN = 6  # images


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

    Of several attacks that broke an image the one that is strongest on all.

    Args:
      result: Of `evaluate`.
      images: The clean ones, float [S, H, W, C]; more than are shown does no harm.
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
    count = min(len(images), *(len(x) for _, x in counted))
    called = lambda k: str(k) if names is None else names[int(k)]
    counted.sort(key=lambda pair: pair[0].correct.mean())
    broken = [any(a.correct[i] < 0.5 for a, _ in counted) for i in range(count)]
    adversarial, words = [], []
    chosen = sorted(range(count), key=lambda i: not broken[i])[:_SHOWN]
    for i in chosen:
        broke = [pair for pair in counted if pair[0].correct[i] < 0.5]
        attack, moved = (broke or counted)[0]
        adversarial.append(moved[i])
        first = _said(result.clean_predicted, result.clean_confidence, i, called)
        after = _said(attack.predicted, attack.confidence, i, called)
        words.append(
            dict(
                clean=f"label {called(result.labels[i])}\n"
                + (first and f"said {first}"),
                adversarial=f"{short(attack.name, 22)}\n" + (after and f"said {after}"),
                size=f"linf {attack.distance['linf'][i]:.3g}",
                broken=broken[i],
            )
        )
    clean = np.asarray(images, np.float32)[chosen]
    return dict(clean=clean, adversarial=np.stack(adversarial), words=words)


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
