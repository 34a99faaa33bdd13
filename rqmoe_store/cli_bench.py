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
    from rqmoe_store.evaluation.codec_tables import done_line, print_report

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
        console.print(done_line(report.results[-1]), highlight=False, markup=False, soft_wrap=True)
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
    from rqmoe_store.evaluation.extras import require_bench

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
    from rqmoe_store.evaluation.benchmark_data import read_all

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
