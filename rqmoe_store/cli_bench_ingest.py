"""`rqmoe bench ingest`: speed, memory and disk space of bulk ingestion. As in `cli`, it only translates."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rqmoe_store.cli_bench import check_outputs
from rqmoe_store.config import CODEC_KINDS, METRICS, CodecConfig, TrainConfig
from rqmoe_store.terminal import write_json


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
    from rqmoe_store.evaluation.extras import require_bench

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
