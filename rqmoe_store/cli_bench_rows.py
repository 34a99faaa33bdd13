"""`rqmoe bench rows`: what row operations cost. As in `cli`, it only translates."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from rqmoe_store.cli_bench import check_outputs, require_rows
from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.terminal import write_json

if TYPE_CHECKING:
    from rqmoe_store.codecs.base import Codec
    from rqmoe_store.evaluation.row_results import RowReport

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
    from rqmoe_store.evaluation.extras import require_bench

    require_bench("psutil")
    check_outputs(json_out, None)
    require_rows(rows)
    if rows < LEAST_ROWS or repeats < 1:
        raise InvalidInputError(
            f"Got --rows {rows} and --repeats {repeats}; expected at least {LEAST_ROWS:,} and 1."
        )
    console = Console(stderr=True)
    from rqmoe_store.evaluation.row_benchmark import benchmark_rows
    from rqmoe_store.evaluation.row_results import print_row_report

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
