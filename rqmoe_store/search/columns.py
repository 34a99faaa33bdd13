"""Result columns: the columns that a query returns, how they are taken for its hits, and decoded vectors.

Shape legend: H hits of all queries in result order, N rows, D vector dimension.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import lance
import numpy as np
import pyarrow as pa
from lancedb.expr import Expr
from lancedb.table import LanceTable

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.search.cached_columns import CachedColumns, as_array
from rqmoe_store.search.rerank import Hits
from rqmoe_store.search.row_ids import RowIds
from rqmoe_store.search.segments import Mask
from rqmoe_store.storage_errors import is_gone
from rqmoe_store.store.columns import CodeColumns, KeptVectors
from rqmoe_store.store.conditions import as_text
from rqmoe_store.store.handle import Handle
from rqmoe_store.store.lance import take_existing_rows
from rqmoe_store.store.snapshot import Snapshot
from rqmoe_store.store.sql import quoted, tokens_of
from rqmoe_store.store.table_codec import TableCodec

DISTANCE = "_distance"
SCORE = "_score"
RELEVANCE = "_relevance_score"
ROW_ID = "_rowid"
QUERY_INDEX = "query_index"
_ADDED = (DISTANCE, SCORE, RELEVANCE, ROW_ID, QUERY_INDEX)
_EXPRESSION = "expression of "  # prefix that keeps names of expressions different from those of columns

_OWN_FIELDS = (
    pa.field(QUERY_INDEX, pa.int32(), nullable=False),
    pa.field(DISTANCE, pa.float32()),
    pa.field(ROW_ID, pa.uint64()),
)

Selected = dict[str, str | Expr]
"""Name of a result column -> name of a column, path into a struct, or SQL."""


def check_selection(columns: Any) -> Selected | None:
    """Check the argument of `select`; returns None, which means all user columns, for an empty selection.

    Raises:
        InvalidInputError: `columns` is neither a list of names nor a dict of expressions, or has a name
            twice.
    """
    if columns is None:
        return None
    is_list = isinstance(columns, list | tuple)
    named = (
        not is_list
        and isinstance(columns, Mapping)
        and all(isinstance(sql, str | Expr) for sql in columns.values())
    )
    if not (named or is_list) or not all(isinstance(name, str) for name in columns):
        raise InvalidInputError(
            f"Got select({columns!r}); expected a list of column names, such as select(['id', 'text']), or a "
            "dict of SQL expressions by name, such as select({'id': 'id', 'double': '2 * id'})."
        )
    if named:
        return dict(columns) or None
    selected = dict(zip(columns, columns, strict=True))
    if len(selected) < len(columns):
        doubled = sorted(name for name in selected if columns.count(name) > 1)
        raise InvalidInputError(f"Got column {doubled[0]!r} twice in select; expected every name once.")
    return selected or None


@dataclasses.dataclass(frozen=True)
class ResultColumns:
    """The columns of a result, and where their values come from."""

    sources: dict[str, str]
    """Name in the result -> name of a stored column, of a column that the query adds, or of an expression."""
    expressions: dict[str, str]
    """Name of an expression -> checked SQL."""

    def stored(self, *own: str) -> list[str]:
        """The stored columns to read, each once; columns named in `own` are added by the query."""
        return [
            name for name in dict.fromkeys(self.sources.values()) if name not in (*own, *self.expressions)
        ]

    def to_scan(self, columns: Sequence[str]) -> Any:
        """The argument for Lance's scanner for these columns and all expressions: names, or names and SQL."""
        if not self.expressions:
            return list(columns)
        return {name: quoted(name) for name in columns} | self.expressions

    def arranged(self, rows: pa.Table) -> pa.Table:
        """The columns of the result, in order, from the rows that were read."""
        return rows.select(list(self.sources.values())).rename_columns(list(self.sources))

    def reads(self, name: str) -> bool:
        """Whether any column of the result comes from this one."""
        return name in self.sources.values()

    def are_in(self, cached: CachedColumns) -> bool:
        """Whether the values of all stored columns, of which there may be none, are in memory."""
        return not self.expressions and cached.has(self.stored(*_ADDED))

    def describe_take(self, cached: CachedColumns | None) -> str:
        """What plans say of the stage that takes these columns."""
        where = "; memory" if cached is not None and self.are_in(cached) else ""
        return ", ".join(self.sources) + where

    def with_last(self, name: str) -> "ResultColumns":
        """The same columns, followed by one that the query adds."""
        sources = {out: source for out, source in self.sources.items() if out != name}
        return ResultColumns(sources | {name: name}, self.expressions)


