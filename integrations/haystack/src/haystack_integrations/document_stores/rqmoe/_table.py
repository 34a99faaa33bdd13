"""The table that a document store keeps its documents in: opened when it is first needed, made when first
written."""

import contextlib
import datetime
import threading
from collections.abc import Iterator, Mapping

import lancedb
from haystack.document_stores.errors import DocumentStoreError
from haystack.utils import Secret
from haystack_integrations.document_stores.rqmoe._rows import EMBEDDING, ID, schema_of
from lancedb.db import DBConnection

import rqmoe_store as rqs

StorageOptions = Mapping[str, str | Secret]


@contextlib.contextmanager
def store_errors() -> Iterator[None]:
    """Raise what the store refuses as Haystack's DocumentStoreError."""
    try:
        yield
    except rqs.RQMoEError as error:
        raise DocumentStoreError(str(error)) from error


class DocumentTable:
    """A table of documents, which need not be there yet. Safe to use from several threads."""

    def __init__(
        self,
        database: str,
        name: str,
        storage_options: StorageOptions | None,
        embedding_dims: int | None,
        config: rqs.CodecConfig | None,
    ) -> None:
        self._database, self._name, self._storage_options = database, name, storage_options
        self._embedding_dims, self._config = embedding_dims, config
        self._open: rqs.CompressedTable | None = None
        self._lock = threading.RLock()

    def opened(self) -> rqs.CompressedTable | None:
        """The table; None while it is not there.

        Raises:
            DocumentStoreError: it holds something else, or is for another dimension or codec.
        """
        if self._open is None:
            # A table that is not there is no failure: the first documents written make it.
            with self._lock, store_errors(), contextlib.suppress(rqs.TableNotFoundError):
                if self._open is None:
                    self._open = self._checked(rqs.open_table(self._connected(), self._name))
        return self._open

    def made(self, dim: int) -> rqs.CompressedTable:
        """The table, which is made for embeddings of `dim` components when it is not there. Raises as
        `opened`."""
        with self._lock, store_errors():
            if self.opened() is None:
                made = rqs.create_table(
                    self._connected(),
                    self._name,
                    schema=schema_of(dim),
                    config=self._new_config,
                    vector_column=EMBEDDING,
                    key=ID,
                    exist_ok=True,  # another process may have been quicker
                )
                self._open = self._checked(made)
            assert self._open is not None
            return self._open

    @property
    def metric(self) -> str:
        """How embeddings are compared, or will be."""
        table = self.opened()
        return self._new_config.metric if table is None else table.metric

    @property
    def _new_config(self) -> rqs.CodecConfig:
        return rqs.CodecConfig(metric="cosine") if self._config is None else self._config

    def dim_for(self, first: int | None) -> int:
        """Components that the embeddings of documents to be written must have.

        Args:
            first: components of the first of their embeddings, if they have any.

        Raises:
            DocumentStoreError: neither the table, nor the settings, nor an embedding says it; otherwise as
                `opened`.
        """
        table = self.opened()
        dim = table.dim if table is not None else self._embedding_dims or first
        if dim is None:
            raise DocumentStoreError(
                "Got documents without embeddings for a new table, whose dimension is not known. Nothing was "
                "written; pass embedding_dims= to RQMoEDocumentStore, or embed the documents first."
            )
        return dim

    def drop(self) -> None:
        """Remove the table with all that is in it; the next documents written make it anew."""
        with self._lock:
            if self.opened() is not None:
                self._connected().drop_table(self._name)
            self._open = None

    def _connected(self) -> DBConnection:
        options = {
            name: str(option.resolve_value()) if isinstance(option, Secret) else option
            for name, option in (self._storage_options or {}).items()
        }
        # So that what other processes write is read at once.
        return lancedb.connect(
            self._database, storage_options=options or None, read_consistency_interval=datetime.timedelta(0)
        )

    def _checked(self, table: rqs.CompressedTable) -> rqs.CompressedTable:
        missing = [name for name in schema_of(table.dim).names if name not in table.table.schema.names]
        if missing:
            raise DocumentStoreError(
                f"Table {self._name!r} in {self._database!r} has no column {missing[0]!r}, so it is none of "
                "RQMoEDocumentStore's. Choose another table_name."
            )
        if self._embedding_dims not in (None, table.dim):
            raise DocumentStoreError(
                f"Got embedding_dims={self._embedding_dims}, but table {self._name!r} in {self._database!r} "
                f"has embeddings of {table.dim} components. Use the model that they were made with, or "
                "choose another table_name."
            )
        config, made_with = self._config, table.codecs.metadata.config
        if config is not None and (config.metric, config.code_bytes) != (
            made_with.metric,
            made_with.code_bytes,
        ):
            raise DocumentStoreError(
                f"Got a config with metric={config.metric!r} and code_bytes={config.code_bytes}, but table "
                f"{self._name!r} in {self._database!r} was made with metric={made_with.metric!r} and "
                f"code_bytes={made_with.code_bytes}. Leave config out, or choose another table_name."
            )
        return table
