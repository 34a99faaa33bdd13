"""Full-text queries and indexes, and which kind of search a query asks for."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal, Self, TypedDict, Unpack, get_args

import pyarrow as pa
from lancedb.index import FTS
from lancedb.query import DocumentGranularity, FullTextQuery, LanceFtsQueryBuilder, MatchQuery, PhraseQuery
from lancedb.rerankers import Reranker
from lancedb.rerankers.util import check_reranker_result
from lancedb.table import LanceTable, Table

from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.search.columns import ROW_ID, SCORE, Chosen, without
from rqmoe_store.search.query import SearchQuery
from rqmoe_store.search.request import indented
from rqmoe_store.search.source import TableReader
from rqmoe_store.storage_errors import translates_errors
from rqmoe_store.store.handle import Handle
from rqmoe_store.store.lance import on_newest
from rqmoe_store.store.snapshot import Snapshot


class TextIndexOptions(TypedDict, total=False):
    """The options of `lancedb.index.FTS`, which says what they are."""

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
    """A full-text index on every one of `columns`; see `CompressedTable.create_fts_index`."""
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
    for name in _to_be_made(handle, names, replace, exist_ok):
        on_newest(handle.table, functools.partial(_make, handle, name, replace, exist_ok, options))


def _make(handle: Handle, column: str, replace: bool, exist_ok: bool, options: TextIndexOptions) -> None:
    # Asked again, for others may have made it since: LanceDB would say so in no words of its own.
    for name in _to_be_made(handle, [column], replace, exist_ok):
        try:
            handle.table.create_index(name, config=FTS(**options), replace=replace)
        except (TypeError, ValueError) as error:
            raise InvalidInputError(
                f"LanceDB refuses a full-text index on column {name!r} with options {dict(options)}: {error}"
            ) from error


def _to_be_made(handle: Handle, columns: Sequence[str], replace: bool, exist_ok: bool) -> list[str]:
    """Those of the columns that need an index; raises TableError where one has it and must not."""
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
        InvalidInputError: none, unknown ones, or columns of other values.
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
    # LanceDB quotes names that are no identifiers; of our columns none has a backtick.
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


_REFUSALS = ("LanceError(Index)", "Invalid input")
"""In a RuntimeError of LanceDB's: the query does not fit the indexes, rather than a failure."""

_NO_POSITIONS = "position is not found"
"""In LanceDB's words: a phrase is searched for in an index that does not say where words are."""


@translates_errors
def words_query(text: str, column: str) -> MatchQuery:
    """A full-text query for the words of a text, whatever else is in it: what an end user typed.

        store.search(words_query(question, "text"), query_type="fts")
        store.search(query_type="hybrid").vector(vector).text(words_query(question, "text"))

    LanceDB takes a string that begins and ends with double quotes for a phrase, which indexes without
    positions cannot search for. Here quotes are as other punctuation: rows are found that have any of the
    words, and by a text without words none are.

    Args:
        text: any, also empty, of any length, or no valid Unicode (lone surrogates separate words).
        column: of texts, with a full-text index.

    Raises:
        InvalidInputError: not two strings.
    """
    for called, value in (("text", text), ("column", column)):
        if not isinstance(value, str):
            raise InvalidInputError(
                f"Got {called}={value!r} ({type(value).__name__}) for words_query; expected a string."
            )
    words = text.encode(errors="replace").decode()
    return MatchQuery(words, column)  # type: ignore[call-arg]  # it has defaults that mypy does not see


