"""`RQMoEVectorStore`: LangChain's vector store on a table that is compressed when it has grown."""

import asyncio
import functools
import os
from collections.abc import Callable
from typing import Any, Self

import lancedb
from lancedb.db import DBConnection
from lancedb.rerankers import Reranker
from langchain_core.embeddings import Embeddings

from langchain_rqmoe.awaited import AwaitedMethods
from langchain_rqmoe.rows import Columns
from langchain_rqmoe.searches import SearchDefaults
from langchain_rqmoe.table import DocumentTable, TableSettings
from rqmoe_store import CodecConfig, InvalidInputError, TrainConfig


class RQMoEVectorStore(AwaitedMethods):
    """Documents in a LanceDB table that keeps a few bytes per embedding.

        store = RQMoEVectorStore(embedding, uri="./data", table_name="docs")
        store.add_documents(documents)
        store.similarity_search("a question", k=4, filter={"author": "Ann"})

    The table is opened if it exists, and otherwise made when the first document is added. Its vectors are raw
    and searched exactly until there are `train_from` of them; then a codec is trained, and codes take their
    place.
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
            connection: a database in a folder or bucket, as opened by `lancedb.connect`; or say `uri`.
            uri: that of the database; or say `connection`.
            table_name: the table.
            vector_key, id_key, text_key, metadata_key: names of its columns.
            config: of the codec, metric and code bytes among it; None for the defaults, or those of the
                table.
            training: how the codec is trained; None for the defaults.
            train_from: documents from which that is done, by the call that adds them, but no fewer than the
                codec has codewords or partitions; None for never.
            nprobes, shortlist: of all searches that do not say otherwise; None for the table's own.
            reranker: merges the results of hybrid searches; None for reciprocal ranks.
            relevance_score_fn: from distances to relevance scores; None for one that suits the metric.

        Raises:
            InvalidInputError: an embedding or connection of another type, neither or both of connection and
                uri, or settings out of range.
            TableError: there is a table of this name that holds no documents, or one of another metric.
            ArtifactError: its codec is missing or damaged.
        """
        if not isinstance(embedding, Embeddings):
            raise InvalidInputError(
                f"Got {embedding!r} as the embedding; expected a model of LangChain's, a subclass of "
                "langchain_core.embeddings.Embeddings."
            )
        columns = Columns(id=id_key, text=text_key, metadata=metadata_key, vector=vector_key)
        settings = TableSettings(
            database=_connected(connection, uri),
            name=table_name,
            columns=columns,
            config=config,
            training=training,
            train_from=train_from,
        )
        self._embedding = embedding
        self._relevance = relevance_score_fn
        self._defaults = SearchDefaults(
            columns=columns, nprobes=nprobes, shortlist=shortlist, reranker=reranker
        )
        self._documents = DocumentTable(settings)
        self._documents.opened()  # so that a wrong table is refused now

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


def _connected(connection: object, uri: str | os.PathLike[str] | None) -> DBConnection:
    if (connection is None) == (uri is None):
        raise InvalidInputError(
            f"Got connection={connection!r} and uri={uri!r}; expected either what lancedb.connect(...) "
            f"returns, or the folder or bucket of the database."
        )
    if uri is not None:
        return lancedb.connect(os.fspath(uri))
    if not isinstance(connection, DBConnection):
        raise InvalidInputError(
            f"Got connection={connection!r}; expected what lancedb.connect(...) returns. Pass a path as uri."
        )
    return connection
