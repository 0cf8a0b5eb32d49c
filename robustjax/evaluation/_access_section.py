"""What attackers with less than the weights did, by access and by surrogate."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from robustjax.evaluation._parameters import inside
from robustjax.evaluation.limits import ACCESS, by_radius, worst_over
from robustjax.evaluation.results import AttackResult, Robustness


def surrogate_accuracies(result: Robustness) -> list[dict[str, Any]]:
    """The worst case over the attacks from each surrogate, JSON-able.

    Only attacks that say by the parameter `access` what the attacker knows; those that
    do not count stand apart, by their ball.

    Args:
      result: Of `evaluate`.

    Returns:
      Of each surrogate, or set of them that is attacked from jointly: `access`,
      `surrogate`, `accuracy`, how many `attacks`, and which of them is the `strongest`;
      of attacks that do not count `at`, as in "linf 0.25".
    """
    found = []
    for label, attacks in by_radius(result).items():
        groups: dict[tuple[str, str], list[AttackResult]] = {}
        for attack in attacks:
            access = attack.parameters.get("access")
            if access in ACCESS[1:]:
                where = access, _surrogate(attack.parameters)
                groups.setdefault(where, []).append(attack)
        found += [
            dict(
                access=access,
                surrogate=name,
                accuracy=worst_over(result, groups[access, name]),
                attacks=len(groups[access, name]),
                strongest=min(groups[access, name], key=_left).name,
            )
            | (dict(at=label) if label else {})
            for access, name in sorted(groups, key=lambda one: ACCESS.index(one[0]))
        ]
    return found


def access_cells(
    access: Mapping[str, float],
    surrogates: Sequence[Mapping[str, Any]],
    elsewhere: Mapping[str, Mapping[str, float]],
) -> list[tuple[str, ...]]:
    """The worst case by access, and by surrogate: cells of a table, its head first.

    Args:
      access: Of attacks that count.
      surrogates: From `surrogate_accuracies`.
      elsewhere: As `access`, of attacks that do not count, by their ball.
    """
    cells = [("access", "from", "attacks", "accuracy", "strongest")]
    for label, found in {"": access, **elsewhere}.items():
        cells += _cells_at(label, found, surrogates)
    return cells


def _cells_at(
    label: str, access: Mapping[str, float], surrogates: Sequence[Mapping[str, Any]]
) -> list[tuple[str, ...]]:
    cells = []
    for name in (name for name in ACCESS if name in access):
        words = f"{name}-box" + (label and f" at {label} (not counted)")
        cells.append((words, "all", "", _percent(access[name]), ""))
        cells += [
            (
                "",
                row["surrogate"],
                str(row["attacks"]),
                _percent(row["accuracy"]),
                row["strongest"],
            )
            for row in surrogates
            if row["access"] == name and row.get("at", "") == label
        ]
    return cells


def _surrogate(parameters: Mapping[str, Any]) -> str:
    """The runs that a row climbs, by their directories."""
    if parameters.get("source") is not None:
        return _joined(parameters["source"])
    sources = parameters.get("sources")
    if sources is not None:
        # Of several the judged model minds one most: nobody's alone.
        words = [_joined(source) for source in sources]
        return words[0] if len(words) == 1 else "worst of " + ", ".join(words)
    found = [_surrogate(one) for one in inside(parameters, "attack", "attacks")]
    return next((name for name in found if name != "?"), "?")


def _joined(source: Any) -> str:
    if isinstance(source, str):
        return source
    return source[0] if len(source) == 1 else " + ".join(source) + " jointly"


def _left(attack: AttackResult) -> float:
    return float(np.mean(attack.correct))


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"
