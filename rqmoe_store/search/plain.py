"""Plain reads: rows that match a condition, in the order of the table."""

from collections.abc import Iterator
from typing import Self

import lance
import pyarrow as pa

from rqmoe_store.refusals import naming_refusals
from rqmoe_store.search.columns import ROW_ID
from rqmoe_store.search.options import batch_length, whole_number
from rqmoe_store.search.source import CodeSource, TableState
from rqmoe_store.search.table_query import TableQuery, TableQueryBuilder
from rqmoe_store.store.table import StoredTable
from rqmoe_store.store.vector_arrays import rows_per_batch


class PlainQueryBuilder(TableQueryBuilder):
    """The options of a read without a search; as rows are not ordered, `prefilter` changes nothing."""

    def __init__(self, store: StoredTable, source: CodeSource) -> None:
        """Start a query; `CompressedTable.search()` is the usual way.

        Args:
            store: the table to read.
            source: where the table's newest version comes from.
        """
        super().__init__(store)
        self._source = source
        self._limit: int | None = None

    def limit(self, limit: int | None) -> Self:
        """Rows to return, None (the default) for all. Raises InvalidInputError below 1."""
        self._limit = None if limit is None else whole_number("limit", limit, 1)
        return self


class PlainQuery(PlainQueryBuilder, TableQuery):
    """A read without a search, built step by step and run by a `to_...` method."""

    def to_arrow(self) -> pa.Table:
        """Run the query.

        Returns:
            The selected columns, and `_rowid` if asked for, of all rows that match, or of some of them
            (`limit`, `offset`), in the order of the table.

        Raises:
            InvalidInputError: a `where` that LanceDB refuses, or an unknown column.
        """
        return self._source.read(0, lambda state: self._read(state, None).read_all())

    def to_batches(self, max_batch_length: int | None = None) -> pa.RecordBatchReader:
        """Run the query; its rows in batches, which are read, and decoded, one after the other.

        All are from the version that the table has now.

        Args:
            max_batch_length: rows per batch at most; None for no such limit.

        Raises as `to_arrow`, and InvalidInputError for a length below 1.
        """
        length = batch_length(max_batch_length)
        return self._source.read(0, lambda state: self._read(state, length))

    def _read(self, state: TableState, length: int | None) -> pa.RecordBatchReader:
        """The rows of one version; the query is planned at once, and run as they are read."""
        snapshot, vectors = state.snapshot, self._vectors
        names = self._stored_names(snapshot.schema, ROW_ID)
        if self._with_row_id:
            names = [*(name for name in names if name != ROW_ID), ROW_ID]
        scanner: lance.LanceScanner = snapshot.dataset.scanner(
            columns=[name for name in vectors.to_read(names) if name != ROW_ID],
            with_row_id=ROW_ID in names,
            filter=self._where(snapshot.table),
            limit=self._limit,
            offset=self._offset or None,
            batch_size=rows_per_batch(snapshot.codecs.dim) if vectors.is_in(names) else None,
            scan_in_order=True,
        )
        schema = scanner.projected_schema

        def batches() -> Iterator[pa.RecordBatch]:
            for batch in scanner.to_batches():
                rows = vectors.filled(pa.Table.from_batches([batch]), names, snapshot.codecs)
                yield from rows.select(names).replace_schema_metadata().to_batches(max_chunksize=length)

        return pa.RecordBatchReader.from_batches(
            pa.schema([schema.field(name) for name in names]), naming_refusals(batches(), self)
        )
