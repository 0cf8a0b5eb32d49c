"""Pages that need nothing but themselves: no network, no file beside them, no script.

Styles are inline, pictures embedded. A page reads on a phone (tables scroll in a box of
their own), in print, in the dark and by keyboard, and says in words what pictures show.
Everything that comes from users is escaped.
"""

import base64
import hashlib
import html
import re
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from robustjax.evaluation._blocks import (
    Block,
    Folded,
    Image,
    Item,
    Items,
    Picture,
    Section,
    Table,
    Text,
)
from robustjax.evaluation._outcome_sections import sections_of
from robustjax.evaluation._page_style import PRINT, STYLE
from robustjax.evaluation._verdict import percent, standing, threat_in_words

_NUMBER = re.compile(r"[-+−]?[\d.,]+(e[-+]?\d+)?%?(\.\.[\d.]+%?)?|-|")
_NUMERIC = ' class="number"'
_OPEN = ("Verdict", "Accuracy", "Failure indicators")  # in a fragment


def report_html(
    content: Mapping[str, Any],
    pictures: Mapping[str, Picture],
    *,
    fragment: bool = False,
) -> str:
    """A report as one self-contained page.

    Args:
      content: Of a report.json, as `compose` makes and `read_report` reads it.
      pictures: By name, from `compose`; those that are not given are left out.
      fragment: Only what goes into a notebook's cell: no document around it, all but
        the verdict, the accuracies and the indicators folded.

    Example:
      >>> from robustjax.evaluation import compose
      >>> row = dict(accuracy=0.9, correct=9, interval=[0.6, 1], seconds=0)
      >>> rows = [row | dict(name=name) for name in ("clean", "worst case")]
      >>> summary = dict(num_examples=10, rows=rows)
      >>> page = report_html(*compose(summary, context=dict(workdir="<run>")))
      >>> "90.00%" in page, "<run>" in page, page.count("<h1")
      (True, False, 1)
    """
    title = "Robustness report"
    where = content.get("workdir")
    title += f": {where}" if where else ""
    lead = _cards(content)
    return page(title, sections_of(content), pictures, lead=lead, fragment=fragment)


