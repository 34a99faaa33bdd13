"""Rows that come from memory or from an iterator: one piece, which can be read once."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.ingestion.pieces import Chunk, Piece, Source, skip

EXPECTED = (
    "the path or URI of a Parquet, Arrow, CSV, JSON, ORC, .npy or .lance file or folder, a pyarrow dataset, "
    "a Lance dataset, a LanceDB table, an Arrow table or reader, a pandas or polars frame, or an iterator of "
    "record batches"
)

_OF_FRAMES = b"pandas"
"""Under this key pandas describes its index, which a table has not."""


class StreamPiece(Piece):
    """The batches of an iterator, in the order they come."""

    may_grow = True
    can_be_shared = False

    def __init__(self, batches: Iterator[pa.RecordBatch], name: str, source_bytes: int | None) -> None:
        super().__init__(name, "", source_bytes)
        self._batches = batches

    def read(self, start: int, columns: Sequence[str], batch_rows: int) -> Iterator[Chunk]:
        for batch in skip(self._batches, start, self.name):
            chosen = batch.select([name for name in columns if name in batch.schema.names])
            for first in range(0, batch.num_rows, batch_rows):
                part = chosen.slice(first, batch_rows)
                yield Chunk(part, part.nbytes)


def open_stream(rows: Any, job: str | None) -> Source:
    """The batches of an Arrow table or reader, of a frame, or of an iterator of any of them.

    Args:
        rows: where batches come from; its first one is read now.
        job: tells it from other streams; None where nothing does.

    Raises:
        InvalidInputError: something else, or an iterator without a batch.
    """
    size = getattr(rows, "nbytes", None)
    batches = _batches(rows)
    schema = getattr(rows, "schema", None)
    if not isinstance(schema, pa.Schema):
        first = next(batches, None)
        if first is None:
            raise InvalidInputError("The iterator yields nothing; expected record batches.")
        schema, batches = first.schema, chain([first], batches)
    name = f"stream {job}" if job else type(rows).__name__
    piece = StreamPiece(batches, name, size if isinstance(size, int) else None)
    return Source(schema=_plain(schema), pieces=[piece], location=f"stream {job}" if job else None)


def rows_source(schema: pa.Schema, job: str | None) -> Source:
    """Rows that other processes have, and that are in no piece.

    Args:
        schema: their columns.
        job: tells them from other rows; None where nothing does.
    """
    return Source(schema=_plain(schema), pieces=[], location=f"rows {job}" if job else None)


def _plain(schema: pa.Schema) -> pa.Schema:
    """`schema` without what a frame has noted in it about itself."""
    metadata = {key: value for key, value in (schema.metadata or {}).items() if key != _OF_FRAMES}
    return schema.with_metadata(metadata or None)


def _batches(rows: Any) -> Iterator[pa.RecordBatch]:
    if isinstance(rows, pa.RecordBatch):
        yield rows
    elif hasattr(rows, "__arrow_c_stream__"):
        reader = pa.RecordBatchReader.from_stream(rows)
        yield pa.RecordBatch.from_pylist([], schema=reader.schema)  # tells the columns where no rows do
        yield from reader
    elif isinstance(rows, Iterable) and not isinstance(rows, (str, bytes, Mapping, np.ndarray)):
        for part in rows:
            yield from _batches(part)
    else:
        raise InvalidInputError(f"Got a source of type {type(rows).__name__}; expected {EXPECTED}.")
