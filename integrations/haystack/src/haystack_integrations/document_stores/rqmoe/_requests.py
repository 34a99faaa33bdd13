"""Arguments of a document store's methods, checked and as the table takes them."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from haystack.dataclasses import Document
from haystack.document_stores.errors import DocumentStoreError, DuplicateDocumentError
from haystack.document_stores.types import DuplicatePolicy
from haystack_integrations.document_stores.rqmoe._rows import (
    DOCUMENT_COLUMNS,
    EMBEDDING,
    ID,
    checked_id,
    documents_of,
    metadata_rows,
    metas_of,
)

import rqmoe_store as rqs

DiversityMethod = Literal["mmr", "coverage"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """Documents to be written by one call, every id once."""

    documents: list[Document]
    policy: DuplicatePolicy
    given: int
    """How many there were, repeated ids included."""

    @classmethod
    def of(cls, documents: Any, policy: DuplicatePolicy) -> "Batch":
        """Check the arguments of `write_documents`. Of several with one id SKIP writes the first, OVERWRITE
        the last.

        Raises:
            ValueError: no list of documents, or an unknown policy.
            DocumentStoreError: an id that is no text.
            DuplicateDocumentError: an id is repeated, and the policy is FAIL or NONE.
        """
        if not isinstance(documents, list | tuple) or not all(isinstance(one, Document) for one in documents):
            raise ValueError(
                f"Got {type(documents).__name__} to write; expected a list of Haystack Documents."
            )
        if not isinstance(policy, DuplicatePolicy):
            raise ValueError(f"Got policy={policy!r}; expected a DuplicatePolicy.")
        policy = DuplicatePolicy.FAIL if policy is DuplicatePolicy.NONE else policy
        by_id: dict[str, Document] = {}
        for document in documents:
            document_id = checked_id(document.id)
            if document_id in by_id and policy is DuplicatePolicy.FAIL:
                raise duplicate_error(document_id, "there twice in this call")
            if document_id not in by_id or policy is DuplicatePolicy.OVERWRITE:
                same = document.id is document_id
                by_id[document_id] = document if same else dataclasses.replace(document, id=document_id)
        return cls(documents=list(by_id.values()), policy=policy, given=len(documents))

    @property
    def ids(self) -> list[str]:
        """All ids, once each."""
        return [document.id for document in self.documents]

    def count_written(self, inserted: int) -> int:
        """What `write_documents` returns, given how many documents were new.

        Raises:
            DuplicateDocumentError: the policy is FAIL, and some of them were written by others meanwhile.
        """
        if self.policy is DuplicatePolicy.OVERWRITE:
            return self.given
        if self.policy is DuplicatePolicy.FAIL and inserted < len(self.documents):
            raise DuplicateDocumentError(
                f"Someone else wrote {len(self.documents) - inserted} of these documents meanwhile. Theirs "
                "were kept; the others of this call were written."
            )
        return inserted


def duplicate_error(document_id: str, where: str) -> DuplicateDocumentError:
    """The error for an id that exists, `where`."""
    return DuplicateDocumentError(
        f"Got a document with id {document_id!r}, which is {where}. Nothing was written; use "
        "DuplicatePolicy.OVERWRITE or SKIP to replace or keep what is there."
    )


def id_condition(ids: Any) -> str:
    """The condition that documents have one of these ids. Raises ValueError unless it gets a list of texts or
    UUIDs."""
    listed: list[Any] = [rqs.as_json_value(one) for one in ids] if isinstance(ids, list | tuple) else [None]
    if not all(isinstance(one, str) for one in listed):
        raise ValueError(f"Got {ids!r} as the ids of documents; expected a list of texts.")
    return rqs.column_condition(ID, listed)


def restrict(query: Any, condition: str | None, columns: Sequence[str], limit: int | None) -> Any:
    """Restrict a query of the table to documents that match and to some columns, and return it."""
    query.select(list(columns)).limit(limit)
    return query if condition is None else query.where(condition)


def document_columns(embeddings: bool) -> list[str]:
    """The columns that documents are made of, with their embeddings or without."""
    return [*DOCUMENT_COLUMNS, EMBEDDING] if embeddings else DOCUMENT_COLUMNS


def no_rows(columns: Sequence[str]) -> pa.Table:
    """What is read before there is a table."""
    return pa.table({name: [] for name in columns})


def updated_metadata(rows: pa.Table, meta: dict[str, Any]) -> pa.Table:
    """Ids and metadata of the rows, with some fields of the metadata set."""
    return metadata_rows(rows[ID].to_pylist(), [old | meta for old in metas_of(rows)])


def set_parameters(
    query: Any,
    nprobes: int | None,
    shortlist: int | None,
    diversity: float | None,
    diversity_method: DiversityMethod,
) -> Any:
    """Set the search parameters of a search by embedding, and return it."""
    if nprobes is not None:
        query.nprobes(nprobes)
    if shortlist is not None:
        query.shortlist(shortlist)
    return query if diversity is None else query.diversify(diversity, method=diversity_method)


def one_vector(query_embedding: Any) -> Any:
    """The embedding of a query. Raises DocumentStoreError for several, which the table would take as well."""
    if not isinstance(query_embedding, list | tuple | np.ndarray) or np.ndim(query_embedding[:1]) != 1:
        raise DocumentStoreError(
            f"Got {type(query_embedding).__name__} as the embedding of a query; expected a list of numbers."
        )
    return query_embedding


def documents_by_distance(rows: pa.Table, metric: str) -> list[Document]:
    """The documents that a search by embedding found, with their similarity as the score."""
    distances = rows["_distance"].to_pylist()
    if metric == "l2":
        return documents_of(rows, [-distance for distance in distances])
    return documents_of(rows, [1.0 - distance for distance in distances])


def documents_by_relevance(rows: pa.Table) -> list[Document]:
    """The documents that a hybrid search found, with their relevance as the score."""
    return documents_of(rows, rows["_relevance_score"].to_pylist())


def checked_top_k(top_k: Any) -> int:
    """A number of documents. Raises ValueError unless it is one."""
    if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 0:
        raise ValueError(f"Got top_k={top_k!r}; expected a number of documents, 0 or more.")
    return top_k
