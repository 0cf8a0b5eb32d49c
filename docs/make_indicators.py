"""Writes the tables of docs/indicators.md and docs/zoo.md, which tests check.

    python docs/make_indicators.py             tables, from the code and zoo.json
    python docs/make_indicators.py --measure   zoo.json first: minutes
    python docs/make_indicators.py --measure=standard,pgd   of these alone

zoo.json holds what every indicator said of every classifier of tests/zoo.py.
"""

import json
import sys
from pathlib import Path
from typing import Any

from robustjax.evaluation._thresholds import RULES

DOCS = Path(__file__).resolve().parent
PAGE, ZOO, KEPT = DOCS / "indicators.md", DOCS / "zoo.md", DOCS / "zoo.json"
BEGIN, END = (
    f"<!-- {which}: written by docs/make_indicators.py -->"
    for which in ("begin", "end")
)


def rules() -> str:
    """The list of indicators."""
    return "\n".join(
        f"**{rule.name}** (raised above {rule.threshold:g}). {rule.measures}\n"
        f"*Raised:* {rule.meaning}\n"
        f"*Source:* {rule.source}.\n"
        for rule in RULES
    )


def measure(names: list[str]) -> None:
    """Keeps what indicators say of these classifiers of the zoo, or of all."""
    sys.path.insert(0, str(DOCS.parent / "tests"))
    import zoo

    for name in names or [*zoo.PLANTS, *zoo.SOUND]:
        print(f"{name} ...", flush=True)
        found = zoo.measured(name)
        kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
        kept[name] = found  # the table keeps its order whatever was measured last
        order = [one for one in (*zoo.PLANTS, *zoo.SOUND) if one in kept]
        text = json.dumps({one: kept[one] for one in order}, indent=1)
        KEPT.write_text(text + "\n")


def tables(kept: dict[str, Any]) -> str:
    """Plants and sound models, as far as they are known."""
    lines = [
        "| plant | clean | under PGD-20 | named for it | value > threshold | others |",
        "|---|---|---|---|---|---|",
    ]
    plants = {name: one for name, one in kept.items() if one["named"]}
    for name, one in plants.items():
        raised = [i for i in one["indicators"] if i["flagged"]]
        named = [i for i in raised if i["name"] in one["named"]]
        others = [i["name"] for i in raised if i["name"] not in one["named"]]
        values = ", ".join(f"{i['value']:.3g} > {i['threshold']:g}" for i in named)
        lines.append(
            f"| {name} | {one['clean']:.1%} | {one['robust']:.1%} | "
            f"{', '.join(i['name'] for i in named) or 'nothing'} | {values} | "
            f"{', '.join(others)} |"
        )
    lines += [
        "",
        "| sound model | clean | under PGD-20 | raised | nearest to its threshold |",
        "|---|---|---|---|---|",
    ]
    for name, one in kept.items():
        if name in plants:
            continue
        raised = [i["name"] for i in one["indicators"] if i["flagged"]]
        gaps = [
            (i["value"] / i["threshold"], i)
            for i in one["indicators"]
            if i["value"] is not None and i["threshold"]
        ]
        _, most = max(gaps, key=lambda gap: gap[0])
        lines.append(
            f"| {name} | {one['clean']:.1%} | {one['robust']:.1%} | "
            f"{', '.join(raised) or 'none'} | {most['name']}: {most['value']:.3g} of "
            f"{most['threshold']:g} |"
        )
    return "\n".join(lines) + "\n"


def written(page: str, text: str) -> str:
    """A page with the part between the marks replaced."""
    head, _, rest = page.partition(BEGIN)
    return f"{head}{BEGIN}\n\n{text}\n{END}{rest.partition(END)[2]}"


def main() -> None:
    """Writes the pages."""
    for argument in sys.argv[1:]:
        flag, _, names = argument.partition("=")
        assert flag == "--measure", __doc__
        measure([name for name in names.split(",") if name])
    PAGE.write_text(written(PAGE.read_text(), rules()))
    ZOO.write_text(written(ZOO.read_text(), tables(json.loads(KEPT.read_text()))))


if __name__ == "__main__":
    main()
