"""`rqmoe optimize` and `rqmoe health`: the upkeep of a table from a terminal."""

import datetime
from typing import Annotated

import typer

from rqmoe_store.cli_database import Database, TableName, connect


def optimize(
    database: Database,
    table: TableName,
    train_from: Annotated[
        int | None, typer.Option(help="Train the first codec of a table from this many rows; 0 for never.")
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Time for that training; default 30 epochs.")] = None,
    cleanup_days: Annotated[
        float | None,
        typer.Option(help="Remove versions older than this; 0 makes room at once. Default 7."),
    ] = None,
) -> None:
    """Encode what is raw or of an older codec, merge small files and clean up.

    Example: [bold]rqmoe optimize ./data docs --cleanup-days 0[/bold]

    Can be interrupted at any time and called again. With --cleanup-days 0 nobody else may be writing.
    """
    from rqmoe_store.config import TrainConfig
    from rqmoe_store.lifecycle import ROWS_TO_TRAIN
    from rqmoe_store.tables import open_table

    report = open_table(connect(database), table).optimize(
        training=TrainConfig(max_minutes=minutes),
        train_from=ROWS_TO_TRAIN if train_from is None else train_from or None,
        cleanup_older_than=None if cleanup_days is None else datetime.timedelta(days=cleanup_days),
    )
    typer.echo(str(report))


def health(database: Database, table: TableName) -> None:
    """Tell whether the codec of a table still fits the rows that are added.

    Example: [bold]rqmoe health ./data docs[/bold]

    Exits with 1 when the table should be retrained.
    """
    from rqmoe_store.tables import open_table

    report = open_table(connect(database), table).health()
    typer.echo(str(report))
    if report.needs_retraining:
        raise typer.Exit(1)
