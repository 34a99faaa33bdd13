"""Command line `rqmoe bench`: searches of tables, and writes. As in `cli`, commands only translate.

The commands join those of `cli_bench`, whose rules hold here as well.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from rqmoe_store.cli_bench import (
    MAX_SEARCH_QUERIES,
    CodecSeed,
    CodeSizes,
    Device,
    Epochs,
    JsonOut,
    MetricName,
    Minutes,
    MostVectors,
    RefineKind,
    RefineSizes,
    Seed,
    VectorColumn,
    bench_app,
    check_outputs,
    require_libraries,
    require_rows,
    training_of,
    write_report,
)
from rqmoe_store.config import CODEC_KINDS, CodecConfig, TrainConfig
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation import peer_names as peers
from rqmoe_store.terminal import names_in, numbers_in

if TYPE_CHECKING:
    from rqmoe_store.codecs.base import Codec
    from rqmoe_store.codecs.vectors import Float32Array
    from rqmoe_store.evaluation.row_benchmark import RowReport
    from rqmoe_store.evaluation.search_benchmark import SearchSettings
    from rqmoe_store.evaluation.search_measurement import SearchReport

LEAST_ROWS = 10_000
"""Fewest rows of `bench rows`, whose operations choose among them."""

_TRAINING_ROWS = 20_000


@bench_app.command("search")
def bench_search(
    queries: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|TABLE",
            help=f"Query vectors, of which {MAX_SEARCH_QUERIES:,} are used. Optional with --synthetic alone: "
            "random unit vectors.",
        ),
    ] = None,
    vectors: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|TABLE",
            help="Vectors to search: a .npy file (rows, dim), or the path or URI of a LanceDB table's .lance "
            "folder. Optional with --synthetic.",
        ),
    ] = None,
    code_bytes: CodeSizes = "8,16,32",
    systems: Annotated[
        str,
        typer.Option(
            help=f"Some of {','.join(peers.SYSTEMS)}, and those whose size follows from the dimension: "
            f"{peers.form_names(peers.SYSTEM_FORMS)}, separated by commas. lancedb-ivf-rq has one bit. "
            "faiss-ivf-rq trains on at most 65,536 vectors with a beam of 1, and encodes with a beam of 5; "
            "under l2 it has one byte more."
        ),
    ] = "ours,lancedb-ivf-pq,lancedb-ivf-rq,faiss-ivf-pq,faiss-ivf-rq",
    codecs: Annotated[
        Path | None,
        typer.Option(
            help="Folder with our codecs, named <kind>-<bytes> as by `bench codec --save`. Without it, they "
            "are trained on the vectors."
        ),
    ] = None,
    kind: Annotated[
        str, typer.Option(help=f"Kind of our codecs: one of {', '.join(CODEC_KINDS)}.")
    ] = "rqmoe",
    refine_bytes: RefineSizes = None,
    refine_kind: RefineKind = "pq",
    vector_column: VectorColumn = "vector",
    rows: MostVectors = 200_000,
    metric: MetricName = "l2",
    partitions: Annotated[
        int | None,
        typer.Option(
            help="Partitions of every index built here, of at least 256 vectors each. Default: the square "
            "root of the number of vectors. Loaded codecs have their own."
        ),
    ] = None,
    nprobes: Annotated[str, typer.Option(help="Partitions to search, separated by commas.")] = "1,5,20,80",
    shortlists: Annotated[
        str, typer.Option(help="Rows that our tables decode and rerank, separated by commas.")
    ] = "20,30,100",
    batch: Annotated[int, typer.Option(help="Queries per batch, to measure throughput.")] = 64,
    timed_queries: Annotated[int, typer.Option(help="Queries run one at a time, to measure latency.")] = 500,
    minutes: Minutes = None,
    epochs: Epochs = None,
    seed: CodecSeed = 0,
    device: Device = "auto",
    synthetic: Annotated[
        str | None,
        typer.Option(
            help="Numbers of rows, such as 1000000,10000000, of tables of random codes that are also opened "
            "and searched, in memory and on disk: with every codec of --codecs, or else with one of random "
            "vectors for every size, whose partitions suit the largest table."
        ),
    ] = None,
    dim: Annotated[
        int, typer.Option(help="Dimension of random queries and codecs, without --queries and --codecs.")
    ] = 384,
    json_out: JsonOut = None,
    plot: Annotated[
        Path | None, typer.Option(help="File to plot recall against latency in (.png, .svg, .pdf).")
    ] = None,
) -> None:
    """Compare searches on your own vectors: recall, latency, throughput and bytes, at equal code sizes.

    Example: [bold]rqmoe bench search --vectors ./data/docs.lance --queries queries.npy --bytes 8,16
    --codecs codecs/ --metric cosine --plot searches.png[/bold]

    Compares our tables with other libraries' indexes, in a temporary database removed at the end.
    Needs the extra: [bold]pip install "rqmoe-store\\[bench]"[/bold]
    """
    require_libraries(plot=plot is not None)
    from rqmoe_store.evaluation.data import read_described, summary_of
    from rqmoe_store.evaluation.search_benchmark import SearchSettings, synthetic_queries

    console = Console(stderr=True)
    settings = SearchSettings(
        systems=tuple(names_in(systems)),
        code_bytes=tuple(numbers_in("--bytes", code_bytes)),
        refine_bytes=() if refine_bytes is None else tuple(numbers_in("--refine-bytes", refine_bytes)),
        codecs=codecs,
        config=CodecConfig(
            kind=kind,  # type: ignore[arg-type]  # all three are checked
            metric=metric,  # type: ignore[arg-type]
            num_partitions=partitions,
            refine_kind=refine_kind,  # type: ignore[arg-type]
        ),
        training=training_of(console, max_minutes=minutes, epochs=epochs, seed=seed, device=device),
        nprobes=tuple(numbers_in("--nprobes", nprobes)),
        shortlists=tuple(numbers_in("--shortlists", shortlists)),
        batch=batch,
        timed_queries=timed_queries,
        synthetic=() if synthetic is None else tuple(numbers_in("--synthetic", synthetic)),
    )
    _check_search(vectors, queries, rows, settings, json_out, plot)
    if queries is None:
        vectors_ND, (queries_QD, data) = None, synthetic_queries(settings, dim, MAX_SEARCH_QUERIES)
    else:
        most = rows, MAX_SEARCH_QUERIES
        vectors_ND, queries_QD, data = read_described(
            vectors, queries, vector_column, most, metric=settings.config.metric, seed=seed
        )
    summary = summary_of(data)
    console.print(summary, highlight=False, soft_wrap=True)
    report = _run_search(vectors_ND, queries_QD, settings, data, console, json_out)
    typer.echo(f"{summary}\n")
    _show_search(report, plot)


def _check_search(
    vectors: str | None,
    queries: str | None,
    rows: int,
    settings: "SearchSettings",
    json_out: Path | None,
    plot: Path | None,
) -> None:
    check_outputs(json_out, plot)
    require_rows(rows)
    if vectors is None and not settings.synthetic:
        raise InvalidInputError("Got neither --vectors nor --synthetic; expected one of them, or both.")
    if vectors is None and plot is not None:
        raise InvalidInputError("Got --plot without --vectors; expected vectors to draw the recall of.")
    if vectors is not None and queries is None:
        raise InvalidInputError("Got --vectors without --queries; expected queries to find the nearest of.")


def _run_search(
    vectors_ND: "Float32Array | None",
    queries_QD: "Float32Array",
    settings: "SearchSettings",
    data: dict[str, Any],
    console: Console,
    json_out: Path | None,
) -> "SearchReport":
    from rqmoe_store.evaluation.search_benchmark import benchmark_search
    from rqmoe_store.evaluation.tables import search_done_line, search_tables

    def show(report: "SearchReport") -> None:
        # The report is written after every index, as a long run may not get to its end.
        console.print(search_done_line(report), highlight=False, markup=False, soft_wrap=True)
        write_report(json_out, {"data": data, **report.to_dict()}, search_tables(report))

    return benchmark_search(vectors_ND, queries_QD, settings=settings, console=console, on_done=show)


def _show_search(report: "SearchReport", plot: Path | None) -> None:
    from rqmoe_store.evaluation.tables import print_tables, search_tables

    print_tables(search_tables(report), report.skipped)
    if plot is not None:
        from rqmoe_store.evaluation.plots import save_search_plot

        save_search_plot(report, plot)


@bench_app.command("latency")
def bench_latency(
    vectors: Annotated[str, typer.Option(metavar="FILE|TABLE", help="Vectors to search.")],
    queries: Annotated[str, typer.Option(metavar="FILE|TABLE", help="Query vectors, at least 64.")],
    codec: Annotated[Path, typer.Option(help="Folder of a trained codec, under l2 or cosine.")],
    refine_bytes: Annotated[
        int | None, typer.Option(help="Size of refine codes that the codec gets, if it has none.")
    ] = None,
    vector_column: VectorColumn = "vector",
    rows: MostVectors = 200_000,
    nprobes: Annotated[int | None, typer.Option(help="Partitions that our table probes.")] = None,
    shortlist: Annotated[int | None, typer.Option(help="Rows that our table ranks exactly.")] = None,
    peer_nprobes: Annotated[int | None, typer.Option(help="Partitions that LanceDB probes.")] = None,
    timed_queries: Annotated[int, typer.Option(help="Queries timed one at a time.")] = 300,
    rounds: Annotated[int, typer.Option(help="Batches of 64 that are timed.")] = 10,
    busy: Annotated[int, typer.Option(help="Processes that keep cores busy in the last part.")] = 3,
    seed: Seed = 0,
    json_out: JsonOut = None,
) -> None:
    """Time searches in turn with LanceDB's IVF_RQ and turbovec: alone, in batches, in threads, on busy cores.

    Example: [bold]rqmoe bench latency --vectors docs.npy --queries queries.npy --codec codec/[/bold]

    The tables are in a temporary database that is removed at the end.
    Needs the extra: [bold]pip install "rqmoe-store\\[bench]"[/bold]
    """
    require_libraries()
    check_outputs(json_out, None)
    require_rows(rows)
    from rqmoe_store.codecs.base import load_codec
    from rqmoe_store.evaluation.data import read_described
    from rqmoe_store.evaluation.latency_benchmark import (
        LatencySettings,
        benchmark_latency,
        latency_tables,
        print_latency_report,
    )
    from rqmoe_store.training.trainer import add_refine_codes

    search = {"nprobes": nprobes, "shortlist": shortlist, "peer_nprobes": peer_nprobes}
    settings = LatencySettings(**search, timed_queries=timed_queries, rounds=rounds, busy_processes=busy)
    console, ours = Console(stderr=True), load_codec(codec)
    most = rows, MAX_SEARCH_QUERIES
    vectors_ND, queries_QD, data = read_described(
        vectors, queries, vector_column, most, metric=ours.config.metric, seed=seed
    )
    assert vectors_ND is not None, "read, as there is a place to read them from"
    if refine_bytes is not None:
        ours = add_refine_codes(ours, vectors_ND, refine_bytes=refine_bytes)
    report = benchmark_latency(
        vectors_ND, queries_QD, ours, settings, lambda part: console.print(part.capitalize(), highlight=False)
    )
    write_report(json_out, {"data": data, **report.to_dict()}, latency_tables(report))
    print_latency_report(report)


@bench_app.command("ingest")
def bench_ingest(
    rows: Annotated[int, typer.Option(help="Rows to ingest.")] = 50_000,
    dim: Annotated[int, typer.Option(help="Dimension of the vectors, unless --codec has one.")] = 384,
    codec: Annotated[
        Path | None, typer.Option(help="Folder of a trained codec. Without it, one is trained.")
    ] = None,
    kind: Annotated[
        str, typer.Option(help=f"Kind of the codec to train: one of {', '.join(CODEC_KINDS)}.")
    ] = "rqmoe",
    metric: MetricName = "l2",
    code_bytes: Annotated[int, typer.Option("--bytes", help="Bytes per vector.")] = 16,
    minutes: Annotated[float | None, typer.Option(help="Training time.")] = None,
    epochs: Epochs = 0,
    commit_rows: Annotated[int, typer.Option(help="Rows per commit.")] = 2**18,
    raw: Annotated[bool, typer.Option("--raw", help="Keep vectors raw instead of encoding them.")] = False,
    seed: Seed = 0,
    device: Annotated[
        str, typer.Option(help='Device of the codec: "auto", "cpu", "cuda", "cuda:1", ...')
    ] = "auto",
    json_out: JsonOut = None,
) -> None:
    """Ingest synthetic rows from Parquet: rows/s against encoding alone, memory over time, bytes on disk.

    Example: [bold]rqmoe bench ingest --rows 2000000 --codec codec/ --json ingest.json[/bold]

    Files and table are in a temporary folder that is removed at the end. Without --codec the codec has
    untrained experts (--epochs 0), which is enough to measure speed.
    Needs the extra: [bold]pip install "rqmoe-store\\[bench]"[/bold]
    """
    require_libraries()
    from rqmoe_store.evaluation.ingest_benchmark import (
        IngestBenchmarkSettings,
        benchmark_ingest,
        ingest_table,
    )
    from rqmoe_store.evaluation.tables import print_tables

    console = Console(stderr=True)
    check_outputs(json_out, None)
    settings = IngestBenchmarkSettings(
        rows=rows,
        dim=dim,
        codec=codec,
        config=CodecConfig(kind=kind, metric=metric, code_bytes=code_bytes),  # type: ignore[arg-type]
        training=training_of(
            console,
            max_minutes=minutes,
            epochs=None if minutes is not None else epochs,
            seed=seed,
            device=device,
        ),
        commit_rows=commit_rows,
        encode=not raw,
    )
    report = benchmark_ingest(settings, console)
    table = ingest_table(report)
    write_report(json_out, report.to_dict(), [table])
    print_tables([table])


@bench_app.command("rows")
def bench_rows(
    rows: Annotated[int, typer.Option(help="Rows of the tables.")] = 1_000_000,
    codec: Annotated[
        Path | None,
        typer.Option(help="Folder of a trained codec. Without it, plain RQ is fitted to random vectors."),
    ] = None,
    dim: Annotated[int, typer.Option(help="Dimension of the random vectors.")] = 384,
    code_bytes: Annotated[
        int, typer.Option("--bytes", help="Bytes per vector, unless --codec has its own.")
    ] = 16,
    repeats: Annotated[int, typer.Option(help="Times that every operation runs on each table.")] = 9,
    seed: Seed = 0,
    json_out: JsonOut = None,
) -> None:
    """Time add, merge_insert, update, delete and more, compared with LanceDB tables without vectors.

    Example: [bold]rqmoe bench rows --rows 1000000 --json rows.json[/bold]

    The tables are in a temporary database that is removed at the end.
    Needs the extra: [bold]pip install "rqmoe-store\\[bench]"[/bold]
    """
    require_libraries()
    check_outputs(json_out, None)
    require_rows(rows)
    if rows < LEAST_ROWS or repeats < 1:
        raise InvalidInputError(
            f"Got --rows {rows} and --repeats {repeats}; expected at least {LEAST_ROWS:,} and 1."
        )
    from rqmoe_store.evaluation.row_benchmark import benchmark_rows, row_table
    from rqmoe_store.evaluation.tables import print_tables

    console = Console(stderr=True)

    def show(report: "RowReport") -> None:
        done = report.results[-1]
        line = f"{done.operation}, {done.rows:,} rows: {done.plain_ms:.1f} and {done.compressed_ms:.1f} ms"
        console.print(line, highlight=False, soft_wrap=True)

    console.print(f"Making tables of {rows:,} rows", highlight=False)
    report = benchmark_rows(
        _codec(codec, dim, code_bytes, seed), rows=rows, repeats=repeats, seed=seed, on_done=show
    )
    table = row_table(report)
    write_report(json_out, report.to_dict(), [table])
    print_tables([table])


def _codec(folder: Path | None, dim: int, code_bytes: int, seed: int) -> "Codec":
    from rqmoe_store.codecs.base import load_codec

    if folder is not None:
        return load_codec(folder)
    import numpy as np

    from rqmoe_store.training.trainer import train

    vectors_ND = np.random.default_rng(seed).normal(size=(_TRAINING_ROWS, dim)).astype(np.float32)
    config = CodecConfig(kind="rq", code_bytes=code_bytes)
    return train(vectors_ND, config=config, training=TrainConfig(epochs=0, seed=seed, progress=False))