def result_columns(
    selected: Selected | None, snapshot: Snapshot, handle: Handle, own: Sequence[str]
) -> ResultColumns:
    """The columns that a query returns from a version of a table.

    Args:
        selected: result of `check_selection`; None for all user columns.
        snapshot: that version.
        handle: of the table.
        own: columns that the query adds.

    Raises:
        InvalidInputError: a column is unknown, or LanceDB does not accept an expression.
    """
    hidden = handle.hidden_columns
    users = [name for name in snapshot.schema.names if name not in hidden]
    if selected is None:
        return ResultColumns({name: name for name in users}, {})
    known, sources, expressions = [*users, *hidden, *own], {}, {}
    for name, source in selected.items():
        sql = as_text(source, called="select")
        column = sql if sql in known else _unquoted(sql)
        if column in known:
            _require_own(name, column)
            sources[name] = column
            continue
        if name == sql and not _is_path(name):
            require_known([name], known)
        _require_own(name, column)
        sources[name] = _EXPRESSION + name
        expressions[_EXPRESSION + name] = handle.conditions.expression(
            snapshot.table, source, called=f"select[{name!r}]"
        )
    if expressions:
        _require_expressions(snapshot.table, selected, expressions)
    return ResultColumns(sources, expressions)


def _require_expressions(table: LanceTable, selected: Selected, expressions: dict[str, str]) -> None:
    try:
        table.search().select(dict(expressions)).with_row_id(True).output_schema()
    except Exception as error:  # LanceDB panics on some, with a plain Exception
        if is_gone(error):
            raise
        raise InvalidInputError(
            f"Got select({selected!r}), which LanceDB refuses: {error}\nExpected SQL expressions over the "
            "table's columns, such as {'double': '2 * id'}; columns that a search adds can be renamed alone."
        ) from error


def _require_own(name: str, source: str) -> None:
    """Raise InvalidInputError if `name` is that of a column which searches add, and `source` is another."""
    if name != source and name in _ADDED:
        raise InvalidInputError(
            f"Got {source!r} as {name!r} in select, which searches add to results; expected another name."
        )


def _unquoted(sql: str) -> str:
    """The name without quotes if `sql` is a single name in backticks; otherwise `sql`."""
    tokens = list(tokens_of(sql.strip()))
    return tokens[0].value if len(tokens) == 1 and tokens[0].kind == "name" else sql


def _is_path(name: str) -> bool:
    """Whether `name` is a path into a struct, or a name in backticks."""
    kinds = {token.kind for token in tokens_of(name) if token.written != "."}
    return bool(kinds) and kinds <= {"word", "name"} and ("." in name or kinds == {"name"})


def require_known(names: Sequence[str], available: Sequence[str]) -> None:
    """Raise InvalidInputError, naming the available columns, unless all of `names` are among them."""
    unknown = [name for name in names if name not in available]
    if unknown:
        raise InvalidInputError(
            f"Got unknown column {unknown[0]!r} in select; available are {', '.join(available)}."
        )


def without(table: pa.Table, name: str) -> pa.Table:
    """`table` without its column `name`, if it has one."""
    return table.drop_columns([name]) if name in table.column_names else table


def in_lancedb_order(chosen: ResultColumns, *, with_row_id: bool, batched: bool) -> ResultColumns:
    """The columns of a vector search in LanceDB's order.

    These are `query_index` (if there are several queries), the selected columns, `_distance` unless it is
    selected at another place, and `_rowid` if requested. Code columns are returned only if selected by name.
    """
    sources = dict(chosen.sources)
    if batched:
        sources = {QUERY_INDEX: QUERY_INDEX} | sources
    sources.setdefault(DISTANCE, DISTANCE)
    chosen = ResultColumns(sources, chosen.expressions)
    return chosen.with_last(ROW_ID) if with_row_id else chosen


