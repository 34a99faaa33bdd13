"""Prepare an ingestion: open source and target and check that they fit, before anything is written."""

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
from rqmoe_store.store.handle import Handle, OpenTable
from rqmoe_store.store.row_encoder import RowEncoder
from rqmoe_store.store.table_codec import TableCodec
from rqmoe_store.store.vector_arrays import require_vector_column

Target = OpenTable | tuple[DBConnection, str]
"""A table, or a database and the name of a table."""


def open_target(into: Target) -> Handle | None:
    """Open the table at its newest version; return None if the database has no table of that name.

    Raises:
        InvalidInputError: `into` is neither a table nor a database and a name.
        TableError, ArtifactError: the table is not a compressed table, or cannot be read.
    """
    if isinstance(into, OpenTable):
        into.handle.refresh()
        return into.handle
    if not isinstance(into, tuple) or len(into) != 2 or not isinstance(into[0], DBConnection):
        raise InvalidInputError(
            f"Got {into!r} to ingest into; expected a table of rqmoe_store, or a database and the name of a "
            "table, as (lancedb.connect(...), 'docs')."
        )
    databases.require_on_disk(into[0])
    databases.require_table_name(into[1])
    return None if databases.open_if_exists(*into) is None else Handle.open(*into)


def create_target(
    into: tuple[DBConnection, str],
    schema: pa.Schema,
    codec: Codec | None,
    vector_column: str,
    keep_vectors: str,
) -> Handle:
    """Create a table with the columns of a source and without rows.

    Raises:
        TableError: there is no codec, no such vector column, or a column has a reserved name.
        InvalidInputError: the vectors have another dimension than the codec.
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
    return Handle(table, TableCodec.of(metadata, [codec]))


def as_codec(codec: Codec | str | os.PathLike[str] | None) -> Codec | None:
    """The codec, loaded if `codec` is a folder."""
    return codec if codec is None or isinstance(codec, Codec) else load_codec(codec)


def require_codec(handle: Handle, codec: Codec | None) -> None:
    """Raise InvalidInputError if `codec` is given and is not the newest codec of the table."""
    if codec is not None and (
        handle.codecs.newest is None or handle.codecs.newest.fingerprint != codec.fingerprint
    ):
        raise InvalidInputError(
            f"Got a codec for table {handle.name!r}, which has another one already, or none yet; leave "
            "codec= out, or ingest into a new table."
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """A table and a source that fit each other, with the tools that turn rows of the source into its rows."""

    handle: Handle
    source: Source
    columns: Sequence[str]
    """Columns of the source to ingest."""
    vector_column: str
    """Name of the vector column in the source."""
    encode: bool
    """Whether rows are encoded; raw vectors are stored otherwise."""
    encoder: RowEncoder
    checker: RowChecker


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
    """Open a source, unless it is a `Source`, and open or create the table.

    Arguments and exceptions are those of `ingest`.
    """
    handle, codec = open_target(into), as_codec(codec)
    if vector_column is None:
        vector_column = "vector" if handle is None else handle.columns.vector_column
    if not isinstance(source, Source):
        source = open_source(
            source,
            vector_column=vector_column,
            metadata=metadata,
            storage_options=storage_options,
            job=job,
            takes_all=columns is None,
            texts=() if handle is None else _text_columns(handle),
        )
    schema = _selected(source.schema, columns, vector_column)
    if handle is None:
        assert isinstance(into, tuple), "open_target returns a table that is passed"
        handle = create_target(into, schema, codec, vector_column, keep_vectors)
    else:
        require_codec(handle, codec)
    if encode is None:
        encode = handle.codecs.newest is not None
    encoder, checker = row_tools(handle, vector_column, encode=encode)
    checker.require_schema(schema)
    return Prepared(
        handle=handle,
        source=source,
        columns=schema.names,
        vector_column=vector_column,
        encode=encode,
        encoder=encoder,
        checker=checker,
    )


def _text_columns(handle: Handle) -> list[str]:
    return [field.name for field in handle.schema if pa.types.is_string(field.type)]


def row_tools(handle: Handle, vector_column: str, *, encode: bool) -> tuple[RowEncoder, RowChecker]:
    """The encoder of a table, and a checker for a source whose vectors are in `vector_column`.

    Raises:
        TableError: rows are to be encoded, and the table has no codec.
    """
    if encode:
        _ = handle.codec  # raises if there is none
    snapshot = handle.snapshots.current()
    encoder = RowEncoder(snapshot.schema, snapshot.codecs, table_name=handle.name, encode=encode)
    return encoder, RowChecker(encoder, vector_column)


def _selected(schema: pa.Schema, columns: Sequence[str] | None, vector_column: str) -> pa.Schema:
    """The columns of a source to ingest."""
    if columns is None:
        return schema
    names = [name for name in columns if name != vector_column]
    if missing := [name for name in names if name not in schema.names]:
        raise InvalidInputError(f"The source has no columns {missing}; it has {schema.names}. Set columns=.")
    if vector_column in schema.names:
        names.append(vector_column)
    return pa.schema([schema.field(name) for name in names], metadata=schema.metadata)
