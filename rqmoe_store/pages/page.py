"""HTML page of a report: sections of text, facts, figures, tables and commands, written as one file.

A Jinja2 template escapes all text, so that names of tables that look like markup are shown as what they are.
The page has no scripts, and its content security policy forbids it to load anything: it needs no network.

Needs Jinja2 and, for figures, matplotlib, both from the extra `report`.
"""

import dataclasses
import datetime
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import rqmoe_store
from rqmoe_store.codecs.artifact import write_atomically
from rqmoe_store.errors import InvalidInputError, RQMoEError
from rqmoe_store.pages.figures import Figure


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str


@dataclasses.dataclass(frozen=True)
class Facts:
    """Names and their values."""

    kind: ClassVar[str] = "facts"
    facts: Sequence[tuple[str, str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under a head; the first cell names its row."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    chosen: int | None = None
    """Row to mark as recommended."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """What to type, and what for."""

    kind: ClassVar[str] = "command"
    purpose: str
    command: str


Block = Text | Facts | Figure | Table | Command


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading and what is below it."""

    title: str
    blocks: Sequence[Block]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Page:
    """A whole page."""

    title: str
    verdict: str
    """The result, in a sentence."""
    act: bool
    """Whether the verdict asks for something to be done."""
    sections: Sequence[Section]


def require_page(path: str | os.PathLike[str]) -> Path:
    """The path of a page that can be written. To be called before what the page shows is measured.

    Raises:
        InvalidInputError: the path is a folder, or in one that does not exist or cannot be written to.
        RQMoEError: the libraries of the extra `report` are not installed.
    """
    place = Path(path)
    if not place.parent.is_dir() or not os.access(place.parent, os.W_OK) or place.is_dir():
        raise InvalidInputError(
            f"Cannot write the report {str(place)!r}; expected the path of a file in an existing folder that "
            "can be written to."
        )
    missing = [name for name in ("jinja2", "matplotlib") if importlib.util.find_spec(name) is None]
    if missing:
        raise RQMoEError(
            f"Not installed: {', '.join(missing)}. Install the libraries of reports with: "
            'pip install "rqmoe-store[report]"'
        )
    return place


def write_page(page: Page, path: Path) -> None:
    """Write a page, whole or not at all. Replaces a file that is there."""
    write_atomically(path, page_html(page).encode())


def page_html(page: Page) -> str:
    """The page as HTML."""
    import jinja2

    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("rqmoe_store.pages"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return templates.get_template("page.html").render(
        page=page,
        generator=f"rqmoe-store {rqmoe_store.__version__}",
        made=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )
