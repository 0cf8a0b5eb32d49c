"""What a report is made of: sections of blocks, written as Markdown or as HTML.

Every text is plain: the writers escape it, since names of attacks, files and classes
come from users.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Text(NamedTuple):
    """A paragraph.

    Attributes:
      text: Its words.
      strong: Whether it is to be seen first.
    """

    text: str
    strong: bool = False


class Table(NamedTuple):
    """Rows of cells; the first cell of a row is its name.

    Attributes:
      caption: What it shows.
      cells: The header, then the rows.
    """

    caption: str
    cells: Sequence[Sequence[str]]


class Item(NamedTuple):
    """One entry of a list.

    Attributes:
      term: Its name.
      text: What is said of it.
      code: Whether that is code.
      more: Lines below it.
    """

    term: str
    text: str
    code: bool = False
    more: Sequence[str] = ()


class Items(NamedTuple):
    """A list."""

    items: Sequence[Item]


class Image(NamedTuple):
    """The place of a picture, by its name."""

    name: str


class Folded(NamedTuple):
    """Blocks that only some readers open."""

    summary: str
    blocks: Sequence["Block"]


Block = Text | Table | Items | Image | Folded


class Section(NamedTuple):
    """A titled part of a report.

    Attributes:
      title: Its heading.
      blocks: Its content.
    """

    title: str
    blocks: Sequence[Block]


class Picture(NamedTuple):
    """A picture of a report.

    Attributes:
      name: Of its file, without ".png".
      png: The file's bytes.
      alt: What it shows, in numbers, for those who do not see it.
      caption: What to look for.
    """

    name: str
    png: bytes
    alt: str
    caption: str = ""


Pictures = Mapping[str, Picture]


def aligned(cells: Sequence[Sequence[str]]) -> str:
    """A table of Markdown whose columns are as wide as their widest cell.

    Example:
      >>> print(aligned([("name", "n"), ("a|b", "1")]))
      | name | n |
      | ---- | - |
      | a\\|b | 1 |
    """
    cells = [[_cell(cell) for cell in row] for row in cells]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return "\n".join(lines)


def markdown(sections: Sequence[Section], pictures: Pictures) -> str:
    """Sections as Markdown; pictures are files beside it."""
    lines = []
    for section in sections:
        lines += [f"## {_line(section.title)}", ""]
        for block in section.blocks:
            lines += [*_markdown(block, pictures), ""]
    return "\n".join(lines)


def _markdown(block: Block, pictures: Pictures) -> list[str]:
    if isinstance(block, Text):
        return [f"**{_line(block.text)}**" if block.strong else _line(block.text)]
    if isinstance(block, Table):
        return [aligned(block.cells)]
    if isinstance(block, Items):
        return [line for item in block.items for line in _item(item)]
    if isinstance(block, Image):
        if block.name not in pictures:
            return []
        alt = _line(pictures[block.name].alt).replace("[", "(").replace("]", ")")
        return [f"![{alt}]({block.name}.png)"]
    return [line for b in block.blocks for line in (*_markdown(b, pictures), "")][:-1]


def _item(item: Item) -> list[str]:
    text = f"`{item.text.replace('`', chr(39))}`" if item.code else _line(item.text)
    name = f"**{_line(item.term)}**: " if item.term else ""
    return [f"- {name}{text}", *(f"  - {_line(line)}" for line in item.more)]


def _line(text: str) -> str:
    """One line that no reader of Markdown takes for markup of HTML."""
    return " ".join(text.split()).replace("<", "&lt;")


def _cell(text: str) -> str:
    return _line(text).replace("|", "\\|")
