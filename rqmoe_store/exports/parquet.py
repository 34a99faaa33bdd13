"""Parquet files, one or a folder of them."""

from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from rqmoe_store.errors import InvalidInputError

ROWS_PER_FILE = 2**20
"""Rows of one file in a folder of them."""


class ParquetParts:
    """Writes record batches to one file, or to files `part-00000.parquet`, ... of a folder that it makes."""

    def __init__(
        self, path: Path, schema: pa.Schema, *, plain: tuple[str, ...], rows_per_file: int | None
    ) -> None:
        """Prepare to write; nothing is there until the first batch comes or the writer is closed.

        Args:
            path: of the file or folder.
            schema: of the batches.
            plain: columns whose values seldom repeat, such as vectors: looking for that is left out.
            rows_per_file: rows of a file in a folder; None for a single file.
        """
        self._path, self._schema, self._rows_per_file = path, schema, rows_per_file
        self._dictionaries = [name for name in schema.names if name not in plain]
        self._parts, self._rows = 0, 0
        self._writer: pq.ParquetWriter | None = None

    def write(self, arrays: list[pa.Array]) -> None:
        """Write rows as arrays in the order of the schema."""
        if self._rows_per_file is not None and self._rows >= self._rows_per_file:
            self._finish()
        writer = self._begin() if self._writer is None else self._writer
        batch = pa.RecordBatch.from_arrays(arrays, schema=self._schema)
        writer.write_batch(batch)
        self._rows += len(batch)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and self._parts == 0:
            self._begin()  # a table without rows has columns all the same
        self._finish()

    def _begin(self) -> pq.ParquetWriter:
        path = self._path
        if self._rows_per_file is not None:
            path.mkdir(exist_ok=True)
            path = path / f"part-{self._parts:05}.parquet"
        try:
            self._writer = pq.ParquetWriter(path, self._schema, use_dictionary=self._dictionaries)
        except pa.ArrowNotImplementedError as error:
            raise InvalidInputError(
                f"Parquet cannot hold one of the columns ({error}). Export a copy of the table without it."
            ) from error
        self._parts, self._rows = self._parts + 1, 0
        return self._writer

    def _finish(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