def take(
    dataset: lance.LanceDataset,
    hits_of_queries: Sequence[Hits],
    chosen: ResultColumns,
    stored: Sequence[str],
    cached: CachedColumns | None = None,
) -> pa.Table:
    """Take the columns of a result for every hit, query after query, in result order.

    These are the columns `stored`, all expressions, and the columns that the search adds. Rows that are no
    longer in the table are left out. Nothing is read if all columns are `cached`.
    """
    row_ids_H = np.concatenate([hits.row_ids_S for hits in hits_of_queries])
    distances_H = np.concatenate([hits.distances_S for hits in hits_of_queries])
    counts = [len(hits.row_ids_S) for hits in hits_of_queries]
    queries_H = np.arange(len(counts), dtype=np.int32).repeat(counts)
    if cached is not None and chosen.are_in(cached):
        rows: Mapping[str, pa.Array] | pa.Table
        rows, exists_H = cached.take(row_ids_H, stored)
        schema = cached.schema
    else:
        # Rows are read even without stored columns, because their row ids tell which rows still exist.
        taken = take_existing_rows(dataset, chosen.to_scan([*stored, ROW_ID]), row_ids_H)
        rows, exists_H = _aligned(taken, row_ids_H)
        schema = taken.schema
    names = [*stored, *chosen.expressions]
    fields, arrays = [*_OWN_FIELDS], []
    for field, own_H in zip(_OWN_FIELDS, (queries_H, distances_H, row_ids_H), strict=True):
        arrays.append(as_array(own_H[exists_H], field.type))
    for name in names:
        fields.append(schema.field(name))
        arrays.append(rows[name])
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def _aligned(taken: pa.Table, row_ids_H: RowIds) -> tuple[pa.Table, Mask]:
    """The rows that exist in the order of `row_ids_H`, which may have ids twice, and which these are."""
    taken_ids = taken[ROW_ID].to_numpy()
    if np.array_equal(taken_ids, row_ids_H):
        return taken, np.ones(len(row_ids_H), bool)
    if len(taken) == 0:
        return taken, np.zeros(len(row_ids_H), bool)
    order = np.argsort(taken_ids)
    places_H = np.searchsorted(taken_ids, row_ids_H, sorter=order)
    taken_H = order[np.minimum(places_H, len(order) - 1)]
    exists_H = taken_ids[taken_H] == row_ids_H
    return taken.take(pa.array(taken_H[exists_H])), exists_H


@dataclasses.dataclass(frozen=True)
class DecodedColumn:
    """Decodes the vector column of results, unless the table keeps all raw vectors."""

    columns: CodeColumns
    kept: KeptVectors

    def is_in(self, names: Sequence[str]) -> bool:
        """Whether a result with these columns needs decoded vectors."""
        return self.columns.vector_column in names and not self.kept.kept

    def to_read(self, names: Sequence[str]) -> list[str]:
        """The columns to read for a result with the columns `names`, in this order, then code columns."""
        codes = [name for name in self.columns.names if name not in names] if self.is_in(names) else []
        return [*names, *codes]

    def decode(self, rows: pa.Table, names: Sequence[str], codecs: TableCodec) -> pa.Table:
        """Decode the vectors of rows that have a code and no raw vector, and drop the code columns.

        Args:
            rows: N rows with the columns `to_read(names)`, and perhaps others, which stay.
            names: columns of the result.
            codecs: codecs of the version of the table that has the rows.

        Raises as `TableCodec.decode`.
        """
        if not self.is_in(names):
            return rows
        step, place = codecs.metadata.rows_per_batch, rows.schema.get_field_index(self.columns.vector_column)
        parts = [self._vectors(rows.slice(start, step), codecs) for start in range(0, len(rows), step)]
        vectors = pa.chunked_array(parts, self.kept.field.type)
        return rows.set_column(place, self.kept.field, vectors).drop_columns(
            self.to_read(names)[len(names) :]
        )

    def _vectors(self, rows: pa.Table, codecs: TableCodec) -> pa.Array:
        raw, raw_N = self.kept.stored(rows[self.columns.vector_column].combine_chunks())
        codes, coded_N = codecs.read(rows)
        return self.kept.raw_array(*codecs.raw_or_decoded(raw, raw_N, codes, coded_N))
