"""Command line `rqmoe bench`: searches by more than nearest vectors. As in `cli`, commands only translate.

The commands join those of `cli_bench`, whose rules hold here as well.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from rqmoe_store.cli_bench import (
    CodecSeed,
    CodeSizes,
    Epochs,
    JsonOut,
    MetricName,
    Minutes,
    Seed,
    VectorColumn,
    bench_app,
    check_outputs,
    training_of,
    write_report,
)
from rqmoe_store.config import CODEC_KINDS, CodecConfig, MultiVectorConfig
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.terminal import names_in, numbers_in

if TYPE_CHECKING:
    from rqmoe_store.evaluation.coverage_benchmark import CoverageResult
    from rqmoe_store.evaluation.multivector_benchmark import MultiVectorReport
    from rqmoe_store.evaluation.relevance_benchmark import RelevanceResult


@bench_app.command("multivector")
def bench_multivector(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A data set of `bench data --kind tokens`.")
    ],
    sizes: Annotated[
        str,
        typer.Option(
            "--bytes",
            help="Bytes of a vector, separated by commas; 16+16 is a code of 16 and a refine code of 16.",
        ),
    ] = "8,16,16+16",
    kind: Annotated[
        str, typer.Option(help=f"Kind of the codecs of vectors: one of {', '.join(CODEC_KINDS)}.")
    ] = "rq",
    documents: Annotated[int, typer.Option(help="Most documents used, at least 100.")] = 20_000,
    queries: Annotated[int, typer.Option(help="Most queries used.")] = 200,
    encoding_bytes: Annotated[
        int, typer.Option(help="Bytes of the code of a document's encoding.")
    ] = MultiVectorConfig.code_bytes,
    repetitions: Annotated[
        int, typer.Option(help="Repetitions of the encoding.")
    ] = MultiVectorConfig.num_repetitions,
    hyperplanes: Annotated[
        int, typer.Option(help="Hyperplanes of a repetition.")
    ] = MultiVectorConfig.num_hyperplanes,
    projected_dim: Annotated[
        int | None, typer.Option(help="Dimension to which vectors are projected; 0 leaves them as they are.")
    ] = MultiVectorConfig.projected_dim,
    final_dim: Annotated[
        int | None,
        typer.Option(help="Dimension to which encodings are projected; 0 leaves them as they are."),
    ] = MultiVectorConfig.final_dim,
    shortlist: Annotated[
        int | None,
        typer.Option(help="Documents scored by all vectors in a search for 10; our tables' default if none."),
    ] = None,
    nprobes: Annotated[
        str | None,
        typer.Option(help="Partitions that searches of an index of LanceDB probe; none is built without."),
    ] = None,
    centroids: Annotated[
        int, typer.Option(help="Centroids of the peer with residuals of 2 bits; 0 leaves it out.")
    ] = 4_096,
    timed_queries: Annotated[int, typer.Option(help="Queries timed, by all systems in turn.")] = 30,
    training_documents: Annotated[
        int, typer.Option(help="Documents whose vectors codecs are trained on.")
    ] = 4_000,
    codecs: Annotated[
        Path | None,
        typer.Option(
            help="Folder of codecs of vectors, <kind>-<bytes>: those that are there are used, and others "
            "trained and saved there."
        ),
    ] = None,
    minutes: Minutes = None,
    epochs: Epochs = None,
    seed: CodecSeed = 0,
    json_out: JsonOut = None,
) -> None:
    """Compare searches of documents of many vectors: recall of exact MaxSim, bytes, and time of a query.

    Example: [bold]rqmoe bench data ./tokens --kind tokens --rows 20000[/bold], then
    [bold]rqmoe bench multivector ./tokens --bytes 8,16,16+16 --json multivector.json[/bold]

    Beside our tables: LanceDB's search of raw vectors and of its index of them, encodings alone, and
    centroids with residuals of 2 bits, as late-interaction engines keep them. The tables are in a temporary
    database that is removed at the end. Codecs of kind rq are not trained further without --minutes.
    Needs the extra: [bold]pip install "rqmoe-store\\[bench]"[/bold]
    """
    from rqmoe_store.evaluation.machine import require_bench
    from rqmoe_store.evaluation.multivector_benchmark import (
        MultiVectorSettings,
        benchmark_multi_vector,
        multi_vector_tables,
        read_multi_vector_data,
    )
    from rqmoe_store.evaluation.tables import print_tables

    require_bench("psutil")
    check_outputs(json_out, None)
    console = Console(stderr=True)
    settings = MultiVectorSettings(
        sizes=_sizes(sizes),
        kind=kind,
        encoding=MultiVectorConfig(
            code_bytes=encoding_bytes,
            num_repetitions=repetitions,
            num_hyperplanes=hyperplanes,
            projected_dim=projected_dim or None,
            final_dim=final_dim or None,
        ),
        shortlist=shortlist,
        training=training_of(
            console,
            max_minutes=minutes,
            epochs=0 if epochs is None and minutes is None else epochs,
            seed=seed,
            device="cpu",
        ),
        training_documents=training_documents,
        codecs=None if codecs is None else str(codecs),
        centroids=centroids,
        nprobes=() if nprobes is None else tuple(numbers_in("--nprobes", nprobes)),
        timed_queries=timed_queries,
    )
    data = read_multi_vector_data(folder, documents, queries)

    def show(report: "MultiVectorReport") -> None:
        write_report(json_out, report.to_dict(), multi_vector_tables(report))

    print_tables(multi_vector_tables(benchmark_multi_vector(data, settings, console, show)))


def _sizes(text: str) -> tuple[tuple[int, int], ...]:
    """Sizes such as "8,16+16" as bytes of the code and of the refine code."""
    sizes = []
    for name in names_in(text):
        code, _, refine = name.partition("+")
        if not code.isdecimal() or not (refine or "0").isdecimal():
            raise InvalidInputError(
                f"Got --bytes {text!r}; expected numbers of bytes such as 16, or two of them as in 16+16, "
                "separated by commas."
            )
        sizes.append((int(code), int(refine or "0")))
    return tuple(sizes)


@bench_app.command("coverage")
def bench_coverage(
    rows: Annotated[int, typer.Option(help="Most passages.")] = 60_000,
    queries: Annotated[int, typer.Option(help="Most headings, and most titles of pages.")] = 1_000,
    lambdas: Annotated[
        str, typer.Option(help="Lambdas of mmr and coverage, separated by commas.")
    ] = "0.3,0.5,0.7",
    code_bytes: Annotated[int, typer.Option("--bytes", help="Code size.")] = 16,
    kind: Annotated[str, typer.Option(help=f"Kind of the codec: one of {', '.join(CODEC_KINDS)}.")] = "rq",
    minutes: Minutes = None,
    epochs: Epochs = None,
    texts: Annotated[
        list[Path] | None, typer.Option(help="Folder to take texts from, instead of installed packages.")
    ] = None,
    seed: Seed = 0,
    json_out: JsonOut = None,
) -> None:
    """Compare the nearest results with those of diversify and expand: sections, redundancy, answers found.

    Example: [bold]rqmoe bench coverage --rows 60000 --lambdas 0.3,0.5,0.7 --minutes 5[/bold]

    Searches the documentation of installed packages for its headings, and for titles of pages with at least
    three sections, in a table of codes. Vectors are averages of static vectors of tokens.
    Needs the extra: [bold]pip install "rqmoe-store\\[bench]"[/bold]
    """
    from rqmoe_store.evaluation.machine import require_bench

    require_bench("psutil", "wordllama", "safetensors", "tokenizers")
    check_outputs(json_out, None)
    import torch

    from rqmoe_store.evaluation.coverage_benchmark import (
        CoverageReport,
        CoverageSettings,
        benchmark_coverage,
        coverage_tables,
    )
    from rqmoe_store.evaluation.documentation import StaticEmbedder, collect_documentation, default_roots
    from rqmoe_store.evaluation.machine import describe_machine
    from rqmoe_store.evaluation.tables import print_tables

    console = Console(stderr=True)
    settings = CoverageSettings(
        queries=queries,
        lambdas=_shares_in("--lambdas", lambdas),
        config=CodecConfig(kind=kind, metric="cosine", code_bytes=code_bytes),  # type: ignore[arg-type]  # checked
        training=training_of(console, max_minutes=minutes, epochs=epochs, seed=seed),
        seed=seed,
    )
    found = collect_documentation(texts or default_roots(), rows)
    machine = describe_machine(torch.device("cpu"))
    report = CoverageReport(
        settings=dataclasses.asdict(settings), machine=machine, passages=len(found.passages)
    )

    def note(result: "CoverageResult") -> None:
        # The report is written after every result, as a long run may not get to its end.
        report.results.append(result)
        console.print(f"{result}", highlight=False, markup=False, soft_wrap=True)
        write_report(json_out, report.to_dict(), coverage_tables(report))

    report.graph = benchmark_coverage(found, StaticEmbedder(), settings, note)
    write_report(json_out, report.to_dict(), coverage_tables(report))
    print_tables(coverage_tables(report))


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
    from rqmoe_store.evaluation.machine import require_bench

    require_bench("psutil")
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


def _shares_in(option: str, text: str) -> tuple[float, ...]:
    """The numbers in a list separated by commas; raises InvalidInputError for anything else."""
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError as error:
        raise InvalidInputError(f"Got {option} {text!r}; expected numbers, such as 0.3,0.5.") from error
