"""Reports are whole HTML pages: escaped, with plots whose numbers are there to read, and loading nothing."""

import re
import sys
from pathlib import Path

import pytest
from small_pages import ParsedPage, require_sound

from rqmoe_store.errors import InvalidInputError, RQMoEError
from rqmoe_store.pages.figures import SERIES, Style
from rqmoe_store.pages.page import (
    Command,
    Facts,
    Page,
    Section,
    Table,
    Text,
    page_html,
    require_page,
    write_page,
)
from rqmoe_store.pages.plots import StoredSize, growth_figure, short_bytes, short_number

HOSTILE = "</style><script>alert('&amp;')</script>\"> {{ 7 * 7 }}"
SIZES = [
    StoredSize(name="raw vectors", bytes_per_row=1536),
    StoredSize(name=HOSTILE, bytes_per_row=16, fixed_bytes=1_000_000),
]


@pytest.fixture(scope="module")
def html() -> str:
    blocks = [
        Text(HOSTILE),
        Facts([(HOSTILE, HOSTILE)]),
        Table(caption=HOSTILE, columns=[HOSTILE, "b"], rows=[["first", HOSTILE], ["second", "2"]], chosen=1),
        growth_figure(SIZES, rows=12_345, break_even=658),
        Command(purpose=HOSTILE, command=f"rqmoe stats {HOSTILE}\nrqmoe verify ./data docs"),
    ]
    return page_html(Page(title=HOSTILE, verdict=HOSTILE, act=True, sections=[Section(HOSTILE, blocks)]))


def test_text_is_shown_as_what_it_is(html: str) -> None:
    page = ParsedPage(html)
    require_sound(page)
    shown = " ".join(HOSTILE.split())
    assert page.words.count(shown) >= 10
    # Also where it labels a line of a plot.
    labels = [text for text in re.findall(r"<text[^>]*>(.*?)</text>", html) if "script" in text]
    assert len(labels) == 2 and all("&lt;script&gt;" in text for text in labels)


def test_the_numbers_of_a_plot_can_be_read(html: str) -> None:
    page = ParsedPage(html)
    for rows in (658, 1000, 10**9, 12_345):
        assert f"{rows:,}" in page.words
        assert all(short_bytes(size.at(rows)) in page.words for size in SIZES)
    assert "From 658 rows on, codes and codec together are smaller than raw vectors." in page.words


def test_what_never_pays_is_said() -> None:
    figure = growth_figure([SIZES[0], StoredSize(name="int64", bytes_per_row=3072)], rows=0, break_even=None)
    assert "at no number of rows smaller" in figure.description and "present" not in figure.description


def test_a_row_can_be_recommended(html: str) -> None:
    assert re.search(r'<tr role="row" class="chosen">\s*<th[^>]*>second</th>', html)
    assert html.count('class="chosen"') == 1


def test_commands_can_be_copied(html: str) -> None:
    (code,) = re.findall(r"<code>(.*?)</code>", html, re.DOTALL)
    assert ParsedPage(code).text == f"rqmoe stats {HOSTILE}\nrqmoe verify ./data docs"


def test_a_page_replaces_another_one_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = require_page(tmp_path / "report.html")
    for title in ("first", "second"):
        write_page(Page(title=title, verdict="ä", act=False, sections=[]), path)
        assert f"<h1>{title}</h1>" in path.read_text(encoding="utf-8")
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing" / "report.html"):
        with pytest.raises(InvalidInputError, match=r"Cannot write the report .*existing folder"):
            require_page(path)


@pytest.mark.parametrize("name", ["jinja2", "matplotlib"])
def test_missing_libraries_are_named(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    with pytest.raises(RQMoEError, match=rf'Not installed: {name}.*pip install "rqmoe-store\[report\]"'):
        require_page(tmp_path / "report.html")


def test_every_series_looks_different() -> None:
    styles = [Style.of(place) for place in range(SERIES * SERIES)]
    assert len(set(styles)) == len(styles)
    assert len({style.color for style in styles[:SERIES]}) == SERIES


@pytest.mark.parametrize(
    ("number", "text"), [(7, "7"), (1000, "1 k"), (2.5e6, "2.5 M"), (10**9, "1 bn"), (0.5, "0.5")]
)
def test_numbers_are_short(number: float, text: str) -> None:
    assert short_number(number) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1536, "1.54 kB"), (2.5e9, "2.5 GB"), (3e15, "3,000 TB")],
)
def test_sizes_have_a_unit(size: float, text: str) -> None:
    assert short_bytes(size) == text
