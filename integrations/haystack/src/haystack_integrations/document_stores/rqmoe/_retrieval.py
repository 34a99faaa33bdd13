"""Finding documents by their embeddings, and by these and their words together."""

from typing import Any

from haystack.dataclasses import Document
from haystack_integrations.document_stores.rqmoe import _work
from haystack_integrations.document_stores.rqmoe._base import DocumentStoreBase
from haystack_integrations.document_stores.rqmoe._filters import condition_of
from haystack_integrations.document_stores.rqmoe._rows import CONTENT
from haystack_integrations.document_stores.rqmoe._table import store_errors

import rqmoe_store as rqs


class Retrieval(DocumentStoreBase):
    """The methods of a document store that retrievers call."""

    def embedding_retrieval(
        self,
        query_embedding: list[float],
        *,
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
        return_embedding: bool = False,
        nprobes: int | None = None,
        shortlist: int | None = None,
    ) -> list[Document]:
        """The documents whose embeddings are most similar to the query's, the most similar first.

        Args:
            query_embedding: made by the model that made the documents' embeddings.
            filters: as for `filter_documents`; `top_k` documents are found whenever that many match.
            top_k: documents at most.
            return_embedding: whether they have their embeddings.
            nprobes, shortlist: how much of a large table is searched, and how many documents are compared by
                what their codes decode to; None for the settings that the table was tuned to, or its
                defaults.

        Returns:
            Documents whose `score` is the cosine with the query, or the inner product where the metric is
            "dot", or minus the squared distance where it is "l2". Those without an embedding are not found.

        Raises:
            FilterError: as `filter_documents`.
            ValueError: a `top_k` that is no number of documents.
            DocumentStoreError: an embedding of another dimension, or not of finite numbers; settings out of
                range.
        """
        condition, columns = condition_of(filters), _work.columns_of(return_embedding)
        table = self._table.opened()
        if not _work.checked_top_k(top_k) or table is None:
            return []
        with store_errors():
            query = _work.tuned(table.search(_work.one_vector(query_embedding), "vector"), nprobes, shortlist)
            return _work.scored(_work.reading(query, condition, columns, top_k).to_arrow(), table.metric)

    def hybrid_retrieval(
        self,
        query: str,
        query_embedding: list[float],
        *,
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
        return_embedding: bool = False,
        nprobes: int | None = None,
        shortlist: int | None = None,
    ) -> list[Document]:
        """The documents that are best by their embeddings and by their words together, by reciprocal rank
        fusion.

        The first call makes a full-text index on the documents' content; call `table.optimize()` now and then
        to bring it up to date, which makes searches quicker.

        Args:
            query: any text; its words are looked for. Without any, documents are found by their embeddings
                alone.
            query_embedding, filters, top_k, return_embedding, nprobes, shortlist: as for
                `embedding_retrieval`.

        Returns:
            Documents whose `score` is their relevance by both.

        Raises as `embedding_retrieval`, and DocumentStoreError for a query that is no text.
        """
        condition, columns = condition_of(filters), _work.columns_of(return_embedding)
        table = self._table.opened()
        if not _work.checked_top_k(top_k) or table is None:
            return []
        with store_errors():
            words = rqs.words_query(query, CONTENT)
            table.create_fts_index(CONTENT, exist_ok=True)
            hybrid = table.search(query_type="hybrid").vector(_work.one_vector(query_embedding)).text(words)
            found = _work.reading(
                _work.tuned(hybrid, nprobes, shortlist), condition, columns, top_k
            ).to_arrow()
            return _work.ranked(found)
