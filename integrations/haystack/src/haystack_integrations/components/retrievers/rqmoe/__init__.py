"""Retrievers of an RQMoEDocumentStore."""

from haystack_integrations.components.retrievers.rqmoe.embedding_retriever import RQMoEEmbeddingRetriever
from haystack_integrations.components.retrievers.rqmoe.hybrid_retriever import RQMoEHybridRetriever

__all__ = ["RQMoEEmbeddingRetriever", "RQMoEHybridRetriever"]
