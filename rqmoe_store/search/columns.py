"""Result columns: which ones a query returns, taken for the rows it found, vectors decoded.

Shape suffixes: H hits of all queries, in result order.

Shape suffixes: N rows, V of them with a vector, D vector dimension.
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
from rqmoe_store.search.rerank import Hits
from rqmoe_store.search.resident import row_id_filter
from rqmoe_store.storage_errors import is_gone
from rqmoe_store.store.columns import CodeColumns, KeptVectors
from rqmoe_store.store.conditions import as_text
from rqmoe_store.store.handle import Handle
from rqmoe_store.store.sql import quoted, tokens_of
from rqmoe_store.store.table_codec import TableCodec
from rqmoe_store.store.vector_arrays import rows_per_batch

DISTANCE = "_distance"
SCORE = "_score"
RELEVANCE = "_relevance_score"
ROW_ID = "_rowid"
QUERY_INDEX = "query_index"
_EXPRESSION = "expression of "  # before a name, so that it is none of a column that is read beside it


Selected = dict[str, str | Expr]
"""Names of result columns, and of what they are: the name of a column, a path into a struct, or SQL."""


def check_selection(columns: Any) -> Selected | None:
    """What `columns` select; None, like an empty selection, stands for all user columns.

    Raises:
        InvalidInputError: neither a list of names nor a dict of expressions, or a name given twice.
    """
    if columns is None:
        return None
    named = isinstance(columns, Mapping) and all(isinstance(sql, str | Expr) for sql in columns.values())
    if not (named or isinstance(columns, list | tuple)) or not all(isinstance(name, str) for name in columns):
        raise InvalidInputError(
            f"Got select({columns!r}); expected a list of column names, such as select(['id', 'text']), or a "
            "dict of SQL expressions by name, such as select({'id': 'id', 'double': '2 * id'})."
        )
    if named:
        return dict(columns) or None
    doubled = sorted({name for name in columns if columns.count(name) > 1})
    if doubled:
        raise InvalidInputError(f"Got column {doubled[0]!r} twice in select; expected every name once.")
    return {name: name for name in columns} or None


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The columns of a result, and what they are read from."""

    sources: dict[str, str]
    """Name in the result -> column that is stored, or that the query makes, or an expression's name."""
    expressions: dict[str, str]
    """Name of an expression -> SQL that was checked."""

    def stored(self, *own: str) -> list[str]:
        """The stored columns that are read, but for those named `own`, which the query makes; each once."""
        return [
            name for name in dict.fromkeys(self.sources.values()) if name not in (*own, *self.expressions)
        ]

    def to_scan(self, columns: Sequence[str]) -> Any:
        """What to scan for these columns and all expressions: names, or SQL by name."""
        if not self.expressions:
            return list(columns)
        return {name: quoted(name) for name in columns} | self.expressions

    def arranged(self, rows: pa.Table) -> pa.Table:
        """The result, from the rows that were read."""
        return rows.select(list(self.sources.values())).rename_columns(list(self.sources))

    def reads(self, name: str) -> bool:
        """Whether any column of the result is this one."""
        return name in self.sources.values()

    def with_last(self, name: str) -> "Chosen":
        """The same, with a column of the query's at the end."""
        sources = {out: source for out, source in self.sources.items() if out != name}
        return Chosen(sources | {name: name}, self.expressions)


def choose(selected: Selected | None, table: LanceTable, handle: Handle, own: Sequence[str]) -> Chosen:
    """Which columns a query returns of a version of a table.

    Args:
        selected: as `check_selection` has it; None for all of the user's.
        table: that version, in LanceDB.
        handle: of the table.
        own: columns that the query makes; known, but not stored.

    Raises:
        InvalidInputError: an unknown column, or an expression that LanceDB refuses.
    """
    hidden = handle.hidden_columns
    users = [name for name in table.schema.names if name not in hidden]
    if selected is None:
        return Chosen({name: name for name in users}, {})
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
            table, source, called=f"select[{name!r}]"
        )
    _require_expressions(table, selected, expressions)
    return Chosen(sources, expressions)


def _require_expressions(table: LanceTable, selected: Selected, expressions: dict[str, str]) -> None:
    if not expressions:
        return
    try:
        table.search().select(dict(expressions)).with_row_id(True).output_schema()
    except Exception as error:  # LanceDB panics on some, with an exception of no other class
        if is_gone(error):
            raise
        raise InvalidInputError(
            f"Got select({selected!r}), which LanceDB refuses: {error}\nExpected SQL expressions over the "
            "table's columns, such as {'double': '2 * id'}; columns that a search adds can be renamed alone."
        ) from error


def _require_own(name: str, source: str) -> None:
    """Raise InvalidInputError for something else under the name of a column that searches add."""
    if name != source and name in (DISTANCE, SCORE, RELEVANCE, ROW_ID, QUERY_INDEX):
        raise InvalidInputError(
            f"Got {source!r} as {name!r} in select, which searches add to results; expected another name."
        )


