"""`RQMoEVectorStore`, the store itself."""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import (
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryResult,
)
from llama_index.vector_stores.rqmoe.columns import ID
from llama_index.vector_stores.rqmoe.options import require_known
from llama_index.vector_stores.rqmoe.queries import conditions, doomed, empty_result
from llama_index.vector_stores.rqmoe.rows import nodes_of, rows_of
from llama_index.vector_stores.rqmoe.settings import StoreSettings

import rqmoe_store as rqs
from rqmoe_store import AsyncCompressedTable


class RQMoEVectorStore(StoreSettings):
    """Nodes and their embeddings in a LanceDB table that keeps a few bytes per embedding.

        vector_store = RQMoEVectorStore(uri="./data")
        storage_context = StorageContext.from_defaults(vector_store=vector_store)
        index = VectorStoreIndex(nodes, storage_context=storage_context)

    The table is opened, or made by the first `add`. Its embeddings stay raw and are searched exactly until
    there are `train_from` of them; then a codec is trained, and codes take their place. From then on the
    embeddings of the nodes returned are decoded ones. What is added is on disk at once: `persist` has nothing
    to do. Wrong arguments raise `ValueError`s, `InvalidInputError` and `TableError` of `rqmoe_store`.

    Similarities are higher for nearer nodes: the cosine under metric "cosine" (the default), the inner
    product under "dot", 1 / (1 + squared distance) under "l2"; BM25 in mode "text_search", and the reranker's
    score in mode "hybrid".
    """

    def add(self, nodes: Iterable[BaseNode], **kwargs: Any) -> list[str]:
        """Write nodes with their embeddings, all in one commit or none; a node of the same id is replaced.

        Args:
            nodes: with embeddings of one dimension. Of several with the same id the last one is kept.
            kwargs: `show_progress`, in place of the store's.

        Returns:
            The ids of the nodes.

        Raises:
            InvalidInputError: missing embeddings, other dimensions, NaN or infinite values, zero vectors
                under "cosine", metadata that JSON cannot hold, no nodes, or unknown options.
            StorageError: the disk or bucket refuses to take them.
        """
        require_known(kwargs, "add", ["show_progress"])
        nodes = list(nodes)
        if nodes:
            rows = rows_of(nodes, self._nodes.columns)
            table = self._nodes.made_for(rows)
            table.merge_insert(ID).when_matched_update_all().when_not_matched_insert_all().execute(rows)
            self._train_if_due(table, kwargs)
        return [node.node_id for node in nodes]

    async def async_add(self, nodes: Iterable[BaseNode], **kwargs: Any) -> list[str]:
        """As `add`; the event loop is free meanwhile."""
        require_known(kwargs, "add", ["show_progress"])
        nodes = list(nodes)
        if nodes:
            rows = await asyncio.to_thread(rows_of, nodes, self._nodes.columns)
            table = AsyncCompressedTable(await asyncio.to_thread(self._nodes.made_for, rows))
            merge = table.merge_insert(ID).when_matched_update_all().when_not_matched_insert_all()
            await merge.execute(rows)
            await asyncio.to_thread(self._train_if_due, table.blocking, kwargs)
        return [node.node_id for node in nodes]

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Delete the nodes of a document."""
        self._delete(rqs.column_condition(self._nodes.columns.document, [ref_doc_id]), delete_kwargs)

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """As `delete`; the event loop is free meanwhile."""
        await self._adelete(rqs.column_condition(self._nodes.columns.document, [ref_doc_id]), delete_kwargs)

    def delete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """Delete the nodes that have one of the ids and match the filters; None for any, no ids for none.

        Raises:
            InvalidInputError: neither of the two (`clear` deletes all nodes), filters that cannot be used, or
                that say nothing: empty ones, in a part of them too, or such that all nodes match whatever
                they hold.
        """
        self._delete(doomed(self._nodes.columns, node_ids, filters), delete_kwargs)

    async def adelete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """As `delete_nodes`; the event loop is free meanwhile."""
        await self._adelete(doomed(self._nodes.columns, node_ids, filters), delete_kwargs)

    def clear(self) -> None:
        """Delete all nodes; table and codec stay."""
        self._delete("true", {})

    async def aclear(self) -> None:
        """As `clear`; the event loop is free meanwhile."""
        await self._adelete("true", {})

    def get_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """The nodes that have one of the ids and match the filters, None for any; in the table's order.

        Raises:
            InvalidInputError: filters that cannot be used.
        """
        where = conditions(self._nodes.columns, node_ids=node_ids, filters=filters)
        table = self._nodes.opened()
        if table is None:
            return []
        return nodes_of(self._read(table.search(), where).to_arrow(), self._nodes.columns)

    async def aget_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """As `get_nodes`; the event loop is free meanwhile."""
        where = conditions(self._nodes.columns, node_ids=node_ids, filters=filters)
        table = await self._nodes.aopened()
        if table is None:
            return []
        found = await self._read(await table.search(), where).to_arrow()
        return await asyncio.to_thread(nodes_of, found, self._nodes.columns)

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Find the nodes most similar to a query.

        Modes are "default" (by vector), "mmr" (nodes that are also unlike each other), "text_search" and
        "hybrid"; the last two make the full-text index if there is none. In "hybrid" the best
        `similarity_top_k` nodes by vector and by text (or `sparse_top_k`, if that is more) become the best
        `hybrid_top_k`. An empty list of `node_ids` stands for all nodes, as LlamaIndex's retrievers mean it;
        an empty list of `doc_ids` for none. Nodes are returned whole, whatever `output_fields` says.

        Args:
            query: LlamaIndex's query.
            kwargs: `mmr_threshold`, 0 for the most different nodes up to 1 for the nearest, in place of the
                query's; `nprobes` and `shortlist`, in place of the store's; `where`, an SQL condition on the
                table's columns, in addition to the query's filters.

        Returns:
            Nodes with embeddings, similarities and ids, the most similar first; empty lists for none.

        Raises:
            InvalidInputError: another mode; a query without embedding or text where the mode needs it, or
                with an embedding of another dimension; filters that cannot be used; unknown options.
        """
        search = self._search(query, kwargs)
        table = self._nodes.opened()
        if table is None:
            return empty_result()
        if search.by_text:
            table.create_fts_index(self.text_key, exist_ok=True)
        return search.result(search.continued(table.search(**search.start)).to_arrow(), table.metric)

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """As `query`; the event loop is free meanwhile."""
        search = self._search(query, kwargs)
        table = await self._nodes.aopened()
        if table is None:
            return empty_result()
        if search.by_text:
            await table.create_fts_index(self.text_key, exist_ok=True)
        found = await search.continued(await table.search(**search.start)).to_arrow()
        return await asyncio.to_thread(search.result, found, table.blocking.metric)

    def _delete(self, where: str, options: Mapping[str, Any]) -> None:
        require_known(options, "delete")
        table = self._nodes.opened()
        if table is not None:
            table.delete(where)

    async def _adelete(self, where: str, options: Mapping[str, Any]) -> None:
        require_known(options, "delete")
        table = await self._nodes.aopened()
        if table is not None:
            await table.delete(where)

    def _read(self, search: Any, where: str | None) -> Any:
        search.select(self._nodes.columns.stored).limit(None)
        return search if where is None else search.where(where)
