"""Rows to ingest, some of them bad, and what is in a table in the end."""

from pathlib import Path

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import rqmoe_store as rqs

DIM = 16
EVERY_BAD = 97
"""Of so many rows one is bad."""


def vectors_of(count: int, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)


def rows_of(count: int, first: int = 0) -> pa.Table:
    """Rows with an id, a language, a text and a vector; vectors of every `EVERY_BAD`-th are bad."""
    ids = np.arange(first, first + count)
    vectors = vectors_of(first + count)[first:]
    vectors[ids % EVERY_BAD == 0, 0] = np.nan
    return pa.table(
        {
            "id": ids,
            "lang": pa.array(np.where(ids % 3 == 0, "en", "de"), pa.string()),
            "text": pa.array([f"row {row}" for row in ids], pa.string()),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), DIM),
        }
    )


def bad_rows(count: int) -> list[int]:
    return list(range(0, count, EVERY_BAD))


def good_rows(count: int) -> list[int]:
    return [row for row in range(count) if row % EVERY_BAD]


def write_files(folder: Path, *, files: int, rows: int) -> None:
    for number in range(files):
        pq.write_table(rows_of(rows, number * rows), folder / f"{number:03}.parquet", row_group_size=100)


def database_of(table: str) -> lancedb.DBConnection:
    return lancedb.connect(table.rpartition("/")[0])


def count_of(table: str) -> int:
    """Rows committed so far; 0 without a table."""
    database = database_of(table)
    return database.open_table("docs").count_rows() if "docs" in database.list_tables().tables else 0


def require_all_once(table: str, codec: rqs.Codec, count: int) -> None:
    """Every row is there once, with its code, or in the quarantine."""
    database = database_of(table)
    stored = database.open_table("docs").to_arrow().sort_by("id")
    assert stored["id"].to_pylist() == good_rows(count)
    codes = codec.encode(vectors_of(count)[good_rows(count)])
    assert stored["vector_code"].to_pylist() == [bytes(code) for code in codes.codes]
    assert stored["vector_partition"].to_pylist() == codes.partitions.tolist()
    bad = database.open_table("docs_quarantine").to_arrow()["row"].to_pylist()
    assert len(bad) == len(set(bad)) == len(bad_rows(count))
    assert rqs.open_table(database, "docs").verify(progress=False).ok
