"""The verdict of a report: what is left, against whom, and how far to believe it."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from robustjax.evaluation._parameters import (
    MODEL_FREE,
    QUERIES,
    inside,
    threat_block,
)
from robustjax.evaluation.results import AttackResult, Robustness
from robustjax.types import Threat

_NORMS = {
    "linf": "each pixel moves by at most",
    "l2": "the Euclidean norm of the change is at most",
    "l1": "the sum of absolute changes is at most",
}
NO_ADAPTIVE = (
    "No adaptive attack ran: nobody who knows this defense has attacked it. For a "
    "plain classifier that is as it should be; for a defense the number is no more "
    "than an upper bound."
)
NO_INDICATORS = "No failure indicators were measured"


def verdict_of(
    summary: Mapping[str, Any],
    *,
    threat: Mapping[str, Any] | None,
    indicators: Sequence[Mapping[str, Any]] | None,
    adaptive: Iterable[str],
) -> dict[str, Any]:
    """What comes first in a report.

    Args:
      summary: From `summarise`, with `binarization` and `test_time` where they ran.
      threat: Block of the threat model.
      indicators: Dicts of their fields.
      adaptive: Names of attacks that know the defense.

    Returns:
      `accuracy` of the worst case and its `interval`, `clean`, the `attack` of the
      lowest accuracy among those that count (None if there is none), the names of
      raised `flags`, how many indicators were `measured`, the names of `adaptive`
      attacks, and a `sentence`.
    """
    clean, *attacks, worst = summary["rows"]
    counted = [row for row in attacks if row.get("counts", True)]
    strongest = min(counted, key=lambda row: row["accuracy"], default=None)
    judged = [] if indicators is None else indicators
    flags = [one["name"] for one in judged if one["flagged"]]
    tests = ("binarization", "test_time")
    flags += [name for name in tests if (summary.get(name) or {}).get("flagged")]
    measured = sum(one["value"] is not None or one["flagged"] for one in judged)
    verdict = dict(
        accuracy=worst["accuracy"],
        interval=list(worst["interval"]),
        clean=clean["accuracy"],
        attack=None if strongest is None else strongest["name"],
        flags=flags,
        adaptive=list(adaptive),
        measured=measured,
    )
    return verdict | dict(sentence=_sentence(verdict, summary["num_examples"], threat))


def _sentence(
    verdict: Mapping[str, Any], total: int, threat: Mapping[str, Any] | None
) -> str:
    low, high = verdict["interval"]
    said = (
        f"{percent(verdict['accuracy'])} of {total} images stay classified correctly "
        f"in the worst case (95% interval {percent(low)} to {percent(high)}), "
        f"{percent(verdict['clean'])} without an attack. "
    )
    if verdict["attack"] is None:
        said += "No attack that counts ran, so this says nothing about robustness. "
    else:
        said += f"The strongest attack is {verdict['attack']}. "
    said += f"Threat model: {threat_in_words(threat)}. "
    if verdict["flags"]:
        said += (
            f"Flags are raised ({', '.join(verdict['flags'])}): do not trust the "
            "number before these are explained."
        )
    elif verdict["measured"]:
        said += f"None of {verdict['measured']} failure indicators raised a flag."
    else:
        said += f"{NO_INDICATORS}."
    return said


def standing(content: Mapping[str, Any]) -> tuple[str, str]:
    """How far to believe a report: a word for the eye, and why."""
    verdict = content["verdict"]
    if content.get("inconsistent"):
        return "failed", "Attackers who know less did more: attacks failed."
    if verdict["flags"]:
        return "flagged", f"Flags: {', '.join(verdict['flags'])}."
    if not verdict["measured"]:
        return "unchecked", unmeasured(content)
    return "no flags", f"{verdict['measured']} indicators measured, none raised."


def unmeasured(content: Mapping[str, Any]) -> str:
    """What a report without failure indicators says in their place."""
    if content.get("binarization"):
        return f"{NO_INDICATORS}; the binarization test was."
    return f"{NO_INDICATORS}: nothing here says that the attacks worked."


def threat_of(
    rows: Sequence[Mapping[str, Any]], context: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The threat that holds all attacks that count, None if none does.

    The widest of theirs, where only radii differ; that of the evaluation, which
    `context` may name, where they name none.
    """
    found = []
    for row in rows:
        if "parameters" in row and row.get("counts", True):
            found += _threats(row["parameters"])
    if not found:
        return threat_block(context)
    widest = max(found, key=lambda one: one["eps"])
    balls = [one | dict(eps=widest["eps"]) for one in found]
    return widest if all(ball == balls[0] for ball in balls) else None


