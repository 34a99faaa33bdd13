"""LlamaIndex vector store whose vectors take a few bytes each: RQ-MoE codes in LanceDB tables."""

from llama_index.vector_stores.rqmoe.base import RQMoEVectorStore

__all__ = ["RQMoEVectorStore"]
