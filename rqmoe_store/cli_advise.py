"""Command line `rqmoe advise`: how many bytes per vector a table needs."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from rqmoe_store.config import METRICS
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.terminal import connect, open_existing, require_writable

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


def advise(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Folder or bucket URI of a LanceDB database; or a .npy file alone.",
        ),
    ],
    table: Annotated[str | None, typer.Argument(metavar="TABLE", help="Name of a table in it.")] = None,
    queries: Annotated[
        str | None, typer.Option("--queries", help="Typical query vectors: a .npy file. Default: rows.")
    ] = None,
    target_recall: Annotated[float, typer.Option(help="Share of the nearest rows to find, up to 1.")] = 0.95,
    limit: Annotated[int, typer.Option("--limit", "-n", help="Number of nearest rows.")] = 10,
    metric: Annotated[
        str | None,
        typer.Option(help=f"One of {', '.join(METRICS)}. Default: the table's, or what suits."),
    ] = None,
    vector_column: Annotated[str, typer.Option(help="Column that holds the vectors.")] = "vector",
    minutes: Annotated[float, typer.Option(help="Training of RQ-MoE; 0 for none.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    report_out: Annotated[
        Path | None,
        typer.Option("--report", help="File to write an HTML page with plots to, which loads nothing."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")] = False,
) -> None:
    """Advise how many bytes per vector keep a recall.

    Example: [bold]rqmoe advise ./data docs --queries queries.npy --target-recall 0.95[/bold]

    Trains candidates on a sample, and measures what they find, take and cost at the full number of rows.
    Prints them, the recommended one and the next commands. Ctrl-C prints what has been measured so far.
    --report needs the extra: [bold]pip install "rqmoe-store\\[report]"[/bold]
    """
    from rqmoe_store.advice.advise import advise as advise_on
    from rqmoe_store.pages.page import require_page

    if report_out is not None:
        require_writable("--report", report_out)
        require_page(report_out)  # and its libraries
    settings: dict[str, Any] = {"metric": metric, "k": limit, "vector_column": vector_column, "seed": seed}
    advice = advise_on(
        _source(source, table),
        queries,
        target_recall=target_recall,
        minutes=minutes,
        progress=not as_json,
        **settings,
    )
    typer.echo(json.dumps(advice.to_dict()) if as_json else str(advice))
    if report_out is not None:
        advice.save_report(report_out)
    if not advice.complete:
        raise typer.Exit(INTERRUPTED)


def _source(source: str, table: str | None) -> Any:
    """The named table, or the path of a file."""
    if table is None:
        if not source.rstrip("/").endswith((".npy", ".lance")):
            raise InvalidInputError(
                f"Got {source!r} alone; expected a database and the name of a table, or a .npy file."
            )
        return source
    return open_existing(connect(source), table)
