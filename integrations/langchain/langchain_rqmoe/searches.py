"""Searches of a vector store as queries of its table."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import pyarrow as pa
from lancedb.query import FullTextQuery
from lancedb.rerankers import Reranker
from langchain_core.documents import Document

import rqmoe_store as rqs
from langchain_rqmoe.filters import Filter, condition_of
from langchain_rqmoe.rows import Columns, Float32Array, documents_of
from rqmoe_store import CompressedTable, InvalidInputError

QueryType = Literal["vector", "fts", "hybrid"]

SCORES: dict[QueryType, str] = {"vector": "_distance", "fts": "_score", "hybrid": "_relevance_score"}
"""The column that tells how well a row was found; smaller is better for distances only."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchDefaults:
    """Settings of searches that do not set their own; see `RQMoEVectorStore`."""

    columns: Columns
    nprobes: int | None
    shortlist: int | None
    reranker: Reranker | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """A search whose arguments have been checked."""

    defaults: SearchDefaults
    k: int
    where: str | None
    query_type: QueryType = "vector"
    nprobes: int | None = None
    shortlist: int | None = None
    prefilter: bool = True
    diversity: float | None = None
    """1 for the best rows to 0 for the most different ones; None for the best, however alike they are."""
    method: str = "mmr"
    """How different rows are chosen, as in a table's `diversify`."""

    @classmethod
    def of(
        cls, defaults: SearchDefaults, k: int, given: Filter, options: Mapping[str, Any], **more: Any
    ) -> "Search":
        """Check the arguments of a search.

        Args:
            defaults: of the store.
            k: documents to find.
            given: the filter.
            options: of the caller: query_type, nprobes, shortlist, prefilter; method, if rows are to differ.
            more: set by the method that was called; the caller cannot set these.

        Raises:
            InvalidInputError: other options, an unknown query_type, or a filter that cannot be used.
        """
        options_of_all = ("query_type", "nprobes", "shortlist", "prefilter")
        known = [name for name in options_of_all if name not in more]
        if "diversity" in more:
            known.append("method")
        unknown = [name for name in options if name not in known]
        if unknown:
            raise InvalidInputError(
                f"Got {unknown[0]}={options[unknown[0]]!r} for a search; expected k, filter or one of "
                f"{', '.join(known)}."
            )
        kind = options.get("query_type", "vector")
        if kind not in SCORES:
            raise InvalidInputError(f"Got query_type={kind!r}; expected one of {', '.join(SCORES)}.")
        where = condition_of(given, defaults.columns.metadata)
        return cls(defaults=defaults, k=k, where=where, **{**options, **more})

    @property
    def by_text(self) -> bool:
        """Whether a full-text index is needed."""
        return self.query_type != "vector"

    @property
    def by_vector(self) -> bool:
        """Whether the query has to be embedded."""
        return self.query_type != "fts"

    def query(self, table: CompressedTable, text: str | None, vector: Float32Array | None) -> Any:
        """The query, to be run by one of its `to_...` methods.

        Args:
            table: the table.
            text: what to search for as it is; None where only the vector counts.
            vector: what to search for by distance; None where only the text counts.

        Raises:
            InvalidInputError: a vector or options that the table refuses.
        """
        if self.query_type == "hybrid":
            hybrid = table.search(query_type="hybrid")
            return self._with_options(hybrid.vector(vector).text(self._words(text)))
        if self.query_type == "fts":
            return self._with_options(table.search(self._words(text), query_type="fts"))
        return self._with_options(table.search(vector, query_type="vector"))

    def documents(self, found: pa.Table) -> list[tuple[Document, float]]:
        """The documents of the rows found, each with its distance or score."""
        scores = found[SCORES[self.query_type]].to_pylist()
        return list(zip(documents_of(found, self.defaults.columns), scores, strict=True))

    def _words(self, text: str | None) -> FullTextQuery:
        """The text as a full-text query that no punctuation in it keeps from being answered."""
        return rqs.words_query(text or "", self.defaults.columns.text)

    def _with_options(self, query: Any) -> Any:
        score = SCORES[self.query_type]
        query = query.limit(self.k).select([*self.defaults.columns.read, score])
        if self.where is not None:
            query = query.where(self.where, self.prefilter)
        if self.query_type == "hybrid" and self.defaults.reranker is not None:
            query = query.rerank(self.defaults.reranker)
        if self.by_vector:
            query = self._with_search_parameters(query)
        return query

    def _with_search_parameters(self, query: Any) -> Any:
        nprobes = self.defaults.nprobes if self.nprobes is None else self.nprobes
        shortlist = self.defaults.shortlist if self.shortlist is None else self.shortlist
        if nprobes is not None:
            query = query.nprobes(nprobes)
        if shortlist is not None:
            # A default for all searches must not keep one of them from finding k.
            query = query.shortlist(shortlist if self.shortlist is not None else max(shortlist, self.k))
        if self.diversity is not None:
            query = query.diversify(self.diversity, method=self.method)
        return query


def as_query_text(text: object) -> str:
    """A user's question as models can read it: lone surrogates, which are not valid Unicode, become "?".

    Raises:
        InvalidInputError: not a text.
    """
    if not isinstance(text, str):
        raise InvalidInputError(f"Got query={text!r} ({type(text).__name__}); expected a text.")
    return text.encode(errors="replace").decode()


def relevance(metric: str, distance: float) -> float:
    """How relevant a document at this distance is: 1 for the same vector, 0 for one at a right angle.

    This holds for vectors of unit length, as most models make them; under "l2" and "dot" others may score
    outside of 0 to 1. Vectors that point away from each other score below 0.

    Args:
        metric: of the table.
        distance: as the table has it: squared L2, 1 - cosine, 1 - dot.
    """
    if metric == "l2":
        return 1.0 - math.sqrt(max(distance, 0.0) / 2)
    if metric == "cosine":
        return 1.0 - max(distance, 0.0)  # rounding takes it below
    return 1.0 - distance
