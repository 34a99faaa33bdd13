"""The table that documents are kept in: opened when it is there, made when the dimension is known."""

import asyncio
import dataclasses
import threading

import pyarrow as pa
from lancedb.db import DBConnection

import rqmoe_store as rqs
from langchain_rqmoe.rows import Columns
from rqmoe_store import (
    AsyncCompressedTable,
    CodecConfig,
    CompressedTable,
    InvalidInputError,
    TableError,
    TrainConfig,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableSettings:
    """Which table it is, and how it is made and trained; see `RQMoEVectorStore`."""

    database: DBConnection
    name: str
    columns: Columns
    config: CodecConfig | None
    training: TrainConfig | None
    train_from: int | None

    def __post_init__(self) -> None:
        train_from = self.train_from
        if train_from is not None and (type(train_from) is not int or train_from < 1):
            raise InvalidInputError(
                f"Got train_from={train_from!r}; expected a whole number from 1, or None."
            )
        names = dataclasses.astuple(self.columns)
        if len(set(names)) < len(names) or not all(isinstance(name, str) and name for name in names):
            raise InvalidInputError(
                f"Got columns {names}; expected four different names as id_key, text_key, metadata_key and "
                "vector_key."
            )


class DocumentTable:
    """A compressed table of documents that may not exist yet; can be used by several threads."""

    def __init__(self, settings: TableSettings) -> None:
        self.settings = settings
        self._store: CompressedTable | None = None
        self._lock = threading.RLock()
        self._training = threading.Lock()

    def opened(self) -> CompressedTable | None:
        """The table; None while there is none.

        Raises:
            TableError: a table of this name that is none of ours: not compressed, or with other columns or
                another metric.
            ArtifactError: its codec is missing or damaged.
        """
        with self._lock:
            if self._store is None:
                self._store = self._open()
            return self._store

    def begun(self, rows: pa.Table) -> tuple[CompressedTable, bool]:
        """The table that rows go into, and whether they are in it: those that it begins with are.

        When the first rows are refused no table is made, so that it has the dimension of good ones.

        Raises:
            InvalidInputError: the table is for vectors of another dimension, or these cannot be kept.
            TableError, ArtifactError: as `opened`.
            StorageError: the disk or bucket refuses to take it.
        """
        settings = self.settings
        with self._lock:
            store = self.opened()
            if store is None:
                try:
                    self._store = rqs.create_table(
                        settings.database,
                        settings.name,
                        rows,
                        schema=rows.schema,
                        config=settings.config,
                        vector_column=settings.columns.vector,
                        key=settings.columns.id,
                    )
                    return self._store, True
                except TableError:
                    store = self.opened()  # another process may have been quicker
                    if store is None:
                        raise
        require_dim(store, rows.schema.field(settings.columns.vector).type.list_size)
        return store, False

    async def aopened(self) -> AsyncCompressedTable | None:
        """As `opened`, without keeping the event loop waiting."""
        store = self._store
        if store is None:
            store = await asyncio.to_thread(self.opened)
        return None if store is None else AsyncCompressedTable(store)

    def train_when_grown(self, store: CompressedTable) -> None:
        """Train a first codec and encode all rows, once there are enough; nothing while that is being done.

        Raises as `optimize` of the table; rows that have no code then stay raw.
        """
        settings = self.settings
        if not store.is_due_for_training(settings.train_from) or not self._training.acquire(blocking=False):
            return
        try:
            progress = settings.training is None or settings.training.progress
            store.optimize(train_from=settings.train_from, training=settings.training, progress=progress)
        finally:
            self._training.release()

    def _open(self) -> CompressedTable | None:
        try:
            store = rqs.open_table(self.settings.database, self.settings.name)
        except rqs.TableNotFoundError:
            return None
        columns, config = self.settings.columns, self.settings.config
        types = {field.name: field.type for field in store.schema}
        expected = {
            columns.id: pa.string(),
            columns.text: pa.string(),
            columns.metadata: pa.json_(pa.string()),
        }
        wrong = any(types.get(name) != data_type for name, data_type in expected.items())
        if wrong or store.columns.vector_column != columns.vector or store.key != columns.id:
            raise TableError(
                f"Table {store.name!r} holds no documents as this store keeps them (columns: "
                f"{', '.join(store.schema.names)}; vectors: {store.columns.vector_column!r}; key: "
                f"{store.key!r}); expected {', '.join(expected)} and vectors {columns.vector!r}, with the "
                f"key {columns.id!r}. Choose another table_name, or say how its columns are called (id_key, "
                f"text_key, ...)."
            )
        if config is not None and config.metric != store.metric:
            raise TableError(
                f"Got a config with metric {config.metric!r}, but table {store.name!r} was made for "
                f"{store.metric!r}. Leave config out, or choose another table_name."
            )
        return store


def require_dim(store: CompressedTable, dim: int) -> None:
    """Raise InvalidInputError unless the table is for vectors of `dim` numbers."""
    if store.dim != dim:
        raise InvalidInputError(
            f"The embedding model returns vectors of {dim} numbers, but table {store.name!r} holds vectors "
            f"of {store.dim}: it was filled by another model. Use that model, or another table_name. Nothing "
            f"was written."
        )
