"""`rqmoe ingest`: a source of any size into a table."""

from pathlib import Path
from typing import Annotated, Any

import typer

from rqmoe_store.cli_database import Database, TableName, connect
from rqmoe_store.config import KEEP_VECTORS
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.terminal import names_in


def ingest(
    source: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Path or URI of a file or folder (Parquet, Arrow, CSV, JSON, ORC), of a .npy file, or of a "
            "LanceDB table's .lance folder; a pattern such as 'rows/*.parquet'; or several of them.",
        ),
    ],
    database: Database,
    table: TableName,
    codec: Annotated[
        Path | None, typer.Option("--codec", help="Folder of a codec, to make the table with if need be.")
    ] = None,
    vector_column: Annotated[
        str | None, typer.Option(help="What the source calls the vectors; default as the table does.")
    ] = None,
    columns: Annotated[
        str | None, typer.Option(help="Other columns to take, separated by commas; default all.")
    ] = None,
    metadata: Annotated[str | None, typer.Option(help="File with the other columns of a .npy file.")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Keep vectors raw; `rqmoe optimize` encodes them later.")
    ] = False,
    keep_vectors: Annotated[
        str, typer.Option(help=f"Of a new table: one of {', '.join(KEEP_VECTORS)}.")
    ] = "none",
    on_bad_rows: Annotated[
        str, typer.Option(help="quarantine: bad rows go to TABLE_quarantine; error: stop at the first.")
    ] = "quarantine",
    commit_rows: Annotated[int | None, typer.Option(help="Rows of the source per commit at most.")] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Ingest all rows, also those that are in the table.")
    ] = False,
    storage_options: Annotated[
        list[str] | None,
        typer.Option("--storage-option", help="KEY=VALUE for a source in a bucket; as often as needed."),
    ] = None,
) -> None:
    """Add the rows of a source to a compressed table, each of them once.

    Example: [bold]rqmoe ingest ./parquet ./data docs --codec codec/[/bold]

    Interrupted at any moment, the same command goes on where it was. Called again later, it adds what has
    come since, such as new files in a folder.
    """
    from rqmoe_store.ingestion.job import ingest as ingest_source

    if on_bad_rows not in ("quarantine", "error"):
        raise InvalidInputError(f"Got --on-bad-rows {on_bad_rows!r}; expected 'quarantine' or 'error'.")
    settings: dict[str, Any] = {"on_bad_rows": on_bad_rows, "keep_vectors": keep_vectors}
    if commit_rows is not None:
        settings["commit_rows"] = commit_rows
    try:
        report = ingest_source(
            source if len(source) > 1 else source[0],
            (connect(database), table),
            codec=codec,
            vector_column=vector_column,
            columns=None if columns is None else names_in(columns),
            metadata=metadata,
            encode=False if raw else None,
            resume=not again,
            storage_options=_options(storage_options or []),
            **settings,
        )
    except KeyboardInterrupt as interruption:
        typer.echo("Interrupted. What is committed stays; the same command goes on from there.", err=True)
        raise typer.Exit(130) from interruption
    typer.echo(str(report))


def _options(pairs: list[str]) -> dict[str, str] | None:
    for pair in pairs:
        if "=" not in pair:
            raise InvalidInputError(f"Got --storage-option {pair!r}; expected KEY=VALUE.")
    return dict(pair.split("=", 1) for pair in pairs) or None
