"""A table whose vectors are kept as codes."""

import tempfile
from collections.abc import Iterator
from typing import IO, Any, Self, cast

import pyarrow as pa
from lancedb.db import DBConnection
from lancedb.table import LanceTable

from rqmoe_store.codecs.base import Codec
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.store import databases, registry
from rqmoe_store.store.appends import append_rows
from rqmoe_store.store.columns import CodeColumns
from rqmoe_store.store.embeddings import TableEmbedding
from rqmoe_store.store.kept_vectors import KeptVectors
from rqmoe_store.store.metadata import TableMarks, without_ours
from rqmoe_store.store.other_embeddings import complete_others
from rqmoe_store.store.rows import tables_of
from rqmoe_store.store.schemas import user_schema
from rqmoe_store.store.statistics import TableStats, measure
from rqmoe_store.store.vector_arrays import is_vector_type, read_vectors, rows_per_batch

_SPOOL_BYTES = 64 * 2**20
"""Encoded rows waiting to be written stay in memory up to this size, then move to a temporary file."""


class StoredTable:
    """A LanceDB table with a code column in place of a vector column, and the codec it was made with."""

    def __init__(self, table: LanceTable, codec: Codec, columns: CodeColumns) -> None:
        """Wrap `table`; use `StoredTable.open` or `compress` instead of calling this.

        Raises:
            TableError, ArtefactError: `table`, `codec` and `columns` do not belong together.
        """
        marks = TableMarks.read(table.schema, table.name)
        marks.require_match(codec, table.name)
        columns.require_in(table.schema, code_bytes=codec.config.code_bytes)
        kept = KeptVectors(column=columns.vector_column, keep=marks.keep_vectors, dim=codec.dim)
        kept.require_in(table.schema, table.name)
        self.table = table
        """The LanceDB table. Rows written through it directly need their own codes."""
        self.codec = codec
        """Encodes and decodes the vectors of this table."""
        self.columns = columns
        """Names of the code and partition columns."""
        self.kept = kept
        """Whether the table keeps its raw vectors, and how."""
        self.embedding = TableEmbedding.read(table.schema.metadata, codec, table.name)
        """The LanceDB embedding function its vectors come from; None when there is none."""

    @classmethod
    def open(cls, db: DBConnection, name: str) -> Self:
        """Open the compressed table `name`; its codec is read from the same database.

        Raises:
            TableError: no such table, not a compressed one, its code column is missing or of another
                width, or a newer release wrote it.
            ArtefactError: its codec is not in the database, is damaged, or is another one.
        """
        databases.require_table_name(name)
        table = databases.open_if_exists(db, name)
        if table is None:
            raise databases.no_such_table(db.uri, name)
        marks = TableMarks.read(table.schema, name)
        columns = CodeColumns(marks.vector_column)
        columns.require_in(table.schema)
        return cls(cast(LanceTable, table), registry.load(db, marks.fingerprint), columns)

    @property
    def name(self) -> str:
        """Name of the table."""
        return self.table.name

    @property
    def version(self) -> int:
        """Version of the table; grows with every change."""
        return self.table.version

    @property
    def schema(self) -> pa.Schema:
        """The user's columns: the table's schema without codes, partitions and our metadata.

        The vector column is among them, as the last, where the table keeps raw vectors.
        """
        return without_ours(user_schema(self.table.schema, without=self.columns.names))

    def add(self, rows: Any) -> int:
        """Encode and append rows, all in one commit or none at all.

        Memory stays bounded for iterators and readers, however long; their encoded rows wait in a
        temporary file until all of them have been checked.

        Args:
            rows: a list of dicts, a pandas or polars frame, an Arrow table, record batch or reader,
                or an iterable of those. Columns are the user's columns and the vector column;
                nullable ones may be left out, a null vector is stored as null. In a table with an
                embedding function, missing vectors are computed from its source column.

        Returns:
            Number of rows added.

        Raises:
            InvalidInputError: unknown or missing columns, values of another type, vectors of another
                dimension, with NaN or infinite values, zero under cosine, or beyond float16 where the
                table keeps them in it (named by row position).
            RQMoEError: the embedding function is needed and not registered, lacks a package, or fails.
        """
        with tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES) as spool:
            # The file stands between checking and writing: no row is committed before all are good.
            added = _spool(self._encoded(rows), cast(IO[bytes], spool))
            if added > 0:
                spool.seek(0)
                append_rows(self.table, pa.ipc.open_stream(spool), {})
        return added

    def delete(self, where: str) -> int:
        """Delete the rows that match the SQL condition `where`; returns how many.

        Raises:
            InvalidInputError: `where` cannot be parsed or names an unknown column.
        """
        if not isinstance(where, str):
            raise InvalidInputError(f'Got where={where!r}; expected an SQL condition, such as "id = 3".')
        self.count_rows(where)  # raises for a condition that cannot be used
        result: Any = self.table.delete(where)  # LanceDB's annotation lacks the number of rows
        return int(result.num_deleted_rows)

    def count_rows(self, filter: str | None = None) -> int:
        """Number of rows, or of those that match the SQL condition `filter`.

        Raises:
            InvalidInputError: `filter` cannot be parsed or names an unknown column.
        """
        try:
            return self.table.count_rows(filter)
        except ValueError as error:
            raise InvalidInputError(
                f"The condition {filter!r} cannot be used ({error}). Write an SQL condition over "
                f"{', '.join(self.schema.names)}, such as \"lang = 'en'\"."
            ) from error

    def stats(self) -> TableStats:
        """Rows, bytes and quality of this table, measured now."""
        return measure(self.table, self.codec, self.columns)

    def _encoded(self, rows: Any) -> Iterator[pa.Table]:
        first_row = 0
        source = self.embedding.source_column if self.embedding else None
        for table in tables_of(rows, self._other_columns(), self.columns.vector_column, source):
            self._require_vectors(table)
            for start in range(0, table.num_rows, rows_per_batch(self.codec.dim)):
                part = table.slice(start, rows_per_batch(self.codec.dim))
                yield self._encode(part, first_row + start)
            first_row += table.num_rows

    def _require_vectors(self, table: pa.Table) -> None:
        data_type = table.schema.field(self.columns.vector_column).type
        if not pa.types.is_null(data_type) and not is_vector_type(data_type):
            raise InvalidInputError(
                f"Column {self.columns.vector_column!r} is {data_type}; expected vectors of "
                f"{self.codec.dim} numbers. Nothing was written."
            )

    def _encode(self, table: pa.Table, first_row: int) -> pa.Table:
        column = table[self.columns.vector_column]
        if pa.types.is_null(column.type):
            column = column.cast(pa.list_(pa.float32()))
        metric = self.codec.config.metric
        vectors, valid = read_vectors(column, dim=self.codec.dim, metric=metric, first_row=first_row)
        if self.embedding is not None:
            vectors, valid = self.embedding.complete(vectors, valid, table, first_row)
        self.kept.require_storable(vectors, valid, metric=metric, first_row=first_row)
        ours = [
            *self.columns.to_arrow(self.codec.encode(vectors), valid),
            *self.kept.to_arrow(vectors, valid),
        ]
        fields = [*self._other_columns(), *self.columns.fields(self.codec.config.code_bytes)]
        schema = pa.schema([*fields, *self.kept.fields])
        others = complete_others(self.table, table.select(self._other_columns().names))
        return pa.Table.from_arrays([*others.columns, *ours], schema=schema)

    def _other_columns(self) -> pa.Schema:
        """The columns that are stored as they come: all but vectors and codes."""
        return user_schema(self.table.schema, without=(*self.columns.names, self.columns.vector_column))

    def __len__(self) -> int:
        return self.count_rows()

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.name!r}, {self.count_rows()} rows, dim {self.codec.dim} as "
            f"{self.codec.config.code_bytes} code bytes, {self.codec.config.kind}, "
            f"metric {self.codec.config.metric!r})"
        )


def _spool(tables: Iterator[pa.Table], spool: IO[bytes]) -> int:
    """Write `tables` as one Arrow stream; returns the number of rows."""
    rows, writer = 0, None
    try:
        for table in tables:
            writer = writer or pa.ipc.new_stream(spool, table.schema)
            writer.write_table(table)
            rows += table.num_rows
    finally:
        if writer is not None:
            writer.close()
    return rows
