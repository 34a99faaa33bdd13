"""A table whose vectors are kept as codes."""

import tempfile
from collections.abc import Iterator
from typing import IO, Any, Self, cast

import pyarrow as pa
from lancedb.db import DBConnection
from lancedb.table import LanceTable

from rqmoe_store.codecs.base import Codec
from rqmoe_store.config import Metric
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.store import databases
from rqmoe_store.store.appends import append_rows
from rqmoe_store.store.columns import CodeColumns
from rqmoe_store.store.embeddings import TableEmbedding
from rqmoe_store.store.health import DriftWatch, HealthReport, measure_health
from rqmoe_store.store.kept_vectors import KeptVectors
from rqmoe_store.store.metadata import TableMarks, without_ours
from rqmoe_store.store.refusals import names_refusals
from rqmoe_store.store.row_encoder import RowEncoder
from rqmoe_store.store.schemas import user_schema
from rqmoe_store.store.statistics import TableStats, measure
from rqmoe_store.store.table_codec import TableCodec

_SPOOL_BYTES = 64 * 2**20
"""Encoded rows waiting to be written stay in memory up to this size, then move to a temporary file."""


class StoredTable:
    """A LanceDB table with a code column in place of a vector column, and the codec it was made with."""

    def __init__(self, table: LanceTable, codecs: TableCodec) -> None:
        """Wrap `table`; use `StoredTable.open` or `compress` instead of calling this.

        Args:
            table: one that this package made.
            codecs: those that its marks name.

        Raises:
            TableError: a column is missing or of another type than the marks say.
        """
        self.columns = CodeColumns(codecs.marks.vector_column)
        """Names of the code and partition columns."""
        self.columns.require_in(table.schema, code_bytes=codecs.code_bytes)
        self.kept = KeptVectors(
            column=codecs.marks.vector_column, keep=codecs.marks.keep_vectors, dim=codecs.dim
        )
        """Whether the table keeps its raw vectors, and how."""
        self.kept.require_in(table.schema, table.name)
        self.table = table
        """The LanceDB table. Rows written through it directly need their own codes."""
        self._codecs = codecs
        self._watch = DriftWatch()
        self.embedding = TableEmbedding.read(table.schema.metadata, codecs.dim, codecs.metric, table.name)
        """The LanceDB embedding function its vectors come from; None when there is none."""

    @classmethod
    def open(cls, db: DBConnection, name: str) -> Self:
        """Open the compressed table `name`; its codecs are read from the same database.

        Raises:
            TableError: no such table, not a compressed one, a column of ours is missing or of another
                type, or a newer release wrote it.
            ArtefactError: a codec is not in the database, is damaged, or is another one.
        """
        databases.require_table_name(name)
        table = databases.open_if_exists(db, name)
        if table is None:
            raise databases.no_such_table(db.uri, name)
        marks = TableMarks.read(table.schema, name)
        CodeColumns(marks.vector_column).require_in(table.schema)
        return cls(cast(LanceTable, table), TableCodec.load(db, marks))

    @property
    def codecs(self) -> TableCodec:
        """The codecs of all generations of rows, as this handle knows them; `refresh` asks again."""
        return self._codecs

    @property
    def codec(self) -> Codec:
        """The newest codec: encodes the vectors that are added.

        Raises:
            TableError: the table has none yet.
        """
        if self._codecs.newest is None:
            raise TableError(
                f"Table {self.name!r} has no codec yet: its {self.count_rows()} rows are kept raw. Train one "
                "with train()."
            )
        return self._codecs.newest

    @property
    def dim(self) -> int:
        """Components of a vector."""
        return self._codecs.dim

    @property
    def metric(self) -> Metric:
        """The distance that the table is searched by."""
        return self._codecs.metric

    def refresh(self) -> None:
        """Bring this handle to the newest version of the table, and to the codecs that it has.

        Raises as `open`.
        """
        self.table.checkout_latest()  # type: ignore[no-untyped-call]  # LanceDB leaves it unannotated
        marks = TableMarks.read(self.table.schema, self.name)
        self._codecs = TableCodec.load(databases.database_of(self.table), marks, self._codecs)

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
        return without_ours(user_schema(self.table.schema, without=self.hidden_columns))

    @property
    def hidden_columns(self) -> tuple[str, ...]:
        """Columns that results leave out unless they are named: codes, partitions, and raw vectors where
        rows keep them only until they are encoded."""
        return self.columns.names if self.kept.kept else (*self.columns.names, self.columns.vector_column)

    def add(self, rows: Any, *, encode: bool | None = None) -> int:
        """Encode and append rows, all in one commit or none at all.

        Memory stays bounded for iterators and readers, however long; their encoded rows wait in a
        temporary file until all of them have been checked.

        Args:
            rows: a list of dicts, a pandas or polars frame, an Arrow table, record batch or reader,
                or an iterable of those. Columns are the user's columns and the vector column;
                nullable ones may be left out, a null vector is stored as null. In a table with an
                embedding function, missing vectors are computed from its source column.
            encode: False to keep the vectors raw, which is quicker, and have `optimize` encode them
                later; searches find them all the same. None to encode if the table has a codec.

        Returns:
            Number of rows added.

        Raises:
            InvalidInputError: unknown or missing columns, values of another type, vectors of another
                dimension, with NaN or infinite values, zero under cosine, or beyond float16 where the
                table keeps them in it (named by row position).
            TableError: `encode` is True and the table has no codec yet.
            StorageError: the disk or bucket refuses to take them; no row was added.
            RQMoEError: the embedding function is needed and not registered, lacks a package, or fails.
        """
        self.refresh()
        if encode is None:
            encode = self._codecs.newest is not None
        if encode:
            _ = self.codec  # raises when there is none
        encoder = RowEncoder(self.table, self._codecs, encode=encode)
        with tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES) as spool:
            # The file stands between checking and writing: no row is committed before all are good.
            added = _spool(encoder.encoded(rows), cast(IO[bytes], spool))
            drift = encoder.drift.take() if encoder.drift else None
            if added > 0:
                spool.seek(0)
                append_rows(self.table, pa.ipc.open_stream(spool), drift.properties if drift else {})
        if drift is not None:
            self._watch.note(self.table, self._codecs, drift)
        return added

    @names_refusals
    def delete(self, where: str) -> int:
        """Delete the rows that match the SQL condition `where`; returns how many.

        Raises:
            InvalidInputError: `where` cannot be parsed or names an unknown column.
            StorageError: the disk or bucket refuses the change; no row was deleted.
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

    def health(self) -> HealthReport:
        """Whether the newest codec still fits what is added, in numbers and in words."""
        self.refresh()
        return measure_health(self.table, self._codecs)

    def stats(self) -> TableStats:
        """Rows, bytes and quality of this table, measured now."""
        return measure(self.table, self._codecs, self.columns)

    def __len__(self) -> int:
        return self.count_rows()

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.name!r}, {self.count_rows()} rows, dim {self.dim} as "
            f"{self._codecs.code_bytes} code bytes, {self._codecs.marks.config.kind}, "
            f"metric {self.metric!r})"
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
