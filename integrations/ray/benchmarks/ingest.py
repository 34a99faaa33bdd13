"""Rows through a cluster and through a single process: the same Parquet files, alternating, in one run.

python benchmarks/ingest.py --rows 100000 --workers 4
"""

import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import lancedb
import ray
import rqmoe_ray
import typer

import rqmoe_store as rqs
from rqmoe_store.evaluation.ingest_benchmark import synthetic_rows, vectors_of, write_parquet

_TRAINING_ROWS, _FILES = 8192, 8


def main(
    rows: Annotated[int, typer.Option(help="Rows of the source.")] = 100_000,
    dim: Annotated[int, typer.Option(help="Components of a vector.")] = 384,
    workers: Annotated[int, typer.Option(help="Actors of the cluster.")] = 2,
    rounds: Annotated[int, typer.Option(help="Ingestions of each kind.")] = 3,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
) -> None:
    """Print rows per second through `rqmoe_ray.ingest` and `rqmoe_store.ingest`, and the ratio."""
    ray.init(num_cpus=workers, include_dashboard=False, object_store_memory=200 * 2**20)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (source := folder / "source").mkdir()
        write_parquet(source, rows, dim=dim, seed=seed, rows_per_file=-(-rows // _FILES))
        codec = rqs.train(
            vectors_of(next(synthetic_rows(_TRAINING_ROWS, dim=dim, seed=seed))),
            config=rqs.CodecConfig(kind="rq", code_bytes=16),
            training=rqs.TrainConfig(epochs=0, progress=False, device="cpu"),
        )
        codec.save(folder / "codec")
        (single := folder / "single").mkdir()
        write_parquet(single, 1, dim=dim, seed=seed, rows_per_file=1)
        db = lancedb.connect(folder / "db")

        def alone(number: int) -> rqs.IngestReport:
            return rqs.ingest(source, (db, f"alone{number}"), codec=codec, progress=False)

        def together(number: int, rows: Path = source) -> rqs.IngestReport:
            table = folder / "db" / f"{rows.name}{number}"
            return rqmoe_ray.ingest(rows, table, codec=codec, num_workers=workers)

        seconds: dict[str, list[float]] = {"rqmoe_store": [], "rqmoe_ray": [], "rqmoe_ray, one row": []}
        for number in range(rounds):
            seconds["rqmoe_store"].append(_timed(alone, number, rows))
            seconds["rqmoe_ray"].append(_timed(together, number, rows))
            seconds["rqmoe_ray, one row"].append(_timed(functools.partial(together, rows=single), number, 1))
    ray.shutdown()
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name, times in seconds.items():
        print(f"{name}: {medians[name]:.2f} s ({', '.join(f'{each:.2f}' for each in times)})")
    one, whole, start = medians.values()
    print(f"ratio of medians, {workers} workers to one process: {whole / one:.2f}")
    print(f"less the start of the first worker: {(whole - start) / one:.2f}")


def _timed(ingest: Callable[[int], rqs.IngestReport], number: int, rows: int) -> float:
    started = time.perf_counter()
    report = ingest(number)
    seconds = time.perf_counter() - started
    assert report.rows == rows
    return seconds


if __name__ == "__main__":
    typer.run(main)
