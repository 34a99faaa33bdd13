"""`RQMoEDocumentStore`: Haystack's documents in a LanceDB table that keeps a few bytes per embedding."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from haystack.dataclasses import Document
from haystack.document_stores.types import DuplicatePolicy
from haystack_integrations.document_stores.rqmoe import _metadata, _work
from haystack_integrations.document_stores.rqmoe._async_methods import AsyncMethods
from haystack_integrations.document_stores.rqmoe._filters import condition_of, condition_to_change_by
from haystack_integrations.document_stores.rqmoe._retrieval import Retrieval
from haystack_integrations.document_stores.rqmoe._rows import ID, META, documents_of, metas_of
from haystack_integrations.document_stores.rqmoe._table import store_errors


class RQMoEDocumentStore(Retrieval, AsyncMethods):
    """Documents in a table whose embeddings are compressed once there are enough of them.

    Every method has a twin whose name ends in `_async`, which does not keep the event loop waiting. What the
    table refuses is raised as Haystack's DocumentStoreError, filters that cannot be understood as its
    FilterError. A call that raises has written nothing, unless it says otherwise.
    """

    def count_documents(self) -> int:
        """Number of documents."""
        table = self._table.opened()
        return 0 if table is None else table.count_rows()

    def filter_documents(self, filters: dict[str, Any] | None = None) -> list[Document]:
        """All documents that match, in no particular order.

        Args:
            filters: as Haystack documents them; None or {} for all documents. Fields are "id", "content", and
                "meta." with a name, or with several for what is in nested objects. Dates are told by their
                ISO format, and compared by their moment, however that is written.

        Raises:
            FilterError: an operator, a field or a value that there is not.
        """
        return documents_of(self._read(condition_of(filters), _work.columns_of(self.return_embedding)))

    def write_documents(
        self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE
    ) -> int:
        """Write documents, all in one commit or none at all, and train the table's codec when it is due.

        Args:
            documents: with or without embeddings. Everything is kept: content, blob, metadata (lists for
                tuples), score and sparse embedding as they are, embeddings in single precision until they are
                encoded.
            policy: what becomes of ids that are there already, or twice in this call. FAIL raises, SKIP keeps
                what was first, OVERWRITE what is last; NONE is FAIL.

        Returns:
            How many were written; by OVERWRITE, all that were given.

        Raises:
            ValueError: no list of documents, or an unknown policy.
            DuplicateDocumentError: an id is there already, and the policy is FAIL or NONE.
            DocumentStoreError: embeddings of several dimensions, or of another one than those that are there;
                values that cannot be kept, such as dates in metadata that are no text; ids that are no text.
        """
        batch = _work.Batch.of(documents, policy)
        if not batch.documents:
            return 0
        table, rows = self._made_for(batch)
        with store_errors():
            if batch.policy is DuplicatePolicy.FAIL:
                for found in self._read(_work.with_ids(batch.ids), [ID], limit=1)[ID].to_pylist():
                    raise _work.exists_already(found, "there already")
            written = batch.written(batch.merging(table.merge_insert(ID)).execute(rows))
            self._train_when_due(table)
        return written

    def delete_documents(self, document_ids: list[str]) -> None:
        """Delete the documents of these ids; ids that there are not are passed over. Raises ValueError for no
        list of texts."""
        self._delete(_work.with_ids(document_ids))

    def delete_all_documents(self, recreate_index: bool = False) -> None:
        """Delete all documents.

        Args:
            recreate_index: also drop the table with its codec, so that the next documents may have embeddings
                of another model.
        """
        if recreate_index:
            self._table.drop()
        else:
            self._delete("true")

    def delete_by_filter(self, filters: dict[str, Any]) -> int:
        """Delete the documents that match; returns how many.

        Raises:
            FilterError: as `filter_documents`; for filters that say nothing: none at all, a part without
                conditions, or such that all documents match whatever they hold.
        """
        return self._delete(condition_to_change_by(filters))

    def update_by_filter(self, filters: dict[str, Any], meta: dict[str, Any]) -> int:
        """Set fields in the metadata of the documents that match, and leave their other fields as they are.

        What others write to the same documents' metadata meanwhile is lost.

        Args:
            filters: as for `filter_documents`, but not empty.
            meta: new values by field.

        Returns:
            How many documents match.

        Raises:
            FilterError: as `delete_by_filter`.
            DocumentStoreError: values that cannot be kept.
        """
        condition, table = condition_to_change_by(filters), self._table.opened()
        _metadata.as_json(meta, META)
        rows = _work.updated(self._read(condition, [ID, META]), meta)
        if table is None or not rows.num_rows:
            return 0
        with store_errors():
            return table.merge_insert(ID).when_matched_update_all().execute(rows).num_updated_rows

    def count_documents_by_filter(self, filters: dict[str, Any]) -> int:
        """Number of documents that match. Raises FilterError as `filter_documents`."""
        condition, table = condition_of(filters), self._table.opened()
        with store_errors():
            return 0 if table is None else table.count_rows(condition)

    def count_unique_metadata_by_filter(
        self, filters: dict[str, Any], metadata_fields: list[str]
    ) -> dict[str, int]:
        """How many different values each of some fields has in the documents that match; 1 and "1" are
        different.

        Args:
            filters: as for `filter_documents`.
            metadata_fields: names of fields, with or without "meta.".

        Raises:
            FilterError: as `filter_documents`.
        """
        return _metadata.counts_of_unique(self._metas(filters), metadata_fields)

    def get_metadata_fields_info(self) -> dict[str, dict[str, str]]:
        """The type of every field of metadata: "boolean", "int", "float" or "keyword"."""
        return _metadata.fields_info(self._metas(None))

    def get_metadata_field_min_max(self, metadata_field: str) -> dict[str, Any]:
        """The least and the largest value ("min" and "max") of a field, named with or without "meta."; None
        for both where it has none, or texts and numbers."""
        return _metadata.min_max(self._metas(None), metadata_field)

    def get_metadata_field_unique_values(
        self,
        metadata_field: str,
        search_term: str | None = None,
        from_: int = 0,
        size: int = 10,
        filters: dict[str, Any] | None = None,
    ) -> tuple[list[Any], int]:
        """Different values of a field, ordered as texts.

        Args:
            metadata_field: its name, with or without "meta.".
            search_term: part of the values' text, in upper or lower case.
            from_: values to leave out at the beginning.
            size: values to return at most.
            filters: as for `filter_documents`.

        Returns:
            The values, and how many there are in all.

        Raises:
            FilterError: as `filter_documents`.
        """
        values = _metadata.unique_values(self._metas(filters), metadata_field, search_term)
        return values[from_ : from_ + size], len(values)

    def _metas(self, filters: dict[str, Any] | None) -> list[dict[str, Any]]:
        return metas_of(self._read(condition_of(filters), [META]))

    def _read(self, condition: str | None, columns: Sequence[str], limit: int | None = None) -> pa.Table:
        table = self._table.opened()
        if table is None:
            return _work.nothing(columns)
        with store_errors():
            return _work.reading(table.search(), condition, columns, limit).to_arrow()

    def _delete(self, condition: str) -> int:
        table = self._table.opened()
        with store_errors():
            return 0 if table is None else table.delete(condition)
