"""Reports open in Chromium from a file: drawn, readable in both themes, within the width, used by keys."""

import importlib.util
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pytest
from small_advice import advice

from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.tables import create_table

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium; on Debian: apt-get install chromium"),
    pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="needs playwright"),
]

MEASURE = (Path(__file__).parent / "measure_page.js").read_text()
PAGES, WIDTHS, THEMES = ("advice", "health"), (360, 768, 960, 1440), ("light", "dark")

# The bounds of WCAG 2, level AA, for text and for graphics.
TEXT_CONTRAST, LINE_CONTRAST = 4.5, 3.0
LEAST_PIXELS = 12
"""Of a font."""


def save_health_report(folder: Path) -> Path:
    """The report of a table with everything there is to plot."""
    random = np.random.default_rng(0)
    config = CodecConfig(kind="rq", code_bytes=4, codebook_size=16, num_partitions=12, beam=1)
    rows = [{"vector": vector} for vector in random.normal(size=(2000, 8))]
    store = create_table(lancedb.connect(folder), "docs", rows, config=config, keep_vectors="float32")
    store.train(TrainConfig(epochs=0, progress=False), progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the last ones do not fit
        for size in (1, 1, 1.5, 3):
            store.add([{"vector": vector} for vector in size * random.normal(size=(300, 8))])
    store.save_health_report(folder / "health.html")
    return folder / "health.html"


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pages to open, by name."""
    folder = tmp_path_factory.mktemp("advice")
    advice().save_report(folder / "advice.html")
    return {
        "advice": folder / "advice.html",
        "health": save_health_report(tmp_path_factory.mktemp("health")),
    }


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM)
        yield opened
        opened.close()


class OpenPage:
    """A page in a browser window, with what the browser complained about and loaded."""

    def __init__(self, browser: Any, path: Path, *, width: int, theme: str) -> None:
        # Of a window's own, so that nothing is cached.
        self.context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=theme)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.loaded: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.loaded.append(request.url))
        self.page.goto(path.as_uri())

    def problems(self) -> list[str]:
        """What somebody who looks at the page would complain about."""
        found = self.page.evaluate(MEASURE)
        assert found["texts"], "a page without text"
        problems = [f"console: {each}" for each in self.complaints]
        problems += [f"scrolls sideways: {each}" for each in found["scrolling"]]
        for text in found["texts"]:
            if text["contrast"] < TEXT_CONTRAST or text["size"] < LEAST_PIXELS:
                problems.append(f"hard to read: {text}")
        for plot in found["plots"]:
            if plot["width"] < 250 or plot["height"] < 250 or plot["shapes"] < 20:
                problems.append(f"not drawn: {plot}")
            if plot["outside"]:
                problems.append(f"{plot['name']}: cut off: {plot['outside']}")
            if min(plot["contrasts"], default=0) < LINE_CONTRAST:
                problems.append(f"{plot['name']}: faint: {min(plot['contrasts'], default=0)}")
        return problems

    def reached_by_tab(self) -> list[str]:
        """What the Tab key goes to, one after the other, until it leaves the page."""
        describe = "() => document.activeElement === document.body ? '' : document.activeElement.outerHTML"
        reached: list[str] = []
        while True:
            self.page.keyboard.press("Tab")
            element = self.page.evaluate(describe)
            if not element or element in reached:
                return reached
            reached.append(element)


@pytest.fixture
def opened(browser: Any) -> Iterator[Any]:
    """Opens pages, and closes their windows in the end."""
    pages: list[OpenPage] = []

    def open_page(path: Path, width: int = 360, theme: str = "light") -> OpenPage:
        pages.append(OpenPage(browser, path, width=width, theme=theme))
        return pages[-1]

    yield open_page
    for each in pages:
        each.context.close()


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_drawn_and_readable(
    reports: dict[str, Path], opened: Any, name: str, width: int, theme: str
) -> None:
    window = opened(reports[name], width, theme)
    assert window.problems() == []
    assert window.loaded == [reports[name].as_uri()]
    variant = "narrow" if width == 360 else "wide"
    plots = window.page.locator("svg:visible")
    assert plots.count() == window.page.locator("figure").count() >= 3
    assert all(variant in plots.nth(place).get_attribute("class") for place in range(plots.count()))
    # The same with the numbers of all plots on view.
    for summary in window.page.locator("summary").all():
        summary.press("Enter")
    assert window.page.locator("table:visible").count() >= plots.count()
    assert window.problems() == []


def test_themes_differ(reports: dict[str, Path], opened: Any) -> None:
    colors = [
        opened(reports["health"], theme=theme).page.evaluate(
            "() => getComputedStyle(document.body).backgroundColor"
        )
        for theme in THEMES
    ]
    assert colors[0] != colors[1]


@pytest.mark.parametrize("name", PAGES)
def test_the_keyboard_reaches_everything(reports: dict[str, Path], opened: Any, name: str) -> None:
    window = opened(reports[name])
    interactive = window.page.locator("a, button, input, select, summary, [tabindex='0']").all()
    wanted = [element.evaluate("each => each.outerHTML") for element in interactive]
    assert window.reached_by_tab() == wanted and len(wanted) > 5


def test_the_first_key_offers_the_content(reports: dict[str, Path], opened: Any) -> None:
    window = opened(reports["health"])
    window.page.keyboard.press("Tab")
    assert window.page.locator(".skip").is_visible()
    window.page.keyboard.press("Enter")
    assert window.page.evaluate("() => document.activeElement.id") == "content"


@pytest.mark.parametrize("name", PAGES)
def test_a_screen_reader_is_told_what_plots_show(reports: dict[str, Path], opened: Any, name: str) -> None:
    page = opened(reports[name]).page
    for figure in page.locator("figure").all():
        plot = page.get_by_role("img", name=figure.locator("h3").inner_text(), exact=True)
        assert plot.count() == 1
        described = page.locator(f"#{plot.get_attribute('aria-describedby')}").inner_text()
        assert len(described) > 80


BAD = """<body><p style="color: #999">Faint <span style="font-size: 8px">and small</span></p>
<div style="width: 2000px; background: #ccc">Wide.</div><script>console.error("broken")</script>
<h3 id="t">Empty</h3><svg aria-labelledby="t" width="300" height="300"></svg></body>"""


def test_a_bad_page_would_be_noticed(tmp_path: Path, opened: Any) -> None:
    path = tmp_path / "bad.html"
    path.write_text(BAD)
    problems = " ".join(opened(path, 1440).problems())
    for problem in ("console: broken", "scrolls sideways: the page", "hard to read", "not drawn", "faint"):
        assert problem in problems
    assert "and small" in problems
