"""LlamaIndex's queries as searches of a table, and rows found as LlamaIndex's results."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, cast

import pyarrow as pa
from lancedb.query import FullTextQuery
from lancedb.rerankers import MRRReranker, Reranker, RRFReranker
from llama_index.core.vector_stores.types import (
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)
from llama_index.vector_stores.rqmoe.columns import ID, NodeColumns
from llama_index.vector_stores.rqmoe.filters import filters_sql, filters_to_delete_by
from llama_index.vector_stores.rqmoe.rows import nodes_of

import rqmoe_store as rqs
from rqmoe_store import InvalidInputError

_MODES = (
    VectorStoreQueryMode.DEFAULT,
    VectorStoreQueryMode.HYBRID,
    VectorStoreQueryMode.TEXT_SEARCH,
    VectorStoreQueryMode.MMR,
)
_BY_TEXT = (VectorStoreQueryMode.HYBRID, VectorStoreQueryMode.TEXT_SEARCH)
_BY_VECTOR = (VectorStoreQueryMode.DEFAULT, VectorStoreQueryMode.HYBRID, VectorStoreQueryMode.MMR)
_MMR_THRESHOLD = 0.5  # LlamaIndex's own
DiversityMethod = Literal["mmr", "coverage"]
_SCORE, _RELEVANCE, _DISTANCE = "_score", "_relevance_score", "_distance"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """Search parameters; None for the table's own defaults."""

    nprobes: int | None = None
    shortlist: int | None = None
    reranker: Reranker | None = None
    where: str | None = None
    """SQL, in addition to a query's filters."""


class NodeSearch:
    """A query as a search of a table: the arguments that start it, its options, and its result."""

    def __init__(
        self,
        query: VectorStoreQuery,
        columns: NodeColumns,
        settings: SearchSettings,
        mmr_threshold: float | None,
        mmr_method: DiversityMethod = "mmr",
    ) -> None:
        """Check a query.

        Args:
            query: LlamaIndex's.
            columns: of the table.
            settings: how to search.
            mmr_threshold: for mode "mmr", 0 for the most different nodes up to 1 for the nearest; None for
                0.5.
            mmr_method: for mode "mmr", how nodes are chosen: "mmr" or "coverage".

        Raises:
            InvalidInputError: another mode, no embedding or text where the mode needs one, a count below 1,
                or filters that `filters_sql` refuses.
        """
        _require_answerable(query, columns)
        self._query, self._columns, self._settings = query, columns, settings
        self._lambda = _MMR_THRESHOLD if mmr_threshold is None else mmr_threshold
        self._method = mmr_method
        self._where = _where(query, columns)

    @property
    def by_text(self) -> bool:
        """Whether the table needs a full-text index for this."""
        return self._query.mode in _BY_TEXT

    @property
    def start(self) -> dict[str, Any]:
        """Arguments for a table's `search`."""
        if self._query.mode == VectorStoreQueryMode.TEXT_SEARCH:
            return {"query": self._words, "query_type": "fts"}
        if self._query.mode == VectorStoreQueryMode.HYBRID:
            return {"query_type": "hybrid"}
        return {"query": self._query.query_embedding, "query_type": "vector"}

    def with_options(self, search: Any) -> Any:
        """A search that was started, with the options of the query."""
        query, settings = self._query, self._settings
        search.select([*self._columns.stored, *self._score]).limit(self._limit)
        for condition in (self._where, settings.where):
            if condition is not None:
                search.where(condition)
        if query.mode in _BY_VECTOR:
            if settings.nprobes is not None:
                search.nprobes(settings.nprobes)
            if settings.shortlist is not None:
                search.shortlist(settings.shortlist)
        if query.mode == VectorStoreQueryMode.MMR:
            search.diversify(self._lambda, method=self._method)
        if query.mode == VectorStoreQueryMode.HYBRID:
            search.vector(query.query_embedding).text(self._words).rerank(self._reranker)
        return search

    def result(self, found: pa.Table, metric: str) -> VectorStoreQueryResult:
        """The rows found, as LlamaIndex's result."""
        found = found.slice(0, self._count)
        return VectorStoreQueryResult(
            nodes=nodes_of(found, self._columns),
            similarities=_similarities(found, metric),
            ids=found[ID].to_pylist(),
        )

    @property
    def _words(self) -> FullTextQuery:
        """The question as a full-text query that no punctuation in it keeps from being answered."""
        return rqs.words_query(cast(str, self._query.query_str), self._columns.text)

    @property
    def _score(self) -> list[str]:
        # The others add theirs to the columns that are selected.
        return [_SCORE] if self._query.mode == VectorStoreQueryMode.TEXT_SEARCH else []

    @property
    def _count(self) -> int:
        hybrid = self._query.mode == VectorStoreQueryMode.HYBRID
        return (hybrid and self._query.hybrid_top_k) or self._query.similarity_top_k

    @property
    def _limit(self) -> int:
        """Rows to look for: in a hybrid search by vector and by text, before they become one list."""
        hybrid = self._query.mode == VectorStoreQueryMode.HYBRID
        sparse = (hybrid and self._query.sparse_top_k) or 0
        return max(self._count, self._query.similarity_top_k, sparse)

    @property
    def _reranker(self) -> Reranker:
        if self._settings.reranker is not None:
            return self._settings.reranker
        if self._query.alpha is None:
            return RRFReranker()
        # Of ranks, not of scores: normalized, the score of the only text with a word, or the last one, is 0.
        return MRRReranker(weight_vector=self._query.alpha, weight_fts=1 - self._query.alpha)


