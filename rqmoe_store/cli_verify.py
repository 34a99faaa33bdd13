"""`rqmoe verify`: whether a table is intact, from a terminal."""

import json
from typing import Annotated

import typer

from rqmoe_store.cli_database import Database, TableName, connect


def verify(
    database: Database,
    table: TableName,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")] = False,
) -> None:
    """Read a whole table and tell what is wrong with it, however damaged it is.

    Example: [bold]rqmoe verify ./data docs_compressed[/bold]

    Nothing is changed. Exits with 1 when there are problems; advice and orphaned files are none.
    """
    from rqmoe_store.verification.run import verify as verify_table

    report = verify_table(connect(database), table, progress=not as_json)
    typer.echo(json.dumps(report.to_dict()) if as_json else str(report))
    if not report.ok:
        raise typer.Exit(1)
