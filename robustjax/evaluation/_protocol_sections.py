"""Sections of a report: tests of the attacks, and of defenses that act at test time."""

from collections.abc import Mapping, Sequence
from typing import Any

from robustjax.evaluation._blocks import Block, Section, Table, Text
from robustjax.evaluation._verdict import percent

Cells = list[tuple[str, ...]]
BINARIZATION_FLAG = (
    "The attack does not find examples that are there: its result on the classifier "
    "means little. Strengthen it until it passes."
)
_STILL = (
    "Around {num_still} of {num_images} images the features are the same at all "
    "points looked at: no gradient through them leads anywhere. Attack what comes "
    "before them."
)
TEST_TIME_FLAG = (
    "The defended model is no better than its static model in the worst case."
)


def binarization_section(found: Mapping[str, Any]) -> Section:
    """Whether the attack finds examples that were planted."""
    words = (
        "Around each image a two-way readout of the features is fitted for which an "
        "adversarial example exists by construction. An attack that works finds nearly "
        "all of them, random points nearly none (Zimmermann et al., 2022)."
    )
    rows = (
        ("attack under test", _text(found.get("attack"))),
        ("found by the attack", _share(found, "success", "interval")),
        ("found at random", _share(found, "random_success", "random_interval")),
        ("has to be at least", percent(found.get("threshold"))),
        ("images", _text(found.get("num_images"))),
        ("with a readout that separates", _text(found.get("num_separable"))),
        ("that count", _text(found.get("num_counted"))),
        ("around which the features stand still", _text(found.get("num_still"))),
    )
    cells: Cells = [("figure", "value"), *((n, v) for n, v in rows if v != "-")]
    blocks: list[Block] = [Text(words)]
    if found.get("flagged"):
        blocks.append(Text(BINARIZATION_FLAG, strong=True))
    if found.get("too_easy"):
        easy = "Random points succeed so often that the test says little here."
        if found.get("random_success") is None:
            easy = "No readout separates a planted example: the test says nothing here."
        blocks.append(Text(easy, strong=True))
    if found.get("num_still"):
        blocks.append(Text(_STILL.format(**found), strong=True))
    if found.get("detail"):
        blocks.append(Text(f"{found['detail']}."))
    return Section("Binarization test", [*blocks, Table("Planted examples", cells)])


def test_time_section(found: Mapping[str, Any]) -> Section:
    """What a test-time defense adds to its static model, and what it costs."""
    words = (
        "The static model is attacked first and its adversarial points are shown to "
        "the defended one; then attacks go through the defense. Both are judged on all "
        "points (Croce et al., 2022)."
    )
    blocks: list[Block] = [Text(words)]
    if found.get("flagged") or found.get("warning"):
        warning = found.get("warning") or TEST_TIME_FLAG
        blocks.append(Text(warning, strong=True))
    base, defended = found.get("base") or {}, found.get("defended") or {}
    cells: Cells = [("accuracy", "static model", "defended")]
    cells += [
        ("clean", percent(base.get("clean")), percent(defended.get("clean"))),
        (
            "under the static model's attacks",
            percent(base.get("own")),
            percent(found.get("transferred")),
        ),
        (
            "under attacks through the defense",
            percent(base.get("from_defended")),
            percent(defended.get("adaptive")),
        ),
        (
            "worst case",
            *(_share(m, "worst_case", "interval") for m in (base, defended)),
        ),
    ]
    blocks.append(Table("The static model and the defended one", cells))
    gain: Cells = [("figure", "value")]
    low, high = found.get("gain_interval") or (None, None)
    gain.append(("gain in the worst case", _points(found.get("gain"), low, high)))
    gain += _majority(found.get("majority"))
    gain += _cost(found.get("cost"))
    blocks.append(Table("Gain, and what it costs", gain))
    rows: Sequence[Mapping[str, Any]] = found.get("rows") or ()
    if rows:
        about: Cells = [("attack", "made on", "static model", "defended")]
        about += [
            (r["name"], r["on"], percent(r["base"]), percent(r["defended"]))
            for r in rows
        ]
        blocks.append(Table("Both models on the points of each attack", about))
    return Section("Test-time protocol", blocks)


def _majority(majority: Mapping[str, Any] | None) -> Cells:
    if not majority:
        return []
    forwards = majority.get("forwards")
    words = f"worst case of the majority of {forwards} answers"
    return [(words, _share(majority, "worst_case", "interval"))]


def _cost(cost: Mapping[str, Any] | None) -> Cells:
    named = (("time_ratio", "time of an answer"), ("work_ratio", "multiply-adds"))
    return [
        (f"{words}, times the static model's", f"{cost[name]:.3g}")
        for name, words in named
        if cost and cost.get(name) is not None
    ]


def _share(found: Mapping[str, Any], name: str, interval: str) -> str:
    value = found.get(name)
    if value is None:
        return "-"
    low, high = found.get(interval) or (None, None)
    between = "" if low is None else f" ({percent(low)} to {percent(high)})"
    return percent(value) + between


def _points(value: float | None, low: float | None, high: float | None) -> str:
    if value is None:
        return "-"
    if low is None or high is None:
        return f"{100 * value:+.2f} points"
    return f"{100 * value:+.2f} points ({100 * low:+.2f} to {100 * high:+.2f})"


def _text(value: Any) -> str:
    return "-" if value is None else str(value)
