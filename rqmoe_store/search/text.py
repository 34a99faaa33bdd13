"""Full-text queries: LanceDB's native index on the columns a compressed table has kept."""

from collections.abc import Sequence
from typing import Any, Self

import pyarrow as pa
from lancedb.query import FullTextQuery, LanceFtsQueryBuilder, MatchQuery, PhraseQuery
from lancedb.rerankers import Reranker
from lancedb.rerankers.util import check_reranker_result
from lancedb.table import LanceTable

from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.refusals import names_refusals
from rqmoe_store.search.columns import ROW_ID, SCORE, Chosen, without
from rqmoe_store.search.plan import indented
from rqmoe_store.search.source import CodeSource
from rqmoe_store.search.table_query import SearchBuilder, TableQuery
from rqmoe_store.search.text_index import indexed_columns, text_columns
from rqmoe_store.store.snapshot import Snapshot
from rqmoe_store.store.table import StoredTable

_REFUSALS = ("LanceError(Index)", "Invalid input")
"""In a RuntimeError of LanceDB's: the query does not fit the indexes, rather than a failure."""

_NO_POSITIONS = "position is not found"
"""In LanceDB's words: a phrase is searched for in an index that does not say where words are."""


@names_refusals
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


class TextQueryBuilder(SearchBuilder):
    """The options of a full-text search, in LanceDB's words."""

    def __init__(
        self,
        store: StoredTable,
        query: str | FullTextQuery,
        columns: str | Sequence[str] | None,
        source: CodeSource,
    ) -> None:
        """Start a query; `CompressedTable.search(text, query_type="fts")` is the usual way.

        Args:
            store: the table to search.
            query: words, or one of LanceDB's structured queries such as `MatchQuery`.
            columns: text columns to search; None for all that have a full-text index.
            source: where the table's newest version comes from.

        Raises:
            InvalidInputError: a query of another type.
        """
        super().__init__(store)
        if not isinstance(query, (str, FullTextQuery)):
            raise InvalidInputError(
                f"Got {type(query).__name__} as a full-text query; expected a string or one of LanceDB's "
                "structured queries, such as lancedb.query.MatchQuery."
            )
        self._query = query
        self._columns = columns
        self._source = source
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


class TextQuery(TextQueryBuilder, TableQuery):
    """A full-text search, built step by step and run by a `to_...` method."""

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
        # No codes are needed, so none are loaded: 0 bytes are allowed for them.
        found = self._source.read(0, lambda state: self._found(state.snapshot))
        if self._reranker is None:
            return found
        # LanceDB, too, passes structured queries where its annotation says text.
        reranked = self._reranker.rerank_fts(reranker_text(self._query), found)  # type: ignore[arg-type]
        check_reranker_result(reranked)  # type: ignore[no-untyped-call]  # LanceDB leaves it unannotated
        keeps_row_id = self._with_row_id or ROW_ID in (self._selected or {})
        return reranked if keeps_row_id else without(reranked, ROW_ID)

    def explain_plan(self) -> str:
        """LanceDB's plan of the search, the last stage first. Raises as `to_arrow`."""
        return self._source.read(0, lambda state: self._told(state.snapshot.table, "explain_plan"))

    def analyze_plan(self) -> str:
        """Run the search: LanceDB's plan of it, with rows and times, the last stage first. Raises as
        `to_arrow`."""
        return self._source.read(0, lambda state: self._told(state.snapshot.table, "analyze_plan"))

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
                f"Table {self._store.name!r} has no full-text index; make one with "
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
