"""Records of benchmark runs: JSON files with command, machine, date and tables, for BENCHMARKS.md.

A record with one table has its "columns" and "rows"; one with several has "tables", by name. A cell is a
string, shown as it is, a whole number, a float, or null where there is no figure.
"""

import datetime
import os
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rqmoe_store.errors import InvalidInputError

if TYPE_CHECKING:
    from rich.table import Table

Record = dict[str, Any]
"""What a file has: "command", "machine", "date", table or tables, and whatever else was measured."""

_SETTINGS = ("OMP_NUM_THREADS",)
"""Variables of the environment that belong to a command, as they change what it measures."""


def run_record(report: dict[str, Any], tables: Sequence["Table"]) -> Record:
    """The record of a run.

    Args:
        report: all figures as JSON-ready values, with the "machine" that `describe_machine` finds.
        tables: what the run shows of them in the terminal. A table is named by its title up to a colon.
    """
    named = {re.sub(r"\W+", "-", f"{table.title}".partition(":")[0].lower()): table for table in tables}
    return {
        **run_facts(),
        "tables": {name: _table_values(table) for name, table in named.items()},
        **report,
    }


def run_facts() -> Record:
    """The command that runs, as one would type it, and today's date."""
    return {"command": _command_line(), "date": datetime.date.today().isoformat()}


def _command_line() -> str:
    program, module = Path(sys.argv[0]), getattr(sys.modules["__main__"], "__spec__", None)
    started = [program.name]
    if program.suffix == ".py":  # the path of a script, or of a module started by `python -m`
        name = None if module is None else module.name.removesuffix(".__main__")
        started = ["python", str(program)] if name is None else ["python", "-m", name]
    settings = [f"{name}={os.environ[name]}" for name in _SETTINGS if name in os.environ]
    return " ".join([*settings, shlex.join([*started, *sys.argv[1:]])])


def _table_values(table: "Table") -> dict[str, Any]:
    """Columns and rows of a table for the terminal, without its markup."""
    from rich.text import Text

    columns = [Text.from_markup(f"{column.header}").plain.replace("\n", " ") for column in table.columns]
    cells = [[Text.from_markup(f"{cell}").plain for cell in column.cells] for column in table.columns]
    return {"columns": columns, "rows": [list(row) for row in zip(*cells, strict=True)]}


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown.

    Raises:
        InvalidInputError: a row has more or fewer cells than there are columns.
    """
    lines = [_line(columns), "|---" * len(columns) + "|"]
    for row in rows:
        if len(row) != len(columns):
            raise InvalidInputError(f"Got the row {list(row)}; expected a cell for each of {list(columns)}.")
        lines.append(_line([_shown(cell) for cell in row]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)


def _shown(cell: Any) -> str:
    if cell is None:
        return "-"
    if isinstance(cell, bool) or not isinstance(cell, int | float):
        return f"{cell}"
    return f"{cell:,}" if isinstance(cell, int) else f"{cell:.3f}"


def machine_line(machine: str | dict[str, Any]) -> str:
    """A machine in a few words: as a record says it, or from what `describe_machine` finds."""
    if isinstance(machine, str):
        return machine
    threads = "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    cores = f"{threads} on {machine['cpu']}"
    # Records made before the 27th of November 2026, 22:00, do not say.
    load = [f"load {machine['load_average']:.1f}"] if "load_average" in machine else []
    return ", ".join([*([machine["gpu"]] if machine["gpu"] else []), cores, *load])


def versions_line(records: Iterable[Record]) -> str:
    """The versions of all libraries that records name, in a line."""
    found: dict[str, set[str]] = {}
    for record in records:
        versions = {} if isinstance(record["machine"], str) else record["machine"]["versions"]
        for name, version in versions.items():
            found.setdefault(name, set()).add(version)
    return ", ".join(f"{name} {' and '.join(sorted(found[name]))}" for name in sorted(found))
