"""`rqmoe bench search`: searches compared on the user's own vectors. As in `cli`, it only translates."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from rqmoe_store.cli_bench import check_outputs, require_rows
from rqmoe_store.config import CODEC_KINDS, METRICS, CodecConfig, TrainConfig
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.terminal import names_in, numbers_in, write_json

if TYPE_CHECKING:
    from rqmoe_store.codecs.vectors import Float32Array
    from rqmoe_store.evaluation.search_results import SearchReport
    from rqmoe_store.evaluation.search_settings import SearchSettings

MAX_QUERIES = 1_000
"""More are not used."""


def bench_search(
    queries: Annotated[
        str, typer.Option(metavar="FILE|TABLE", help=f"Query vectors; at most {MAX_QUERIES:,} are used.")
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
    _require_libraries(names, with_plot=plot is not None)
    from rqmoe_store.evaluation.search_settings import SearchSettings

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
    vectors_ND, queries_QD, data = _read(vectors, queries, vector_column, rows, settings)
    summary = _summary(data)
    console.print(summary, highlight=False, soft_wrap=True)
    report = _run(vectors_ND, queries_QD, settings, data, console, json_out)
    typer.echo(f"{summary}\n")
    _show(report, plot)


def _require_libraries(systems: list[str], *, with_plot: bool) -> None:
    from rqmoe_store.evaluation.extras import require_bench

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


def _read(
    vectors: str | None, queries: str, vector_column: str, rows: int, settings: "SearchSettings"
) -> tuple["Float32Array | None", "Float32Array", dict[str, Any]]:
    """Vectors if there are any, queries, and where they are from."""
    from rqmoe_store.evaluation.benchmark_data import read_all

    metric = settings.config.metric
    wanted = {"--queries": (queries, MAX_QUERIES)}
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
    from rqmoe_store.evaluation.search_tables import done_line

    def show(report: "SearchReport") -> None:
        # Written again whenever there is more: a long run may not get to its end.
        console.print(done_line(report), highlight=False, markup=False, soft_wrap=True)
        if json_out is not None:
            command = shlex.join(["rqmoe", *sys.argv[1:]])
            write_json(json_out, {"command": command, "data": data, **report.to_dict()})

    return benchmark_search(vectors_ND, queries_QD, settings=settings, console=console, on_done=show)


def _show(report: "SearchReport", plot: Path | None) -> None:
    from rqmoe_store.evaluation.search_tables import print_search_report

    print_search_report(report)
    if plot is not None:
        from rqmoe_store.evaluation.search_plots import save_search_plot

        save_search_plot(report, plot)


def _summary(data: dict[str, Any]) -> str:
    """What is measured on, in one line."""
    used = data["rows_used"]
    of_all = f" (of {data['rows']:,})" if used < data["rows"] else ""
    vectors = f"{used:,} vectors{of_all}" if used else "Random codes"
    of_queries = f" (of {data['query_rows']:,})" if data["query_rows_used"] < data["query_rows"] else ""
    return (
        f"{vectors}; dimension {data['dim']}; {data['query_rows_used']:,} queries{of_queries}; "
        f"metric {data['metric']}."
    )
