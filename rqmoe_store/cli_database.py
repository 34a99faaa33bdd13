"""The database and table that a command names."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rqmoe_store.errors import TableError

if TYPE_CHECKING:
    from lancedb.db import DBConnection

Database = Annotated[str, typer.Argument(metavar="DB", help="Folder or bucket URI of a LanceDB database.")]
TableName = Annotated[str, typer.Argument(metavar="TABLE", help="Name of a table in it.")]
VectorColumn = Annotated[str, typer.Option("--vector-column", help="Column that holds the vectors.")]


def connect(database: str) -> "DBConnection":
    """The database, which must exist: connecting to a mistyped folder would create it."""
    import lancedb

    if "://" not in database and not Path(database).expanduser().is_dir():
        raise TableError(f"There is no folder {database!r}; expected the folder of a LanceDB database.")
    return lancedb.connect(database if "://" in database else Path(database).expanduser())


def open_existing(database: "DBConnection", name: str) -> Any:
    """A table of any kind. Raises TableError, naming those there are, when there is none of this name."""
    from rqmoe_store.store.databases import open_if_exists, require_table_name

    require_table_name(name)
    table = open_if_exists(database, name)
    if table is None:
        tables = ", ".join(sorted(database.list_tables().tables)) or "none"
        raise TableError(f"There is no table {name!r} in this database; it has: {tables}.")
    return table
