"""Rows as users give them, checked and turned into the columns that a table stores.

Shapes: N rows of a part, V of them with a vector, D components.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from lancedb.table import LanceTable

from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.store.columns import CodeColumns
from rqmoe_store.store.drift import DriftMeter
from rqmoe_store.store.embeddings import TableEmbedding
from rqmoe_store.store.kept_vectors import KeptVectors
from rqmoe_store.store.other_embeddings import complete_others
from rqmoe_store.store.rows import tables_of
from rqmoe_store.store.schemas import user_schema
from rqmoe_store.store.table_codec import TableCodec
from rqmoe_store.store.vector_arrays import is_vector_type, read_vectors, rows_per_batch


class RowEncoder:
    """Makes rows of one table ready to be written, either encoded or raw."""

    def __init__(self, table: LanceTable, codecs: TableCodec, *, encode: bool) -> None:
        """Prepare for rows of `table`.

        Args:
            table: for its columns and embedding functions.
            codecs: those of its newest version.
            encode: whether rows get codes, by the newest codec, or keep their vectors until later.
        """
        marks = codecs.marks
        self.columns = CodeColumns(marks.vector_column)
        """Names of the code and partition columns."""
        self.kept = KeptVectors(column=marks.vector_column, keep=marks.keep_vectors, dim=marks.dim)
        """How the table keeps raw vectors."""
        self.embedding = TableEmbedding.read(table.schema.metadata, codecs.dim, codecs.metric, table.name)
        """The LanceDB embedding function its vectors come from; None when there is none."""
        self.others = user_schema(table.schema, without=(*self.columns.names, marks.vector_column))
        """The columns that are stored as they come."""
        self.drift = DriftMeter(codecs) if encode else None
        """How well the rows encoded so far fit the codec."""
        self._table, self._codecs, self._encode = table, codecs, encode

    @property
    def schema(self) -> pa.Schema:
        """Columns of what is written: the others, then codes, vectors, or both."""
        fields = [*self.others]
        if self._encode:
            fields += self.columns.fields(self._codecs.code_bytes)
        if not self._encode or self.kept.kept:
            fields.append(self.kept.field)
        return pa.schema(fields)

    def encoded(self, rows: Any) -> Iterator[pa.Table]:
        """The rows, a bounded number at a time.

        Args:
            rows: as for `tables_of`.

        Raises:
            InvalidInputError, RQMoEError: as `StoredTable.add`.
        """
        first_row, column = 0, self.columns.vector_column
        source = self.embedding.source_column if self.embedding else None
        for table in tables_of(rows, self.others, column, source):
            self.require_vectors(table.schema.field(column).type)
            for start in range(0, table.num_rows, rows_per_batch(self._codecs.dim)):
                part = table.slice(start, rows_per_batch(self._codecs.dim))
                yield self.encoded_part(part, first_row + start)
            first_row += table.num_rows

    def encoded_part(self, part: pa.Table, first_row: int) -> pa.Table:
        """Rows with exactly the columns of `others` and, as the last, the vector column.

        Args:
            part: N rows.
            first_row: position of the first one, for messages.

        Raises as `encoded`.
        """
        vectors_VD, valid_N = self.read(part[self.columns.vector_column], first_row)
        return self.encoded_vectors(part, vectors_VD, valid_N, first_row)

    def read(self, column: pa.ChunkedArray, first_row: int) -> tuple[Float32Array, npt.NDArray[np.bool_]]:
        """The vectors of N rows, float32 (V, D), checked, and which rows have one, (N,).

        Raises:
            InvalidInputError: vectors that cannot be encoded or kept, named by position.
        """
        if pa.types.is_null(column.type):
            column = column.cast(pa.list_(pa.float32()))
        dim, metric = self._codecs.dim, self._codecs.metric
        vectors_VD, valid_N = read_vectors(column, dim=dim, metric=metric, first_row=first_row)
        self.kept.require_storable(vectors_VD, valid_N, metric=metric, first_row=first_row)
        return vectors_VD, valid_N

    def encoded_vectors(
        self, part: pa.Table, vectors_VD: Float32Array, valid_N: npt.NDArray[np.bool_], first_row: int
    ) -> pa.Table:
        """As `encoded_part`, for vectors that have been read.

        Args:
            part: N rows with the columns of `others`.
            vectors_VD: of those of the rows where `valid_N` is True, as `read` gives them.
            valid_N: which rows have a vector; an embedding function makes those that are missing.
            first_row: position of the first row, for messages.
        """
        if self.embedding is not None:
            vectors_VD, valid_N = self.embedding.complete(vectors_VD, valid_N, part, first_row)
            metric = self._codecs.metric
            self.kept.require_storable(vectors_VD, valid_N, metric=metric, first_row=first_row)
        arrays = [*complete_others(self._table, part.select(self.others.names)).columns]
        if self._encode:
            codes = self._codecs.encode(vectors_VD)
            arrays += self.columns.to_arrow(codes, valid_N)
            if self.drift is not None:
                self.drift.add(vectors_VD, codes)
        if not self._encode or self.kept.kept:
            arrays.append(self.kept.raw_array(vectors_VD, valid_N))
        return pa.Table.from_arrays(arrays, schema=self.schema)

    def require_vectors(self, data_type: pa.DataType) -> None:
        """Raise InvalidInputError unless a column of this type can hold vectors."""
        if not pa.types.is_null(data_type) and not is_vector_type(data_type):
            raise InvalidInputError(
                f"Column {self.columns.vector_column!r} is {data_type}; expected vectors of "
                f"{self._codecs.dim} numbers. Nothing was written."
            )
