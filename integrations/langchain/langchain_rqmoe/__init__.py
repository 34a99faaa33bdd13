"""LangChain vector store that keeps a few bytes per embedding: RQ-MoE codes in LanceDB."""

from langchain_rqmoe.vectorstore import RQMoEVectorStore

__all__ = ["RQMoEVectorStore"]
