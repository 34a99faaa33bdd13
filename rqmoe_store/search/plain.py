"""Plain reads: rows that match a condition, in the order of the table or of columns, without a search."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import lance
import pyarrow as pa
from lance.dataset import ColumnOrdering as LanceOrdering
from lancedb.query import ColumnOrdering

from rqmoe_store.arguments import whole_number
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.search.columns import ROW_ID
from rqmoe_store.search.query import TableQuery
from rqmoe_store.search.request import batch_length
from rqmoe_store.search.source import TableReader
from rqmoe_store.storage_errors import translate_errors_of
from rqmoe_store.store.columns import user_schema
from rqmoe_store.store.snapshot import Snapshot

_ORDERING = (
    "Got order_by({!r}); expected a list of lancedb.query.ColumnOrdering, or of dicts such as "
    "{{'column_name': 'year', 'ascending': False}}."
)


class PlainQuery(TableQuery):
    """A read without a search, built step by step and run by a `to_...` method.

    `prefilter` makes no difference, because there is no search.
    """

    def __init__(self, reader: TableReader) -> None:
        """Start a query; `CompressedTable.search()` is the usual way.

        Args:
            reader: reads the table.
        """
        super().__init__(reader)
        self._limit: int | None = None
        self._ordering: tuple[ColumnOrdering, ...] = ()

    def limit(self, limit: int | None) -> Self:
        """Set the number of rows to return; None (the default) for all. Raises InvalidInputError below 1."""
        self._limit = None if limit is None else whole_number("limit", limit, 1)
        return self

    def order_by(self, ordering: Sequence[ColumnOrdering | Mapping[str, Any]] | None) -> Self:
        """Order rows by columns, the first one being the most significant, before `limit` and `offset`.

            store.search().order_by([{"column_name": "year", "ascending": False}, {"column_name": "id"}])

        Args:
            ordering: a list of `lancedb.query.ColumnOrdering`, or of dicts with the same fields:
                "column_name", "ascending" (default True) and "nulls_first" (default False). None for the
                order of the table.

        Raises:
            InvalidInputError: `ordering` is none of these. When the query runs: a column is unknown, or its
                values have no order, such as vectors, lists and structs.
        """
        orderings = () if ordering is None else ordering
        if isinstance(orderings, str | bytes | Mapping) or not isinstance(orderings, Iterable):
            raise InvalidInputError(_ORDERING.format(ordering))
        orderings, known = list(orderings), set(ColumnOrdering.model_fields)
        if any(isinstance(each, Mapping) and set(each) - known for each in orderings):
            raise InvalidInputError(_ORDERING.format(ordering))
        try:
            self._ordering = tuple(ColumnOrdering.model_validate(each) for each in orderings)
        except ValueError as error:
            raise InvalidInputError(f"{_ORDERING.format(ordering)} ({error})") from error
        return self

    def _require_sortable(self, schema: pa.Schema) -> list[str]:
        """The columns to order by. Raises InvalidInputError unless they are user columns of single values."""
        hidden = (*self._handle.hidden_columns, self._handle.columns.vector_column)
        able = [field.name for field in user_schema(schema, without=hidden) if not _is_nested(field.type)]
        names = [ordering.column_name for ordering in self._ordering]
        unable = [name for name in names if name not in able]
        if unable:
            raise InvalidInputError(
                f"Got column {unable[0]!r} to order by; expected one of {', '.join(able) or 'none'}."
            )
        return names

    def to_arrow(self) -> pa.Table:
        """Run the query.

        Returns:
            The selected columns, and `_rowid` if requested, of the rows that match, from `offset` on and up
            to `limit` of them, in the order of the table or of `order_by`.

        Raises:
            InvalidInputError: LanceDB does not accept a condition, or a column is unknown.
        """
        return self._reader.read_snapshot(lambda snapshot: self._read(snapshot, None).read_all())

    def to_batches(self, max_batch_length: int | None = None) -> pa.RecordBatchReader:
        """Run the query and return its rows in batches, which are read and decoded one after the other.

        All batches are of the version that the table has now.

        Args:
            max_batch_length: most rows of a batch; None for no limit.

        Raises as `to_arrow`, and InvalidInputError for a length below 1.
        """
        length = batch_length(max_batch_length)
        return self._reader.read_snapshot(lambda snapshot: self._read(snapshot, length))

    def _read(self, snapshot: Snapshot, length: int | None) -> pa.RecordBatchReader:
        """A reader of the rows of one version. The query is planned now, and runs as rows are read."""
        vectors = self._vectors
        chosen = self._result_columns(snapshot, ROW_ID)
        if self._with_row_id:
            chosen = chosen.with_last(ROW_ID)
        stored = list(dict.fromkeys([*chosen.stored(ROW_ID), *self._require_sortable(snapshot.schema)]))
        scanner: lance.LanceScanner = snapshot.dataset.scanner(
            columns=chosen.to_scan(vectors.to_read(stored)),
            # Lance cannot scan for expressions alone.
            with_row_id=chosen.reads(ROW_ID) or bool(chosen.expressions),
            filter=self._where(snapshot),
            limit=self._limit,
            offset=self._offset or None,
            batch_size=snapshot.codecs.metadata.rows_per_batch if vectors.is_in(stored) else None,
            scan_in_order=True,
            order_by=[_in_lance(ordering) for ordering in self._ordering] or None,
        )
        schema = scanner.projected_schema

        def batches() -> Iterator[pa.RecordBatch]:
            for batch in scanner.to_batches():
                rows = vectors.decode(pa.Table.from_batches([batch]), stored, snapshot.codecs)
                yield from chosen.arranged(rows).replace_schema_metadata().to_batches(max_chunksize=length)

        fields = [schema.field(source).with_name(name) for name, source in chosen.sources.items()]
        return pa.RecordBatchReader.from_batches(pa.schema(fields), translate_errors_of(batches(), self))


def _in_lance(ordering: ColumnOrdering) -> LanceOrdering:
    return LanceOrdering(ordering.column_name, ordering.ascending, ordering.nulls_first)


def _is_nested(data_type: pa.DataType) -> bool:
    return bool(pa.types.is_nested(data_type)) or isinstance(data_type, pa.BaseExtensionType)
