"""`RQMoEEmbeddingRetriever`: retrieval by embedding."""

from typing import Any

from haystack import Document, component
from haystack_integrations.components.retrievers.rqmoe._base import RetrieverBase


@component
class RQMoEEmbeddingRetriever(RetrieverBase):
    """Retrieves the documents of an `RQMoEDocumentStore` whose embeddings are most similar to the query's."""

    @component.output_types(documents=list[Document])
    def run(
        self, query_embedding: list[float], filters: dict[str, Any] | None = None, top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """Retrieve documents; raises what `RQMoEDocumentStore.embedding_retrieval` does.

        Args:
            query_embedding: made by the model that made the documents' embeddings.
            filters: in place of the retriever's own, or merged with them, by its filter policy.
            top_k: in place of the retriever's own.

        Returns:
            `documents`, the most similar first, with their similarity as `score`.
        """
        settings = self._settings(filters, top_k)
        return {"documents": self.document_store.embedding_retrieval(query_embedding, **settings)}

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query_embedding: list[float], filters: dict[str, Any] | None = None, top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """As `run`, awaited."""
        settings = self._settings(filters, top_k)
        return {"documents": await self.document_store.embedding_retrieval_async(query_embedding, **settings)}
