"""Who broke what, and how: what a summary says beyond accuracies."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from robustjax.attacks import _apgd
from robustjax.evaluation._judging import worst_so_far
from robustjax.evaluation._parameters import threat_block
from robustjax.evaluation.results import AttackResult, Robustness

_POINTS = 100  # of a path of losses, at most
_BINS = 20  # of a histogram


def waterfall(result: Robustness) -> list[dict[str, Any]]:
    """What each attack that counts broke that nothing before it did.

    Returns:
      In the order run, first the images that are wrong without any attack ("clean"):
      `attack`, `broken`, the number of images (of a random classifier the drop of the
      sum of shares, which may have a fraction), and `accuracy`, what is left.
    """
    rows = [(result.clean_correct, result.clean_seen)]
    rows += [(a.correct, a.seen) for a in result.attacks if a.counts]
    names = ["clean", *(a.name for a in result.attacks if a.counts)]
    correct = np.stack([right for right, _ in rows])
    seen = np.stack([right if s is None else s for right, s in rows])
    left = worst_so_far(correct, seen, result.draws).sum(axis=1)
    total, found, before = len(result.labels), [], float(len(result.labels))
    for name, now in zip(names, left, strict=True):
        broken = before - float(now)
        number = round(broken) if result.draws == 1 else round(broken, 4)
        found.append(dict(attack=name, broken=number, accuracy=float(now) / total))
        before = float(now)
    return found


def confusion(result: Robustness) -> list[list[int]] | None:
    """Counts of true label (rows) against prediction under the worst case, [K][K].

    The prediction is that on the worst point of each image: x itself where it is
    misclassified, else that of the first attack that broke it, else the label. Images
    whose logits hold NaN there have no prediction and are not in it.

    Returns:
      None where an attack's predictions are not known.
    """
    first = result.clean_predicted
    counted = [a for a in result.attacks if a.counts]
    predicted = [p for p in (first, *(a.predicted for a in counted)) if p is not None]
    if len(predicted) <= len(counted):
        return None
    right = np.stack([result.clean_correct, *(a.correct for a in counted)])
    picked = right.argmin(axis=0)  # of equals the first
    at_worst = np.take_along_axis(np.stack(predicted), picked[None], axis=0)[0]
    size = int(max(result.labels.max(), at_worst.max())) + 1
    counts = np.zeros((size, size), int)
    known = at_worst >= 0
    np.add.at(counts, (result.labels[known], at_worst[known]), 1)
    return counts.tolist()


def mistakes(counts: Sequence[Sequence[int]], most: int = 20) -> list[list[int]]:
    """The most frequent confusions, as label, prediction and count.

    Example:
      >>> mistakes([[5, 2], [3, 0]])
      [[1, 0, 3], [0, 1, 2]]
    """
    matrix = np.array(counts)
    np.fill_diagonal(matrix, 0)
    order = np.argsort(-matrix, axis=None, kind="stable")[:most]
    pairs = zip(*np.unravel_index(order, matrix.shape), strict=True)
    found = [[int(i), int(j), int(matrix[i, j])] for i, j in pairs]
    return [one for one in found if one[2]]


def paths(result: Robustness) -> list[dict[str, Any]]:
    """The losses that attacks met on their way, over images that are right on x.

    Returns:
      For each attack that recorded them `attack`, `steps`, `mean` and the quantiles
      `low`, `median` and `high` (10%, 50%, 90%) of the objective at these steps, the
      share `broken` by then, and of APGD `halvings`: the share of images whose step
      was halved at each checkpoint.
    """
    right = result.clean_correct >= 0.5
    return [
        _path(attack, right if right.any() else ~right)
        for attack in result.attacks
        if attack.losses is not None and attack.losses.shape[1] > 0
    ]


def _path(attack: AttackResult, rows: np.ndarray) -> dict[str, Any]:
    losses = np.asarray(attack.losses, np.float64)[rows]
    losses = np.where(np.isfinite(losses), losses, np.nan)
    count = losses.shape[1]
    steps = np.unique(
        np.linspace(0, count - 1, min(count, _POINTS)).round().astype(int)
    )
    seen = losses[:, steps]
    known = ~np.isnan(seen).all(axis=0)
    figures = np.full((4, len(steps)), np.nan)
    if known.any():
        figures[0, known] = np.nanmean(seen[:, known], axis=0)
        cuts = np.nanquantile(seen[:, known], (0.1, 0.5, 0.9), axis=0)
        figures[1:, known] = cuts
    found: dict[str, Any] = dict(attack=attack.name, steps=(steps + 1).tolist())
    for name, values in zip(("mean", "low", "median", "high"), figures, strict=True):
        found[name] = [float(v) if np.isfinite(v) else None for v in values]
    if attack.broken_along is not None:
        ever = np.logical_or.accumulate(attack.broken_along[rows], axis=1)
        found["broken"] = ever.mean(axis=0)[steps].tolist()
    halvings = _halvings(attack.parameters, losses)
    return found | ({} if halvings is None else dict(halvings=halvings))


def _halvings(
    parameters: Mapping[str, Any], losses: np.ndarray
) -> list[dict[str, float]] | None:
    """At each checkpoint of APGD, the share of images that halved their step.

    Its rule, applied to the losses that it saw. Only the loss of the start is not among
    them: where no step rose above it, a halving may be missed.
    """
    norm = (threat_block(parameters) or {}).get("name")
    if parameters.get("name") != "apgd" or norm not in ("linf", "l2"):
        return None
    limits = _apgd._limits(losses.shape[1], float(parameters.get("rho", 0.75)))
    before = np.concatenate([np.zeros((len(losses), 1)), losses[:, :-1]], axis=1)
    rises = losses > before
    best = np.fmax.accumulate(losses, axis=1)
    halved = np.ones(len(losses), bool)
    known, first, found = np.full(len(losses), -np.inf), 0, []
    for step in np.flatnonzero(limits >= 0):
        climbs = rises[:, first : step + 1].sum(axis=1)
        unchanged = ~halved & (known >= best[:, step])
        halved = (climbs <= limits[step]) | unchanged
        known, first = best[:, step], step + 1
        found.append(dict(step=int(step) + 1, share=float(halved.mean())))
    return found


def histogram(norms: np.ndarray) -> dict[str, Any]:
    """Counts of minimum norms.

    Args:
      norms: From `minimum_norms`: 0 where x is misclassified, inf where nothing was
        found.

    Returns:
      `edges` [E + 1] and `counts` [E] of what was found, `wrong` and `unbroken`.

    Example:
      >>> found = histogram(np.array([0.0, 0.5, 1.0, np.inf]))
      >>> sum(found["counts"]), found["wrong"], found["unbroken"], found["edges"][-1]
      (2, 1, 1, 1.0)
    """
    found = norms[(norms > 0) & np.isfinite(norms)]
    top = float(found.max()) if found.size else 1.0
    counts, edges = np.histogram(found, bins=_BINS, range=(0.0, top))
    return dict(
        edges=edges.tolist(),
        counts=counts.tolist(),
        wrong=int((norms == 0).sum()),
        unbroken=int(np.isinf(norms).sum()),
    )
