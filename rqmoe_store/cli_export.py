"""`rqmoe export`: a table as files, from a terminal."""

from pathlib import Path
from typing import Annotated, Any

import typer

from rqmoe_store.cli_database import Database, TableName, connect


def export(
    database: Database,
    table: TableName,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="File or folder to write.")],
    format: Annotated[str, typer.Option(help="One of parquet, npy, codes.")] = "parquet",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")] = False,
) -> None:
    """Write a table to files that others can read.

    Example: [bold]rqmoe export ./data docs_compressed docs.parquet[/bold]

    [bold]parquet[/bold]: your columns and decoded vectors; OUT ends in .parquet, or is a folder of files.
    [bold]npy[/bold]: vectors in OUT, an .npy file, and your columns in a .parquet file beside it.
    [bold]codes[/bold]: your columns and codes in OUT/rows, codecs beside; usable without LanceDB.
    """
    from rqmoe_store.tables import open_table

    choices: dict[str, Any] = {"format": format, "overwrite": overwrite}
    typer.echo(str(open_table(connect(database), table).export(out, **choices)))
