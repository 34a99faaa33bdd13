"""A Haystack document store that keeps a few bytes per embedding."""

from haystack_integrations.document_stores.rqmoe.document_store import RQMoEDocumentStore

__all__ = ["RQMoEDocumentStore"]