def strays(attack: AttackResult, threat: Threat) -> str:
    """How far an attack went where a threat does not allow it; nothing if it does."""
    size, (low, high) = float(attack.distance[threat.name].max()), threat.bounds
    if size > float(threat.eps) * (1 + 1e-4) + 1e-6:
        return f"{size:.4g}"
    if attack.lowest < low - 1e-6 or attack.highest > high + 1e-6:
        return f"pixels in [{attack.lowest:.4g}, {attack.highest:.4g}]"
    return ""


def beyond(result: Robustness, threat: Threat) -> list[str]:
    """A line on attacks that count and went beyond a threat, if there are any."""
    counted = ((one.name, strays(one, threat)) for one in result.attacks if one.counts)
    far = "; ".join(f"{name} ({where})" for name, where in counted if where)
    about = f"{threat.name} {float(threat.eps):.4g}"
    lead = f"Beyond the threat model ({about}), and in the worst case: "
    return [f"{lead}{far}."] if far else []


def short_of(result: Robustness, threat: Threat) -> list[str]:
    """A line if images stand, and no attack that counts was held to the threat."""
    eps = float(threat.eps)
    counted = [one for one in result.attacks if one.counts]
    if not counted or not 0 < eps < math.inf or not result.worst_case_correct.any():
        return []
    farthest = max(float(one.distance[threat.name].max()) for one in counted)
    told = [ball for one in counted for ball in _threats(one.parameters)]
    held = any(b["name"] == threat.name and b["eps"] >= 0.99 * eps for b in told)
    if held or farthest >= 0.99 * eps:
        return []
    return [
        f"Short of the threat model ({threat.name} {eps:.4g}): no attack that counts "
        f"is held to it, and none changes an image by more than {farthest:.4g}. The "
        "accuracy under it may be lower."
    ]


def _threats(parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    if parameters.get("threat") is not None:
        known = threat_block(parameters)
        return [] if known is None else [known]
    parts = inside(parameters, "attack", "start", "attacks")
    return [threat for one in parts for threat in _threats(one)]


def adaptive_rows(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Attacks of somebody who knows the defense, as far as parameters tell.

    They climb another view of the classifier than the one judged: another gradient,
    other draws, losses inside. See `config.attacks`. The model without its transform is
    no such view: what climbs that ignores the defense. An attack without a view, or by
    queries, meets whatever it is given and knows nothing of it; noises ask no model.
    """
    return [row["name"] for row in rows if _is_adaptive(row.get("parameters") or {})]


def _is_adaptive(parameters: Mapping[str, Any]) -> bool:
    if _climbs_nothing(parameters):
        return False
    hooks = ("perturb_templates", "information", "pairing", "adaptive")
    view = parameters.get("view")
    if isinstance(view, Mapping):
        view = {k: v for k, v in view.items() if k != "transform" or v is not None}
    return bool(view) or any(parameters.get(hook) for hook in hooks)


def _climbs_nothing(parameters: Mapping[str, Any]) -> bool:
    parts = inside(parameters, "attack", "start", "attacks")
    if parts:
        return all(map(_climbs_nothing, parts))
    return parameters.get("name") in (*MODEL_FREE, *QUERIES)


def threat_in_words(threat: Mapping[str, Any] | None) -> str:
    """A threat model as a reader needs it.

    Example:
      >>> threat_in_words({"name": "linf", "eps": 8 / 255})
      'each pixel moves by at most 0.03137 (8/255), pixels in [0, 1]'
    """
    if threat is None:
        return "several, or none that is known; see the parameters of each attack"
    eps = radius_of(threat)
    low, high = threat.get("bounds") or (0.0, 1.0)
    norm = _NORMS.get(str(threat.get("name")), f"{threat.get('name')} at most")
    size = f"{eps:.4g}"
    levels = eps * 255
    if (
        threat.get("name") == "linf"
        and levels > 0.5
        and abs(levels - round(levels)) < 1e-3
    ):
        size += f" ({round(levels)}/255)"
    return f"{norm} {size}, pixels in [{low:g}, {high:g}]"


def radius_of(threat: Mapping[str, Any]) -> float:
    """Of a report's threat model; JSON has no infinity, and None stands for it."""
    eps = threat.get("eps", math.nan)
    return math.inf if eps is None else float(eps)


def percent(value: float | None) -> str:
    """A share, or a dash for None.

    Example:
      >>> percent(0.5), percent(None)
      ('50.00%', '-')
    """
    return "-" if value is None else f"{100 * value:.2f}%"
