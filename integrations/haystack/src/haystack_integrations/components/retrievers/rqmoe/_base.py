"""Settings that all retrievers share, and how a call overrides them."""

from typing import Any, Self

from haystack import default_from_dict, default_to_dict
from haystack.document_stores.types import FilterPolicy, apply_filter_policy
from haystack_integrations.document_stores.rqmoe import RQMoEDocumentStore
from haystack_integrations.document_stores.rqmoe._requests import DiversityMethod


class RetrieverBase:
    """Settings of a retriever, which are serialized with a pipeline."""

    def __init__(
        self,
        document_store: RQMoEDocumentStore,
        *,
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
        filter_policy: str | FilterPolicy = FilterPolicy.REPLACE,
        return_embedding: bool = False,
        nprobes: int | None = None,
        shortlist: int | None = None,
        diversity: float | None = None,
        diversity_method: DiversityMethod = "mmr",
    ) -> None:
        """Describe a retriever.

        Args:
            document_store: where the documents are.
            filters: which documents may be found; see `RQMoEDocumentStore.filter_documents`.
            top_k: documents to return at most.
            filter_policy: whether filters of a call replace those given here, or are merged with them.
            return_embedding: whether documents have their embeddings.
            nprobes, shortlist, diversity, diversity_method: as for
                `RQMoEDocumentStore.embedding_retrieval`.

        Raises:
            ValueError: a document store of another kind, a `top_k` below 1, or an unknown policy.
        """
        if not isinstance(document_store, RQMoEDocumentStore):
            raise ValueError(
                f"Got {type(document_store).__name__} as the document store; expected an RQMoEDocumentStore."
            )
        if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
            raise ValueError(f"Got top_k={top_k!r}; expected a number of documents, 1 or more.")
        self.document_store = document_store
        self.filters = filters
        self.top_k = top_k
        self.filter_policy = (
            FilterPolicy.from_str(filter_policy) if isinstance(filter_policy, str) else filter_policy
        )
        self.return_embedding = return_embedding
        self.nprobes = nprobes
        self.shortlist = shortlist
        self.diversity = diversity
        self.diversity_method = diversity_method

    def to_dict(self) -> dict[str, Any]:
        """The settings, those of the document store among them, as `from_dict` reads them."""
        return default_to_dict(
            self,
            document_store=self.document_store.to_dict(),
            filters=self.filters,
            top_k=self.top_k,
            filter_policy=self.filter_policy.value,
            return_embedding=self.return_embedding,
            nprobes=self.nprobes,
            shortlist=self.shortlist,
            diversity=self.diversity,
            diversity_method=self.diversity_method,
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """A retriever with the settings that `to_dict` wrote. Raises DeserializationError for those of
        another class."""
        return default_from_dict(cls, data)

    def _settings(self, filters: dict[str, Any] | None, top_k: int | None) -> dict[str, Any]:
        """Arguments of the store's retrieval, with those that a call overrides."""
        return {
            "filters": apply_filter_policy(self.filter_policy, self.filters, filters),
            "top_k": self.top_k if top_k is None else top_k,
            "return_embedding": self.return_embedding,
            "nprobes": self.nprobes,
            "shortlist": self.shortlist,
            "diversity": self.diversity,
            "diversity_method": self.diversity_method,
        }
