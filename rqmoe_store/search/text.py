"""Full-text queries and indexes; and the kind of search that a query is: vector, full-text, hybrid, plain."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal, Self, TypedDict, Unpack, get_args

import numpy as np
import pyarrow as pa
from lancedb.index import FTS
from lancedb.query import DocumentGranularity, FullTextQuery, LanceFtsQueryBuilder, MatchQuery, PhraseQuery
from lancedb.rerankers import Reranker
from lancedb.rerankers.util import check_reranker_result
from lancedb.table import LanceTable, Table

from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.search.cached_columns import CachedColumns
from rqmoe_store.search.columns import ROW_ID, SCORE, ResultColumns, without
from rqmoe_store.search.query import SearchQuery
from rqmoe_store.search.request import indented
from rqmoe_store.search.source import TableReader
from rqmoe_store.storage_errors import translates_errors
from rqmoe_store.store.handle import Handle
from rqmoe_store.store.lance import on_newest
from rqmoe_store.store.snapshot import Snapshot


class TextIndexOptions(TypedDict, total=False):
    """The options of `lancedb.index.FTS`, which describes them."""

    with_position: bool
    base_tokenizer: str
    language: str
    max_token_length: int | None
    lower_case: bool
    stem: bool
    remove_stop_words: bool
    ascii_folding: bool
    ngram_min_length: int
    ngram_max_length: int
    prefix_only: bool
    block_size: int
    custom_stop_words: list[str] | None
    memory_limit: int | None
    num_workers: int | None
    document_granularity: DocumentGranularity


def create_text_index(
    handle: Handle,
    columns: str | Sequence[str],
    *,
    replace: bool,
    exist_ok: bool,
    **options: Unpack[TextIndexOptions],
) -> None:
    """Create a full-text index on each of `columns`, as described at `CompressedTable.create_fts_index`."""
    known = [field.name for field in dataclasses.fields(FTS)]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise InvalidInputError(f"Got unknown option {unknown[0]!r}; available are {', '.join(known)}.")
    wanted = _as_list(columns)
    if exist_ok and not replace and wanted:
        indexed = handle.snapshots.read(lambda snapshot: indexed_columns(snapshot.table))
        if all(name in indexed for name in wanted):
            return
    schema = handle.refresh().schema
    names = text_columns(schema, wanted)
    for name in _columns_to_index(handle, names, replace, exist_ok):
        on_newest(handle.table, functools.partial(_create_index, handle, name, replace, exist_ok, options))


def _create_index(
    handle: Handle, column: str, replace: bool, exist_ok: bool, options: TextIndexOptions
) -> None:
    # Checked again, as another writer may have created the index since; LanceDB's error would not say so.
    for name in _columns_to_index(handle, [column], replace, exist_ok):
        try:
            handle.table.create_index(name, config=FTS(**options), replace=replace)
        except (TypeError, ValueError) as error:
            raise InvalidInputError(
                f"LanceDB refuses a full-text index on column {name!r} with options {dict(options)}: {error}"
            ) from error


def _columns_to_index(handle: Handle, columns: Sequence[str], replace: bool, exist_ok: bool) -> list[str]:
    """The columns that need an index. Raises TableError if one has an index, unless that is allowed."""
    indexed = [] if replace else indexed_columns(handle.table)
    taken = [name for name in columns if name in indexed]
    if taken and not exist_ok:
        raise TableError(
            f"Column {taken[0]!r} has a full-text index already; set replace=True to redo it, or "
            "exist_ok=True to leave it as it is."
        )
    return [name for name in columns if name not in taken]


def text_columns(schema: pa.Schema, columns: str | Sequence[str]) -> list[str]:
    """`columns` as a list of columns of `schema` that hold text.

    Raises:
        InvalidInputError: there are no columns, a column is unknown, or its values are not text.
    """
    names = _as_list(columns)
    texts = [field.name for field in schema if _is_text(field.type)]
    unusable = [name for name in names if name not in texts]
    if unusable or not names:
        raise InvalidInputError(
            f"Got columns {unusable or names} for full-text search; expected columns of text, here "
            f"{', '.join(texts) or 'none'}."
        )
    return names


def indexed_columns(table: Table) -> list[str]:
    """Columns with a full-text index."""
    indexes = [index for index in table.list_indices() if index.index_type == "FTS"]
    # LanceDB quotes names that are not identifiers; no column name has a backtick.
    return [column.strip("`") for index in indexes for column in index.columns]


def _as_list(columns: str | Sequence[str]) -> list[str]:
    return [columns] if isinstance(columns, str) else list(columns)


def _is_text(data_type: pa.DataType) -> bool:
    is_list = pa.types.is_list(data_type) or pa.types.is_large_list(data_type)
    data_type = data_type.value_type if is_list else data_type
    return bool(
        pa.types.is_string(data_type)
        or pa.types.is_large_string(data_type)
        or pa.types.is_string_view(data_type)
    )


_QUERY_ERRORS = ("LanceError(Index)", "Invalid input")
"""Texts in RuntimeErrors of LanceDB that say that the query does not fit the indexes."""

_NO_POSITIONS = "position is not found"
"""Text in LanceDB's error for a phrase query on an index without word positions."""


