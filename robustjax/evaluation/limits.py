"""What no attack can find and no classifier can have: checks on accuracies themselves.

At an L-infinity radius of half the range of pixels the image that is grey everywhere
is within reach of every other. One image has one answer: no classifier is right about
more of the images than the largest class has, whatever attacks were run. See
`attacks.grey`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from robustjax.evaluation._judging import worst_so_far
from robustjax.evaluation._parameters import (
    MODEL_FREE,
    common_threat,
    inside,
    threat_block,
)
from robustjax.evaluation.results import AttackResult, Robustness
from robustjax.types import Threat


class InconsistentError(Exception):
    """Attackers who know more did less: the result is not to be published."""


ACCESS = ("white", "gray", "black")


def class_prior(labels: np.ndarray) -> float:
    """The share of the largest class.

    Example:
      >>> class_prior(np.array([0, 1, 1, 2]))
      0.5
    """
    return float(np.bincount(labels).max() / len(labels))


def has_constant_solution(parameters: Mapping[str, Any]) -> bool:
    """Whether one image is within an attack's reach of every image.

    Args:
      parameters: Of an attack as reports show them; the threats of attacks inside count
        where it has none itself. What is no block says nothing.

    Example:
      >>> ball = {"name": "linf", "eps": 0.5, "bounds": [0.0, 1.0]}
      >>> has_constant_solution({"name": "pgd", "threat": ball})
      True
    """
    if parameters.get("threat") is None:
        parts = inside(parameters, "attack", "start", "attacks")
        return any(map(has_constant_solution, parts))
    threat = threat_block(parameters)
    if threat is None or threat.get("name") != "linf":
        return False
    low, high = threat.get("bounds") or (0.0, 1.0)
    return threat["eps"] >= (high - low) / 2


def limit_at(
    threat: Threat | Mapping[str, Any], eps: float, labels: np.ndarray
) -> float | None:
    """What no classifier exceeds at a radius; None where nothing is known.

    Args:
      threat: Its norm and box, or a block of them, `name` and `bounds`.
      eps: The radius.
      labels: Of the images.

    Example:
      >>> ball, labels = {"name": "linf", "bounds": (0.0, 1.0)}, np.array([0, 1, 1, 2])
      >>> limit_at(ball, 0.5, labels), limit_at(ball, 0.4, labels)
      (0.5, None)
    """
    block = dict(threat, eps=eps) if isinstance(threat, Mapping) else threat
    ball = (threat_block({"threat": block}) or {}) | {"eps": eps}
    return class_prior(labels) if has_constant_solution({"threat": ball}) else None


def curve_limits(
    threat: Threat | Mapping[str, Any], radii: Sequence[float], labels: np.ndarray
) -> dict[str, list[float | None]]:
    """`limit` of a curve, as `limit_at`; nothing where no radius has one.

    Example:
      >>> curve_limits({"name": "linf"}, [0.1, 0.5], np.array([0, 1, 1, 2]))
      {'limit': [None, 0.5]}
    """
    limits = [limit_at(threat, eps, labels) for eps in radii]
    return {} if all(one is None for one in limits) else dict(limit=limits)


def above_limit(curve: Mapping[str, Any]) -> list[str]:
    """Where a robustness curve is above what any classifier can have, a line each.

    Args:
      curve: `eps`, `accuracy`, and perhaps `limit`, numbers or None, one for each.

    Example:
      >>> above_limit(dict(eps=[0.1, 0.5], accuracy=[0.9, 0.25], limit=[None, 0.1]))
      ['eps 0.5 of the curve: 25.00% is above the limit of every classifier, 10.00%...']
    """
    limits = curve.get("limit") or [None] * len(curve["eps"])
    return [
        f"eps {eps:g} of the curve: {100 * accuracy:.2f}% is above the limit of every "
        f"classifier, {100 * limit:.2f}%, since one grey image is within reach of all: "
        "the attack failed."
        for eps, accuracy, limit in zip(
            curve["eps"], curve["accuracy"], limits, strict=True
        )
        if limit is not None and accuracy > limit
    ]


def by_access(result: Robustness) -> dict[str, float]:
    """The worst case over the attacks of each kind of access that was tried.

    Attacks say by the parameter `access` what the attacker knows: "gray" all but the
    weights, "black" neither these nor the network. What says nothing is "white", but
    for what asks no model, and for what goes on from transferred examples.
    """
    return access_by_radius(result)[""]


def by_radius(result: Robustness) -> dict[str, list[AttackResult]]:
    """The attacks that count under "", others under their ball, as in "linf 0.25".

    Attacks whose parts have several balls, and those that look for the smallest
    perturbation, have no such place unless they count.
    """
    cells: dict[str, list[AttackResult]] = {"": []}
    for attack in result.attacks:
        threat = common_threat(attack.parameters)
        if attack.counts:
            cells[""].append(attack)
        elif attack.norm is None and threat:
            label = f"{threat.get('name')} {threat['eps']:g}"
            cells.setdefault(label, []).append(attack)
    return cells


def access_by_radius(result: Robustness) -> dict[str, dict[str, float]]:
    """`by_access`, and the same of attacks that do not count, by their ball."""
    cells = by_radius(result).items()
    return {label: _worst_by_access(result, attacks) for label, attacks in cells}


def disagreements(result: Robustness) -> list[str]:
    """`inconsistencies` of the attacks that count, and of others radius by radius."""
    return [
        (label and f"at {label}: ") + line
        for label, accuracies in access_by_radius(result).items()
        for line in inconsistencies(accuracies)
    ]


def _worst_by_access(
    result: Robustness, attacks: Sequence[AttackResult]
) -> dict[str, float]:
    return {
        access: worst_over(result, chosen)
        for access in ACCESS
        if (chosen := [a for a in attacks if _access(a.parameters) == access])
    }


def worst_over(result: Robustness, attacks: Sequence[AttackResult]) -> float:
    """The accuracy that some of an evaluation's attacks leave, the worst per image."""
    rows = [(result.clean_correct, result.clean_seen)]
    rows += [(attack.correct, attack.seen) for attack in attacks]
    correct = np.stack([right for right, _ in rows])
    seen = np.stack([right if s is None else s for right, s in rows])
    return float(worst_so_far(correct, seen, result.draws)[-1].mean())


