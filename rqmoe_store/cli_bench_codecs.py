"""Command line `rqmoe bench`: codecs, measured on vectors. As in `cli`, commands only translate.

The commands join those of `cli_bench`, whose rules hold here as well.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from rqmoe_store.cli_bench import (
    MAX_SEARCH_QUERIES,
    CodecNames,
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
    VectorColumn,
    bench_app,
    check_outputs,
    codec_settings,
    require_libraries,
    require_rows,
    training_of,
    write_report,
)
from rqmoe_store.config import CODEC_KINDS, CodecConfig
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation import peer_names as peers
from rqmoe_store.terminal import names_in, numbers_in

if TYPE_CHECKING:
    from rqmoe_store.evaluation.codec_results import BenchmarkReport
    from rqmoe_store.evaluation.growth_benchmark import GrowthReport
    from rqmoe_store.evaluation.relevance_benchmark import RelevanceResult

MAX_QUERIES = 10_000
"""Most queries of `bench codec`, which searches for all of them exhaustively with every codec."""


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
        typer.Option(
            metavar="FILE|TABLE", help=f"Query vectors likewise, of which {MAX_QUERIES:,} are used."
        ),
    ],
    code_bytes: CodeSizes = "8,16",
    codecs: Annotated[
        str,
        typer.Option(
            help=f"Some of {','.join((*CODEC_KINDS, *peers.PEERS, peers.LANCEDB_PQ))}, those whose size "
            f"follows from the dimension, whatever --bytes says: {','.join(peers.SCALARS)}, "
            f"{peers.form_names(peers.FORMS)}; and folders of trained codecs, separated by commas. "
            "rq is measured at every size of --bytes that a codec other than pq, saq and turboquant takes. "
            "The codec in a folder must not have been trained on the held-out vectors."
        ),
    ] = "rq,rqmoe",
    refine_bytes: RefineSizes = None,
    total_bytes: Annotated[
        str | None,
        typer.Option(
            help="Sizes, such as 8,16,32,64, at which to say whether ours is the best: transform codes and "
            "other libraries' codecs have these, and our other codecs refine codes up to them."
        ),
    ] = None,
    refine_kind: RefineKind = "pq",
    vector_column: VectorColumn = "vector",
    rows: MostVectors = 200_000,
    held_out: Annotated[
        int, typer.Option(help="Vectors at the end that are held out of training, to measure on.")
    ] = 5000,
    metric: MetricName = "l2",
    partitions: Annotated[
        int, typer.Option(help="Coarse centroids of our codecs; 0 for codes of the same size as others'.")
    ] = 0,
    minutes: Minutes = None,
    epochs: Epochs = None,
    seed: CodecSeed = 0,
    device: Device = "auto",
    scaling: Annotated[
        str | None,
        typer.Option(
            help="Numbers of vectors, such as 10000,1000000, that our codecs also encode from a file."
        ),
    ] = None,
    save: Annotated[
        Path | None, typer.Option(help="Folder to save trained codecs in, as <codec>-<bytes>.")
    ] = None,
    json_out: JsonOut = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="File to plot recall and MSE against bytes in (.png, .svg, .pdf)."),
    ] = None,
) -> None:
    """Compare codecs on your own vectors: distortion, recall, speed, memory, and the Gaussian bound.

    Example: [bold]rqmoe bench codec --vectors ./data/docs.lance --queries queries.npy --bytes 8,16
    --codecs rq,rqmoe,opq --minutes 5 --plot codecs.png[/bold]

    Needs the extra: [bold]pip install "rqmoe-store\\[bench]"[/bold]
    """
    require_libraries(plot=plot is not None)
    from rqmoe_store.evaluation.codec_benchmark import BenchmarkSettings, benchmark_codecs
    from rqmoe_store.evaluation.data import read_described, summary_of
    from rqmoe_store.evaluation.tables import codec_done_line, codec_tables, print_tables

    console = Console(stderr=True)
    settings = BenchmarkSettings(
        **codec_settings(codecs, code_bytes, refine_bytes),
        total_bytes=() if total_bytes is None else tuple(numbers_in("--total-bytes", total_bytes)),
        config=CodecConfig(metric=metric, num_partitions=partitions, refine_kind=refine_kind),  # type: ignore[arg-type]  # checked
        training=training_of(console, max_minutes=minutes, epochs=epochs, seed=seed, device=device),
        held_out=held_out,
        save=save,
        scaling=() if scaling is None else tuple(numbers_in("--scaling", scaling)),
    )
    check_outputs(json_out, plot)
    _require_folder(save)
    require_rows(rows)
    vectors_ND, queries_QD, data = read_described(
        vectors, queries, vector_column, (rows, MAX_QUERIES), metric=settings.config.metric, seed=seed
    )
    data["rows_held_out"] = held_out
    summary = summary_of(data)
    console.print(summary, highlight=False, soft_wrap=True)

    def show(report: "BenchmarkReport") -> None:
        # The report is written after every codec, as a long run may not get to its end.
        console.print(codec_done_line(report.results[-1]), highlight=False, markup=False, soft_wrap=True)
        write_report(json_out, {"data": data, **report.to_dict()}, codec_tables(report))

    report = benchmark_codecs(vectors_ND, queries_QD, settings=settings, console=console, on_done=show)
    typer.echo(f"{summary}\n")
    print_tables(codec_tables(report), report.skipped)
    if plot is not None:
        from rqmoe_store.evaluation.plots import save_plot

        save_plot(report, plot)


def _require_folder(save: Path | None) -> None:
    if save is not None and save.exists() and not save.is_dir():
        raise InvalidInputError(f"Got --save {str(save)!r}, which is a file; expected a folder.")


@bench_app.command("growth")
def bench_growth(
    vectors: Annotated[
        Path, typer.Option(help="A .npy file (rows, dim), in the order in which a table grows.")
    ],
    queries: Annotated[
        Path, typer.Option(help=f"A .npy file of queries, of which {MAX_SEARCH_QUERIES:,} are used.")
    ],
    rows: Annotated[
        str, typer.Option(help="Numbers of rows, ascending. Codecs are trained on as many as the first.")
    ] = "60000,250000,1000000",
    code_bytes: CodeSizes = "16",
    codecs: CodecNames = "rq,opq",
    refine_bytes: RefineSizes = None,
    refine_kind: RefineKind = "pq",
    metric: MetricName = "l2",
    minutes: Minutes = None,
    epochs: Epochs = None,
    seed: CodecSeed = 0,
    device: Device = "auto",
    json_out: JsonOut = None,
) -> None:
    """Measure recall as a table grows, with codecs trained on its first rows only.

    Example: [bold]rqmoe bench growth --vectors images/base.npy --queries images/queries.npy
    --rows 60000,250000,1000000 --bytes 24 --codecs rq,opq,faiss-eden-1[/bold]

    The file is read in parts, so that it may be larger than memory. Codecs that only their own library
    searches (RaBitQ of FAISS and LanceDB) cannot be among them.
    Needs the extra: [bold]pip install "rqmoe-store\\[bench]"[/bold]
    """
    from rqmoe_store.evaluation.data import open_array
    from rqmoe_store.evaluation.growth_benchmark import GrowthSettings, benchmark_growth, growth_tables
    from rqmoe_store.evaluation.tables import print_tables

    require_libraries()
    check_outputs(json_out, None)
    console = Console(stderr=True)
    settings = GrowthSettings(
        **codec_settings(codecs, code_bytes, refine_bytes),
        rows=tuple(numbers_in("--rows", rows)),
        config=CodecConfig(metric=metric, num_partitions=0, refine_kind=refine_kind),  # type: ignore[arg-type]  # checked
        training=training_of(console, max_minutes=minutes, epochs=epochs, seed=seed, device=device),
    )
    base, asked = open_array("--vectors", str(vectors)), open_array("--queries", str(queries))

    def show(report: "GrowthReport") -> None:
        # The report is written after every codec, as a long run may not get to its end.
        done = report.results[-1]
        line = f"{done.codec}, {done.code_bytes} bytes, {done.rows:,} rows: 10-recall@10 {done.recall:.3f}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
        write_report(json_out, report.to_dict(), growth_tables(report))

    report = benchmark_growth(
        base, asked[:MAX_SEARCH_QUERIES], settings=settings, console=console, on_done=show
    )
    print_tables(growth_tables(report))


@bench_app.command("relevance")
def bench_relevance(
    vectors: Annotated[
        str,
        typer.Option(
            metavar="FILE|TABLE",
            help="A .npy file (rows, dim), or the path or URI of a LanceDB table's .lance folder.",
        ),
    ],
    queries: Annotated[str, typer.Option(metavar="FILE|TABLE", help="Query vectors likewise.")],
    relevance: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Pairs of a query and a row that answers it, a .npy file as of `bench data`. Without it, "
            "queries look for their 10 exact neighbors.",
        ),
    ] = None,
    code_bytes: CodeSizes = "8,16,32",
    kind: Annotated[str, typer.Option(help=f"Kind of the codecs: one of {', '.join(CODEC_KINDS)}.")] = "rq",
    metric: MetricName = "cosine",
    vector_column: VectorColumn = "vector",
    splits: Annotated[int, typer.Option(help="Times that other queries are held out.")] = 3,
    minutes: Minutes = None,
    epochs: Epochs = None,
    seed: CodecSeed = 0,
    json_out: JsonOut = None,
) -> None:
    """Measure what tuning a codec for queries gains: nDCG@10 and recall@10 of queries that were held out.

    Example: [bold]rqmoe bench relevance --vectors base.npy --queries queries.npy --bytes 8,16[/bold]

    Codecs have no partitions. Tables of them are in a temporary database that is removed at the end, and
    searched with default parameters. Each split holds out another 30 % of the queries.
    Needs the extra: [bold]pip install "rqmoe-store\\[bench]"[/bold]
    """

    require_libraries()
    check_outputs(json_out, None)
    import torch

    from rqmoe_store.evaluation.data import summary_of
    from rqmoe_store.evaluation.machine import describe_machine
    from rqmoe_store.evaluation.relevance_benchmark import (
        RelevanceBenchmarkReport,
        RelevanceBenchmarkSettings,
        benchmark_relevance,
        read_relevance_data,
        relevance_table,
    )
    from rqmoe_store.evaluation.tables import print_tables

    console = Console(stderr=True)
    settings = RelevanceBenchmarkSettings(
        code_bytes=tuple(numbers_in("--bytes", code_bytes)),
        config=CodecConfig(kind=kind, metric=metric, num_partitions=0),  # type: ignore[arg-type]  # checked
        training=training_of(console, max_minutes=minutes, epochs=epochs, seed=seed),
        splits=splits,
    )
    vectors_ND, queries_QD, positives, data = read_relevance_data(
        vectors, queries, relevance, vector_column, metric=settings.config.metric, seed=seed
    )
    console.print(summary_of(data), highlight=False, soft_wrap=True)
    machine = describe_machine(torch.device("cpu"))
    report = RelevanceBenchmarkReport(settings=dataclasses.asdict(settings), machine=machine, data=data)

    def note(result: "RelevanceResult") -> None:
        # The report is written after every codec, as a long run may not get to its end.
        report.results.append(result)
        console.print(f"{result}", highlight=False, markup=False, soft_wrap=True)
        write_report(json_out, report.to_dict(), [relevance_table(report)])

    benchmark_relevance(vectors_ND, queries_QD, positives, settings, note)
    print_tables([relevance_table(report)])


@bench_app.command("gpu")
def bench_gpu(
    minutes: Annotated[float, typer.Option(help="Time for all parts together.")] = 5.0,
    parts: Annotated[
        str,
        typer.Option(
            help="Some of machine,scan,decode,shortlist,exhaustive,encode,train, separated by commas."
        ),
    ] = "machine,scan,decode,shortlist,exhaustive,encode,train",
    device: Annotated[str, typer.Option(help='"cuda", "cuda:1", ..., or "cpu" with --tiny.')] = "cuda",
    vectors: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A .npy file (rows, dim) to train on; made-up vectors without it."),
    ] = None,
    train_minutes: Annotated[
        float | None, typer.Option(help="Time for training, of all minutes; a fifth of them by default.")
    ] = None,
    tiny: Annotated[bool, typer.Option("--tiny", help="Small sizes, to try all parts.")] = False,
    json_out: JsonOut = None,
) -> None:
    """Measure what a GPU does: scan, decoding, shortlists, exhaustive search, encoding, training.

    Example: [bold]rqmoe bench gpu --minutes 5 --json gpu.json[/bold]

    Figures are printed as they come, and a table at the end. A part that fails costs that part only. Where
    neither LanceDB nor this command is installed, `python -m rqmoe_store.evaluation.gpu_benchmark` does the
    same. It also makes the table of an earlier run: --table gpu.json.
    """
    from rqmoe_store.evaluation.gpu_benchmark import GPUSettings, gpu_table, run_and_write

    check_outputs(json_out, None)
    settings = GPUSettings(minutes, tuple(names_in(parts)), device, vectors, train_minutes, tiny)
    typer.echo(gpu_table(run_and_write(settings, json_out)))