def _unquoted(sql: str) -> str:
    """The name that SQL consists of, if it is one in backticks; otherwise the SQL."""
    tokens = list(tokens_of(sql.strip()))
    return tokens[0].value if len(tokens) == 1 and tokens[0].kind == "name" else sql


def _is_path(name: str) -> bool:
    """Whether a name is a path into a struct, or a name in backticks."""
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
    """`table` less its column `name`, should it have one."""
    return table.drop_columns([name]) if name in table.column_names else table


def in_order(chosen: Chosen, *, with_row_id: bool, batched: bool) -> Chosen:
    """The columns of a vector search in LanceDB's order.

    That is `query_index` (several queries), the selected columns, `_distance` unless it is selected
    at another place, and `_rowid` if asked for. Code columns are returned only when selected by name.
    """
    sources = dict(chosen.sources)
    if batched:
        sources = {QUERY_INDEX: QUERY_INDEX} | sources
    sources.setdefault(DISTANCE, DISTANCE)
    chosen = Chosen(sources, chosen.expressions)
    return chosen.with_last(ROW_ID) if with_row_id else chosen


def take(
    dataset: lance.LanceDataset, hits_of_queries: Sequence[Hits], chosen: Chosen, stored: Sequence[str]
) -> pa.Table:
    """What a result is made of: columns `stored`, all expressions, and what the search adds, of every hit,
    query after query, nearest first.

    Rows that are no longer in the table are left out.
    """
    row_ids_H = np.concatenate([hits.row_ids_S for hits in hits_of_queries])
    distances_H = np.concatenate([hits.distances_S for hits in hits_of_queries])
    queries_H = np.repeat(
        np.arange(len(hits_of_queries), dtype=np.int32), [len(hits) for hits in hits_of_queries]
    )
    # Taken even without stored columns: the row ids say which rows still exist.
    wanted = np.unique(row_ids_H)
    condition = row_id_filter(wanted) if len(wanted) else "false"
    taken = dataset.scanner(columns=chosen.to_scan(stored), filter=condition, with_row_id=True).to_table()
    taken_ids = taken[ROW_ID].to_numpy().astype(np.uint64, copy=False)
    # Lance returns each row once and sorted by its own order; put rows where the hits want them.
    order = np.argsort(taken_ids)
    exists_H = np.isin(row_ids_H, taken_ids)
    places_H = order[np.searchsorted(taken_ids, row_ids_H[exists_H], sorter=order)]
    rows = taken.take(pa.array(places_H))
    own = {
        QUERY_INDEX: (pa.field(QUERY_INDEX, pa.int32(), nullable=False), queries_H),
        DISTANCE: (pa.field(DISTANCE, pa.float32()), distances_H),
        ROW_ID: (pa.field(ROW_ID, pa.uint64()), row_ids_H),
    }
    names = [*own, *stored, *chosen.expressions]
    fields = [own[name][0] if name in own else taken.schema.field(name) for name in names]
    arrays = [pa.array(own[name][1][exists_H]) if name in own else rows[name] for name in names]
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


@dataclasses.dataclass(frozen=True)
class DecodedColumn:
    """The vector column of a table that has codes in its place; columns of others are left as they are."""

    columns: CodeColumns
    kept: KeptVectors

    def is_in(self, names: Sequence[str]) -> bool:
        """Whether a result with these columns has vectors to decode."""
        return self.columns.vector_column in names and not self.kept.kept

    def to_read(self, names: Sequence[str]) -> list[str]:
        """The columns to read for a result with the columns `names`."""
        codes = [name for name in self.columns.names if name not in names] if self.is_in(names) else []
        return [*names, *codes]

    def filled(self, rows: pa.Table, names: Sequence[str], codecs: TableCodec) -> pa.Table:
        """The result, with vectors in all rows that have a code.

        Args:
            rows: N rows with the columns `to_read(names)`, and perhaps others.
            names: the columns of the result; it also has those others.
            codecs: of the version of the table that the rows are from.

        Raises as `TableCodec.decode`.
        """
        if not self.is_in(names):
            return rows
        step, place = rows_per_batch(codecs.dim), rows.schema.get_field_index(self.columns.vector_column)
        parts = [self._vectors(rows.slice(start, step), codecs) for start in range(0, len(rows), step)]
        vectors = pa.chunked_array(parts, self.kept.field.type)
        return rows.set_column(place, self.kept.field, vectors).drop_columns(
            self.to_read(names)[len(names) :]
        )

    def _vectors(self, rows: pa.Table, codecs: TableCodec) -> pa.Array:
        raw = rows[self.columns.vector_column].combine_chunks()
        codes, coded_N = self.columns.from_arrow(rows)
        raw_N = raw.is_valid().to_numpy(zero_copy_only=False)
        decoded_N = coded_N & ~raw_N
        vectors_ND = np.zeros((len(rows), codecs.dim), dtype=np.float32)
        vectors_ND[raw_N] = raw.drop_null().flatten().to_numpy(zero_copy_only=False).reshape(-1, codecs.dim)
        vectors_ND[decoded_N] = codecs.decode(codes[decoded_N[coded_N]])
        valid_N = raw_N | decoded_N
        return self.kept.raw_array(vectors_ND[valid_N], valid_N)
