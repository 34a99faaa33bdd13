"""Plots as inline SVG, drawn by matplotlib and colored by the style sheet of the page.

matplotlib draws with the colors of the light theme. Each of them is then replaced by a CSS variable, so that
the page can have a dark theme without a second picture. Text stays text: it has the font of the page, can be
selected, and is as large on a phone as elsewhere, since every plot is drawn for a narrow and for a wide page.

Needs matplotlib, from the extra `report`.
"""

import dataclasses
import io
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SERIES = 6
"""Number of colors for lines and points; markers differ as well."""

INK, QUIET, LINE = "#1c2128", "#59636e", "#d5dae0"
_SERIES_COLORS = ("#0060a8", "#b94700", "#007a58", "#9a3d86", "#806000", "#5f6b77")
_VARIABLES = {
    **{INK: "--ink", QUIET: "--quiet", LINE: "--line"},
    **{color: f"--series-{place + 1}" for place, color in enumerate(_SERIES_COLORS)},
}
"""Colors of the light theme -> the variables that templates/page.css sets for both themes."""
_MARKERS = ("o", "s", "^", "D", "v", "P")

_FONT_SIZE = 13
_SIZES = {"narrow": (310, 260), "wide": (680, 340)}
"""Width and height in pixels, without the legend. A phone of 360 pixels has room for the narrow ones."""
_LEGEND_COLUMNS = {"narrow": 1, "wide": 3}
_LEGEND_LINE = 19
"""Height in pixels of a line of the legend."""
_POINTS_PER_INCH = 72  # SVG of matplotlib is in points; a point is a pixel of the page

_XLINK = "{http://www.w3.org/1999/xlink}href"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Figure:
    """A plot, with what it shows in words, and its numbers."""

    kind: ClassVar[str] = "figure"
    name: str
    """Unique on the page; starts the ids in the SVG."""
    title: str
    description: str
    """What somebody who cannot see the plot needs to know of it."""
    columns: tuple[str, ...]
    """Head of the table with the numbers of the plot."""
    rows: tuple[tuple[str, ...], ...]
    svg: Mapping[str, str]
    """"narrow" and "wide": the plot for a phone, and for a page with more room."""


@dataclasses.dataclass(frozen=True)
class Style:
    """Color and marker of one series."""

    color: str
    marker: str

    @classmethod
    def of(cls, place: int) -> "Style":
        """The style of the series at a place; colors repeat after `SERIES`, with other markers."""
        shift = place // SERIES
        return cls(_SERIES_COLORS[place % SERIES], _MARKERS[(place + shift) % len(_MARKERS)])


def draw_figure(
    draw: "Callable[[Axes], None]",
    *,
    name: str,
    title: str,
    description: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
) -> Figure:
    """Draw a plot for a narrow and for a wide page.

    Args:
        draw: draws into empty axes. What it labels is in a legend below.
        name: a word in lower case, unique on the page.
        title: heading of the plot.
        description: what the plot shows, in words.
        columns: head of the table of the plotted numbers.
        rows: its rows.
    """
    return Figure(
        name=name,
        title=title,
        description=description,
        columns=tuple(columns),
        rows=tuple(tuple(row) for row in rows),
        svg={variant: _with_variables(_drawn(draw, variant), f"{name}-{variant}") for variant in _SIZES},
    )


def _drawn(draw: "Callable[[Axes], None]", variant: str) -> str:
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context(
        {
            "svg.fonttype": "none",  # text remains text
            "svg.hashsalt": "rqmoe_store",  # the same ids for the same plot
            "font.size": _FONT_SIZE,
            "legend.fontsize": _FONT_SIZE,
            "text.color": INK,
            "axes.edgecolor": QUIET,
            "axes.labelcolor": INK,
            "xtick.color": QUIET,
            "xtick.labelcolor": INK,
            "ytick.color": QUIET,
            "ytick.labelcolor": INK,
            "grid.color": LINE,
        }
    ):
        canvas = Canvas(layout="constrained")
        axes = canvas.subplots()
        axes.grid(True)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
        columns = _LEGEND_COLUMNS[variant]
        lines = math.ceil(len(axes.get_legend_handles_labels()[1]) / columns)
        canvas.legend(loc="outside lower center", ncols=columns, frameon=False)
        width, height = _SIZES[variant]
        canvas.set_size_inches(width / _POINTS_PER_INCH, (height + _LEGEND_LINE * lines) / _POINTS_PER_INCH)
        written = io.StringIO()
        canvas.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    return written.getvalue()


def _with_variables(svg: str, prefix: str) -> str:
    """The SVG to put into a page: without namespaces and metadata, with variables for colors.

    Args:
        svg: as matplotlib writes it.
        prefix: of all ids, which must be unique on the page.
    """
    root = ElementTree.fromstring(svg)
    for metadata in root.findall("{*}metadata"):
        root.remove(metadata)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        attributes = {name: _attribute(name, value, prefix) for name, value in element.attrib.items()}
        element.attrib.clear()
        element.attrib.update({"href" if name == _XLINK else name: each for name, each in attributes.items()})
    width, height = root.get("viewBox", "").split()[2:]
    root.attrib.update(
        {
            "width": width,
            "height": height,
            "role": "img",
            "aria-labelledby": f"{prefix.rpartition('-')[0]}-title",
            "aria-describedby": f"{prefix.rpartition('-')[0]}-description",
            "class": prefix.rpartition("-")[2],
        }
    )
    return ElementTree.tostring(root, encoding="unicode")


def _attribute(name: str, value: str, prefix: str) -> str:
    if name == "id":
        return f"{prefix}-{value}"
    if name == _XLINK:
        return value.replace("#", f"#{prefix}-")
    if name == "clip-path":
        return value.replace("url(#", f"url(#{prefix}-")
    if name == "style":
        for color, variable in _VARIABLES.items():
            value = value.replace(color, f"var({variable})")
        return value.replace("'DejaVu Sans', ", "")
    return value
