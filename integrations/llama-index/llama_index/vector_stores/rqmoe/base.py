"""`RQMoEVectorStore`: a LlamaIndex vector store that keeps a few bytes per embedding."""

from collections.abc import Iterable, Mapping
from typing import Any

from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import (
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryResult,
)
from llama_index.vector_stores.rqmoe.options import require_known
from llama_index.vector_stores.rqmoe.queries import condition_of, condition_to_delete_by, empty_result
from llama_index.vector_stores.rqmoe.rows import nodes_of, rows_of
from llama_index.vector_stores.rqmoe.settings import StoreSettings

import rqmoe_store as rqs


class RQMoEVectorStore(StoreSettings):
    """Nodes and their embeddings in a LanceDB table that keeps a few bytes per embedding.

        vector_store = RQMoEVectorStore(uri="./data")
        storage_context = StorageContext.from_defaults(vector_store=vector_store)
        index = VectorStoreIndex(nodes, storage_context=storage_context)

    The table is opened if it exists, and otherwise created by the first `add`. Its embeddings stay raw and
    are searched exactly until there are `train_from` of them; then a codec is trained, and codes replace
    them. From then on the embeddings of the nodes returned are decoded ones. What is added is on disk at
    once: `persist` has nothing to do. Wrong arguments raise `ValueError`s, `InvalidInputError` and
    `TableError` of `rqmoe_store`.

    Similarities are higher for nearer nodes: the cosine under metric "cosine" (the default), the inner
    product under "dot", 1 / (1 + squared distance) under "l2"; BM25 in mode "text_search", and the reranker's
    score in mode "hybrid".

    Awaited methods leave the event loop free, and take, return and raise what the others do.
    """

    def add(self, nodes: Iterable[BaseNode], **kwargs: Any) -> list[str]:
        """Write nodes with their embeddings, all in one commit or none, and train the codec when it is due.

        A node of the same id is replaced. While one call trains, others go on adding. If training fails, this
        call raises the error, and its nodes are there.

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
            progress = bool(kwargs.get("show_progress", self.show_progress))
            self._nodes.add(rows_of(nodes, self._columns), progress=progress)
        return [node.node_id for node in nodes]

    async def async_add(self, nodes: Iterable[BaseNode], **kwargs: Any) -> list[str]:
        """As `add`, awaited."""
        return await self._nodes.in_thread(self.add, nodes, **kwargs)

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Delete the nodes of a document."""
        self._delete(rqs.column_condition(self._columns.document, [ref_doc_id]), delete_kwargs)

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """As `delete`, awaited."""
        await self._nodes.in_thread(self.delete, ref_doc_id, **delete_kwargs)

    def delete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """Delete the nodes that have one of the ids and match the filters; None for any, no ids for none.

        Raises:
            InvalidInputError: neither of the two (`clear` deletes all nodes), filters that cannot be used, or
                that say nothing: empty ones, also within a group, or such that all nodes match whatever they
                hold.
        """
        self._delete(condition_to_delete_by(self._columns, node_ids, filters), delete_kwargs)

    async def adelete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """As `delete_nodes`, awaited."""
        await self._nodes.in_thread(self.delete_nodes, node_ids, filters, **delete_kwargs)

    def clear(self) -> None:
        """Delete all nodes; table and codec stay."""
        self._delete("true", {})

    async def aclear(self) -> None:
        """As `clear`, awaited."""
        await self._nodes.in_thread(self.clear)

    def get_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """The nodes that have one of the ids and match the filters, None for any; in the table's order.

        Raises:
            InvalidInputError: filters that cannot be used.
        """
        where = condition_of(self._columns, node_ids=node_ids, filters=filters)
        table = self._nodes.open()
        if table is None:
            return []
        search = table.search().select(self._columns.stored).limit(None)
        if where is not None:
            search.where(where)
        return nodes_of(search.to_arrow(), self._columns)

    async def aget_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """As `get_nodes`, awaited."""
        return await self._nodes.in_thread(self.get_nodes, node_ids, filters)

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """Find the nodes most similar to a query.

        Modes are "default" (by vector), "mmr" (nodes that are also unlike each other), "text_search" and
        "hybrid"; the last two create the full-text index if there is none. In "hybrid" the best
        `similarity_top_k` nodes by vector and by text (or `sparse_top_k`, if that is more) become the best
        `hybrid_top_k`. An empty list of `node_ids` stands for all nodes, as LlamaIndex's retrievers mean it;
        an empty list of `doc_ids` for none. Nodes are returned whole, whatever `output_fields` says.

        Args:
            query: LlamaIndex's query.
            kwargs: `mmr_threshold`, 0 for the most different nodes up to 1 for the nearest, in place of the
                query's; `mmr_method`, "mmr" or "coverage" for the nodes that best stand for all near the
                question; `nprobes` and `shortlist`, in place of the store's; `where`, an SQL condition on the
                table's columns, in addition to the query's filters.

        Returns:
            Nodes with embeddings, similarities and ids, the most similar first; empty lists for none.

        Raises:
            InvalidInputError: another mode; a query without embedding or text where the mode needs it, or
                with an embedding of another dimension; filters that cannot be used; unknown options.
        """
        search = self._search(query, kwargs)
        table = self._nodes.open(text_index=search.by_text)
        if table is None:
            return empty_result()
        return search.result(search.with_options(table.search(**search.start)).to_arrow(), table.metric)

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """As `query`, awaited."""
        return await self._nodes.in_thread(self.query, query, **kwargs)

    def _delete(self, where: str, options: Mapping[str, Any]) -> None:
        require_known(options, "delete")
        table = self._nodes.open()
        if table is not None:
            table.delete(where)
