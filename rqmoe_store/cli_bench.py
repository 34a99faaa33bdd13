"""Command line `rqmoe bench`: benchmarks on your own vectors. As in `cli`, commands only translate.

Reports replace the files that `--json` and `--plot` name, and codecs those in the folder of `--save`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from rqmoe_store.config import METRICS, TrainConfig
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.terminal import names_in, numbers_in, require_writable, write_json

if TYPE_CHECKING:
    from rich.table import Table

MAX_SEARCH_QUERIES = 1_000
"""Most queries of benchmarks of searches."""

# Options that several benchmarks have.
RefineSizes = Annotated[
    str | None,
    typer.Option(
        "--refine-bytes",
        help="Sizes of refine codes, separated by commas, that our codecs are also measured with.",
    ),
]
RefineKind = Annotated[str, typer.Option("--refine-kind", help="pq, saq or turboquant.")]
CodecNames = Annotated[str, typer.Option(help="Codecs as for `bench codec`, separated by commas.")]
CodeSizes = Annotated[str, typer.Option("--bytes", help="Code sizes, separated by commas.")]
VectorColumn = Annotated[str, typer.Option(help="Column of the tables that holds the vectors.")]
MostVectors = Annotated[int, typer.Option(help="Most vectors used: a sample, if there are more.")]
MetricName = Annotated[str, typer.Option(help=f"One of {', '.join(METRICS)}.")]
Minutes = Annotated[float | None, typer.Option(help="Training time of each of our codecs.")]
Epochs = Annotated[int | None, typer.Option(help="Passes over the training vectors, instead of a time.")]
CodecSeed = Annotated[int, typer.Option(help="Seed of everything random in our codecs.")]
Device = Annotated[str, typer.Option(help='Device of our codecs: "auto", "cpu", "cuda", "cuda:1", ...')]
JsonOut = Annotated[Path | None, typer.Option("--json", help="File to write all results to.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]

bench_app = typer.Typer(no_args_is_help=True)


@bench_app.callback()
def main() -> None:
    """Run benchmarks on your own vectors, or on synthetic rows."""


def require_libraries(*, plot: bool = False, others: tuple[str, ...] = ()) -> None:
    """Raise RQMoEError, with the command that installs them, unless the libraries needed are installed."""
    from rqmoe_store.evaluation.machine import require_bench

    require_bench("psutil", *(["matplotlib"] if plot else []), *others)


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


def training_of(console: Console, **settings: Any) -> TrainConfig:
    """How to train, with progress shown where somebody looks."""
    return TrainConfig(progress=console.is_terminal, **settings)


def codec_settings(codecs: str, code_bytes: str, refine_bytes: str | None) -> dict[str, Any]:
    return {
        "codecs": tuple(names_in(codecs)),
        "code_bytes": tuple(numbers_in("--bytes", code_bytes)),
        "refine_bytes": () if refine_bytes is None else tuple(numbers_in("--refine-bytes", refine_bytes)),
    }


def write_report(path: Path | None, report: dict[str, Any], tables: "list[Table]") -> None:
    """Write the record of a run, if `--json` names a file: a report, and the tables that show it."""
    from rqmoe_store.evaluation.records import run_record

    if path is not None:
        write_json(path, run_record(report, tables))
