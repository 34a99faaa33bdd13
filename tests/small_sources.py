"""Rows to ingest, and what a piece gives when it is read."""

import numpy as np
import pyarrow as pa

from rqmoe_store.ingestion.pieces import Piece, Source

DIM = 16

COUNT = 150
"""Rows of the files of the fixture `source`."""
BAD = {3, 39, 40, 41, 77, 100, 149}
"""Those whose vectors have a NaN."""


def rows_of(count: int, first: int = 0, dim: int = DIM) -> pa.Table:
    """Rows with an id, a text and a vector, told apart by the id."""
    ids = np.arange(first, first + count)
    vectors = np.random.default_rng(5).normal(size=(first + count, dim)).astype(np.float32)[first:]
    return pa.table(
        {
            "id": ids,
            "text": pa.array([f"row {row}" for row in ids], pa.string()),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), dim),
        }
    )


def read(piece: Piece, start: int = 0, columns: list[str] | None = None, batch_rows: int = 1000) -> pa.Table:
    """The rows of a piece from `start` on, as one table."""
    chunks = list(piece.read(start, columns or ["id", "text", "vector"], batch_rows))
    assert all(0 < chunk.rows.num_rows <= batch_rows for chunk in chunks)
    return pa.Table.from_batches([chunk.rows for chunk in chunks])


def all_rows(source: Source) -> pa.Table:
    """The rows of all pieces, one after the other."""
    tables = [read(piece) for piece in source.pieces]
    return pa.concat_tables([table for table in tables if table.num_rows])


def identities(source: Source) -> list[tuple[str, str]]:
    """What is remembered of the pieces."""
    return [(piece.key, piece.state) for piece in source.pieces]
