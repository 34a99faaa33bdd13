"""Reports read as HTML: their structure, their text, and what they would load."""

import re
from html.parser import HTMLParser

VOID = {"meta", "link", "br", "hr", "img", "input"}
LOADING = {"src", "href", "srcset", "poster", "data", "action", "background"}


class ParsedPage(HTMLParser):
    """A page whose tags are all closed in their order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.headings: list[int] = []
        self._open: list[str] = []
        self.styles = ""
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attributes]
        if re.fullmatch(r"h\d", tag):
            self.headings.append(int(tag[1]))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, text: str) -> None:
        if "style" in self._open:
            self.styles += text
        else:
            self.text += text

    def values(self, name: str) -> list[str]:
        """Values of all attributes of a name."""
        return [value for each, value in self.attributes if each == name]

    @property
    def words(self) -> str:
        """The text, with one space between words."""
        return " ".join(self.text.split())


def require_sound(page: ParsedPage) -> None:
    """Fail unless a page is whole, loads nothing, and can be used by a screen reader."""
    assert "script" not in page.tags and not [name for name, _ in page.attributes if name.startswith("on")]
    for name in LOADING:
        assert all(value.startswith("#") or value == "data:," for value in page.values(name)), name
    styles = page.styles + " ".join(page.values("style") + page.values("clip-path"))
    assert "@import" not in styles and not re.search(r"url\((?!#)", styles)
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    targets = [value[1:] for value in page.values("href") if value.startswith("#")]
    targets += [value for name in ("aria-labelledby", "aria-describedby") for value in page.values(name)]
    targets += re.findall(r"url\(#([^)]+)\)", styles)
    assert set(targets) <= set(ids)
    assert page.headings[0] == 1 and page.headings.count(1) == 1
    steps = zip(page.headings, page.headings[1:], strict=False)
    assert all(after - before <= 1 for before, after in steps), "a level of headings is missing"
    assert page.tags.count("svg") == 2 * page.tags.count("figure") == page.values("role").count("img")
    assert page.tags.count("table") == page.tags.count("caption")
    # A color of the light theme would stay in the dark one.
    assert not re.findall(r"#[0-9a-f]{3,6}\b(?![^(]*\))", " ".join(page.values("style")))
