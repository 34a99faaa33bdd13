"""Terminal input and output of the commands."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.core import TyperGroup

from rqmoe_store.errors import InvalidInputError, RQMoEError, TableError

if TYPE_CHECKING:
    from lancedb.db import DBConnection

    from rqmoe_store.codecs.base import Codec


class Commands(TyperGroup):
    """Commands that print our errors as one message. Other exceptions keep their traceback."""

    def invoke(self, context: Any) -> Any:
        try:
            return super().invoke(context)
        except RQMoEError as error:
            Console(stderr=True).print(
                f"[bold red]Error:[/bold red] [red]{escape(str(error))}[/red]", soft_wrap=True
            )
            raise typer.Exit(1) from error


def connect(database: str) -> "DBConnection":
    """Connect to a database that exists. LanceDB would create the folder if its name was mistyped."""
    import lancedb

    if "://" not in database and not Path(database).expanduser().is_dir():
        raise TableError(f"There is no folder {database!r}; expected the folder of a LanceDB database.")
    return lancedb.connect(database if "://" in database else Path(database).expanduser())


def open_existing(database: "DBConnection", name: str) -> Any:
    """Open a table of any kind. Raises TableError, with the names of all tables, if it does not exist."""
    from rqmoe_store.store.databases import open_if_exists, require_table_name

    require_table_name(name)
    table = open_if_exists(database, name)
    if table is None:
        tables = ", ".join(sorted(database.list_tables().tables)) or "none"
        raise TableError(f"There is no table {name!r} in this database; it has: {tables}.")
    return table


def read_query(query: str, option: str = "--query") -> Any:
    """Read the vectors of an option: JSON, or the path of a .npy or .json file.

    Raises:
        InvalidInputError: it is neither.
    """
    import numpy as np

    path = Path(query)
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
        return json.loads(path.read_text() if path.suffix == ".json" else query)
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            f"Cannot read a vector from {option} {query!r} ({error}); expected a JSON list such as "
            "'[0.1, 0.2]', or the path of a .npy or .json file."
        ) from error


def print_rows(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    """Print search results as a table, or as one JSON object per row."""
    if as_json:
        for row in rows:
            typer.echo(json.dumps(row, default=str))
        return
    if not rows:
        Console(stderr=True).print("No rows match.")
        return
    shown = Table(*(escape(name) for name in rows[0]))
    for row in rows:
        shown.add_row(
            *(escape(f"{value:.4f}" if isinstance(value, float) else str(value)) for value in row.values())
        )
    Console().print(shown)


def print_trained(codec: "Codec", out: Path) -> None:
    """Print the key figures of a codec that was just saved in `out`."""
    report, config = codec.report, codec.config
    error = f"{report.validation_mse:.6g}"
    if not config.is_transform:
        error += f" (plain RQ: {report.rq_validation_mse:.6g})"
    if report.refined_mse is not None:
        error += f", {report.refined_mse:.6g} with refine codes"
    total = config.code_bytes + config.refine_bytes
    typer.echo(f"Codec saved in {out}: {total} bytes per vector, validation MSE {error}.")
    if not config.is_transform:
        typer.echo(f"It encodes in {report.encoding_precision}.")
    if report.started_from is not None:
        typer.echo(f"Training went on from codec {report.started_from[:12]}.")


def names_in(text: str) -> list[str]:
    """The names in a list separated by commas."""
    return [name.strip() for name in text.split(",")]


def numbers_in(option: str, text: str) -> list[int]:
    """The whole numbers in a list separated by commas; raises InvalidInputError for anything else."""
    try:
        return [int(number) for number in text.split(",")]
    except ValueError as error:
        raise InvalidInputError(f"Got {option} {text!r}; expected whole numbers, such as 8,16.") from error


def shares_in(option: str, text: str) -> tuple[float, ...]:
    """The numbers in a list separated by commas; raises InvalidInputError for anything else."""
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError as error:
        raise InvalidInputError(f"Got {option} {text!r}; expected numbers, such as 0.3,0.5.") from error


def require_writable(option: str, path: Path) -> None:
    """Raise InvalidInputError unless a file can be written at the path of an option."""
    folder = path.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK) or path.is_dir():
        raise InvalidInputError(
            f"Cannot write {option} {str(path)!r}; expected the name of a file in an existing folder "
            "that can be written to."
        )


def require_new_folder(option: str, path: Path, *, overwrite: bool) -> None:
    """Raise InvalidInputError unless the folder of an option is new or empty, or may be overwritten."""
    if path.exists() and not path.is_dir():
        raise InvalidInputError(f"Got {option} {str(path)!r}, which is a file; expected a folder.")
    if not overwrite and path.is_dir() and any(path.iterdir()):
        raise InvalidInputError(
            f"Got {option} {str(path)!r}, which is not empty; expected a new folder, or --overwrite to "
            "replace the codec that is there."
        )


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a JSON object, whole or not at all."""
    from rqmoe_store.codecs.artifact import write_atomically

    write_atomically(path, json.dumps(document, indent=2).encode())
