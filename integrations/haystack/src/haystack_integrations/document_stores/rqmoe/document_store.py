"""`RQMoEDocumentStore`: a Haystack document store that keeps a few bytes per embedding."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import lancedb
import pyarrow as pa
from haystack import default_from_dict, default_to_dict
from haystack.dataclasses import Document
from haystack.document_stores.errors import DocumentStoreError
from haystack.document_stores.types import DuplicatePolicy
from haystack.utils import Secret
from haystack_integrations.document_stores.rqmoe import _metadata, _requests
from haystack_integrations.document_stores.rqmoe._filters import condition_of, condition_to_change_by
from haystack_integrations.document_stores.rqmoe._requests import DiversityMethod
from haystack_integrations.document_stores.rqmoe._rows import (
    COLUMNS,
    CONTENT,
    EMBEDDING,
    ID,
    META,
    dimension_of,
    documents_of,
    metas_of,
    rows_of,
)
from lancedb.db import DBConnection

import rqmoe_store as rqs

StorageOptions = Mapping[str, str | Secret]


class RQMoEDocumentStore:
    """Documents in a table whose embeddings are compressed once there are enough of them.

    Every method has a twin whose name ends in `_async`: it leaves the event loop free, and takes, returns and
    raises what the method does. What the table refuses is raised as Haystack's DocumentStoreError, filters
    that cannot be understood as its FilterError. A call that raises has written nothing, unless it says
    otherwise.
    """

    def __init__(
        self,
        database: str,
        table_name: str = "documents",
        *,
        embedding_dims: int | None = None,
        config: rqs.CodecConfig | None = None,
        training: rqs.TrainConfig | None = None,
        train_from: int | None = 10_000,
        return_embedding: bool = True,
        progress_bar: bool = True,
        storage_options: StorageOptions | None = None,
    ) -> None:
        """Describe a document store. Nothing is opened or created before it is first used.

        Args:
            database: folder of a LanceDB database, or a bucket such as "s3://bucket/folder".
            table_name: the table of the documents.
            embedding_dims: components of an embedding; None for as many as the first embedding written has.
                Without it the first documents cannot all be without embeddings.
            config: of the codec that embeddings will be encoded by, for a new table; None for the defaults,
                with the metric "cosine".
            training: how the codec is trained; None for the defaults.
            train_from: embeddings from which a codec is trained, by the call that writes the last of them;
                None for never. Until then embeddings are kept as they are, and searched exactly.
            return_embedding: whether `filter_documents` returns embeddings: those written, in single
                precision, or what their codes decode to.
            progress_bar: whether training and encoding show progress bars.
            storage_options: of a bucket, as LanceDB takes them; keys and tokens as a Secret from an
                environment variable, so that they are not serialized with a pipeline.

        Raises:
            DocumentStoreError: a setting of another type, or too small a `train_from`.
        """
        self.database = str(database)
        self.table_name = table_name
        self.embedding_dims = _require_whole("embedding_dims", embedding_dims)
        self.config = _require_type("config", config, rqs.CodecConfig)
        self.training = _require_type("training", training, rqs.TrainConfig)
        self.train_from = _require_whole("train_from", train_from)
        _require_trainable(self.train_from, self.config)
        self.return_embedding = return_embedding
        self.progress_bar = progress_bar
        self.storage_options = storage_options
        self._table = rqs.ManagedTable(
            self._connect,
            table_name,
            columns=COLUMNS,
            key=ID,
            vector_column=EMBEDDING,
            text_column=CONTENT,
            dim=embedding_dims,
            config=config,
            training=training,
            train_from=train_from,
            progress=progress_bar,
            row_name="document",
        )

    @property
    def table(self) -> rqs.CompressedTable | None:
        """The table of the documents, for everything else that can be done with it: `tune`, `retrain`,
        `health`, `optimize`, ... None until documents were written."""
        with store_errors():
            return self._table.open()

    def to_dict(self) -> dict[str, Any]:
        """The settings, as `from_dict` reads them."""
        options = self.storage_options
        return default_to_dict(
            self,
            database=self.database,
            table_name=self.table_name,
            embedding_dims=self.embedding_dims,
            config=None if self.config is None else dataclasses.asdict(self.config),
            training=None if self.training is None else dataclasses.asdict(self.training),
            train_from=self.train_from,
            return_embedding=self.return_embedding,
            progress_bar=self.progress_bar,
            storage_options=None
            if options is None
            else {
                name: option.to_dict() if isinstance(option, Secret) else option
                for name, option in options.items()
            },
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """A store with the settings that `to_dict` wrote.

        Raises:
            DeserializationError: `data` is of another class.
            InvalidInputError: unknown settings of a codec or its training.
        """
        settings = dict(data.get("init_parameters", {}))
        for name, kind in (("config", rqs.CodecConfig), ("training", rqs.TrainConfig)):
            if settings.get(name) is not None:
                settings[name] = kind(**settings[name])
        if settings.get("storage_options") is not None:
            settings["storage_options"] = {
                name: Secret.from_dict(option) if isinstance(option, dict) else str(option)
                for name, option in settings["storage_options"].items()
            }
        return default_from_dict(cls, {**data, "init_parameters": settings})

    def count_documents(self) -> int:
        """Number of documents."""
        return self._count(None)

    async def count_documents_async(self) -> int:
        """As `count_documents`, awaited."""
        return await self._table.in_thread(self.count_documents)

    def filter_documents(self, filters: dict[str, Any] | None = None) -> list[Document]:
        """All documents that match, in no particular order.

        Args:
            filters: as Haystack documents them; None or {} for all documents. Fields are "id", "content", and
                "meta." with a name, or with several for what is in nested objects. Dates are recognized by
                their ISO format, and compared by their moment, however that is written.

        Raises:
            FilterError: an unknown operator or field, or a value that the operator does not take.
        """
        columns = _requests.document_columns(self.return_embedding)
        return documents_of(self._read(condition_of(filters), columns))

    async def filter_documents_async(self, filters: dict[str, Any] | None = None) -> list[Document]:
        """As `filter_documents`, awaited."""
        return await self._table.in_thread(self.filter_documents, filters)

    def write_documents(
        self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE
    ) -> int:
        """Write documents, all in one commit or none at all, and train the table's codec when it is due.

        While one call trains, others go on writing. If training fails, this call raises the error with a note
        that its documents were written.

        Args:
            documents: with or without embeddings. Everything is kept: content, blob, metadata (lists for
                tuples), score and sparse embedding as they are, embeddings in single precision until they are
                encoded.
            policy: what becomes of ids that exist already, or occur twice in this call. FAIL raises, SKIP
                keeps the first document, OVERWRITE the last; NONE is FAIL.

        Returns:
            How many were written; by OVERWRITE, all that were given.

        Raises:
            ValueError: no list of documents, or an unknown policy.
            DuplicateDocumentError: an id exists already, and the policy is FAIL or NONE.
            DocumentStoreError: embeddings of several dimensions, or of another one than the table's; values
                that cannot be kept, such as NaN in metadata; ids that are no text.
        """
        batch = _requests.Batch.of(documents, policy)
        if not batch.documents:
            return 0
        with store_errors():
            rows = rows_of(batch.documents, self._dim_of(batch.documents))
            if batch.policy is DuplicatePolicy.FAIL:
                existing = self._read(_requests.id_condition(batch.ids), [ID], limit=1)
                for found in existing[ID].to_pylist():
                    raise _requests.duplicate_error(found, "there already")
            overwrites = batch.policy is DuplicatePolicy.OVERWRITE
            added = self._table.add(rows, existing="replace" if overwrites else "keep")
        return batch.count_written(added.inserted)

    async def write_documents_async(
        self, documents: list[Document], policy: DuplicatePolicy = DuplicatePolicy.NONE
    ) -> int:
        """As `write_documents`, awaited."""
        return await self._table.in_thread(self.write_documents, documents, policy)

    def delete_documents(self, document_ids: list[str]) -> None:
        """Delete the documents of these ids; unknown ids are ignored. Raises ValueError for no list of
        texts."""
        self._delete(_requests.id_condition(document_ids))

    async def delete_documents_async(self, document_ids: list[str]) -> None:
        """As `delete_documents`, awaited."""
        await self._table.in_thread(self.delete_documents, document_ids)

    def delete_all_documents(self, recreate_index: bool = False) -> None:
        """Delete all documents.

        Args:
            recreate_index: also drop the table with its codec, so that the next documents may have embeddings
                of another model.
        """
        if recreate_index:
            with store_errors():
                self._table.drop()
        else:
            self._delete("true")

    async def delete_all_documents_async(self, recreate_index: bool = False) -> None:
        """As `delete_all_documents`, awaited."""
        await self._table.in_thread(self.delete_all_documents, recreate_index)

    def delete_by_filter(self, filters: dict[str, Any]) -> int:
        """Delete the documents that match; returns how many.

        Raises:
            FilterError: as `filter_documents`; for filters that say nothing: none at all, a part without
                conditions, or such that all documents match whatever they hold.
        """
        return self._delete(condition_to_change_by(filters))

    async def delete_by_filter_async(self, filters: dict[str, Any]) -> int:
        """As `delete_by_filter`, awaited."""
        return await self._table.in_thread(self.delete_by_filter, filters)

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
        condition, table = condition_to_change_by(filters), self.table
        _metadata.as_json(meta, META)
        rows = _requests.updated_metadata(self._read(condition, [ID, META]), meta)
        if table is None or not rows.num_rows:
            return 0
        with store_errors():
            return table.merge_insert(ID).when_matched_update_all().execute(rows).num_updated_rows

    async def update_by_filter_async(self, filters: dict[str, Any], meta: dict[str, Any]) -> int:
        """As `update_by_filter`, awaited."""
        return await self._table.in_thread(self.update_by_filter, filters, meta)

    def count_documents_by_filter(self, filters: dict[str, Any]) -> int:
        """Number of documents that match. Raises FilterError as `filter_documents`."""
        return self._count(condition_of(filters))

    async def count_documents_by_filter_async(self, filters: dict[str, Any]) -> int:
        """As `count_documents_by_filter`, awaited."""
        return await self._table.in_thread(self.count_documents_by_filter, filters)

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

    async def count_unique_metadata_by_filter_async(
        self, filters: dict[str, Any], metadata_fields: list[str]
    ) -> dict[str, int]:
        """As `count_unique_metadata_by_filter`, awaited."""
        count = self.count_unique_metadata_by_filter
        return await self._table.in_thread(count, filters, metadata_fields)

    def get_metadata_fields_info(self) -> dict[str, dict[str, str]]:
        """The type of every field of metadata: "boolean", "int", "float" or "keyword"."""
        return _metadata.fields_info(self._metas(None))

    async def get_metadata_fields_info_async(self) -> dict[str, dict[str, str]]:
        """As `get_metadata_fields_info`, awaited."""
        return await self._table.in_thread(self.get_metadata_fields_info)

    def get_metadata_field_min_max(self, metadata_field: str) -> dict[str, Any]:
        """The least and the largest value ("min" and "max") of a field, named with or without "meta."; None
        for both if it has none, or texts and numbers."""
        return _metadata.min_max(self._metas(None), metadata_field)

    async def get_metadata_field_min_max_async(self, metadata_field: str) -> dict[str, Any]:
        """As `get_metadata_field_min_max`, awaited."""
        return await self._table.in_thread(self.get_metadata_field_min_max, metadata_field)

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
            from_: values to skip at the beginning.
            size: values to return at most.
            filters: as for `filter_documents`.

        Returns:
            The values, and how many there are in all.

        Raises:
            FilterError: as `filter_documents`.
        """
        values = _metadata.unique_values(self._metas(filters), metadata_field, search_term)
        return values[from_ : from_ + size], len(values)

    async def get_metadata_field_unique_values_async(
        self,
        metadata_field: str,
        search_term: str | None = None,
        from_: int = 0,
        size: int = 10,
        filters: dict[str, Any] | None = None,
    ) -> tuple[list[Any], int]:
        """As `get_metadata_field_unique_values`, awaited."""
        find = self.get_metadata_field_unique_values
        return await self._table.in_thread(find, metadata_field, search_term, from_, size, filters)

    def embedding_retrieval(
        self,
        query_embedding: list[float],
        *,
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
        return_embedding: bool = False,
        nprobes: int | None = None,
        shortlist: int | None = None,
        diversity: float | None = None,
        diversity_method: DiversityMethod = "mmr",
    ) -> list[Document]:
        """The documents whose embeddings are most similar to the query's, the most similar first.

        Args:
            query_embedding: made by the model that made the documents' embeddings.
            filters: as for `filter_documents`; `top_k` documents are found whenever that many match.
            top_k: documents at most.
            return_embedding: whether they have their embeddings.
            nprobes, shortlist: how much of a large table is searched, and how many documents are compared by
                what their codes decode to; None for the settings that the table was tuned to, or its
                defaults.
            diversity: 1 for the most similar documents to 0 for the most different ones; None for the most
                similar, however alike they are. Documents are in the order in which they were chosen.
            diversity_method: "mmr", maximal marginal relevance, or "coverage", documents that best stand for
                all that are similar to the query.

        Returns:
            Documents whose `score` is the cosine with the query, or the inner product where the metric is
            "dot", or minus the squared distance where it is "l2". Those without an embedding are not found.

        Raises:
            FilterError: as `filter_documents`.
            ValueError: a `top_k` that is no number of documents.
            DocumentStoreError: an embedding of another dimension, or not of finite numbers; settings out of
                range.
        """
        condition, columns = condition_of(filters), _requests.document_columns(return_embedding)
        table = self.table
        if not _requests.checked_top_k(top_k) or table is None:
            return []
        with store_errors():
            query = table.search(_requests.one_vector(query_embedding), "vector")
            _requests.set_parameters(query, nprobes, shortlist, diversity, diversity_method)
            found = _requests.restrict(query, condition, columns, top_k).to_arrow()
            return _requests.documents_by_distance(found, table.metric)

    async def embedding_retrieval_async(
        self,
        query_embedding: list[float],
        *,
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
        return_embedding: bool = False,
        nprobes: int | None = None,
        shortlist: int | None = None,
        diversity: float | None = None,
        diversity_method: DiversityMethod = "mmr",
    ) -> list[Document]:
        """As `embedding_retrieval`, awaited."""
        return await self._table.in_thread(
            self.embedding_retrieval,
            query_embedding,
            filters=filters,
            top_k=top_k,
            return_embedding=return_embedding,
            nprobes=nprobes,
            shortlist=shortlist,
            diversity=diversity,
            diversity_method=diversity_method,
        )

    def hybrid_retrieval(
        self,
        query: str,
        query_embedding: list[float],
        *,
        filters: dict[str, Any] | None = None,
        top_k: int = 10,
        return_embedding: bool = False,
        nprobes: int | None = None,
        shortlist: int | None = None,
        diversity: float | None = None,
        diversity_method: DiversityMethod = "mmr",
    ) -> list[Document]:
        """The documents that are best by their embeddings and by their words together, by reciprocal rank
        fusion.

        The first call creates a full-text index on the documents' content; call `table.optimize()` now and
        then to bring it up to date, which makes searches faster.

        Args:
            query: any text, whose words are searched for. Without any, documents are found by their
                embeddings alone.
            query_embedding, filters, top_k, return_embedding, nprobes, shortlist, diversity,
                diversity_method: as for `embedding_retrieval`.

        Returns:
            Documents whose `score` is their relevance by both.

        Raises as `embedding_retrieval`, and DocumentStoreError for a query that is no text.
        """
        condition, columns = condition_of(filters), _requests.document_columns(return_embedding)
        if not _requests.checked_top_k(top_k) or self.table is None:
            return []
        with store_errors():
            words = rqs.words_query(query, CONTENT)
            table = self._table.open(text_index=True)
            assert table is not None
            hybrid = table.search(query_type="hybrid").vector(_requests.one_vector(query_embedding))
            _requests.set_parameters(hybrid.text(words), nprobes, shortlist, diversity, diversity_method)
            found = _requests.restrict(hybrid, condition, columns, top_k).to_arrow()
            return _requests.documents_by_relevance(found)

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
        diversity: float | None = None,
        diversity_method: DiversityMethod = "mmr",
    ) -> list[Document]:
        """As `hybrid_retrieval`, awaited."""
        return await self._table.in_thread(
            self.hybrid_retrieval,
            query,
            query_embedding,
            filters=filters,
            top_k=top_k,
            return_embedding=return_embedding,
            nprobes=nprobes,
            shortlist=shortlist,
            diversity=diversity,
            diversity_method=diversity_method,
        )

    def _connect(self) -> DBConnection:
        options = {
            name: str(option.resolve_value()) if isinstance(option, Secret) else option
            for name, option in (self.storage_options or {}).items()
        }
        return lancedb.connect(self.database, storage_options=options or None)

    def _dim_of(self, documents: Sequence[Document]) -> int:
        """Components that the embeddings of documents to be written must have.

        Raises:
            DocumentStoreError: neither the table, nor the settings, nor an embedding tells.
        """
        first, known = dimension_of(documents), self._table.dim
        dim = first if known is None else known
        if dim is None:
            raise DocumentStoreError(
                "Got documents without embeddings for a new table, whose dimension is not known. Nothing was "
                "written; pass embedding_dims= to RQMoEDocumentStore, or embed the documents first."
            )
        return dim

    def _metas(self, filters: dict[str, Any] | None) -> list[dict[str, Any]]:
        return metas_of(self._read(condition_of(filters), [META]))

    def _read(self, condition: str | None, columns: Sequence[str], limit: int | None = None) -> pa.Table:
        table = self.table
        if table is None:
            return _requests.no_rows(columns)
        with store_errors():
            return _requests.restrict(table.search(), condition, columns, limit).to_arrow()

    def _count(self, condition: str | None) -> int:
        table = self.table
        with store_errors():
            return 0 if table is None else table.count_rows(condition)

    def _delete(self, condition: str) -> int:
        table = self.table
        with store_errors():
            return 0 if table is None else table.delete(condition)


@contextlib.contextmanager
def store_errors() -> Iterator[None]:
    """Raise errors of `rqmoe_store` as Haystack's DocumentStoreError, with their notes."""
    try:
        yield
    except rqs.RQMoEError as error:
        raised = DocumentStoreError(str(error))
        for note in getattr(error, "__notes__", ()):
            raised.add_note(note)
        raise raised from error


def _require_whole(name: str, value: Any) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise DocumentStoreError(f"Got {name}={value!r}; expected a whole number from 1 on, or None.")
    return value


def _require_trainable(train_from: int | None, config: rqs.CodecConfig | None) -> None:
    least = (rqs.CodecConfig() if config is None else config).least_training_rows
    if train_from is not None and train_from < least:
        raise DocumentStoreError(
            f"Got train_from={train_from}; expected {least} or more, for so many embeddings are needed to "
            "train a codec of this config, or None for no training."
        )


def _require_type(name: str, value: Any, kind: type) -> Any:
    if value is not None and not isinstance(value, kind):
        raise DocumentStoreError(f"Got {name}={value!r}; expected a rqmoe_store.{kind.__name__}, or None.")
    return value
