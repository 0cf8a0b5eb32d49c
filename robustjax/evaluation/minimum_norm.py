"""What a minimum-norm attack says about accuracy at a radius.

Such an attack looks for the closest misclassified point and stops at no radius, so that
its success rate alone means nothing: nearly every image has an adversarial example
somewhere. What compares with other attacks is the share of images whose closest point
lies beyond a given radius.
"""

from collections.abc import Sequence

import numpy as np

from robustjax import _checks
from robustjax.evaluation.results import AttackResult


def minimum_norms(
    result: AttackResult, clean_correct: np.ndarray, norm: str | None = None
) -> np.ndarray:
    """The smallest perturbation known to break each image, [N].

    Args:
      result: Of a minimum-norm attack.
      clean_correct: Whether the classifier is right on x, [N].
      norm: "linf", "l2" or "l1"; by default that of the result.

    Returns:
      0 where x itself is misclassified, inf where the attack found nothing. A random
      classifier misclassifies what more than half of its draws do.

    Raises:
      InputError: the result has no such norm.
    """
    norm = norm or result.norm or "none"
    _checks.one_of(result.distance, norm=norm)
    found = np.where(result.correct >= 0.5, np.inf, result.distance[norm])
    return np.where(clean_correct >= 0.5, found, 0.0)


def accuracy_at(norms: np.ndarray, eps: Sequence[float]) -> np.ndarray:
    """Accuracy at radii from minimum norms: the share of images beyond each, [E].

    Args:
      norms: From `minimum_norms`, [N]; of several attacks, their minimum.
      eps: Radii; a point at exactly that distance counts as inside, up to rounding.

    Example:
      >>> accuracy_at(np.array([0.0, 0.2, 0.5, np.inf]), [0.1, 0.2, 1.0]).tolist()
      [0.75, 0.5, 0.25]
    """
    _checks.non_negative(eps=np.asarray(eps))
    radii = np.asarray(eps, np.float64)[:, None] * (1 + 1e-6) + 1e-9
    return (norms[None] > radii).mean(axis=1)
