"""Rows to measure ingestion with: clustered vectors in Parquet files, made a batch at a time.

Shape suffixes: B rows of a batch, C clusters, D vector dimension.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rqmoe_store.codecs.vectors import Float32Array

ID, TEXT, VECTOR = "id", "text", "vector"

_CLUSTERS = 256
_BATCH_ROWS = 8_192
_TEXT_LETTERS = 100
_NOISE = 0.5


def synthetic_rows(rows: int, *, dim: int, seed: int) -> Iterator[pa.Table]:
    """An id, a text of 100 letters and a vector per row; vectors lie around 256 centres.

    The rows depend on `seed` only: fewer of them are the first of more.

    Args:
        rows: how many.
        dim: components of a vector.
        seed: of everything random.
    """
    centres_CD = np.random.default_rng(seed).normal(size=(_CLUSTERS, dim)).astype(np.float32)
    for first in range(0, rows, _BATCH_ROWS):
        random = np.random.default_rng([seed, first])
        noise_BD = random.standard_normal((_BATCH_ROWS, dim), dtype=np.float32)
        vectors_BD = centres_CD[random.integers(_CLUSTERS, size=_BATCH_ROWS)] + _NOISE * noise_BD
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
    """The vectors (B, D) of such rows."""
    column = table[VECTOR].combine_chunks()
    return np.array(column.flatten().to_numpy(), dtype=np.float32).reshape(len(column), -1)


def write_parquet(folder: Path, rows: int, *, dim: int, seed: int, rows_per_file: int) -> int:
    """Write synthetic rows as Parquet files into an empty folder; returns the bytes written."""
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
