"""`RQMoEVectorStore`: a LangChain vector store that keeps a few bytes per embedding."""

import asyncio
import functools
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

from lancedb.db import DBConnection
from lancedb.rerankers import Reranker
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore

import rqmoe_store as rqs
from langchain_rqmoe.filters import Filter, NotGiven, condition_to_delete_by
from langchain_rqmoe.rows import Columns, Texts, as_vector, documents_of
from langchain_rqmoe.searches import Search, SearchDefaults, as_query_text, relevance
from rqmoe_store import CodecConfig, CompressedTable, InvalidInputError, ManagedTable, TrainConfig

Scored = list[tuple[Document, float]]


class RQMoEVectorStore(VectorStore):
    """Documents in a LanceDB table that keeps a few bytes per embedding.

        store = RQMoEVectorStore(embedding, uri="./data", table_name="docs")
        store.add_documents(documents)
        store.similarity_search("a question", k=4, filter={"author": "Ann"})

    The table is opened if it exists, and otherwise created by the first documents. Its vectors are raw and
    searched exactly until there are `train_from` of them; then a codec is trained, and codes replace them.

    Every method has a twin whose name begins with "a". It embeds by `aembed_...`, leaves the event loop free,
    and takes, returns and raises what the method does.
    """

    def __init__(
        self,
        embedding: Embeddings,
        *,
        connection: DBConnection | None = None,
        uri: str | os.PathLike[str] | None = None,
        table_name: str = "vectorstore",
        vector_key: str = "vector",
        id_key: str = "id",
        text_key: str = "text",
        metadata_key: str = "metadata",
        config: CodecConfig | None = None,
        training: TrainConfig | None = None,
        train_from: int | None = 10_000,
        nprobes: int | None = None,
        shortlist: int | None = None,
        reranker: Reranker | None = None,
        relevance_score_fn: Callable[[float], float] | None = None,
    ) -> None:
        """Open the table, if there is one.

        Args:
            embedding: the model for documents and queries.
            connection: a database in a folder or bucket, as opened by `lancedb.connect`; or give `uri`.
            uri: that of the database; or give `connection`.
            table_name: the table.
            vector_key, id_key, text_key, metadata_key: names of its columns.
            config: of the codec, metric and code bytes among it; None for the defaults with metric "cosine",
                or those of the table.
            training: how the codec is trained; None for the defaults.
            train_from: documents from which a codec is trained, by the call that adds them, but no fewer than
                the codec has codewords or partitions; None for never.
            nprobes, shortlist: of all searches that do not set their own; None for the table's.
            reranker: merges the results of hybrid searches; None for reciprocal ranks.
            relevance_score_fn: from distances to relevance scores; None for one that suits the metric.

        Raises:
            InvalidInputError: an embedding or connection of another type, neither or both of connection and
                uri, or settings out of range.
            TableError: there is a table of this name that holds no documents, or one of another metric or
                code size than `config`.
            ArtifactError: its codec is missing or damaged.
        """
        if not isinstance(embedding, Embeddings):
            raise InvalidInputError(
                f"Got {embedding!r} as the embedding; expected a model of LangChain's, a subclass of "
                "langchain_core.embeddings.Embeddings."
            )
        columns = Columns(id=id_key, text=text_key, metadata=metadata_key, vector=vector_key)
        self._columns, self._embedding, self._relevance = columns, embedding, relevance_score_fn
        self._defaults = SearchDefaults(
            columns=columns, nprobes=nprobes, shortlist=shortlist, reranker=reranker
        )
        self._documents = ManagedTable(
            _require_database(connection, uri),
            table_name,
            columns=columns.without_vector,
            key=columns.id,
            vector_column=columns.vector,
            text_column=columns.text,
            config=config,
            training=training,
            train_from=train_from,
            row_name="document",
            column_settings=["id_key", "text_key", "metadata_key", "vector_key"],
        )
        self._documents.open()  # so that a wrong table is refused now

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """A store with these texts added to its table.

        Args:
            embedding: the model for documents and queries.
            texts, metadatas, ids: as for `add_texts`.
            kwargs: as for the class itself, connection or uri among them.

        Raises what these do.
        """
        store = cls(embedding, **kwargs)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    @classmethod
    async def afrom_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """As `from_texts`, awaited."""
        store = await asyncio.to_thread(functools.partial(cls, embedding, **kwargs))
        await store.aadd_texts(texts, metadatas, ids=ids)
        return store

    @property
    def embeddings(self) -> Embeddings:
        """The model that documents and queries are embedded by."""
        return self._embedding

    @property
    def table(self) -> CompressedTable | None:
        """The table, for everything that a vector store has no method for: `optimize`, `tune`, `stats`, ...;
        None before the first document was added."""
        return self._documents.open()

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Embed and add texts, all in one commit or none at all, and train the codec when it is due.

        While one call trains, others go on adding. If training fails, this call raises the error, and its
        texts are there.

        Args:
            texts: what to add.
            metadatas: for each text a dict of what JSON can hold; they come back exactly. Numbers of numpy
                come back as Python's, dates, times and UUIDs as texts (`rqmoe_store.as_json_value`).
            ids: for each text, also UUIDs; a document of the same id is replaced, and of several with the
                same id the last one counts. None, or None among them, to have ids generated.
            batch_size: texts that the embedding model is given at once; None for all.
            kwargs: nothing else is taken.

        Returns:
            The ids, one for each text.

        Raises:
            InvalidInputError: texts, metadatas, ids or vectors that cannot be kept; nothing was written.
            TableError: the table does not hold documents of this store.
            StorageError: the disk or bucket refuses to take them; nothing was written.
        """
        _refuse_more(kwargs, "adding documents", "texts, metadatas, ids and batch_size")
        given = Texts.of(texts, metadatas, ids)
        vectors = [
            vector for batch in given.batches(batch_size) for vector in self._embedding.embed_documents(batch)
        ]
        return self._add(given, vectors)

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """As `add_texts`, awaited."""
        _refuse_more(kwargs, "adding documents", "texts, metadatas, ids and batch_size")
        given = await self._documents.in_thread(Texts.of, texts, metadatas, ids)
        vectors: list[list[float]] = []
        for batch in given.batches(batch_size):
            vectors += await self._embedding.aembed_documents(batch)
        return await self._documents.in_thread(self._add, given, vectors)

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

    async def aadd_embeddings(
        self,
        texts: Iterable[str],
        embeddings: Sequence[Sequence[float]],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
    ) -> list[str]:
        """As `add_embeddings`, awaited."""
        return await self._documents.in_thread(self.add_embeddings, texts, embeddings, metadatas, ids=ids)

    def delete(
        self, ids: list[str] | None = None, *, filter: Filter | NotGiven = NotGiven.NOT_GIVEN, **kwargs: Any
    ) -> bool:
        """Delete documents; returns True, also if there was nothing to delete.

        Args:
            ids: of the documents; an empty list deletes nothing. None for all that match the filter, and
                without one for all documents, as LangChain has it.
            filter: see `similarity_search`; instead of ids.
            kwargs: nothing else is taken.

        Raises:
            InvalidInputError: ids or a filter that cannot be used, both of them, or a filter that says
                nothing (None, an empty one, or one that all documents match whatever they hold), which could
                be a mistake; nothing was deleted.
        """
        _refuse_more(kwargs, "delete", "ids and filter")
        condition = self._condition_to_delete_by(ids, filter)
        table = self._documents.open()
        if table is not None:
            table.delete(condition)
        return True

    async def adelete(
        self, ids: list[str] | None = None, *, filter: Filter | NotGiven = NotGiven.NOT_GIVEN, **kwargs: Any
    ) -> bool:
        """As `delete`, awaited."""
        _refuse_more(kwargs, "adelete", "ids and filter")
        return await self._documents.in_thread(self.delete, ids, filter=filter)

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Documents by their ids, in the order of these; those that are missing are left out.

        Raises:
            InvalidInputError: ids that are no texts.
        """
        condition = rqs.column_condition(self._columns.id, ids)
        table = self._documents.open()
        if table is None:
            return []
        found = table.search().where(condition).select(self._columns.read).limit(None).to_arrow()
        by_id = {document.id: document for document in documents_of(found, self._columns)}
        wanted = dict.fromkeys(map(rqs.as_json_value, ids))
        return [by_id[given] for given in wanted if given in by_id]

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """As `get_by_ids`, awaited."""
        return await self._documents.in_thread(self.get_by_ids, ids)

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
        return _without_scores(self.similarity_search_with_score(query, k, filter, **kwargs))

    async def asimilarity_search(
        self, query: str, k: int = 4, filter: Filter = None, **kwargs: Any
    ) -> list[Document]:
        """As `similarity_search`, awaited."""
        return _without_scores(await self.asimilarity_search_with_score(query, k, filter, **kwargs))

    def similarity_search_with_score(
        self, query: str, k: int = 4, filter: Filter = None, **kwargs: Any
    ) -> Scored:
        """As `similarity_search`, each document with its distance in the table's metric (squared L2, 1 -
        cosine, 1 - dot), or by "fts" and "hybrid" with a score, of which more is better."""
        return self._find(Search.of(self._defaults, k, filter, kwargs), as_query_text(query))

    async def asimilarity_search_with_score(
        self, query: str, k: int = 4, filter: Filter = None, **kwargs: Any
    ) -> Scored:
        """As `similarity_search_with_score`, awaited."""
        return await self._afind(Search.of(self._defaults, k, filter, kwargs), as_query_text(query))

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, filter: Filter = None, **kwargs: Any
    ) -> list[Document]:
        """As `similarity_search` for a vector, without `query_type`."""
        return _without_scores(self.similarity_search_with_score_by_vector(embedding, k, filter, **kwargs))

    async def asimilarity_search_by_vector(
        self, embedding: list[float], k: int = 4, filter: Filter = None, **kwargs: Any
    ) -> list[Document]:
        """As `similarity_search_by_vector`, awaited."""
        search = self._vector_search(k, filter, kwargs)
        return _without_scores(await self._documents.in_thread(self._run, search, None, embedding))

    def similarity_search_with_score_by_vector(
        self, embedding: list[float], k: int = 4, filter: Filter = None, **kwargs: Any
    ) -> Scored:
        """As `similarity_search_by_vector`, each document with its distance."""
        return self._run(self._vector_search(k, filter, kwargs), None, embedding)

    async def asimilarity_search_with_score_by_vector(
        self, embedding: list[float], k: int = 4, filter: Filter = None, **kwargs: Any
    ) -> Scored:
        """As `similarity_search_with_score_by_vector`, awaited."""
        search = self._vector_search(k, filter, kwargs)
        return await self._documents.in_thread(self._run, search, None, embedding)

    def similarity_search_by_vector_with_relevance_scores(
        self, embedding: list[float], k: int = 4, filter: Filter = None, **kwargs: Any
    ) -> Scored:
        """As `similarity_search_by_vector`, each document with its relevance, of which 1 is most."""
        found = self.similarity_search_with_score_by_vector(embedding, k, filter, **kwargs)
        relevance_of = self._select_relevance_score_fn()
        return [(document, relevance_of(distance)) for document, distance in found]

    async def asimilarity_search_by_vector_with_relevance_scores(
        self, embedding: list[float], k: int = 4, filter: Filter = None, **kwargs: Any
    ) -> Scored:
        """As `similarity_search_by_vector_with_relevance_scores`, awaited."""
        search = self.similarity_search_by_vector_with_relevance_scores
        return await self._documents.in_thread(search, embedding, k, filter, **kwargs)

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
            filter, kwargs: as for `similarity_search`, without `query_type` and `shortlist`; and `method`:
                "mmr", the default, or "coverage" for the documents that best stand for the `fetch_k` nearest
                (at most 10 for each of `k`).

        Raises as `similarity_search`.
        """
        search = self._diverse_search(k, fetch_k, lambda_mult, filter, kwargs)
        return _without_scores(self._find(search, as_query_text(query)))

    async def amax_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Filter = None,
        **kwargs: Any,
    ) -> list[Document]:
        """As `max_marginal_relevance_search`, awaited."""
        search = self._diverse_search(k, fetch_k, lambda_mult, filter, kwargs)
        return _without_scores(await self._afind(search, as_query_text(query)))

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
        search = self._diverse_search(k, fetch_k, lambda_mult, filter, kwargs)
        return _without_scores(self._run(search, None, embedding))

    async def amax_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Filter = None,
        **kwargs: Any,
    ) -> list[Document]:
        """As `max_marginal_relevance_search_by_vector`, awaited."""
        search = self._diverse_search(k, fetch_k, lambda_mult, filter, kwargs)
        return _without_scores(await self._documents.in_thread(self._run, search, None, embedding))

    def _similarity_search_with_relevance_scores(self, query: str, k: int = 4, **kwargs: Any) -> Scored:
        _require_vector_scores(kwargs)
        return super()._similarity_search_with_relevance_scores(query, k, **kwargs)

    async def _asimilarity_search_with_relevance_scores(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> Scored:
        _require_vector_scores(kwargs)
        await self._documents.in_thread(self._documents.open)  # its metric decides the scores
        return await super()._asimilarity_search_with_relevance_scores(query, k, **kwargs)

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        if self._relevance is not None:
            return self._relevance
        return functools.partial(relevance, self._documents.metric)

    def _add(self, given: Texts, vectors: Sequence[Sequence[float]]) -> list[str]:
        if given.texts:
            rows = given.rows(vectors, self._columns)
            self._documents.add(rows, existing="none" if given.new else "replace")
        return given.ids

    def _condition_to_delete_by(self, ids: Sequence[str] | None, given: Filter | NotGiven) -> str:
        if ids is None:
            if given is NotGiven.NOT_GIVEN:
                return "true"
            return condition_to_delete_by(given, self._columns.metadata)
        if given is not NotGiven.NOT_GIVEN and given is not None:
            raise InvalidInputError(
                f"Got ids={ids!r} and filter={given!r} for delete; expected one of them. Nothing was deleted."
            )
        return rqs.column_condition(self._columns.id, ids)

    def _vector_search(self, k: int, given: Filter, options: dict[str, Any]) -> Search:
        return Search.of(self._defaults, k, given, options, query_type="vector")

    def _diverse_search(
        self, k: int, fetch_k: int, lambda_mult: float, given: Filter, options: dict[str, Any]
    ) -> Search:
        """A search for rows that differ, out of `fetch_k` rows."""
        return Search.of(
            self._defaults,
            k,
            given,
            options,
            query_type="vector",
            shortlist=max(fetch_k, k),
            diversity=lambda_mult,
        )

    def _find(self, search: Search, text: str) -> Scored:
        """Embed a text if the search needs it, and run the search."""
        vector = None
        if search.by_vector and self._documents.open() is not None:
            vector = self._embedding.embed_query(text)
        return self._run(search, text, vector)

    async def _afind(self, search: Search, text: str) -> Scored:
        """As `_find`, awaited."""
        vector = None
        if search.by_vector and await self._documents.in_thread(self._documents.open) is not None:
            vector = await self._embedding.aembed_query(text)
        return await self._documents.in_thread(self._run, search, text, vector)

    def _run(self, search: Search, text: str | None, vector: Sequence[float] | None) -> Scored:
        """Search for a text, a vector or both, as the search says."""
        table = self._documents.open(text_index=search.by_text)
        if table is None:
            return []
        checked = as_vector(vector) if search.by_vector else None
        if checked is not None:
            self._documents.require_dim(len(checked))
        return search.documents(search.query(table, text, checked).to_arrow())


def _require_database(
    connection: object, uri: str | os.PathLike[str] | None
) -> DBConnection | str | os.PathLike[str]:
    if (connection is None) == (uri is None):
        raise InvalidInputError(
            f"Got connection={connection!r} and uri={uri!r}; expected either what lancedb.connect(...) "
            f"returns, or the folder or bucket of the database."
        )
    if uri is not None:
        return uri
    if not isinstance(connection, DBConnection):
        raise InvalidInputError(
            f"Got connection={connection!r}; expected what lancedb.connect(...) returns. Pass a path as uri."
        )
    return connection


def _require_vector_scores(options: dict[str, Any]) -> None:
    """Raise InvalidInputError unless scores are distances, for which a relevance from 0 to 1 is defined."""
    kind = options.get("query_type", "vector")
    if kind != "vector":
        raise InvalidInputError(
            f"Got query_type={kind!r} for relevance scores; expected 'vector': the scores of other searches "
            f"have no fixed range. Use similarity_search_with_score, or a retriever without a score "
            f"threshold."
        )


def _refuse_more(unknown: dict[str, Any], method: str, taken: str) -> None:
    """Raise InvalidInputError if a method got arguments that it does not take."""
    for name, value in unknown.items():
        raise InvalidInputError(f"Got {name}={value!r} for {method}; expected no more than {taken}.")


def _without_scores(found: Scored) -> list[Document]:
    return [document for document, _ in found]
