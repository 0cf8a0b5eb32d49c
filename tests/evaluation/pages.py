"""What every page has to be: checked by the standard library's parser."""

import html.parser
import itertools

VOID = {"img", "meta", "br", "hr", "link", "input"}
HEADINGS = {f"h{level}": level for level in range(1, 7)}


class Page(html.parser.HTMLParser):
    """The elements of a page; raises where tags do not fit."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.words = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        assert len(attributes) == len(dict(attributes)), f"{tag}: attributes twice"
        self.elements.append((tag, dict(attributes), tuple(self.open)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1] == tag, f"</{tag}> closes <{self.open[-1]}>"
        self.open.pop()

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def all(self, tag):
        return [attributes for name, attributes, _ in self.elements if name == tag]

    @property
    def tags(self):
        return {name for name, _, _ in self.elements}


def check(text, *, fragment=False):
    """Balanced, no script, no network, no file; ids, headings, words for pictures."""
    page = Page(text)
    assert not page.tags & {"script", "link", "iframe", "object", "base", "form"}
    for tag, attributes, _ in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "srcset", "data", "action"):
            value = attributes.get(name)
            if value is not None:
                inside = value.startswith("#") if tag == "a" else tag == "img"
                assert inside, f"<{tag} {name}={value[:60]}>"
                if tag == "img":
                    assert value.startswith("data:image/png;base64,")
    for words in ("url(", "@import", "http://", "https://"):
        assert words not in text.split("</style>")[0]
    ids = [a["id"] for _, a, _ in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    links = [a["href"][1:] for a in page.all("a")]
    assert set(links) <= set(ids)
    labelled = [
        a["aria-labelledby"] for _, a, _ in page.elements if "aria-labelledby" in a
    ]
    assert set(labelled) <= set(ids)
    for image in page.all("img"):
        assert len(image["alt"]) > 10, "a picture without words"
        assert int(image["width"]) > 0
        assert int(image["height"]) > 0
    for cell in page.all("th"):
        assert cell["scope"] in ("col", "row")
    for tag, _, around in page.elements:
        if tag == "table":
            assert around[-1] == "div"
        if tag in ("tr", "caption"):
            assert "table" in around
        if tag == "li":
            assert around[-1] in ("ul", "ol")
        if tag == "summary":
            assert around[-1] == "details"
    scrolls = [a for a in page.all("div") if a.get("class") == "scroll"]
    for box in scrolls:
        assert box["tabindex"] == "0"
        assert box["role"] == "region"
        assert box["aria-label"]
    levels = [HEADINGS[tag] for tag, _, _ in page.elements if tag in HEADINGS]
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
    if not fragment:
        assert text.startswith("<!DOCTYPE html>")
        assert page.all("html")[0]["lang"] == "en"
        assert levels.count(1) == 1
        assert links[0] == "main"  # the skip link comes first
        for tag in ("title", "main", "nav", "header"):
            assert len(page.all(tag)) == 1, tag
        assert page.all("meta")[0] == {"charset": "utf-8"}
    return page