@translates_errors
def words_query(text: str, column: str) -> MatchQuery:
    """A full-text query for the words of any text, such as an end user's input.

        store.search(words_query(question, "text"), query_type="fts")
        store.search(query_type="hybrid").vector(vector).text(words_query(question, "text"))

    LanceDB treats a string in double quotes as a phrase, which indexes without positions cannot search for.
    Here quotes are ordinary punctuation: the query finds rows that have any of the words, and none if the
    text has no words.

    Args:
        text: any text, of any length; it may be empty or have lone surrogates, which separate words.
        column: a column of text with a full-text index.

    Raises:
        InvalidInputError: an argument is not a string.
    """
    for called, value in (("text", text), ("column", column)):
        if not isinstance(value, str):
            raise InvalidInputError(
                f"Got {called}={value!r} ({type(value).__name__}) for words_query; expected a string."
            )
    words = text.encode(errors="replace").decode()
    return MatchQuery(words, column)  # type: ignore[call-arg]  # it has defaults that mypy does not see


def reranker_text(query: str | FullTextQuery) -> str | FullTextQuery:
    """The query in the form that rerankers expect: its text, if it has a single text."""
    return query.query if isinstance(query, MatchQuery | PhraseQuery) else query


_SCORES = ResultColumns({SCORE: SCORE, ROW_ID: ROW_ID}, {})
"""What a search returns whose other columns are in memory."""


