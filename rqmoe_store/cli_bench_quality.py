"""Command line `rqmoe bench`: data sets, and what is found in them. As in `cli`, commands only translate.

The commands join those of `cli_bench`, whose rules hold here as well.
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rqmoe_store.cli_bench import Seed, bench_app


@bench_app.command("data")
def bench_data(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="New folder to write the data set in.")],
    kind: Annotated[
        str,
        typer.Option(
            help="text: paragraphs and headings of installed documentation, 256 dimensions; images: "
            "descriptors of the photographs of scikit-image, 128 dimensions."
        ),
    ] = "text",
    rows: Annotated[int, typer.Option(help="Most rows of base.npy.")] = 60_000,
    queries: Annotated[int, typer.Option(help="Most rows of queries.npy.")] = 1_000,
    grouped: Annotated[
        bool,
        typer.Option(
            "--grouped",
            help="Rows of one package or image one after the other, as in a table that grows by new topics, "
            "instead of in random order.",
        ),
    ] = False,
    texts: Annotated[
        list[Path] | None, typer.Option(help="Folders to take texts from, instead of installed packages.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Make a data set from what Python packages ship: base.npy, queries.npy, relevance.npy, manifest.json.

    Example: [bold]rqmoe bench data ./token-vectors --kind text --rows 60000[/bold]

    The same packages and seed make the same files. relevance.npy has pairs of a query and a row of the base
    that answers it: a heading, and a paragraph below it. Descriptors of images have none.
    Needs the extra: [bold]pip install "rqmoe-store\\[bench]"[/bold]
    """
    from rqmoe_store.evaluation.data_sets import DataSetSettings, make_data_set

    settings = DataSetSettings(
        kind=kind, rows=rows, queries=queries, seed=seed, grouped=grouped, texts=tuple(texts or ())
    )
    counts = make_data_set(folder, settings, Console(stderr=True))["counts"]
    made = f"{counts['rows']:,} rows of {counts['dim']} dimensions, {counts['queries']:,} queries"
    if "relevant" in counts:
        made += f", {counts['relevant']:,} pairs of a query and its answer"
    typer.echo(f"{folder}: {made}.")