def empty_result() -> VectorStoreQueryResult:
    """The result of a query before there is a table."""
    return VectorStoreQueryResult(nodes=[], similarities=[], ids=[])


def condition_of(
    columns: NodeColumns,
    *,
    node_ids: Sequence[str] | None = None,
    doc_ids: Sequence[str] | None = None,
    filters: MetadataFilters | None = None,
) -> str | None:
    """The SQL condition that a row has one of these ids, a document of these, and matches the filters; None
    for all rows."""
    terms = [
        rqs.column_condition(column, values)
        for column, values in ((ID, node_ids), (columns.document, doc_ids))
        if values is not None
    ]
    if filters is not None:
        terms.append(filters_sql(filters))
    return rqs.all_of(terms) if terms else None


def condition_to_delete_by(
    columns: NodeColumns, node_ids: Sequence[str] | None, filters: MetadataFilters | None
) -> str:
    """The SQL condition of the rows to delete by these ids and filters.

    Raises:
        InvalidInputError: neither of the two, or filters that `filters_to_delete_by` refuses.
    """
    if node_ids is None and filters is None:
        raise InvalidInputError(
            "Got neither node_ids nor filters to delete by; expected one of them. To delete all nodes, use "
            "clear()."
        )
    terms = [] if node_ids is None else [rqs.column_condition(ID, node_ids)]
    return rqs.all_of(terms if filters is None else [*terms, filters_to_delete_by(filters)])


def _where(query: VectorStoreQuery, columns: NodeColumns) -> str | None:
    # An index that keeps no nodes itself, because the store does, asks with an empty list for any of them.
    return condition_of(
        columns, node_ids=query.node_ids or None, doc_ids=query.doc_ids, filters=query.filters
    )


def _require_answerable(query: VectorStoreQuery, columns: NodeColumns) -> None:
    if query.mode not in _MODES:
        raise InvalidInputError(
            f"Got the query mode {query.mode!r}; expected one of {', '.join(mode.value for mode in _MODES)}."
        )
    if query.mode in _BY_VECTOR and query.query_embedding is None:
        raise InvalidInputError(
            f"Got a query in mode {query.mode.value!r} without query_embedding; expected the question's "
            "embedding. Only text_search does without."
        )
    if query.mode in _BY_TEXT and query.query_str is None:
        raise InvalidInputError(
            f"Got a query in mode {query.mode.value!r} without query_str; expected the text to search for."
        )
    if query.embedding_field not in (None, columns.vector):
        raise InvalidInputError(
            f"Got embedding_field={query.embedding_field!r}; the embeddings of this store are in "
            f"{columns.vector!r}."
        )
    if query.alpha is not None and not 0 <= query.alpha <= 1:
        raise InvalidInputError(
            f"Got alpha={query.alpha!r}; expected 0 (by text alone) to 1 (by vector alone)."
        )


def _similarities(found: pa.Table, metric: str) -> list[float]:
    for name in (_RELEVANCE, _SCORE):
        if name in found.column_names:
            return [float(score) for score in found[name].to_pylist()]
    return [similarity(distance, metric) for distance in found[_DISTANCE].to_pylist()]


def similarity(distance: float, metric: str) -> float:
    """A distance as a similarity, higher for nearer: the cosine of the angle under "cosine", the inner
    product under "dot", and 1 / (1 + the squared distance) under "l2"."""
    return 1 / (1 + distance) if metric == "l2" else 1 - distance
