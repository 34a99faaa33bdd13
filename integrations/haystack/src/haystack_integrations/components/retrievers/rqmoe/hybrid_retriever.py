"""`RQMoEHybridRetriever`: retrieval by embedding and by full text together."""

from typing import Any

from haystack import Document, component
from haystack_integrations.components.retrievers.rqmoe._base import RetrieverBase


@component
class RQMoEHybridRetriever(RetrieverBase):
    """Retrieves documents of an `RQMoEDocumentStore` by embedding and by full-text search, merged by
    reciprocal rank fusion. Its first run creates a full-text index on the documents' content."""

    @component.output_types(documents=list[Document])
    def run(
        self,
        query: str,
        query_embedding: list[float],
        filters: dict[str, Any] | None = None,
        top_k: int | None = None,
    ) -> dict[str, list[Document]]:
        """Retrieve documents; raises what `RQMoEDocumentStore.hybrid_retrieval` does.

        Args:
            query: words to look for.
            query_embedding: made by the model that made the documents' embeddings.
            filters: in place of the retriever's own, or merged with them, by its filter policy.
            top_k: in place of the retriever's own.

        Returns:
            `documents`, the best first, with their relevance by both searches as `score`.
        """
        settings = self._settings(filters, top_k)
        return {"documents": self.document_store.hybrid_retrieval(query, query_embedding, **settings)}

    @component.output_types(documents=list[Document])
    async def run_async(
        self,
        query: str,
        query_embedding: list[float],
        filters: dict[str, Any] | None = None,
        top_k: int | None = None,
    ) -> dict[str, list[Document]]:
        """As `run`, awaited."""
        settings = self._settings(filters, top_k)
        return {
            "documents": await self.document_store.hybrid_retrieval_async(query, query_embedding, **settings)
        }
