"""The methods of a vector store that wait until they are done."""

from collections.abc import Iterable, Sequence
from typing import Any

from langchain_core.documents import Document

import rqmoe_store as rqs
from langchain_rqmoe.filters import Filter, NotGiven, condition_to_delete_by
from langchain_rqmoe.foundation import Foundation, refuse, require_vector_scores
from langchain_rqmoe.rows import Texts, documents_of
from langchain_rqmoe.searches import Search, question_of
from rqmoe_store import InvalidInputError

Scored = list[tuple[Document, float]]


class BlockingMethods(Foundation):
    """Adding, reading, deleting and searching. LangChain's own methods that are not here use these."""

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Embed and add texts, all in one commit or none at all.

        Args:
            texts: what to add.
            metadatas: for each text a dict of what JSON can hold; they come back exactly. Numbers of numpy
                come back as Python's, dates, times and UUIDs as texts (`rqmoe_store.as_json_value`).
            ids: for each text, also UUIDs; one that the table has is overwritten, of one that comes again the
                last counts. None to have them made, as one of them may be.
            batch_size: texts that the embedding model is given at once; None for all.
            kwargs: nothing else is taken.

        Returns:
            The ids, one for each text.

        Raises:
            InvalidInputError: texts, metadatas, ids or vectors that cannot be kept; nothing was written.
            TableError: the table is none of ours.
            StorageError: the disk or bucket refuses to take them; nothing was written.
        """
        refuse(kwargs, "adding documents", "texts, metadatas, ids and batch_size")
        given = Texts.of(texts, metadatas, ids)
        vectors = [
            vector for batch in given.batches(batch_size) for vector in self._embedding.embed_documents(batch)
        ]
        return self._add(given, vectors)

    def add_embeddings(
        self,
        texts: Iterable[str],
        embeddings: Sequence[Sequence[float]],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
    ) -> list[str]:
        """Add texts whose vectors are known, otherwise as `add_texts`.

        Args:
            embeddings: one vector for each text: lists, or an array (n, D).
            texts, metadatas, ids: as for `add_texts`, which says what it returns and raises.
        """
        return self._add(Texts.of(texts, metadatas, ids), embeddings)

    def _add(self, given: Texts, vectors: Sequence[Sequence[float]]) -> list[str]:
        if not given.texts:
            return []
        rows = given.rows(vectors, self._defaults.columns)
        store, written = self._documents.begun(rows)
        if given.new and not written:
            store.add(rows)
        elif not written:
            store.merge_insert().when_matched_update_all().when_not_matched_insert_all().execute(rows)
        self._documents.train_when_grown(store)
        return given.ids

    def delete(
        self, ids: list[str] | None = None, *, filter: Filter | NotGiven = NotGiven.NOT_GIVEN, **kwargs: Any
    ) -> bool:
        """Delete documents; returns True, also if there was nothing to delete.

        Args:
            ids: of the documents; of an empty list nothing is deleted. None for all that match the filter,
                and without one for all, as LangChain has it.
            filter: see `similarity_search`; instead of ids.
            kwargs: nothing else is taken.

        Raises:
            InvalidInputError: ids or a filter that cannot be used, both of them, or a filter that says
                nothing (None, an empty one, or one that all documents match whatever they hold), which could
                be a mistake; nothing was deleted.
        """
        refuse(kwargs, "delete", "ids and filter")
        condition = self._doomed(ids, filter)
        store = self._documents.opened()
        if store is not None:
            store.delete(condition)
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Documents by their ids, in the order of these; those that are missing are left out.

        Raises:
            InvalidInputError: ids that are no texts.
        """
        condition = rqs.column_condition(self._defaults.columns.id, ids)
        store = self._documents.opened()
        if store is None:
            return []
        columns = self._defaults.columns
        found = store.search().where(condition).select(columns.read).limit(None).to_arrow()
        return in_order(documents_of(found, columns), ids)

    def similarity_search(
        self, query: str, k: int = 4, filter: Filter = None, **kwargs: Any
    ) -> list[Document]:
        """The `k` documents that answer a query best.

        Args:
            query: text, which is embedded, searched for as it is, or both (see `query_type`).
            k: documents to find, from 1.
            filter: only documents that match: an SQL condition over the columns, such as
                `"id LIKE 'a%'"`, or a dict over metadata, see `langchain_rqmoe.filters`.
            kwargs: `query_type`, "vector" (the default), "fts" for full text, or "hybrid" for both, merged by
                the store's reranker; `nprobes` and `shortlist`, as for the store itself; `prefilter`, False
                to filter what was found instead of searching what matches. Nothing else is taken.

        Raises:
            InvalidInputError: one of these that cannot be used, or a model of another dimension than the
                table.
        """
        return without_scores(self.similarity_search_with_score(query, k, filter, **kwargs))

    def similarity_search_with_score(
        self, query: str, k: int = 4, filter: Filter = None, **kwargs: Any
    ) -> Scored:
        """As `similarity_search`, each document with its distance in the table's metric (squared L2, 1 -
        cosine, 1 - dot), or by "fts" and "hybrid" with a score, of which more is better."""
        return self._found(self._search(k, filter, kwargs), question_of(query))

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, filter: Filter = None, **kwargs: Any
    ) -> list[Document]:
        """As `similarity_search` for a vector, without `query_type`."""
        return without_scores(self.similarity_search_with_score_by_vector(embedding, k, filter, **kwargs))

    def similarity_search_with_score_by_vector(
        self, embedding: list[float], k: int = 4, filter: Filter = None, **kwargs: Any
    ) -> Scored:
        """As `similarity_search_by_vector`, each document with its distance."""
        return self._found(self._vector_search(k, filter, kwargs), None, embedding)

    def similarity_search_by_vector_with_relevance_scores(
        self, embedding: list[float], k: int = 4, filter: Filter = None, **kwargs: Any
    ) -> Scored:
        """As `similarity_search_by_vector`, each document with its relevance, of which 1 is most."""
        found = self.similarity_search_with_score_by_vector(embedding, k, filter, **kwargs)
        relevance = self._select_relevance_score_fn()
        return [(document, relevance(distance)) for document, distance in found]

    def _similarity_search_with_relevance_scores(self, query: str, k: int = 4, **kwargs: Any) -> Scored:
        require_vector_scores(kwargs)
        return super()._similarity_search_with_relevance_scores(query, k, **kwargs)

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Filter = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Documents that are near a query and unlike each other, in the order in which they were chosen.

        Args:
            query: text, which is embedded.
            k: documents to choose.
            fetch_k: the nearest documents that they are chosen from, in place of `shortlist`.
            lambda_mult: 1 for the nearest, 0 for the most different.
            filter, kwargs: as for `similarity_search`, without `query_type` and `shortlist`.

        Raises as `similarity_search`.
        """
        search = self._diverse(k, fetch_k, lambda_mult, filter, kwargs)
        return without_scores(self._found(search, question_of(query)))

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Filter = None,
        **kwargs: Any,
    ) -> list[Document]:
        """As `max_marginal_relevance_search` for a vector."""
        search = self._diverse(k, fetch_k, lambda_mult, filter, kwargs)
        return without_scores(self._found(search, None, embedding))

    def _found(self, search: Search, text: str | None, vector: Sequence[float] | None = None) -> Scored:
        store = self._documents.opened()
        if store is None:
            return []
        if text is not None and search.by_vector:
            vector = self._embedding.embed_query(text)
        if search.by_text:
            store.create_fts_index(self._defaults.columns.text, exist_ok=True)
        return search.documents(search.query(store, text, vector).to_arrow())

    def _doomed(self, ids: Sequence[str] | None, given: Filter | NotGiven) -> str:
        """The condition of what `delete` deletes."""
        columns = self._defaults.columns
        if ids is None:
            if given is NotGiven.NOT_GIVEN:
                return "true"
            return condition_to_delete_by(given, columns.metadata)
        if given is not NotGiven.NOT_GIVEN and given is not None:
            raise InvalidInputError(
                f"Got ids={ids!r} and filter={given!r} for delete; expected one of them. Nothing was deleted."
            )
        return rqs.column_condition(columns.id, ids)


def without_scores(found: Scored) -> list[Document]:
    """The documents alone."""
    return [document for document, _ in found]


def in_order(documents: list[Document], ids: Sequence[str]) -> list[Document]:
    """The documents in the order of `ids`, every one once."""
    by_id = {document.id: document for document in documents}
    wanted = dict.fromkeys(map(rqs.as_json_value, ids))
    return [by_id[given] for given in wanted if given in by_id]
