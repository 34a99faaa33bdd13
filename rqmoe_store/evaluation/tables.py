"""Tables of figures for a terminal or a pipe: names may fold, figures are always whole."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

_UNLIMITED = 10_000
_NAME_WIDTHS = len("Gaussian bound"), 32


def print_tables(tables: Sequence[Table]) -> None:
    """Print at least one table to standard output, all of them with the same room."""
    console = Console()
    unlimited = console.options.update(width=_UNLIMITED)
    widest = max(console.measure(table, options=unlimited).maximum for table in tables)
    # A pipe has no width of its own, and a terminal may be narrow; cut figures are of no use.
    console.width = max(console.width, widest)
    for table in tables:
        console.print(table)
        console.print()


def table_of(title: str, columns: str, *, caption: str | None = None) -> Table:
    """A table with a column for each of the names, which are separated by semicolons."""
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    name, *figures = columns.split("; ")
    least, most = _NAME_WIDTHS
    # A codec's name may be a long path, which is folded; figures are never cut.
    table.add_column(name, overflow="fold", min_width=least, max_width=most)
    for figure in figures:
        table.add_column(figure, justify="right", no_wrap=True)
    return table


def optional(value: float | None, form: str) -> str:
    """A figure in that form, "-" where there is none."""
    return "-" if value is None else form.format(value)


def short(microseconds: float) -> str:
    """Three digits that matter, and no more than that."""
    return f"{microseconds:,.0f}" if microseconds >= 100 else f"{microseconds:.3g}"