class TextQuery(SearchQuery):
    """A full-text search, built step by step and run by a `to_...` method."""

    def __init__(
        self,
        reader: TableReader,
        query: str | FullTextQuery,
        columns: str | Sequence[str] | None,
    ) -> None:
        """Start a query; `CompressedTable.search(text, query_type="fts")` is the usual way.

        Args:
            reader: reads the table to search.
            query: words, or one of LanceDB's structured queries such as `MatchQuery`.
            columns: text columns to search; None for all that have a full-text index.

        Raises:
            InvalidInputError: the query has another type.
        """
        super().__init__(reader)
        if not isinstance(query, (str, FullTextQuery)):
            raise InvalidInputError(
                f"Got {type(query).__name__} as a full-text query; expected a string or one of LanceDB's "
                "structured queries, such as lancedb.query.MatchQuery."
            )
        self._query = query
        self._columns = columns
        self._phrase = False
        self._fast = False
        self._reranker: Reranker | None = None

    def phrase_query(self, phrase_query: bool = True) -> Self:
        """Match the words as a phrase; needs an index created with `with_position=True`."""
        self._phrase = bool(phrase_query)
        return self

    def fast_search(self) -> Self:
        """Leave out rows that were added since the index was last optimized."""
        self._fast = True
        return self

    def rerank(self, reranker: Reranker) -> Self:
        """Order the results by a reranker, of LanceDB or your own, which adds `_relevance_score`.

        Raises:
            InvalidInputError: `reranker` is not a `lancedb.rerankers.Reranker`.
        """
        self._reranker = require_reranker(reranker)
        if reranker.score == "all":
            self._with_row_id = True
        return self

    def to_arrow(self) -> pa.Table:
        """Run the query.

        Returns:
            The selected columns, `_score` (float32, higher is better) last unless it is selected at another
            place, and `_rowid` if requested; best first, equal scores in LanceDB's order.

        Raises:
            TableError: the table has no full-text index.
            InvalidInputError: LanceDB does not accept a condition or the text query, a column is unknown, or
                columns to search do not have text.
        """
        found = self._reader.read_snapshot(self._search)
        if self._reranker is None:
            return found
        # LanceDB also passes structured queries, although its annotation says text.
        reranked = self._reranker.rerank_fts(reranker_text(self._query), found)  # type: ignore[arg-type]
        check_reranker_result(reranked)  # type: ignore[no-untyped-call]  # LanceDB leaves it unannotated
        keeps_row_id = self._with_row_id or ROW_ID in (self._selected or {})
        return reranked if keeps_row_id else without(reranked, ROW_ID)

    def explain_plan(self) -> str:
        """LanceDB's plan of the search, the last stage first, without running it. Raises as `to_arrow`."""
        return self._reader.read_snapshot(lambda snapshot: self._lancedb_plan(snapshot, "explain_plan"))

    def analyze_plan(self) -> str:
        """Run the search and return LanceDB's plan with rows and times. Raises as `to_arrow`."""
        return self._reader.read_snapshot(lambda snapshot: self._lancedb_plan(snapshot, "analyze_plan"))

    def _lancedb_plan(self, snapshot: Snapshot, plan: str) -> str:
        chosen = self._columns_of(snapshot)
        builder = self._builder(snapshot, chosen if self._cached(snapshot, chosen) is None else _SCORES)
        lancedb_plan: str = self._call_lancedb(snapshot.table, builder, plan).rstrip()
        if self._reranker is None:
            return lancedb_plan
        return f"Rerank: {type(self._reranker).__name__}\n{indented(lancedb_plan)}"

    def _search(self, snapshot: Snapshot) -> pa.Table:
        chosen = self._columns_of(snapshot)
        cached = self._cached(snapshot, chosen)
        if cached is not None:
            return self._search_with(cached, snapshot, chosen)
        found: pa.Table = self._call_lancedb(snapshot.table, self._builder(snapshot, chosen), "to_arrow")
        stored = chosen.stored(SCORE, ROW_ID)
        rows = self._vectors.decode(found.replace_schema_metadata(None), stored, snapshot.codecs)
        return chosen.arranged(rows)

    def _cached(self, snapshot: Snapshot, chosen: ResultColumns) -> CachedColumns | None:
        """The columns in memory, if the result needs no others."""
        cached = self._reader.cached_columns(snapshot)
        return cached if cached is not None and chosen.are_in(cached) else None

    def _search_with(self, cached: CachedColumns, snapshot: Snapshot, chosen: ResultColumns) -> pa.Table:
        """The result, of which LanceDB finds row ids and scores alone."""
        found: pa.Table = self._call_lancedb(snapshot.table, self._builder(snapshot, _SCORES), "to_arrow")
        found = found.replace_schema_metadata(None)
        stored = chosen.stored(SCORE, ROW_ID)
        values, exists_H = cached.take(np.array(found[ROW_ID], np.uint64), stored)
        assert exists_H.all(), "a version has all rows that a search of it finds"
        for name in stored:
            found = found.append_column(cached.schema.field(name), values[name])
        return chosen.arranged(found)

    def _columns_of(self, snapshot: Snapshot) -> ResultColumns:
        """The selected columns, `_score` last unless it is selected elsewhere, and `_rowid` if requested."""
        chosen = self._result_columns(snapshot, SCORE, ROW_ID)
        chosen = chosen if SCORE in chosen.sources else chosen.with_last(SCORE)
        return chosen.with_last(ROW_ID) if self._with_row_id or self._reranker is not None else chosen

    def _builder(self, snapshot: Snapshot, chosen: ResultColumns) -> LanceFtsQueryBuilder:
        """LanceDB's query for these columns."""
        to_read = [*self._vectors.to_read(chosen.stored(SCORE, ROW_ID)), SCORE]
        columns = text_columns(snapshot.schema, self._columns) if self._columns else None
        builder = snapshot.table.search(self._query, query_type="fts", fts_columns=columns)
        builder.select(chosen.to_scan(to_read))
        builder.limit(self._limit).offset(self._offset).phrase_query(self._phrase)
        builder.with_row_id(chosen.reads(ROW_ID))
        if self._fast:
            builder.fast_search()
        where = self._where(snapshot)
        if where is not None:
            builder.where(where, self._prefilter)
        return builder

    def _call_lancedb(self, table: LanceTable, builder: LanceFtsQueryBuilder, what: str) -> Any:
        """Call a method of LanceDB's query."""
        try:
            return getattr(builder, what)()
        except (ValueError, TypeError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not any(text in str(error) for text in _QUERY_ERRORS):
                raise
            raise self._translated(table, error) from error

    def _translated(self, table: LanceTable, error: Exception) -> Exception:
        """The exception to raise instead of LanceDB's, which checks a text query only when it runs it."""
        if not indexed_columns(table):
            return TableError(
                f"Table {self._handle.name!r} has no full-text index; make one with "
                "create_fts_index(<a column of text>)."
            )
        if _NO_POSITIONS in str(error):
            return InvalidInputError(
                f"Got text query {self._query!r}, a phrase, but a full-text index that does not say where "
                "words are; make it with create_fts_index(<column>, with_position=True, replace=True), or "
                "search for the words by rqmoe_store.words_query(<text>, <column>). In LanceDB's words: "
                f"{error}"
            )
        return InvalidInputError(f"Got text query {self._query!r}, which LanceDB refuses: {error}")


def require_reranker(reranker: Any) -> Reranker:
    """Return `reranker`. Raises InvalidInputError unless it is a LanceDB reranker."""
    if not isinstance(reranker, Reranker):
        raise InvalidInputError(
            f"Got {reranker!r} as a reranker; expected one of lancedb.rerankers, such as RRFReranker()."
        )
    return reranker


QueryKind = Literal["vector", "fts", "hybrid", "plain"]
QueryType = Literal["auto", "vector", "fts", "hybrid"]
_KINDS, _TYPES = get_args(QueryKind), get_args(QueryType)

_VECTOR_INSTEAD = (
    'Pass a vector, made by the model that made the table\'s vectors, or use query_type="fts" for a '
    "full-text search (create_fts_index makes its index)."
)


def query_kind(reader: TableReader, query: Any, query_type: str) -> QueryKind:
    """The kind of search that a query and its `query_type` are.

    "auto" means a plain read without a query; a full-text search for one of LanceDB's structured text
    queries, and for text in a table without an embedding function; else a vector search.

    Raises:
        InvalidInputError: `query_type` is another value, or "auto" with text that cannot be searched for.
    """
    if query_type not in _TYPES:
        raise InvalidInputError(f"Got query_type={query_type!r}; expected one of {', '.join(_TYPES)}.")
    for kind in _KINDS:
        if query_type == kind:
            return kind  # type: ignore[no-any-return]
    if query is None:
        return "plain"
    if isinstance(query, FullTextQuery):
        return "fts"
    if not is_content(query) or reader.handle.embedding is not None:
        return "vector"
    if isinstance(query, str) and reader.read_snapshot(lambda snapshot: indexed_columns(snapshot.table)):
        return "fts"
    raise InvalidInputError(
        f"Got text {query!r}, but table {reader.handle.name!r} has neither an embedding function nor a "
        f"full-text index. {_VECTOR_INSTEAD}"
    )


def as_vector(handle: Handle, query: Any) -> Any:
    """`query` itself, or the vector that the table's embedding function computes for a text or an image.

    Raises:
        InvalidInputError: the table has no embedding function, or the function returns no usable vector.
        RQMoEError: the function is not registered, lacks a package, or fails.
    """
    if not is_content(query):
        return query
    if handle.embedding is None:
        raise InvalidInputError(
            f"Got {query!r} to search for by vector, but table {handle.name!r} has no embedding function. "
            f"{_VECTOR_INSTEAD}"
        )
    return handle.embedding.embed_query(query)


def is_content(query: Any) -> bool:
    """Whether `query` must be embedded: text, or an image of the PIL package."""
    return isinstance(query, str) or type(query).__module__.partition(".")[0] == "PIL"
