"""Command line `rqmoe bench`: searches by more than nearest vectors. As in `cli`, commands only translate.

The commands join those of `cli_bench`, whose rules hold here as well.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from rqmoe_store.cli_bench import (
    CodecSeed,
    Epochs,
    JsonOut,
    Minutes,
    bench_app,
    check_outputs,
    training_of,
    write_report,
)
from rqmoe_store.config import CODEC_KINDS, MultiVectorConfig
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.terminal import names_in, numbers_in

if TYPE_CHECKING:
    from rqmoe_store.evaluation.multivector_benchmark import MultiVectorReport


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
