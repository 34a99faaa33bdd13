"""What an ingestion needs, opened and checked before anything is read or written."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from rqmoe_store.codecs.base import Codec
from rqmoe_store.config import KeepVectors
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.ingestion.checks import RowChecker
from rqmoe_store.ingestion.pieces import Source
from rqmoe_store.ingestion.sources import open_source
from rqmoe_store.ingestion.target import Target, as_codec, create_target, open_target, require_codec
from rqmoe_store.store.row_encoder import RowEncoder
from rqmoe_store.store.table import StoredTable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """A table and a source that fit each other."""

    store: StoredTable
    source: Source
    columns: Sequence[str]
    """Of the source, that are taken."""
    vector_column: str
    """What the source calls the vectors."""
    encode: bool
    """Whether rows get codes."""
    encoder: RowEncoder
    """Of the table."""
    checker: RowChecker
    """For rows of the source."""


def prepare(
    source: Any,
    into: Target,
    *,
    codec: Codec | str | os.PathLike[str] | None = None,
    vector_column: str | None = None,
    columns: Sequence[str] | None = None,
    metadata: str | os.PathLike[str] | None = None,
    encode: bool | None = None,
    keep_vectors: KeepVectors = "none",
    storage_options: Mapping[str, str] | None = None,
    job: str | None = None,
) -> Prepared:
    """Open a source (unless it is open) and a table, or make the table; arguments are those of `ingest`.

    Raises as `ingest`.
    """
    store, codec = open_target(into), as_codec(codec)
    if vector_column is None:
        vector_column = "vector" if store is None else store.columns.vector_column
    if not isinstance(source, Source):
        source = open_source(
            source,
            vector_column=vector_column,
            metadata=metadata,
            storage_options=storage_options,
            job=job,
            takes_all=columns is None,
            texts=() if store is None else _texts(store),
        )
    schema = _chosen(source.schema, columns, vector_column)
    if store is None:
        assert isinstance(into, tuple), "a table that was passed exists"
        store = create_target(into, schema, codec, vector_column, keep_vectors)
    else:
        require_codec(store, codec)
    if encode is None:
        encode = store.codecs.newest is not None
    encoder, checker = row_tools(store, vector_column, encode=encode)
    checker.require(schema)
    return Prepared(
        store=store,
        source=source,
        columns=schema.names,
        vector_column=vector_column,
        encode=encode,
        encoder=encoder,
        checker=checker,
    )


def _texts(store: StoredTable) -> list[str]:
    return [field.name for field in store.schema if pa.types.is_string(field.type)]


def row_tools(store: StoredTable, vector_column: str, *, encode: bool) -> tuple[RowEncoder, RowChecker]:
    """What checks rows of a source, which calls the vectors `vector_column`, and encodes them for a table.

    Raises:
        TableError: they are to be encoded, and the table has no codec.
    """
    if encode:
        _ = store.codec  # raises when there is none
    snapshot = store.snapshots.current()
    encoder = RowEncoder(snapshot.schema, snapshot.codecs, table_name=store.name, encode=encode)
    return encoder, RowChecker(encoder, vector_column, dim=store.dim, metric=store.metric)


def _chosen(schema: pa.Schema, columns: Sequence[str] | None, vector_column: str) -> pa.Schema:
    """The columns of a source that are taken."""
    if columns is None:
        return schema
    names = [name for name in columns if name != vector_column]
    if missing := [name for name in names if name not in schema.names]:
        raise InvalidInputError(f"The source has no columns {missing}; it has {schema.names}. Set columns=.")
    if vector_column in schema.names:
        names.append(vector_column)
    return pa.schema([schema.field(name) for name in names], metadata=schema.metadata)