def inconsistencies(accuracies: Mapping[str, float]) -> list[str]:
    """Where somebody who knows less did more: a line each, none if all is well.

    Whoever has the weights can run every attack of those who have not. White-box
    accuracy above that of transferred examples says that the white-box attack failed.

    Args:
      accuracies: From `by_access`.

    Example:
      >>> inconsistencies({"white": 0.4, "gray": 0.5, "black": 0.45})
      ['gray-box attacks leave 50.00%, black-box ones 45.00%: the former failed. ...']
    """
    tried = [access for access in ACCESS if access in accuracies]
    return [
        f"{more}-box attacks leave {100 * accuracies[more]:.2f}%, {less}-box ones "
        f"{100 * accuracies[less]:.2f}%: the former failed. Tune them again before "
        "anything of this is published."
        for i, more in enumerate(tried)
        for less in tried[i + 1 :]
        if accuracies[more] > accuracies[less]
    ]


def _access(parameters: Mapping[str, Any]) -> str | None:
    """None for what needs no access at all, or has another attacker's work in it."""
    if "access" in parameters:
        return parameters["access"]
    if parameters.get("name") in MODEL_FREE:
        return None
    if any(map(_borrows, inside(parameters, "start"))):
        return None
    return "white"


def _borrows(start: Mapping[str, Any]) -> bool:
    """Whether there are transferred examples in where an attack starts."""
    parts = inside(start, "attack", "start", "attacks")
    return start.get("name") == "transfer" or any(map(_borrows, parts))
