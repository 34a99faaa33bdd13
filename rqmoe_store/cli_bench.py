"""`rqmoe bench`: measuring on the user's own vectors. As in `cli`, commands only translate."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from rqmoe_store.config import CODEC_KINDS, METRICS, CodecConfig, TrainConfig
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.terminal import names_in, numbers_in, require_writable, write_json

if TYPE_CHECKING:
    from rqmoe_store.codecs.vectors import Float32Array
    from rqmoe_store.evaluation.codec_benchmark import BenchmarkSettings
    from rqmoe_store.evaluation.codec_results import BenchmarkReport

MAX_QUERIES = 10_000
"""More are not used: every codec searches for all of them exhaustively."""

bench_app = typer.Typer(no_args_is_help=True)


@bench_app.callback()
def main() -> None:
    """Measure on your own vectors."""


@bench_app.command("codec")
def bench_codec(
    vectors: Annotated[
        str,
        typer.Option(
            metavar="FILE|TABLE",
            help="A .npy file (rows, dim), or the path or URI of a LanceDB table's .lance folder.",
        ),
    ],
    queries: Annotated[
        str,
        typer.Option(metavar="FILE|TABLE", help=f"Query vectors likewise; at most {MAX_QUERIES} are used."),
    ],
    code_bytes: Annotated[str, typer.Option("--bytes", help="Code sizes, separated by commas.")] = "8,16",
    codecs: Annotated[
        str,
        typer.Option(
            help=f"Some of {','.join(CODEC_KINDS)} (ours), opq,faiss-rq,lsq (FAISS; lsq takes long), and "
            "folders of codecs already trained, separated by commas. rq is measured in any case. A folder's "
            "codec must not have seen the held-out vectors when it was trained elsewhere."
        ),
    ] = "rq,rqmoe",
    vector_column: Annotated[
        str, typer.Option(help="Column of the tables that holds the vectors.")
    ] = "vector",
    rows: Annotated[int, typer.Option(help="Vectors used at most; a sample of more.")] = 200_000,
    held_out: Annotated[int, typer.Option(help="Last vectors kept from training to measure on.")] = 5000,
    metric: Annotated[str, typer.Option(help=f"One of {', '.join(METRICS)}.")] = "l2",
    partitions: Annotated[int, typer.Option(help="Coarse centroids; 0 compares bytes with bytes.")] = 0,
    minutes: Annotated[float | None, typer.Option(help="Training time of each of our codecs.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training vectors.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random in ours.")] = 0,
    device: Annotated[
        str, typer.Option(help='Where ours run: "auto", "cpu", "cuda", "cuda:1", ...')
    ] = "auto",
    scaling: Annotated[
        str | None,
        typer.Option(help="Also encode that many vectors with ours, from a file; such as 10000,1000000."),
    ] = None,
    save: Annotated[
        Path | None, typer.Option(help="Folder to keep what is trained in, as <codec>-<bytes>.")
    ] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="Also write everything here.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw recall and MSE against bytes here (.png, .svg, .pdf).")
    ] = None,
) -> None:
    """Compare codecs on your own vectors: distortion, recall, speed, memory, and the Gaussian bound.

    Example: [bold]rqmoe bench codec --vectors ./data/docs.lance --queries queries.npy --bytes 8,16
    --codecs rq,rqmoe,opq --minutes 5 --plot codecs.png[/bold]

    Needs the extra: [bold]pip install "rqmoe-store\\[bench]"[/bold]
    """
    names = names_in(codecs)
    _require_libraries(names, with_plot=plot is not None)
    from rqmoe_store.evaluation.codec_benchmark import BenchmarkSettings, benchmark_codecs
    from rqmoe_store.evaluation.tables import codec_done_line, print_report

    console = Console(stderr=True)
    settings = BenchmarkSettings(
        codecs=tuple(names),
        code_bytes=tuple(numbers_in("--bytes", code_bytes)),
        config=CodecConfig(metric=metric, num_partitions=partitions),  # type: ignore[arg-type]  # checked
        training=TrainConfig(
            max_minutes=minutes, epochs=epochs, seed=seed, device=device, progress=console.is_terminal
        ),
        held_out=held_out,
        save=save,
        scaling=() if scaling is None else tuple(numbers_in("--scaling", scaling)),
    )
    check_outputs(json_out, plot)
    _require_folder(save)
    vectors_ND, queries_QD, data = _read(vectors, queries, vector_column, rows, settings)
    summary = _summary(data)
    console.print(summary, highlight=False, soft_wrap=True)

    def show(report: "BenchmarkReport") -> None:
        # Written again after every codec: a long run may not get to its end.
        console.print(codec_done_line(report.results[-1]), highlight=False, markup=False, soft_wrap=True)
        if json_out is not None:
            command = shlex.join(["rqmoe", *sys.argv[1:]])
            write_json(json_out, {"command": command, "data": data, **report.to_dict()})

    report = benchmark_codecs(vectors_ND, queries_QD, settings=settings, console=console, on_done=show)
    typer.echo(f"{summary}\n")
    print_report(report)
    if plot is not None:
        from rqmoe_store.evaluation.plots import save_plot

        save_plot(report, plot)


def _require_libraries(codecs: list[str], *, with_plot: bool) -> None:
    from rqmoe_store.evaluation.machine import require_bench

    require_bench("psutil", *(["matplotlib"] if with_plot else []))
    from rqmoe_store.evaluation.contenders import PEERS

    require_bench(*(["faiss"] if set(codecs) & set(PEERS) else []))


def check_outputs(json_out: Path | None, plot: Path | None) -> None:
    """Raise InvalidInputError unless everything asked for can be written in the end."""
    if json_out is not None:
        require_writable("--json", json_out)
    if plot is not None:
        from rqmoe_store.evaluation.plots import check_plot_kind

        check_plot_kind(plot)
        require_writable("--plot", plot)


def require_rows(rows: int) -> None:
    """Raise InvalidInputError unless `--rows` asks for some."""
    if rows < 1:
        raise InvalidInputError(f"Got --rows {rows}; expected a whole number from 1.")


def _require_folder(save: Path | None) -> None:
    if save is not None and save.exists() and not save.is_dir():
        raise InvalidInputError(f"Got --save {str(save)!r}, which is a file; expected a folder.")


def _read(
    vectors: str, queries: str, vector_column: str, rows: int, settings: "BenchmarkSettings"
) -> tuple["Float32Array", "Float32Array", dict[str, Any]]:
    """Vectors, queries, and where they are from."""
    from rqmoe_store.evaluation.data import read_all

    require_rows(rows)
    metric = settings.config.metric
    read = read_all(
        {"--vectors": (vectors, rows), "--queries": (queries, MAX_QUERIES)},
        vector_column=vector_column,
        metric=metric,
        seed=settings.training.seed,
    )
    vectors_ND, all_rows = read["--vectors"]
    queries_QD, all_queries = read["--queries"]
    data = {
        "vectors": vectors,
        "queries": queries,
        "vector_column": vector_column,
        "metric": metric,
        "dim": vectors_ND.shape[1],
        "rows": all_rows,
        "rows_used": len(vectors_ND),
        "rows_held_out": settings.held_out,
        "query_rows": all_queries,
        "query_rows_used": len(queries_QD),
    }
    return vectors_ND, queries_QD, data


def _summary(data: dict[str, Any]) -> str:
    """What is measured on, in one line."""
    used, held_out = data["rows_used"], data["rows_held_out"]
    of_all = f" (of {data['rows']:,})" if used < data["rows"] else ""
    of_queries = f" (of {data['query_rows']:,})" if data["query_rows_used"] < data["query_rows"] else ""
    return (
        f"{used:,} vectors{of_all} of dimension {data['dim']}, the last {held_out:,} of them held out; "
        f"{data['query_rows_used']:,} queries{of_queries}; metric {data['metric']}."
    )


def bench_ingest(
    rows: Annotated[int, typer.Option(help="Rows to ingest.")] = 50_000,
    dim: Annotated[int, typer.Option(help="Components of a vector, unless a codec is loaded.")] = 384,
    codec: Annotated[
        Path | None, typer.Option(help="Folder of a trained codec; otherwise one is trained.")
    ] = None,
    kind: Annotated[str, typer.Option(help=f"Of the codec to train: {', '.join(CODEC_KINDS)}.")] = "rqmoe",
    metric: Annotated[str, typer.Option(help=f"One of {', '.join(METRICS)}.")] = "l2",
    code_bytes: Annotated[int, typer.Option("--bytes", help="Bytes per vector.")] = 16,
    minutes: Annotated[float | None, typer.Option(help="Training time.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the vectors instead.")] = 0,
    commit_rows: Annotated[int, typer.Option(help="Rows per commit.")] = 2**18,
    raw: Annotated[bool, typer.Option("--raw", help="Keep vectors raw instead of encoding them.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    device: Annotated[str, typer.Option(help='Where to encode: "auto", "cpu", "cuda", ...')] = "auto",
    json_out: Annotated[Path | None, typer.Option("--json", help="Also write everything here.")] = None,
) -> None:
    """Ingest synthetic rows from Parquet: rows/s against encoding alone, memory over time, bytes on disk.

    Example: [bold]rqmoe bench ingest --rows 2000000 --codec codec/ --json ingest.json[/bold]

    Files and table are in a temporary folder, which is removed in the end. Without --codec, one is made that
    is not trained (--epochs 0), to measure speed with.
    Needs the extra: [bold]pip install "rqmoe-store\\[bench]"[/bold]
    """
    from rqmoe_store.evaluation.machine import require_bench

    require_bench("psutil")
    from rqmoe_store.evaluation.ingest_benchmark import IngestBenchmarkSettings, benchmark_ingest

    console = Console(stderr=True)
    check_outputs(json_out, None)
    settings = IngestBenchmarkSettings(
        rows=rows,
        dim=dim,
        codec=codec,
        config=CodecConfig(kind=kind, metric=metric, code_bytes=code_bytes),  # type: ignore[arg-type]
        training=TrainConfig(
            max_minutes=minutes,
            epochs=None if minutes is not None else epochs,
            seed=seed,
            device=device,
            progress=console.is_terminal,
        ),
        commit_rows=commit_rows,
        encode=not raw,
    )
    report = benchmark_ingest(settings, console)
    if json_out is not None:
        write_json(json_out, {"command": shlex.join(["rqmoe", *sys.argv[1:]]), **report.to_dict()})
    typer.echo(str(report))


if TYPE_CHECKING:
    from rqmoe_store.codecs.base import Codec
    from rqmoe_store.evaluation.row_benchmark import RowReport

LEAST_ROWS = 10_000
"""Operations choose among so many rows."""

_TRAINING_ROWS = 20_000


def bench_rows(
    rows: Annotated[int, typer.Option(help="Rows of the tables.")] = 1_000_000,
    codec: Annotated[
        Path | None,
        typer.Option(help="Folder written by `rqmoe train`. Otherwise plain RQ for random vectors is made."),
    ] = None,
    dim: Annotated[int, typer.Option(help="Components of random vectors.")] = 384,
    code_bytes: Annotated[int, typer.Option("--bytes", help="Code size for random vectors.")] = 16,
    repeats: Annotated[int, typer.Option(help="How often everything is done to each table.")] = 9,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    json_out: Annotated[Path | None, typer.Option("--json", help="Also write everything here.")] = None,
) -> None:
    """Time add, merge_insert, update, delete and more, beside LanceDB tables without vectors.

    Example: [bold]rqmoe bench rows --rows 1000000 --json rows.json[/bold]

    The tables are made in a temporary database that is removed in the end.
    Needs the extra: [bold]pip install "rqmoe-store\\[bench]"[/bold]
    """
    from rqmoe_store.evaluation.machine import require_bench

    require_bench("psutil")
    check_outputs(json_out, None)
    require_rows(rows)
    if rows < LEAST_ROWS or repeats < 1:
        raise InvalidInputError(
            f"Got --rows {rows} and --repeats {repeats}; expected at least {LEAST_ROWS:,} and 1."
        )
    console = Console(stderr=True)
    from rqmoe_store.evaluation.row_benchmark import benchmark_rows, print_row_report

    def show(report: "RowReport") -> None:
        done = report.results[-1]
        line = f"{done.operation}, {done.rows:,} rows: {done.plain_ms:.1f} and {done.compressed_ms:.1f} ms"
        console.print(line, highlight=False, soft_wrap=True)

    console.print(f"Making tables of {rows:,} rows", highlight=False)
    report = benchmark_rows(
        _codec(codec, dim, code_bytes, seed), rows=rows, repeats=repeats, seed=seed, on_done=show
    )
    if json_out is not None:
        write_json(json_out, {"command": shlex.join(["rqmoe", *sys.argv[1:]]), **report.to_dict()})
    print_row_report(report)


def _codec(folder: Path | None, dim: int, code_bytes: int, seed: int) -> "Codec":
    from rqmoe_store.codecs.base import load_codec

    if folder is not None:
        return load_codec(folder)
    import numpy as np

    from rqmoe_store.training.trainer import train

    vectors_ND = np.random.default_rng(seed).normal(size=(_TRAINING_ROWS, dim)).astype(np.float32)
    config = CodecConfig(kind="rq", code_bytes=code_bytes)
    return train(vectors_ND, config=config, training=TrainConfig(epochs=0, seed=seed, progress=False))


if TYPE_CHECKING:
    from rqmoe_store.codecs.vectors import Float32Array
    from rqmoe_store.evaluation.search_benchmark import SearchSettings
    from rqmoe_store.evaluation.search_measurement import SearchReport

MAX_SEARCH_QUERIES = 1_000
"""More are not used."""


def bench_search(
    queries: Annotated[
        str,
        typer.Option(metavar="FILE|TABLE", help=f"Query vectors; at most {MAX_SEARCH_QUERIES:,} are used."),
    ],
    vectors: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|TABLE",
            help="Vectors to search: a .npy file (rows, dim), or the path or URI of a LanceDB table's .lance "
            "folder. Can be left out with --synthetic.",
        ),
    ] = None,
    code_bytes: Annotated[str, typer.Option("--bytes", help="Code sizes, separated by commas.")] = "8,16,32",
    systems: Annotated[
        str,
        typer.Option(
            help="Some of ours,lancedb-ivf-pq,lancedb-ivf-rq,faiss-ivf-pq,faiss-ivf-rq, separated by commas. "
            "lancedb-ivf-rq has one bit per dimension whatever --bytes says. faiss-ivf-rq is trained on at "
            "most 65,536 vectors with a beam of 1 and encodes with 5; under l2 it has a byte more."
        ),
    ] = "ours,lancedb-ivf-pq,lancedb-ivf-rq,faiss-ivf-pq,faiss-ivf-rq",
    codecs: Annotated[
        Path | None,
        typer.Option(
            help="Folder with our codecs as `bench codec --save` writes them, <kind>-<bytes> each. Otherwise "
            "they are trained on the vectors."
        ),
    ] = None,
    kind: Annotated[str, typer.Option(help=f"Ours: one of {', '.join(CODEC_KINDS)}.")] = "rqmoe",
    vector_column: Annotated[
        str, typer.Option(help="Column of the tables that holds the vectors.")
    ] = "vector",
    rows: Annotated[int, typer.Option(help="Vectors used at most; a sample of more.")] = 200_000,
    metric: Annotated[str, typer.Option(help=f"One of {', '.join(METRICS)}.")] = "l2",
    partitions: Annotated[
        int | None,
        typer.Option(
            help="Partitions of every index made here; at least 256 vectors each. By default the square root "
            "of the vectors. Loaded codecs have their own."
        ),
    ] = None,
    nprobes: Annotated[str, typer.Option(help="Partitions to search, separated by commas.")] = "1,5,20,80",
    shortlists: Annotated[str, typer.Option(help="Rows that ours decodes and reranks.")] = "20,30,100",
    batch: Annotated[int, typer.Option(help="Queries asked together, to measure throughput.")] = 64,
    timed_queries: Annotated[int, typer.Option(help="Queries asked one by one, for latency.")] = 500,
    minutes: Annotated[float | None, typer.Option(help="Training time of each of our codecs.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the vectors instead.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random in ours.")] = 0,
    device: Annotated[
        str, typer.Option(help='Where ours run: "auto", "cpu", "cuda", "cuda:1", ...')
    ] = "auto",
    synthetic: Annotated[
        str | None,
        typer.Option(
            help="Also open and search tables of that many random codes, with every codec of --codecs; such "
            "as 1000000,10000000."
        ),
    ] = None,
    json_out: Annotated[Path | None, typer.Option("--json", help="Also write everything here.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw recall against latency here (.png, .svg, .pdf).")
    ] = None,
) -> None:
    """Compare searches on your own vectors: recall, latency, throughput and bytes, at equal code sizes.

    Example: [bold]rqmoe bench search --vectors ./data/docs.lance --queries queries.npy --bytes 8,16
    --codecs codecs/ --metric cosine --plot searches.png[/bold]

    Ours beside LanceDB's own indexes and FAISS's, in a temporary database that is removed in the end.
    Needs the extra: [bold]pip install "rqmoe-store\\[bench]"[/bold]
    """
    names = names_in(systems)
    _require_search_libraries(names, with_plot=plot is not None)
    from rqmoe_store.evaluation.search_benchmark import SearchSettings

    console = Console(stderr=True)
    settings = SearchSettings(
        systems=tuple(names),
        code_bytes=tuple(numbers_in("--bytes", code_bytes)),
        codecs=codecs,
        config=CodecConfig(kind=kind, metric=metric, num_partitions=partitions),  # type: ignore[arg-type]
        training=TrainConfig(
            max_minutes=minutes, epochs=epochs, seed=seed, device=device, progress=console.is_terminal
        ),
        nprobes=tuple(numbers_in("--nprobes", nprobes)),
        shortlists=tuple(numbers_in("--shortlists", shortlists)),
        batch=batch,
        timed_queries=timed_queries,
        synthetic=() if synthetic is None else tuple(numbers_in("--synthetic", synthetic)),
    )
    _check(vectors, rows, settings, json_out, plot)
    vectors_ND, queries_QD, data = _read_searched(vectors, queries, vector_column, rows, settings)
    summary = _search_summary(data)
    console.print(summary, highlight=False, soft_wrap=True)
    report = _run(vectors_ND, queries_QD, settings, data, console, json_out)
    typer.echo(f"{summary}\n")
    _show(report, plot)


def _require_search_libraries(systems: list[str], *, with_plot: bool) -> None:
    from rqmoe_store.evaluation.machine import require_bench

    faiss = any(name.startswith("faiss") for name in systems)
    require_bench("psutil", *(["faiss"] if faiss else []), *(["matplotlib"] if with_plot else []))


def _check(
    vectors: str | None, rows: int, settings: "SearchSettings", json_out: Path | None, plot: Path | None
) -> None:
    check_outputs(json_out, plot)
    require_rows(rows)
    if vectors is None and not settings.synthetic:
        raise InvalidInputError("Got neither --vectors nor --synthetic; expected one of them, or both.")
    if vectors is None and plot is not None:
        raise InvalidInputError("Got --plot without --vectors; expected vectors to draw the recall of.")


def _read_searched(
    vectors: str | None, queries: str, vector_column: str, rows: int, settings: "SearchSettings"
) -> tuple["Float32Array | None", "Float32Array", dict[str, Any]]:
    """Vectors if there are any, queries, and where they are from."""
    from rqmoe_store.evaluation.data import read_all

    metric = settings.config.metric
    wanted = {"--queries": (queries, MAX_SEARCH_QUERIES)}
    if vectors is not None:
        wanted["--vectors"] = (vectors, rows)
    read = read_all(wanted, vector_column=vector_column, metric=metric, seed=settings.training.seed)
    queries_QD, query_rows = read["--queries"]
    vectors_ND, all_rows = read.get("--vectors", (None, 0))
    data = {
        "vectors": vectors,
        "queries": queries,
        "vector_column": vector_column,
        "metric": metric,
        "dim": queries_QD.shape[1],
        "rows": all_rows,
        "rows_used": 0 if vectors_ND is None else len(vectors_ND),
        "query_rows": query_rows,
        "query_rows_used": len(queries_QD),
    }
    return vectors_ND, queries_QD, data


def _run(
    vectors_ND: "Float32Array | None",
    queries_QD: "Float32Array",
    settings: "SearchSettings",
    data: dict[str, Any],
    console: Console,
    json_out: Path | None,
) -> "SearchReport":
    from rqmoe_store.evaluation.search_benchmark import benchmark_search
    from rqmoe_store.evaluation.tables import search_done_line

    def show(report: "SearchReport") -> None:
        # Written again whenever there is more: a long run may not get to its end.
        console.print(search_done_line(report), highlight=False, markup=False, soft_wrap=True)
        if json_out is not None:
            command = shlex.join(["rqmoe", *sys.argv[1:]])
            write_json(json_out, {"command": command, "data": data, **report.to_dict()})

    return benchmark_search(vectors_ND, queries_QD, settings=settings, console=console, on_done=show)


def _show(report: "SearchReport", plot: Path | None) -> None:
    from rqmoe_store.evaluation.tables import print_search_report

    print_search_report(report)
    if plot is not None:
        from rqmoe_store.evaluation.plots import save_search_plot

        save_search_plot(report, plot)


def _search_summary(data: dict[str, Any]) -> str:
    """What is measured on, in one line."""
    used = data["rows_used"]
    of_all = f" (of {data['rows']:,})" if used < data["rows"] else ""
    vectors = f"{used:,} vectors{of_all}" if used else "Random codes"
    of_queries = f" (of {data['query_rows']:,})" if data["query_rows_used"] < data["query_rows"] else ""
    return (
        f"{vectors}; dimension {data['dim']}; {data['query_rows_used']:,} queries{of_queries}; "
        f"metric {data['metric']}."
    )
