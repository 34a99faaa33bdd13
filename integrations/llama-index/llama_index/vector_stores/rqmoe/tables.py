"""The table of a store: found, opened, and made when the first nodes are written."""

import asyncio
import threading
from typing import cast

import lancedb
import numpy as np
import pyarrow as pa
from lancedb.db import DBConnection, LanceDBConnection
from lancedb.table import LanceTable
from llama_index.vector_stores.rqmoe.columns import ID, METADATA, NODE, NodeColumns

import rqmoe_store as rqs
from rqmoe_store import (
    AsyncCompressedTable,
    CodecConfig,
    CompressedTable,
    InvalidInputError,
    TableError,
    TableNotFoundError,
)
from rqmoe_store.config import Metric

DEFAULT_METRIC: Metric = "cosine"
"""Embeddings of text are compared by angle, as LlamaIndex's own store does."""


def connected(
    uri: str | None, connection: DBConnection | None, storage_options: dict[str, str] | None
) -> LanceDBConnection:
    """The connection that was given, or one to the database at `uri`.

    Raises:
        InvalidInputError: neither of them, or something else.
    """
    if connection is None and uri is None:
        raise InvalidInputError(
            "Got neither uri, connection nor table; expected one of them, such as uri='./data'."
        )
    if connection is None:
        connection = lancedb.connect(cast(str, uri), storage_options=storage_options)
    if not isinstance(connection, LanceDBConnection):
        raise InvalidInputError(
            f"Got {connection!r} as the database; expected one in a folder or bucket, as opened by "
            "lancedb.connect(<folder or bucket>)."
        )
    return connection


def database_of(table: CompressedTable) -> LanceDBConnection:
    """A connection to the database of a table. Raises InvalidInputError for another kind of table."""
    if not isinstance(table, CompressedTable):
        raise InvalidInputError(
            f"Got {type(table).__name__} as the table; expected a CompressedTable, as opened by "
            "rqmoe_store.open_table(<database>, <name>)."
        )
    stored: LanceTable = table.table
    uri, options = stored.uri.rpartition("/")[0], stored.initial_storage_options()
    return cast(LanceDBConnection, lancedb.connect(uri, storage_options=options))


class NodeTable:
    """A table of nodes, which may not be there yet."""

    def __init__(
        self,
        connection: LanceDBConnection,
        name: str,
        columns: NodeColumns,
        config: CodecConfig | None,
        table: CompressedTable | None = None,
    ) -> None:
        """Open the table `name` if there is one, or take `table`.

        Args:
            connection: its database.
            name: of the table.
            columns: what its columns are called.
            config: of the codec, should the table have to be made; None for the defaults.
            table: an open one.

        Raises:
            TableError: not a table of nodes, or one with another metric or code size than `config`.
            ArtifactError: its codec is missing or damaged.
        """
        self.connection, self.columns = connection, columns
        self._name, self._config = name, config
        self._making = threading.Lock()
        self.training = threading.Lock()
        """Held by the thread that trains the first codec."""
        self._table = None if table is None else self._checked(table)
        self.opened()

    def opened(self) -> CompressedTable | None:
        """The table; None when there is none. Raises as the constructor."""
        if self._table is None:
            try:
                self._table = self._checked(rqs.open_table(self.connection, self._name))
            except TableNotFoundError:
                return None
        return self._table

    async def aopened(self) -> AsyncCompressedTable | None:
        """As `opened`; the event loop is free meanwhile."""
        table = self._table or await asyncio.to_thread(self.opened)
        return None if table is None else AsyncCompressedTable(table)

    def made_for(self, rows: pa.Table) -> CompressedTable:
        """The table, made if there is none, after a check that it can take the rows.

        Raises:
            InvalidInputError: embeddings of another dimension than the table's, with NaN or infinite
                components, or without a direction under "cosine".
            StorageError: the disk or bucket refuses to take the table.
        """
        with self._making:  # so that all threads have one handle, which sees what each of them writes
            return self._made_for(rows)

    def _made_for(self, rows: pa.Table) -> CompressedTable:
        table, config = self.opened(), self._config or CodecConfig(metric=DEFAULT_METRIC)
        dim = rows.schema.field(self.columns.vector).type.list_size
        if table is not None and table.dim != dim:
            raise InvalidInputError(
                f"Got embeddings of dimension {dim}, but those of table {self._name!r} have {table.dim}. "
                "Nothing was written; use the embedding model that the table was filled with, or another "
                "table_name."
            )
        _require_usable(rows, self.columns, config.metric if table is None else table.metric)
        if table is None:
            schema, vector = self.columns.schema(dim), self.columns.vector
            table = rqs.create_table(
                self.connection,
                self._name,
                schema=schema,
                config=config,
                vector_column=vector,
                key=ID,
                exist_ok=True,
            )
            self._table = self._checked(table)
        return table

    def _checked(self, table: CompressedTable) -> CompressedTable:
        columns, config = self.columns, self._config
        expected = [ID, columns.document, columns.text, METADATA, NODE]
        missing = [name for name in expected if name not in table.schema.names]
        if table.columns.vector_column != columns.vector:
            missing.append(columns.vector)
        if missing or table.key != ID:
            lacks = f"column {missing[0]!r}" if missing else f"key {ID!r}"
            raise TableError(
                f"Table {table.name!r} has no {lacks}: it was not made for nodes, or with other names of "
                "columns. Give text_key, doc_id_key and vector_column_name as they were then, or another "
                "table_name."
            )
        made_with = (table.metric, table.codecs.code_bytes)
        if config is not None and (config.metric, config.code_bytes) != made_with:
            raise TableError(
                f"Table {table.name!r} has the metric {made_with[0]!r} and codes of {made_with[1]} bytes, "
                f"config says {config.metric!r} and {config.code_bytes}. Leave config out to use the table "
                "as it is, or give another table_name."
            )
        return table


def _require_usable(rows: pa.Table, columns: NodeColumns, metric: str) -> None:
    """Refuse, with the node's id, what the table would refuse once it has been made for nothing."""
    dim = rows.schema.field(columns.vector).type.list_size
    vectors = rows[columns.vector].combine_chunks().flatten().to_numpy().reshape(-1, dim)
    bad = ~np.isfinite(vectors).all(axis=1)
    if metric == "cosine":
        bad |= ~vectors.any(axis=1)
    if bad.any():
        node = rows[ID][int(np.argmax(bad))].as_py()
        raise InvalidInputError(
            f"The embedding of node {node!r} has NaN or infinite components, or is zero, which has no "
            "direction to compare by cosine. Nothing was written; embed the node again."
        )
