"""Screenshots of a report for the documentation: on a desktop in the light theme, on a phone in the dark one.

    rqmoe advise ./data docs --queries queries.npy --metric cosine --report advice.html
    python docs/images/screenshots.py advice.html

Needs playwright and Chromium. Colors are reduced to a palette, so that the pictures are small.
"""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

FOLDER = Path(__file__).parent
PICTURES = (
    ("report-desktop.png", 1440, "light", "body", "#section-3"),
    ("report-phone.png", 360, "dark", "#section-2", "#section-4"),
)
"""File, width of the window, theme, and the elements from and to whose tops the page is shown."""
COLORS = 256


def main(report: Path) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        for name, width, theme, *ends in PICTURES:
            page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=theme)
            page.goto(report.resolve().as_uri())
            top, bottom = (page.evaluate(f"document.querySelector('{end}').offsetTop") for end in ends)
            shown = {"x": 0, "y": top, "width": width, "height": bottom - top}
            picture = Image.open(io.BytesIO(page.screenshot(full_page=True, clip=shown))).convert("RGB")
            # The colors of thin lines are few pixels of all, which other methods leave out.
            small = picture.quantize(COLORS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
            small.save(FOLDER / name, optimize=True)
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
