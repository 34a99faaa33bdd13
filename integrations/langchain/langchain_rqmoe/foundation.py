"""What the methods of a vector store work with, those that block and those that are awaited."""

import functools
from collections.abc import Callable
from typing import Any

from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore

from langchain_rqmoe.filters import Filter
from langchain_rqmoe.searches import Search, SearchDefaults, relevance_of
from langchain_rqmoe.table import DocumentTable
from rqmoe_store import CompressedTable, InvalidInputError


class Foundation(VectorStore):
    """Table, embedding model and settings; `RQMoEVectorStore` sets them."""

    _documents: DocumentTable
    _embedding: Embeddings
    _defaults: SearchDefaults
    _relevance: Callable[[float], float] | None

    @property
    def embeddings(self) -> Embeddings:
        """The model that documents and queries are embedded by."""
        return self._embedding

    @property
    def table(self) -> CompressedTable | None:
        """The table, for everything that a vector store has no words for: `optimize`, `tune`, `stats`, ...;
        None before the first document was added."""
        return self._documents.opened()

    def _search(self, k: int, given: Filter, options: dict[str, Any]) -> Search:
        return Search.of(self._defaults, k, given, options)

    def _vector_search(self, k: int, given: Filter, options: dict[str, Any]) -> Search:
        return Search.of(self._defaults, k, given, options, query_type="vector")

    def _diverse(
        self, k: int, fetch_k: int, lambda_mult: float, given: Filter, options: dict[str, Any]
    ) -> Search:
        """A search by maximal marginal relevance, out of `fetch_k` rows."""
        return Search.of(
            self._defaults,
            k,
            given,
            options,
            query_type="vector",
            shortlist=max(fetch_k, k),
            diversity=lambda_mult,
        )

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        if self._relevance is not None:
            return self._relevance
        store, config = self.table, self._documents.settings.config
        metric = store.metric if store is not None else config.metric if config is not None else "l2"
        return functools.partial(relevance_of, metric)


def require_vector_scores(options: dict[str, Any]) -> None:
    """Raise InvalidInputError where scores are no distances, of which there is no relevance from 0 to 1."""
    kind = options.get("query_type", "vector")
    if kind != "vector":
        raise InvalidInputError(
            f"Got query_type={kind!r} for relevance scores; expected 'vector': the scores of other searches "
            f"have no fixed range. Use similarity_search_with_score, or a retriever without a score "
            f"threshold."
        )


def refuse(unknown: dict[str, Any], method: str, taken: str) -> None:
    """Raise InvalidInputError if a method got arguments that it does not take."""
    for name, value in unknown.items():
        raise InvalidInputError(f"Got {name}={value!r} for {method}; expected no more than {taken}.")
