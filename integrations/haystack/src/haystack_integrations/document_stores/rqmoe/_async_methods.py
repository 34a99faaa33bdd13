"""The awaited methods of a document store, each like the one without `_async` in its name.

The store's own work is done in threads of its own; documents are turned into rows, and rows into documents,
in others.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from haystack.dataclasses import Document
from haystack.document_stores.types import DuplicatePolicy
from haystack_integrations.document_stores.rqmoe import _metadata, _work
from haystack_integrations.document_stores.rqmoe._base import DocumentStoreBase
from haystack_integrations.document_stores.rqmoe._filters import condition_of, condition_to_change_by
from haystack_integrations.document_stores.rqmoe._rows import CONTENT, ID, META, documents_of, metas_of
from haystack_integrations.document_stores.rqmoe._table import store_errors

import rqmoe_store as rqs


class AsyncMethods(DocumentStoreBase):
    """What is done with documents, awaited; methods take, return and raise what those of `RQMoEDocumentStore`
    do."""

    async def count_documents_async(self) -> int:
        """As `count_documents`."""
        table = await self._opened_async()
        return 0 if table is None else await table.count_rows()

    async def filter_documents_async(self, filters: dict[str, Any] | None = None) -> list[Document]:
        """As `filter_documents`."""
        rows = await self._read_async(condition_of(filters), _work.columns_of(self.return_embedding))
        return await asyncio.to_thread(documents_of, rows)

    async def write_documents_async(
        self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE
    ) -> int:
        """As `write_documents`."""
        batch = _work.Batch.of(documents, policy)
        if not batch.documents:
            return 0
        blocking, rows = await asyncio.to_thread(self._made_for, batch)
        table = rqs.AsyncCompressedTable(blocking)
        with store_errors():
            if batch.policy is DuplicatePolicy.FAIL:
                there = await self._read_async(_work.with_ids(batch.ids), [ID], limit=1)
                for found in there[ID].to_pylist():
                    raise _work.exists_already(found, "there already")
            written = batch.written(await batch.merging(table.merge_insert(ID)).execute(rows))
            await asyncio.to_thread(self._train_when_due, blocking)
        return written

    async def delete_documents_async(self, document_ids: list[str]) -> None:
        """As `delete_documents`."""
        await self._delete_async(_work.with_ids(document_ids))

    async def delete_all_documents_async(self, recreate_index: bool = False) -> None:
        """As `delete_all_documents`."""
        if recreate_index:
            await asyncio.to_thread(self._table.drop)
        else:
            await self._delete_async("true")

    async def delete_by_filter_async(self, filters: dict[str, Any]) -> int:
        """As `delete_by_filter`."""
        return await self._delete_async(condition_to_change_by(filters))

    async def update_by_filter_async(self, filters: dict[str, Any], meta: dict[str, Any]) -> int:
        """As `update_by_filter`."""
        condition, table = condition_to_change_by(filters), await self._opened_async()
        _metadata.as_json(meta, META)
        rows = await asyncio.to_thread(_work.updated, await self._read_async(condition, [ID, META]), meta)
        if table is None or not rows.num_rows:
            return 0
        with store_errors():
            done = await table.merge_insert(ID).when_matched_update_all().execute(rows)
        return done.num_updated_rows

    async def count_documents_by_filter_async(self, filters: dict[str, Any]) -> int:
        """As `count_documents_by_filter`."""
        condition, table = condition_of(filters), await self._opened_async()
        with store_errors():
            return 0 if table is None else await table.count_rows(condition)

    async def count_unique_metadata_by_filter_async(
        self, filters: dict[str, Any], metadata_fields: list[str]
    ) -> dict[str, int]:
        """As `count_unique_metadata_by_filter`."""
        metas = await self._metas_async(filters)
        return await asyncio.to_thread(_metadata.counts_of_unique, metas, metadata_fields)

    async def get_metadata_fields_info_async(self) -> dict[str, dict[str, str]]:
        """As `get_metadata_fields_info`."""
        return await asyncio.to_thread(_metadata.fields_info, await self._metas_async(None))

    async def get_metadata_field_min_max_async(self, metadata_field: str) -> dict[str, Any]:
        """As `get_metadata_field_min_max`."""
        return await asyncio.to_thread(_metadata.min_max, await self._metas_async(None), metadata_field)

    async def get_metadata_field_unique_values_async(
        self,
        metadata_field: str,
        search_term: str | None = None,
        from_: int = 0,
        size: int = 10,
        filters: dict[str, Any] | None = None,
    ) -> tuple[list[Any], int]:
        """As `get_metadata_field_unique_values`."""
        metas = await self._metas_async(filters)
        values = await asyncio.to_thread(_metadata.unique_values, metas, metadata_field, search_term)
        return values[from_ : from_ + size], len(values)

    async def embedding_retrieval_async(
        self,
        query_embedding: list[float],
        *,
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
        return_embedding: bool = False,
        nprobes: int | None = None,
        shortlist: int | None = None,
    ) -> list[Document]:
        """As `embedding_retrieval`."""
        condition, columns = condition_of(filters), _work.columns_of(return_embedding)
        table = await self._opened_async()
        if not _work.checked_top_k(top_k) or table is None:
            return []
        with store_errors():
            query = _work.tuned(table.vector_search(_work.one_vector(query_embedding)), nprobes, shortlist)
            found = await _work.reading(query, condition, columns, top_k).to_arrow()
        return await asyncio.to_thread(_work.scored, found, table.blocking.metric)

    async def hybrid_retrieval_async(
        self,
        query: str,
        query_embedding: list[float],
        *,
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
        return_embedding: bool = False,
        nprobes: int | None = None,
        shortlist: int | None = None,
    ) -> list[Document]:
        """As `hybrid_retrieval`."""
        condition, columns = condition_of(filters), _work.columns_of(return_embedding)
        table = await self._opened_async()
        if not _work.checked_top_k(top_k) or table is None:
            return []
        with store_errors():
            words = rqs.words_query(query, CONTENT)
            await table.create_fts_index(CONTENT, exist_ok=True)
            hybrid = (
                (await table.search(query_type="hybrid"))
                .vector(_work.one_vector(query_embedding))
                .text(words)
            )
            tuned = _work.tuned(hybrid, nprobes, shortlist)
            found = await _work.reading(tuned, condition, columns, top_k).to_arrow()
        return await asyncio.to_thread(_work.ranked, found)

    async def _opened_async(self) -> rqs.AsyncCompressedTable | None:
        table = await asyncio.to_thread(self._table.opened)
        return None if table is None else rqs.AsyncCompressedTable(table)

    async def _metas_async(self, filters: dict[str, Any] | None) -> list[dict[str, Any]]:
        return await asyncio.to_thread(metas_of, await self._read_async(condition_of(filters), [META]))

    async def _read_async(
        self, condition: str | None, columns: Sequence[str], limit: int | None = None
    ) -> pa.Table:
        table = await self._opened_async()
        if table is None:
            return _work.nothing(columns)
        with store_errors():
            return await _work.reading(await table.search(), condition, columns, limit).to_arrow()

    async def _delete_async(self, condition: str) -> int:
        table = await self._opened_async()
        with store_errors():
            return 0 if table is None else await table.delete(condition)
