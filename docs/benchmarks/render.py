"""Make BENCHMARKS.md from its template and the records of benchmark runs, docs/benchmarks/*.json.

    .venv/bin/python docs/benchmarks/render.py

In the template, a line `<!-- command: NAME -->` stands for the commands of NAME.json, and a line
`<!-- table: NAME -->` for its table, with date and machine below. Where a record has several tables,
`<!-- table: NAME/TABLE -->` is one of them; `of FIRST` at the end keeps the rows that begin with FIRST.
`<!-- versions -->` stands for the libraries of all records.
"""

import json
import re
from pathlib import Path

from rqmoe_store.evaluation.records import Record, machine_line, markdown_table, versions_line

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "BENCHMARKS.md"
TEMPLATE = Path(__file__).with_name("BENCHMARKS.md.in")

PLACEHOLDER = re.compile(
    r"^<!-- (command|table): ([\w-]+)(?:/([\w-]+))?(?: of ([\w+-]+))? -->$", re.MULTILINE
)
VERSIONS = "<!-- versions -->"
WIDTH = 110


def records(folder: Path) -> dict[str, Record]:
    """All records in a folder, by the names of their files."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def document(template: str, found: dict[str, Record]) -> str:
    """The template with what its placeholders stand for.

    Raises:
        ValueError: a placeholder names no record or no table of it, a record lacks its command, machine or
            date, or the document would not show it.
    """
    shown = {(match[1], match[2]) for match in PLACEHOLDER.finditer(template)}
    for name, record in found.items():
        missing = {"command", "machine", "date"} - record.keys()
        if missing:
            raise ValueError(f"{name}.json has no {', '.join(sorted(missing))}; expected those of the run.")
        wanted = {("table", name), ("command", name)}
        if wanted - shown:
            lines = " and ".join(f"<!-- {kind}: {name} -->" for kind, _ in sorted(wanted - shown))
            raise ValueError(f"The template does not show {name}.json; expected the lines {lines}.")
    page = PLACEHOLDER.sub(lambda match: _replacement(match, found), template)
    return page.replace(VERSIONS, f"Libraries: {versions_line(found.values())}.")


def _replacement(match: re.Match[str], found: dict[str, Record]) -> str:
    kind, name, table, first = match.groups()
    if name not in found:
        raise ValueError(f"{match[0]} names no record; expected one of {', '.join(found)}.")
    return command_block(found[name]) if kind == "command" else table_block(found[name], table, first)


def command_block(record: Record) -> str:
    """The command of a record, or several, as lines to paste."""
    commands = [record["command"]] if isinstance(record["command"], str) else record["command"]
    return "\n".join(f"    {line}" for command in commands for line in _wrapped(command))


def _wrapped(command: str) -> list[str]:
    """A command in lines that end between options, where that makes them short enough."""
    lines = [""]
    for part in re.split(r" (?=--)", command):
        if lines[-1] and len(lines[-1]) + len(part) > WIDTH - len(" \\"):
            lines[-1] += " \\"
            lines.append(f"    {part}")
        else:
            lines[-1] += f" {part}" if lines[-1] else part
    return lines


def table_block(record: Record, name: str | None, first: str | None = None) -> str:
    """A table of a record, or those rows that begin with `first`, with its date and machine below."""
    tables = record.get("tables", {None: record})
    chosen = next(iter(tables)) if name is None and len(tables) == 1 else name
    if chosen not in tables:
        raise ValueError(f"Got the table {name!r}; expected one of {', '.join(map(repr, tables))}.")
    rows = [row for row in tables[chosen]["rows"] if first in (None, row[0])]
    if not rows:
        raise ValueError(f"Got no row of {first!r}; expected one of {tables[chosen]['rows']}.")
    table = markdown_table(tables[chosen]["columns"], rows)
    return f"{table}\n\n*{record['date']}; {machine_line(record['machine'])}.*"


def main() -> None:
    """Write the document."""
    DOCUMENT.write_text(document(TEMPLATE.read_text(), records(TEMPLATE.parent)))


if __name__ == "__main__":
    main()