def page(
    title: str,
    sections: Sequence[Section],
    pictures: Mapping[str, Picture],
    *,
    lead: str = "",
    fragment: bool = False,
) -> str:
    """Sections as one self-contained page.

    Args:
      title: Its heading.
      sections: In order.
      pictures: By name.
      lead: HTML, already escaped, after the heading.
      fragment: See `report_html`.

    Example:
      >>> sections = [Section("One & two", [Table("t", [("a", "n"), ("b", "1")])])]
      >>> text = page("Title", sections, {})
      >>> 'id="one-two"' in text, '<th scope="row">b</th>' in text
      (True, True)
    """
    start = _prefix(title, sections) if fragment else ""
    names = _anchors([section.title for section in sections], start)
    level = 3 if fragment else 2
    parts = []
    for section, name in zip(sections, names, strict=True):
        body = "\n".join(_block(block, pictures) for block in section.blocks)
        parts.append(_section(section.title, name, body, level, fragment))
    main = "\n".join(parts)
    if fragment:
        heading = f"<h2>{_text(title)}</h2>"
        return f'<div class="rj">\n{STYLE}\n{heading}\n{lead}\n{main}\n</div>\n'
    links = "\n".join(
        f'<li><a href="#{name}">{_text(section.title)}</a></li>'
        for section, name in zip(sections, names, strict=True)
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{_text(title)}</title>
{STYLE}
{PRINT}
</head>
<body class="rj">
<a class="skip" href="#main">Skip to the report</a>
<header>
<h1>{_text(title)}</h1>
</header>
<main id="main" tabindex="-1">
{lead}
<nav aria-label="Contents">
<details open>
<summary>Contents</summary>
<ol>
{links}
</ol>
</details>
</nav>
{main}
</main>
</body>
</html>
"""


def _cards(content: Mapping[str, Any]) -> str:
    """The verdict in a few numbers, larger than the rest."""
    verdict = content["verdict"]
    word, why = standing(content)
    kind = {"no flags": "good", "unchecked": "plain"}.get(word, "bad")
    low, high = verdict["interval"]
    ran = f"{len(verdict['adaptive'])} ran" if verdict["adaptive"] else "none ran"
    numbers = (
        (
            "Worst case",
            percent(verdict["accuracy"]),
            f"{percent(low)} to {percent(high)}",
        ),
        ("Clean", percent(verdict["clean"]), f"{content['num_examples']} images"),
        ("Indicators", word, why),
        ("Adaptive attacks", ran, threat_in_words(content.get("threat"))),
    )
    cards = []
    for number, (name, value, more) in enumerate(numbers):
        mark = f" {kind}" if number == 2 else ""
        cards.append(
            f'<div class="card{mark}"><dt>{_text(name)}</dt>'
            f'<dd><span class="value">{_text(value)}</span>'
            f'<span class="more">{_text(more)}</span></dd></div>'
        )
    return f'<dl class="cards">\n{"".join(cards)}\n</dl>'


def _section(title: str, name: str, body: str, level: int, fold: bool) -> str:
    heading = f'<h{level} id="{name}">{_text(title)}</h{level}>'
    if fold and title not in _OPEN:
        inside = f"<summary>{_text(title)}</summary>\n{body}"
        return f'<details id="{name}">\n{inside}\n</details>'
    return f'<section aria-labelledby="{name}">\n{heading}\n{body}\n</section>'


def _block(block: Block, pictures: Mapping[str, Picture]) -> str:
    if isinstance(block, Text):
        kind = ' class="strong"' if block.strong else ""
        return f"<p{kind}>{_text(block.text)}</p>"
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Items):
        return f"<ul>\n{''.join(map(_item, block.items))}</ul>"
    if isinstance(block, Image):
        return _image(pictures[block.name]) if block.name in pictures else ""
    return _folded(block, pictures)


def _table(table: Table) -> str:
    head, *rows = table.cells
    last = rows[-1] if rows else [""] * len(head)
    sides = [_NUMBER.fullmatch(cell) and cell for cell in last]
    first = "".join(
        f'<th scope="col"{_NUMERIC if side and i else ""}>{_text(cell)}</th>'
        for i, (cell, side) in enumerate(zip(head, sides, strict=True))
    )
    lines = []
    for name, *cells in rows:
        row = "".join(f"<td{_side(cell)}>{_text(cell)}</td>" for cell in cells)
        lines.append(f'<tr><th scope="row">{_text(name)}</th>{row}</tr>')
    caption = _text(table.caption)
    return (
        f'<div class="scroll" role="region" aria-label="{caption}" tabindex="0">\n'
        f"<table>\n<caption>{caption}</caption>\n<thead><tr>{first}</tr></thead>\n"
        f"<tbody>\n{chr(10).join(lines)}\n</tbody>\n</table>\n</div>"
    )


def _side(cell: str) -> str:
    if len(cell) > 30:
        return ' class="words"'
    return _NUMERIC if _NUMBER.fullmatch(cell) else ""


def _item(item: Item) -> str:
    term = f"<strong>{_text(item.term)}</strong>: " if item.term else ""
    text = f"<code>{_text(item.text)}</code>" if item.code else _text(item.text)
    more = "".join(f"<li>{_text(line)}</li>" for line in item.more)
    return f"<li>{term}{text}{f'<ul>{more}</ul>' if more else ''}</li>\n"


def _image(picture: Picture) -> str:
    width, height = struct.unpack(">II", picture.png[16:24])  # of a PNG's header
    data = base64.b64encode(picture.png).decode()
    said = (
        f"<figcaption>{_text(picture.caption)}</figcaption>" if picture.caption else ""
    )
    name = _text(picture.name.replace("_", " "))
    box = f'<div class="scroll" role="region" aria-label="{name}" tabindex="0">'
    size = f'width="{width}" height="{height}"'
    source = f"data:image/png;base64,{data}"
    image = f'<img src="{source}" alt="{_text(picture.alt)}" {size}>'
    return f"<figure>{box}{image}</div>{said}</figure>"


def _folded(folded: Folded, pictures: Mapping[str, Picture]) -> str:
    body = "\n".join(_block(block, pictures) for block in folded.blocks)
    return f"<details><summary>{_text(folded.summary)}</summary>\n{body}\n</details>"


def _anchors(titles: Sequence[str], start: str) -> list[str]:
    """An id for each, all different."""
    found: list[str] = []
    for title in titles:
        name = start + (re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "part")
        while name in (*found, "main"):
            name += "-"
        found.append(name)
    return found


def _prefix(title: str, sections: Sequence[Section]) -> str:
    """Of ids in a notebook that may show several reports."""
    digest = hashlib.sha1(repr((title, sections)).encode(), usedforsecurity=False)
    return f"rj{digest.hexdigest()[:8]}-"


def _text(text: str) -> str:
    """Escaped, for content and attributes alike; control characters are no HTML."""
    kept = "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)
    return html.escape(kept, quote=True)
