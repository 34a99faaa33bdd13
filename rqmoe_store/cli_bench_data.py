"""Command line `rqmoe bench`: data sets, and what is found in them. As in `cli`, commands only translate.

The commands join those of `cli_bench`, whose rules hold here as well.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from rqmoe_store.cli_bench import (
    CodecNames,
    CodecSeed,
    CodeSizes,
    Device,
    Epochs,
    JsonOut,
    MetricName,
    Minutes,
    RefineKind,
    RefineSizes,
    Seed,
    bench_app,
    check_outputs,
    codec_settings,
    require_libraries,
    training_of,
    write_report,
)
from rqmoe_store.config import CODEC_KINDS, CodecConfig, MultiVectorConfig
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.terminal import names_in, numbers_in, shares_in

if TYPE_CHECKING:
    from rqmoe_store.evaluation.answer_benchmark import AnswerReport
    from rqmoe_store.evaluation.coverage_benchmark import CoverageResult
    from rqmoe_store.evaluation.limit_benchmark import LimitResult, LimitSettings
    from rqmoe_store.evaluation.limit_data import LimitData
    from rqmoe_store.evaluation.multivector_benchmark import MultiVectorReport

_LIMIT_TOKENS = 256
"""Documents of `bench limit` have about 155."""


@bench_app.command("data")
def bench_data(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="New folder to write the data set in.")],
    kind: Annotated[
        str,
        typer.Option(
            help="text: paragraphs and headings of installed documentation, 256 dimensions; images: "
            "descriptors of the photographs of scikit-image, 128 dimensions; tokens: documentation with a "
            "vector for each of the first 62 tokens of a text, 384 dimensions, in float16."
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
    that answers it: a heading, and a paragraph below it. Descriptors of images have none. Of tokens,
    lengths.npy and query_lengths.npy say how many vectors each text has.
    Needs the extra: [bold]pip install "rqmoe-store\\[bench]"[/bold], and for tokens the extra demo.
    """
    from rqmoe_store.demo.texts import token_embedder
    from rqmoe_store.evaluation.data_sets import DataSetSettings, make_data_set

    settings = DataSetSettings(
        kind=kind, rows=rows, queries=queries, seed=seed, grouped=grouped, texts=tuple(texts or ())
    )
    counts = make_data_set(folder, settings, Console(stderr=True), token_embedder)["counts"]
    made = f"{counts['rows']:,} rows of {counts['dim']} dimensions, {counts['queries']:,} queries"
    if "vectors" in counts:
        made += f", {counts['vectors']:,} vectors of tokens"
    if "relevant" in counts:
        made += f", {counts['relevant']:,} pairs of a query and its answer"
    typer.echo(f"{folder}: {made}.")


@bench_app.command("answers")
def bench_answers(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="base.npy, queries.npy and relevance.npy of `bench data`."),
    ],
    code_bytes: CodeSizes = "8,16",
    codecs: CodecNames = "rq",
    refine_bytes: RefineSizes = None,
    refine_kind: RefineKind = "pq",
    metric: MetricName = "cosine",
    minutes: Minutes = None,
    epochs: Epochs = None,
    seed: CodecSeed = 0,
    device: Device = "auto",
    json_out: JsonOut = None,
) -> None:
    """Measure answers found instead of neighbors: nDCG@10 and success@k, where the answers are known.

    Example: [bold]rqmoe bench answers token-vectors --bytes 16 --refine-bytes 16,48 --codecs rq,opq[/bold]

    relevance.npy has pairs of a query and a row that answers it. Codecs are trained on all rows. The share of
    raw vectors' nDCG that a codec keeps is usually higher than the share of their neighbors.
    Needs the extra: [bold]pip install "rqmoe-store\\[bench]"[/bold]
    """
    from rqmoe_store.evaluation.answer_benchmark import AnswerSettings, answer_tables, benchmark_answers
    from rqmoe_store.evaluation.data import open_array
    from rqmoe_store.evaluation.data_sets import BASE, QUERIES, relevance_of
    from rqmoe_store.evaluation.tables import print_tables

    require_libraries(others=("ranx",))
    check_outputs(json_out, None)
    console = Console(stderr=True)
    settings = AnswerSettings(
        **codec_settings(codecs, code_bytes, refine_bytes),
        config=CodecConfig(metric=metric, num_partitions=0, refine_kind=refine_kind),  # type: ignore[arg-type]  # checked
        training=training_of(console, max_minutes=minutes, epochs=epochs, seed=seed, device=device),
    )
    base, asked = (open_array("FOLDER", str(folder / name)) for name in (BASE, QUERIES))
    relevant = relevance_of(folder, len(asked), len(base))

    def show(report: "AnswerReport") -> None:
        # The report is written after every codec, as a long run may not get to its end.
        done = report.results[-1]
        line = f"{done.codec}, {done.code_bytes} bytes: nDCG@10 {done.ndcg_10:.3f}"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
        write_report(json_out, report.to_dict(), answer_tables(report))

    report = benchmark_answers(base, asked, relevant, settings=settings, console=console, on_done=show)
    print_tables(answer_tables(report))


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

    require_libraries(others=("wordllama", "safetensors", "tokenizers"))
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
        lambdas=shares_in("--lambdas", lambdas),
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
    from rqmoe_store.evaluation.multivector_benchmark import (
        MultiVectorSettings,
        benchmark_multi_vector,
        multi_vector_tables,
        read_multi_vector_data,
    )
    from rqmoe_store.evaluation.tables import print_tables

    require_libraries()
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


