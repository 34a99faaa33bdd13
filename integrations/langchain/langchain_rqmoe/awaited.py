"""The methods of a vector store for event loops: the others' twins, on the store's own asynchronous table.

Each takes, returns and raises what the method without "a" does.
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

from langchain_core.documents import Document

import rqmoe_store as rqs
from langchain_rqmoe.blocking import BlockingMethods, Scored, in_order, without_scores
from langchain_rqmoe.filters import Filter, NotGiven
from langchain_rqmoe.foundation import refuse, require_vector_scores
from langchain_rqmoe.rows import Texts, documents_of
from langchain_rqmoe.searches import Search, question_of
from rqmoe_store import AsyncCompressedTable


class AwaitedMethods(BlockingMethods):
    """Adding, reading, deleting and searching, awaited."""

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Embed and add texts, all in one commit or none at all."""
        refuse(kwargs, "adding documents", "texts, metadatas, ids and batch_size")
        given = await asyncio.to_thread(Texts.of, texts, metadatas, ids)
        vectors: list[list[float]] = []
        for batch in given.batches(batch_size):
            vectors += await self._embedding.aembed_documents(batch)
        return await self._aadd(given, vectors)

    async def aadd_embeddings(
        self,
        texts: Iterable[str],
        embeddings: Sequence[Sequence[float]],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
    ) -> list[str]:
        """Add texts whose vectors are known."""
        given = await asyncio.to_thread(Texts.of, texts, metadatas, ids)
        return await self._aadd(given, embeddings)

    async def _aadd(self, given: Texts, vectors: Sequence[Sequence[float]]) -> list[str]:
        if not given.texts:
            return []
        rows = await asyncio.to_thread(given.rows, vectors, self._defaults.columns)
        blocking, written = await asyncio.to_thread(self._documents.begun, rows)
        store = AsyncCompressedTable(blocking)
        if given.new and not written:
            await store.add(rows)
        elif not written:
            merge = store.merge_insert().when_matched_update_all().when_not_matched_insert_all()
            await merge.execute(rows)
        await asyncio.to_thread(self._documents.train_when_grown, blocking)
        return given.ids

    async def adelete(
        self, ids: list[str] | None = None, *, filter: Filter | NotGiven = NotGiven.NOT_GIVEN, **kwargs: Any
    ) -> bool:
        """Delete documents; returns True, also if there was nothing to delete."""
        refuse(kwargs, "adelete", "ids and filter")
        condition = self._doomed(ids, filter)
        store = await self._documents.aopened()
        if store is not None:
            await store.delete(condition)
        return True

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Documents by their ids, in the order of these; those that are missing are left out."""
        columns = self._defaults.columns
        condition = rqs.column_condition(columns.id, ids)
        store = await self._documents.aopened()
        if store is None:
            return []
        query = (await store.search()).where(condition).select(columns.read).limit(None)
        return in_order(documents_of(await query.to_arrow(), columns), ids)

    async def asimilarity_search(
        self, query: str, k: int = 4, filter: Filter = None, **kwargs: Any
    ) -> list[Document]:
        """The `k` documents that answer a query best."""
        return without_scores(await self.asimilarity_search_with_score(query, k, filter, **kwargs))

    async def asimilarity_search_with_score(
        self, query: str, k: int = 4, filter: Filter = None, **kwargs: Any
    ) -> Scored:
        """As `asimilarity_search`, each document with its distance or score."""
        return await self._afound(self._search(k, filter, kwargs), question_of(query))

    async def asimilarity_search_by_vector(
        self, embedding: list[float], k: int = 4, filter: Filter = None, **kwargs: Any
    ) -> list[Document]:
        """As `asimilarity_search` for a vector."""
        found = await self.asimilarity_search_with_score_by_vector(embedding, k, filter, **kwargs)
        return without_scores(found)

    async def asimilarity_search_with_score_by_vector(
        self, embedding: list[float], k: int = 4, filter: Filter = None, **kwargs: Any
    ) -> Scored:
        """As `asimilarity_search_by_vector`, each document with its distance."""
        return await self._afound(self._vector_search(k, filter, kwargs), None, embedding)

    async def asimilarity_search_by_vector_with_relevance_scores(
        self, embedding: list[float], k: int = 4, filter: Filter = None, **kwargs: Any
    ) -> Scored:
        """As `asimilarity_search_by_vector`, each document with its relevance."""
        found = await self.asimilarity_search_with_score_by_vector(embedding, k, filter, **kwargs)
        relevance = self._select_relevance_score_fn()
        return [(document, relevance(distance)) for document, distance in found]

    async def _asimilarity_search_with_relevance_scores(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> Scored:
        require_vector_scores(kwargs)
        await self._documents.aopened()  # its metric decides the scores
        return await super()._asimilarity_search_with_relevance_scores(query, k, **kwargs)

    async def amax_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Filter = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Documents that are near a query and unlike each other."""
        search = self._diverse(k, fetch_k, lambda_mult, filter, kwargs)
        return without_scores(await self._afound(search, question_of(query)))

    async def amax_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Filter = None,
        **kwargs: Any,
    ) -> list[Document]:
        """As `amax_marginal_relevance_search` for a vector."""
        search = self._diverse(k, fetch_k, lambda_mult, filter, kwargs)
        return without_scores(await self._afound(search, None, embedding))

    async def _afound(
        self, search: Search, text: str | None, vector: Sequence[float] | None = None
    ) -> Scored:
        store = await self._documents.aopened()
        if store is None:
            return []
        if text is not None and search.by_vector:
            vector = await self._embedding.aembed_query(text)
        if search.by_text:
            await store.create_fts_index(self._defaults.columns.text, exist_ok=True)
        query = await search.aquery(store, text, vector)
        return search.documents(await query.to_arrow())
