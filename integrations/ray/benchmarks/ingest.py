"""Rows through a cluster and through a single process: the same Parquet files, alternating, in one run.

python benchmarks/ingest.py --rows 100000 --workers 4
"""

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
from rqmoe_store.evaluation.ingest_source import synthetic_rows, vectors_of, write_parquet

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
        db = lancedb.connect(folder / "db")
        seconds: dict[str, list[float]] = {"rqmoe_store": [], "rqmoe_ray": []}
        for number in range(rounds):
            one, other = f"one{number}", f"other{number}"
            seconds["rqmoe_store"].append(
                _timed(lambda one=one: rqs.ingest(source, (db, one), codec=codec, progress=False))
            )
            seconds["rqmoe_ray"].append(
                _timed(
                    lambda other=other: rqmoe_ray.ingest(
                        source, folder / "db" / other, codec=codec, num_workers=workers
                    )
                )
            )
            assert db.open_table(one).count_rows() == db.open_table(other).count_rows() == rows
    ray.shutdown()
    for name, times in seconds.items():
        median = statistics.median(times)
        each = ", ".join(f"{time:.2f}" for time in times)
        print(f"{name}: {median:.2f} s, {rows / median:,.0f} rows/s ({each})")
    ratio = statistics.median(seconds["rqmoe_ray"]) / statistics.median(seconds["rqmoe_store"])
    print(f"ratio of medians, {workers} workers to one process: {ratio:.2f}")


def _timed(ingest: Callable[[], rqs.IngestReport]) -> float:
    started = time.perf_counter()
    ingest()
    return time.perf_counter() - started


if __name__ == "__main__":
    typer.run(main)