def reranker_text(query: str | FullTextQuery) -> str | FullTextQuery:
    """The query as rerankers read it: its text, if it is one of a single text."""
    return query.query if isinstance(query, MatchQuery | PhraseQuery) else query


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
            InvalidInputError: a query of another type.
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
        """Match the words side by side and in this order; needs an index made `with_position=True`."""
        self._phrase = bool(phrase_query)
        return self

    def fast_search(self) -> Self:
        """Leave out rows that were added after the index was last optimized."""
        self._fast = True
        return self

    def rerank(self, reranker: Reranker) -> Self:
        """Order the rows found by LanceDB's or one's own reranker, which adds `_relevance_score`.

        Raises:
            InvalidInputError: not a `lancedb.rerankers.Reranker`.
        """
        self._reranker = require_reranker(reranker)
        if reranker.score == "all":
            self._with_row_id = True
        return self

    def to_arrow(self) -> pa.Table:
        """Run the query.

        Returns:
            The selected columns, `_score` (float32, higher is better) unless it is selected at
            another place, and `_rowid` if asked for; best first, in LanceDB's order among equals.

        Raises:
            TableError: the table has no full-text index.
            InvalidInputError: a `where` or a text query that LanceDB refuses, an unknown column, or
                columns to search that hold no text.
        """
        found = self._reader.read_snapshot(self._found)
        if self._reranker is None:
            return found
        # LanceDB, too, passes structured queries where its annotation says text.
        reranked = self._reranker.rerank_fts(reranker_text(self._query), found)  # type: ignore[arg-type]
        check_reranker_result(reranked)  # type: ignore[no-untyped-call]  # LanceDB leaves it unannotated
        keeps_row_id = self._with_row_id or ROW_ID in (self._selected or {})
        return reranked if keeps_row_id else without(reranked, ROW_ID)

    def explain_plan(self) -> str:
        """LanceDB's plan of the search, the last stage first. Raises as `to_arrow`."""
        return self._reader.read_snapshot(lambda snapshot: self._told(snapshot.table, "explain_plan"))

    def analyze_plan(self) -> str:
        """Run the search: LanceDB's plan of it, with rows and times, the last stage first. Raises as
        `to_arrow`."""
        return self._reader.read_snapshot(lambda snapshot: self._told(snapshot.table, "analyze_plan"))

    def _told(self, table: LanceTable, plan: str) -> str:
        told: str = self._done(table, self._builder(table, self._columns_of(table)), plan).rstrip()
        if self._reranker is None:
            return told
        return f"Rerank: {type(self._reranker).__name__}\n{indented(told)}"

    def _found(self, snapshot: Snapshot) -> pa.Table:
        chosen = self._columns_of(snapshot.table)
        found: pa.Table = self._done(snapshot.table, self._builder(snapshot.table, chosen), "to_arrow")
        stored = chosen.stored(SCORE, ROW_ID)
        rows = self._vectors.filled(found.replace_schema_metadata(None), stored, snapshot.codecs)
        return chosen.arranged(rows)

    def _columns_of(self, table: LanceTable) -> Chosen:
        """The selected columns, `_score` unless it is selected at another place, `_rowid` if asked for."""
        chosen = self._choose(table, SCORE, ROW_ID)
        chosen = chosen if SCORE in chosen.sources else chosen.with_last(SCORE)
        return chosen.with_last(ROW_ID) if self._with_row_id or self._reranker is not None else chosen

    def _builder(self, table: LanceTable, chosen: Chosen) -> LanceFtsQueryBuilder:
        """LanceDB's query for these columns."""
        to_read = [*self._vectors.to_read(chosen.stored(SCORE, ROW_ID)), SCORE]
        columns = text_columns(table.schema, self._columns) if self._columns else None
        builder = table.search(self._query, query_type="fts", fts_columns=columns)
        builder.select(chosen.to_scan(to_read))
        builder.limit(self._limit).offset(self._offset).phrase_query(self._phrase)
        builder.with_row_id(chosen.reads(ROW_ID))
        if self._fast:
            builder.fast_search()
        where = self._where(table)
        if where is not None:
            builder.where(where, self._prefilter)
        return builder

    def _done(self, table: LanceTable, builder: LanceFtsQueryBuilder, what: str) -> Any:
        """What a method of LanceDB's query returns."""
        try:
            return getattr(builder, what)()
        except (ValueError, TypeError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not any(refusal in str(error) for refusal in _REFUSALS):
                raise
            raise self._refusal(table, error) from error

    def _refusal(self, table: LanceTable, error: Exception) -> Exception:
        """`error` in our words; LanceDB looks at a text query only when it runs."""
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
    """`reranker`; raises InvalidInputError unless it is one."""
    if not isinstance(reranker, Reranker):
        raise InvalidInputError(
            f"Got {reranker!r} as a reranker; expected one of lancedb.rerankers, such as RRFReranker()."
        )
    return reranker


QueryKind = Literal["vector", "fts", "hybrid", "plain"]
QueryType = Literal["auto", "vector", "fts", "hybrid"]

_VECTOR_INSTEAD = (
    'Pass a vector, made by the model that made the table\'s vectors, or use query_type="fts" for a '
    "full-text search (create_fts_index makes its index)."
)


def query_kind(reader: TableReader, query: Any, query_type: str) -> QueryKind:
    """What `query_type` means for this query.

    "auto" is a vector search, but full-text search for one of LanceDB's structured text queries, and
    for text in a table that has no embedding function, and a plain read without a query.

    Raises:
        InvalidInputError: another `query_type`, or "auto" with text that cannot be searched for.
    """
    if query_type not in get_args(QueryType):
        raise InvalidInputError(
            f"Got query_type={query_type!r}; expected one of {', '.join(get_args(QueryType))}."
        )
    for kind in get_args(QueryKind):
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
    """`query` itself, or its vector by the table's embedding function when it is text or an image.

    Raises:
        InvalidInputError: the table has no embedding function, or it gives no usable vector.
        RQMoEError: the function is not registered, lacks a package, or fails.
    """
    if not is_content(query):
        return query
    if handle.embedding is None:
        raise InvalidInputError(
            f"Got {query!r} to search for by vector, but table {handle.name!r} has no embedding function. "
            f"{_VECTOR_INSTEAD}"
        )
    return handle.embedding.of_query(query)


def is_content(query: Any) -> bool:
    """Whether `query` is something to embed: text, or an image of the PIL package."""
    return isinstance(query, str) or type(query).__module__.partition(".")[0] == "PIL"
