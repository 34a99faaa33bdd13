"""Benchmark of ingestion: rows per second compared with encoding alone, memory over time, bytes on disk.

Shape suffixes: B rows of a batch, C clusters, D vector dimension.
"""

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from rqmoe_store.codecs.base import Codec, load_codec
from rqmoe_store.codecs.device import select_device
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import CodecConfig, TrainConfig
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.evaluation.codec_measurement import require_disk
from rqmoe_store.evaluation.machine import MemoryOverTime, describe_machine
from rqmoe_store.evaluation.tables import table_of
from rqmoe_store.ingestion.job import ingest
from rqmoe_store.store.statistics import column_bytes, disk_bytes
from rqmoe_store.tables import open_table
from rqmoe_store.training.trainer import train

ID, TEXT, VECTOR = "id", "text", "vector"

_CLUSTERS = 256
_BATCH_ROWS = 8_192
_TEXT_LETTERS = 100
_NOISE = 0.5

_QUARTERS = 4
_PAYLOAD_BYTES = 300
"""Most bytes of a row on disk besides its vector, in Parquet and in the table."""

_ROWS_PER_FILE = 2**19


@dataclasses.dataclass(frozen=True, kw_only=True)
class IngestBenchmarkSettings:
    """What to measure; checked on creation."""

    rows: int = 50_000
    """Rows to ingest."""
    dim: int = 384
    """Dimension of the vectors, unless a loaded codec has one."""
    codec: Path | None = None
    """Folder of the codec to encode with; None to train one on synthetic vectors."""
    config: CodecConfig = dataclasses.field(default_factory=CodecConfig)
    """Configuration of the codec to train."""
    training: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    """How to train it."""
    training_rows: int = 20_000
    """Synthetic vectors to train on."""
    encoded_rows: int = 65_536
    """Vectors that are encoded alone, before and after the ingestion."""
    commit_rows: int = 2**18
    """Rows per commit."""
    encode: bool = True
    """Whether to encode rows, or to keep their vectors raw."""

    def __post_init__(self) -> None:
        for name in ("rows", "dim", "training_rows", "encoded_rows", "commit_rows"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise InvalidInputError(
                    f"Got {name}={getattr(self, name)!r}; expected a whole number from 1."
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class IngestBenchmarkReport:
    """Results of the benchmark; `str` gives them as text."""

    rows: int
    dim: int
    codec: str
    code_bytes: int
    parquet_bytes: int
    seconds: float
    """Time to ingest all rows."""
    rows_per_second: float
    encode_rows_per_second: tuple[float, float]
    """Speed of encoding alone, before and after the ingestion. They differ if other programs interfered."""
    memory_quarters: list[int]
    """Largest growth of memory in each quarter of the time, in bytes."""
    memory_seconds: list[list[float]]
    """Seconds, and the largest growth of memory in each, in bytes."""
    disk_bytes_per_row: float
    """Size of the table on disk, without the user's own columns."""
    machine: dict[str, Any]

    @property
    def share_of_encoding(self) -> float:
        """Rows ingested per second, as a share of the mean speed of encoding alone."""
        return self.rows_per_second / statistics.harmonic_mean(self.encode_rows_per_second)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return dataclasses.asdict(self) | {"share_of_encoding": self.share_of_encoding}


def ingest_table(report: IngestBenchmarkReport) -> Table:
    """The results as a table for a terminal."""
    shown = table_of(
        f"Ingestion: {report.rows:,} rows of dimension {report.dim}",
        "measured; result",
        caption="Memory: the largest growth in each quarter of the time. On disk: beyond the user's columns.",
    )
    before, after = report.encode_rows_per_second
    shown.add_row("codec", f"{report.codec}, {report.code_bytes} bytes")
    shown.add_row("Parquet, MB", f"{report.parquet_bytes / 1e6:,.0f}")
    shown.add_row("seconds", f"{report.seconds:,.1f}")
    shown.add_row("rows/s", f"{report.rows_per_second:,.0f}")
    shown.add_row("rows/s of encoding alone", f"{before:,.0f} before, {after:,.0f} after")
    shown.add_row("share of encoding alone", f"{report.share_of_encoding:.0%}")
    shown.add_row("memory, MiB", ", ".join(f"{size / 2**20:,.0f}" for size in report.memory_quarters))
    shown.add_row("bytes per row on disk", f"{report.disk_bytes_per_row:,.2f}")
    return shown


def benchmark_ingest(settings: IngestBenchmarkSettings, console: Console) -> IngestBenchmarkReport:
    """Write synthetic rows to Parquet files in a temporary folder, ingest them, and measure.

    Args:
        settings: what to measure.
        console: console for progress.

    Raises:
        InvalidInputError: the temporary folder has too little space.
        ArtifactError: the folder has no readable codec.
    """
    loaded = settings.codec and load_codec(settings.codec, device=settings.training.device)
    dim = loaded.dim if loaded else settings.dim
    require_disk(settings.rows, _PAYLOAD_BYTES + (1 if settings.encode else 2) * 4 * dim)
    device, seed = select_device(settings.training.device), settings.training.seed
    machine, codec = describe_machine(device), loaded or _train(settings)
    with tempfile.TemporaryDirectory(prefix="rqmoe-bench-") as name:
        source, database = Path(name) / "source", Path(name) / "database"
        source.mkdir()
        console.print(f"Writing {settings.rows:,} rows as Parquet", highlight=False)
        parquet_bytes = write_parquet(
            source, settings.rows, dim=codec.dim, seed=seed, rows_per_file=_ROWS_PER_FILE
        )
        before = _encoding_speed(codec, settings)
        db = lancedb.connect(database)
        with MemoryOverTime() as memory:
            report = ingest(
                source,
                (db, "rows"),
                codec=codec,
                commit_rows=settings.commit_rows,
                encode=settings.encode,
                progress=console.is_terminal,
            )
        after = _encoding_speed(codec, settings)
        table = open_table(db, "rows").table
        extra = disk_bytes(table) - column_bytes(table, (ID, TEXT))
    return IngestBenchmarkReport(
        rows=report.rows,
        dim=codec.dim,
        codec=codec.config.kind,
        code_bytes=codec.config.code_bytes,
        parquet_bytes=parquet_bytes,
        seconds=report.seconds,
        rows_per_second=report.rows_per_second,
        encode_rows_per_second=(before, after),
        memory_quarters=memory.peaks(_QUARTERS),
        memory_seconds=memory.by_second(),
        disk_bytes_per_row=extra / report.rows,
        machine=machine,
    )


def _train(settings: IngestBenchmarkSettings) -> Codec:
    tables = synthetic_rows(settings.training_rows, dim=settings.dim, seed=settings.training.seed)
    vectors = np.concatenate([vectors_of(table) for table in tables])
    return train(vectors, config=settings.config, training=settings.training)


def _encoding_speed(codec: Codec, settings: IngestBenchmarkSettings) -> float:
    """Vectors encoded per second from memory. The time to generate them, batch by batch, does not count."""
    seconds = 0.0
    for table in synthetic_rows(settings.encoded_rows, dim=codec.dim, seed=settings.training.seed + 1):
        vectors = vectors_of(table)
        if not seconds:
            codec.encode(vectors[:64])  # warm up
        started = time.perf_counter()
        codec.encode(vectors)
        seconds += time.perf_counter() - started
    return settings.encoded_rows / seconds


def synthetic_rows(rows: int, *, dim: int, seed: int) -> Iterator[pa.Table]:
    """Generate rows of an id, a text of 100 letters, and a vector near one of 256 centers.

    A row depends on `seed` and its position only.

    Args:
        rows: number of rows.
        dim: dimension of the vectors.
        seed: of everything random.
    """
    centers_CD = np.random.default_rng(seed).normal(size=(_CLUSTERS, dim)).astype(np.float32)
    for first in range(0, rows, _BATCH_ROWS):
        random = np.random.default_rng([seed, first])
        noise_BD = random.standard_normal((_BATCH_ROWS, dim), dtype=np.float32)
        vectors_BD = centers_CD[random.integers(_CLUSTERS, size=_BATCH_ROWS)] + _NOISE * noise_BD
        letters = random.integers(ord("a"), ord("z") + 1, size=(_BATCH_ROWS, _TEXT_LETTERS), dtype=np.uint8)
        count = min(_BATCH_ROWS, rows - first)
        yield pa.table(
            {
                ID: np.arange(first, first + count),
                TEXT: [row.tobytes().decode() for row in letters[:count]],
                VECTOR: pa.FixedSizeListArray.from_arrays(pa.array(vectors_BD[:count].ravel()), dim),
            }
        )


def vectors_of(table: pa.Table) -> Float32Array:
    """The vectors (B, D) of synthetic rows."""
    column = table[VECTOR].combine_chunks()
    return np.array(column.flatten().to_numpy(), dtype=np.float32).reshape(len(column), -1)


def write_parquet(folder: Path, rows: int, *, dim: int, seed: int, rows_per_file: int) -> int:
    """Write synthetic rows to Parquet files in an empty folder; returns the bytes written."""
    writer: pq.ParquetWriter | None = None
    written = 0
    try:
        for table in synthetic_rows(rows, dim=dim, seed=seed):
            if writer is not None and written >= rows_per_file:
                writer.close()
                writer, written = None, 0
            if writer is None:
                place = len(list(folder.iterdir()))
                writer = pq.ParquetWriter(folder / f"part-{place:05}.parquet", table.schema)
            writer.write_table(table)
            written += table.num_rows
    finally:
        if writer is not None:
            writer.close()
    return sum(path.stat().st_size for path in folder.iterdir())
