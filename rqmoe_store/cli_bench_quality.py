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
    MAX_SEARCH_QUERIES,
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
    training_of,
    write_report,
)
from rqmoe_store.config import CODEC_KINDS, CodecConfig
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.terminal import names_in, numbers_in

if TYPE_CHECKING:
    from rqmoe_store.evaluation.answer_benchmark import AnswerReport
    from rqmoe_store.evaluation.growth_benchmark import GrowthReport
    from rqmoe_store.evaluation.limit_benchmark import LimitResult, LimitSettings
    from rqmoe_store.evaluation.limit_data import LimitData

CodecNames = Annotated[str, typer.Option(help="Codecs as for `bench codec`, separated by commas.")]

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
    from rqmoe_store.evaluation.machine import require_bench
    from rqmoe_store.evaluation.tables import print_tables

    require_bench("psutil")
    check_outputs(json_out, None)
    console = Console(stderr=True)
    settings = GrowthSettings(
        **_codec_settings(codecs, code_bytes, refine_bytes),
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
    from rqmoe_store.evaluation.machine import require_bench
    from rqmoe_store.evaluation.tables import print_tables

    require_bench("psutil", "ranx")
    check_outputs(json_out, None)
    console = Console(stderr=True)
    settings = AnswerSettings(
        **_codec_settings(codecs, code_bytes, refine_bytes),
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


def _codec_settings(codecs: str, code_bytes: str, refine_bytes: str | None) -> dict[str, Any]:
    return {
        "codecs": tuple(names_in(codecs)),
        "code_bytes": tuple(numbers_in("--bytes", code_bytes)),
        "refine_bytes": () if refine_bytes is None else tuple(numbers_in("--refine-bytes", refine_bytes)),
    }


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
    from rqmoe_store.evaluation.machine import require_bench

    require_bench("psutil")
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