@bench_app.command("limit")
def bench_limit(
    documents: Annotated[int, typer.Option(help="Documents, distractors among them.")] = 10_000,
    queries: Annotated[
        int,
        typer.Option(help="Queries: as many pairs of the fewest documents that have so many, 46 for 1,000."),
    ] = 1_000,
    parts: Annotated[str, typer.Option(help="Some of search,free, separated by commas.")] = "search,free",
    code_bytes: CodeSizes = "8,16,32,64,128,192",
    hybrid_bytes: Annotated[
        str, typer.Option(help="Sizes whose hybrid search is measured, separated by commas.")
    ] = "16,64",
    kind: Annotated[str, typer.Option(help=f"Kind of the codecs: one of {', '.join(CODEC_KINDS)}.")] = "rq",
    minutes: Minutes = None,
    dims: Annotated[str, typer.Option(help="Dimensions of free embeddings, ascending.")] = "3,4,5,6",
    free_bytes: Annotated[
        str, typer.Option(help="Sizes of the codes of free embeddings, separated by commas.")
    ] = "1,2,3,4,6,8",
    precision: Annotated[
        str, typer.Option(help="Numbers that the sentence model multiplies: float32 or bfloat16.")
    ] = "float32",
    cache_dir: Annotated[Path, typer.Option(help="Folder that caches embeddings for the next run.")] = Path(
        "~/.cache/rqmoe_store"
    ),
    seed: Seed = 42,
    json_out: JsonOut = None,
) -> None:
    """Search texts that single vectors can hardly tell apart, after LIMIT: vectors, codes, full text, hybrid.

    Example: [bold]rqmoe bench limit --documents 10000 --json limit.json[/bold]

    Part search makes texts of which every pair answers one query, embeds them, and counts answers among the
    first results. Sizes above 16 bytes are a code of 16 and a refine code. Part free optimizes vectors that
    no model makes, and finds of how many documents they tell all pairs apart, before and after encoding.
    Needs the extras: [bold]pip install "rqmoe-store\\[bench,demo]"[/bold]
    """

    require_libraries()
    check_outputs(json_out, None)
    import torch

    from rqmoe_store.evaluation.limit_benchmark import LimitReport, LimitSettings, limit_tables
    from rqmoe_store.evaluation.limit_data import make_limit_data
    from rqmoe_store.evaluation.limit_free import FreeSettings, benchmark_free
    from rqmoe_store.evaluation.machine import describe_machine
    from rqmoe_store.evaluation.tables import print_tables

    chosen = _parts(parts)
    console = Console(stderr=True)
    settings = LimitSettings(
        code_bytes=tuple(numbers_in("--bytes", code_bytes)),
        hybrid_bytes=tuple(numbers_in("--hybrid-bytes", hybrid_bytes)),
        config=CodecConfig(kind=kind, metric="cosine", num_partitions=0),  # type: ignore[arg-type]  # checked
        training=training_of(console, max_minutes=minutes, seed=seed),
        precision=precision,  # type: ignore[arg-type]  # checked
    )
    free = FreeSettings(
        dims=tuple(numbers_in("--dims", dims)),
        code_bytes=tuple(numbers_in("--free-bytes", free_bytes)),
        seed=seed,
    )
    data = make_limit_data(queries=queries, documents=documents, seed=seed)
    report = LimitReport(
        settings={"search": dataclasses.asdict(settings), "free": dataclasses.asdict(free)},
        machine=describe_machine(torch.device("cpu")),
    )

    def note(results: list[Any], result: Any) -> None:
        # The report is written after every result, as a long run may not get to its end.
        results.append(result)
        console.print(f"{result}", highlight=False, markup=False, soft_wrap=True)
        write_report(json_out, report.to_dict(), limit_tables(report))

    if "search" in chosen:
        _search_limit(data, settings, cache_dir, functools.partial(note, report.results))
    if "free" in chosen:
        benchmark_free(free, functools.partial(note, report.free))
    print_tables(limit_tables(report))


def _parts(parts: str) -> list[str]:
    chosen = names_in(parts)
    if not chosen or not set(chosen) <= {"search", "free"}:
        raise InvalidInputError(
            f"Got --parts {parts!r}; expected search, free, or both separated by a comma."
        )
    return chosen


def _search_limit(
    data: "LimitData", settings: "LimitSettings", cache_dir: Path, note: "Callable[[LimitResult], None]"
) -> None:
    from rqmoe_store.demo.texts import embed_cached, sentence_embedder
    from rqmoe_store.evaluation.limit_benchmark import benchmark_limit

    model: Any = {"max_tokens": _LIMIT_TOKENS, "precision": settings.precision}
    texts = [*data.documents, *data.queries]
    make_embedder = functools.partial(sentence_embedder, **model)
    vectors, _ = embed_cached(texts, cache_dir.expanduser(), make_embedder, **model)
    count = len(data.documents)
    benchmark_limit(data, vectors[:count], vectors[count:], settings, note)
