"""Preparing an ingestion: source and target opened and checked before anything is written."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from lancedb.db import DBConnection

from rqmoe_store.codecs.base import Codec, load_codec
from rqmoe_store.config import KeepVectors
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.ingestion.blocks import RowChecker
from rqmoe_store.ingestion.pieces import Source
from rqmoe_store.ingestion.sources import open_source
from rqmoe_store.store import databases
from rqmoe_store.store.creation import create_coded
from rqmoe_store.store.row_encoder import RowEncoder
from rqmoe_store.store.table import StoredTable
from rqmoe_store.store.table_codec import TableCodec
from rqmoe_store.store.vector_arrays import require_vector_column

Target = StoredTable | tuple[DBConnection, str]
"""A table, or the database and the name of one."""


def open_target(into: Target) -> StoredTable | None:
    """The table, at its newest version; None when there is none of the name yet.

    Raises:
        InvalidInputError: something else than a table or a database and a name.
        TableError, ArtifactError: a table that is not one of ours, or cannot be read.
    """
    if isinstance(into, StoredTable):
        into.refresh()
        return into
    if not isinstance(into, tuple) or len(into) != 2 or not isinstance(into[0], DBConnection):
        raise InvalidInputError(
            f"Got {into!r} to ingest into; expected a table of rqmoe_store, or a database and the name of a "
            "table, as (lancedb.connect(...), 'docs')."
        )
    databases.require_on_disk(into[0])
    databases.require_table_name(into[1])
    return None if databases.open_if_exists(*into) is None else StoredTable.open(*into)


def create_target(
    into: tuple[DBConnection, str],
    schema: pa.Schema,
    codec: Codec | None,
    vector_column: str,
    keep_vectors: str,
) -> StoredTable:
    """A new table with the columns of a source, without rows.

    Raises:
        TableError: no codec to make it with, no such vector column, or columns named like ours.
        InvalidInputError: vectors of another dimension.
    """
    db, name = into
    if codec is None:
        raise TableError(
            f"The database {db.uri!r} has no table {name!r}, and without a codec none can be made. Pass "
            "codec=, or make the table first, with compress(...) or create_table(...)."
        )
    require_vector_column(schema, vector_column, codec.dim)
    table, metadata = create_coded(
        db, name, schema, codec=codec, vector_column=vector_column, keep_vectors=keep_vectors
    )
    return StoredTable(table, TableCodec.of(metadata, [codec]))


def as_codec(codec: Codec | str | os.PathLike[str] | None) -> Codec | None:
    """A codec, loaded if its folder is given."""
    return codec if codec is None or isinstance(codec, Codec) else load_codec(codec)


def require_codec(store: StoredTable, codec: Codec | None) -> None:
    """Raise InvalidInputError when a codec is given that is not the table's newest one."""
    if codec is not None and (
        store.codecs.newest is None or store.codecs.newest.fingerprint != codec.fingerprint
    ):
        raise InvalidInputError(
            f"Got a codec for table {store.name!r}, which has another one already, or none yet; leave codec= "
            "out, or ingest into a new table."
        )


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
