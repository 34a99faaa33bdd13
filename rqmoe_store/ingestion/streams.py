"""Rows that come from memory or from an iterator: one piece, which can be read once."""

from collections.abc import Collection, Iterator, Sequence
from itertools import chain
from typing import Any

import pyarrow as pa

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.ingestion.pieces import Chunk, Piece, Source, skip
from rqmoe_store.store.rows import given_rows

EXPECTED = (
    "the path or URI of a Parquet, Arrow, CSV, JSON, ORC, .npy or .lance file or folder, a pyarrow dataset, "
    "several paths, a pattern such as 'rows/*.parquet', a Lance dataset, a LanceDB table, or rows of any form"
)

_OF_FRAMES = b"pandas"
"""Under this key pandas describes its index, which a table has not."""


class StreamPiece(Piece):
    """The batches of an iterator, in the order they come."""

    may_grow = True
    can_be_shared = False

    def __init__(
        self,
        batches: Iterator[pa.RecordBatch],
        name: str,
        source_bytes: int | None,
        known: Collection[str] | None = None,
    ) -> None:
        """Take the batches.

        Args:
            batches: nothing else may use them any more.
            name, source_bytes: as for all pieces.
            known: columns of the source; a batch with others cannot be read. None where these are left out.
        """
        super().__init__(name, "", source_bytes)
        self._batches, self._known = batches, known

    def read(self, start: int, columns: Sequence[str], batch_rows: int) -> Iterator[Chunk]:
        for batch in skip(self._batches, start, self.name):
            unknown = (
                []
                if self._known is None
                else [each for each in batch.schema.names if each not in self._known]
            )
            if unknown:
                raise InvalidInputError(
                    f"{self.name} has columns that its first rows have not ({', '.join(unknown)}), and they "
                    "would be left out. What is committed stays; pass columns= with those to take."
                )
            chosen = batch.select([name for name in columns if name in batch.schema.names])
            for first in range(0, batch.num_rows, batch_rows):
                part = chosen.slice(first, batch_rows)
                yield Chunk(part, part.nbytes)


def open_stream(rows: Any, job: str | None, vector_column: str, *, takes_all: bool = True) -> Source:
    """The batches of whatever `add` takes as rows, be it an iterator.

    Args:
        rows: where batches come from; the first ones are read now.
        job: tells it from other streams; None where nothing does.
        vector_column: of dicts.
        takes_all: whether later rows with columns that the first ones lack cannot be read.

    Raises:
        InvalidInputError: something else, or an iterator without a row.
    """
    size = getattr(rows, "nbytes", None)
    try:
        tables = given_rows(rows, vector_column)
        first = next(tables, None)
    except InvalidInputError as error:
        raise InvalidInputError(f"{error} As a source, expected {EXPECTED}.") from error
    if first is None:
        raise InvalidInputError("The iterator yields nothing; expected record batches.")
    name = f"stream {job}" if job else type(rows).__name__
    batches = (batch for table in chain([first], tables) for batch in table.to_batches())
    known = first.column_names if takes_all else None
    piece = StreamPiece(batches, name, size if isinstance(size, int) else None, known)
    return Source(schema=_plain(first.schema), pieces=[piece], location=f"stream {job}" if job else None)


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
