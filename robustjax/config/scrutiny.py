"""What `eval.py` looks at beside attacks: steps and a curve."""

import fractions
from collections.abc import Sequence
from typing import Any

import numpy as np

from robustjax import attacks, data, evaluation
from robustjax._checks import InputError, positive_int
from robustjax.config.attack_blocks import build_threat
from robustjax.config.blocks import Block
from robustjax.config.classifiers import Classifier

_SHARES = (4, 8, 16, 32, 64)  # of eps, the step sizes of a grid


def step_curves(
    classifier: Classifier,
    test: data.Dataset,
    block: Block,
    steps: Sequence[int],
    **options: Any,
) -> dict[str, Any]:
    """PGD of `config.evaluation` at steps of eps / 4 to eps / 64.

    `grid_restarts` of each (10), and `best_restarts` (100; 0 for none) of the step size
    that breaks most, under `best`.

    Args:
      classifier: That of the run.
      test: What it is judged on.
      block: `config.evaluation`.
      steps: Where to look, ascending.
      **options: `key`, `batch_size`, `num_examples`, `mesh`.

    Raises:
      InputError: a number is out of range.
    """
    eps, threat = _finite_eps(block), build_threat(block["threat"])
    predict = classifier.source or classifier.logits_fn
    grid, most = block.get("grid_restarts", 10), block.get("best_restarts", 100)
    if most:
        positive_int(**{"evaluation.best_restarts": most})

    def curves(sizes: Sequence[float], restarts: int) -> dict[str, Any]:
        at = lambda size: attacks.pgd(threat, step_size=size, num_steps=max(steps))
        given = (predict, test, at, sizes, steps)
        return evaluation.step_curves(*given, num_restarts=restarts, **options)

    found = curves([eps / share for share in _SHARES], grid)
    labels = test.labels[: found["num_examples"]]
    found["limit"] = evaluation.limit_at(dict(block["threat"]), eps, labels)
    if most:
        left = [worst[-1] for worst in found["worst"]]
        found["best"] = curves([found["step_sizes"][int(np.argmin(left))]], most)
    return found


def _finite_eps(block: Block) -> float:
    eps = float(build_threat(block["threat"]).eps)
    if not 0 < eps < float("inf"):
        raise InputError(f"`--steps` needs a finite `eps` above 0, got {eps:g}.")
    return eps


def as_curve(
    block: Block, radii: Sequence[float], correct: np.ndarray, labels: np.ndarray
) -> dict[str, Any]:
    """A robustness curve as reports take it, with what no classifier exceeds.

    Args:
      block: `config.evaluation`.
      radii: Of the curve.
      correct: From `evaluation.robustness_curve`.
      labels: Of the images.
    """
    curve = dict(eps=radii, accuracy=correct.mean(axis=1).tolist())
    return curve | evaluation.curve_limits(dict(block["threat"]), radii, labels)


def as_radii(given: Sequence[str], block: Block) -> list[float]:
    """The flag `--curve`, numbers and fractions such as 8/255.

    Args:
      given: As on the command line.
      block: `config.evaluation`, whose threat says which radii there are.

    Raises:
      InputError: it does not hold ascending radii, or one that there is not.
    """
    try:
        radii = [float(fractions.Fraction(eps)) for eps in given]
    except (ValueError, ZeroDivisionError):
        radii = []
    if not radii or radii[0] < 0 or sorted(set(radii)) != radii:
        raise InputError(
            f"`--curve` must be ascending radii as in 0,0.05, got {given}."
        )
    try:
        build_threat(dict(block["threat"]) | dict(eps=radii[-1]))
    except InputError as error:
        raise InputError(f"`--curve`: {error}") from error
    return radii


def as_steps(given: Sequence[str], block: Block | None = None) -> list[int]:
    """The flag `--steps`.

    Args:
      given: As on the command line.
      block: `config.evaluation`, to say before any attack what `step_curves` needs.

    Raises:
      InputError: it does not hold ascending numbers, or the radius has no steps.
    """
    if block is not None:
        _finite_eps(block)
    steps = [int(text) for text in given if text.isdigit()]
    if not steps or len(steps) != len(given) or sorted({0, *steps}) != [0, *steps]:
        raise InputError(
            f"`--steps` must be ascending numbers as in 10,20,50,100, got {given}."
        )
    return steps
