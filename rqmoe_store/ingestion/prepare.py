"""Prepare an ingestion: open source and target and check that they fit, before anything is written."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from lancedb.db import DBConnection

from rqmoe_store.codecs.base import Codec, load_codec
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import KeepVectors, MultiVectorConfig
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.ingestion.blocks import RowChecker
from rqmoe_store.ingestion.pieces import Source, reading
from rqmoe_store.ingestion.sources import open_source
from rqmoe_store.store import databases
from rqmoe_store.store.creation import (
    create_coded,
    create_empty,
    lists_metadata,
    require_creatable,
    with_codecs,
)
from rqmoe_store.store.handle import Handle, OpenTable
from rqmoe_store.store.metadata import TableMetadata
from rqmoe_store.store.multivector import ENCODINGS_FITTED, encodings_of, require_no_encoding
from rqmoe_store.store.row_encoder import RowEncoder
from rqmoe_store.store.table_codec import TableCodec
from rqmoe_store.store.vector_arrays import require_vector_column
from rqmoe_store.store.vector_lists import has_vector_lists

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
    source: Source,
    schema: pa.Schema,
    codec: Codec | None,
    vector_column: str,
    keep_vectors: str,
    multi_vector: MultiVectorConfig | None = None,
) -> Handle:
    """Create a table with the columns of a source and without rows.

    Args:
        into: a database, and a name that is free.
        source: where to look for rows, if they have many vectors each.
        schema: the columns of the source that are ingested.
        codec: codec of the vectors.
        vector_column, keep_vectors, multi_vector: as for `ingest`.

    Raises:
        TableError: there is no codec, no such vector column, or a column has a reserved name.
        InvalidInputError: the vectors have another dimension than the codec, or the codec is not for such
            rows.
    """
    db, name = into
    if codec is None:
        raise TableError(
            f"The database {db.uri!r} has no table {name!r}, and without a codec none can be made. Pass "
            "codec=, or make the table first, with compress(...) or create_table(...)."
        )
    if has_vector_lists(schema, vector_column):
        return _create_for_lists(into, source, schema, codec, vector_column, keep_vectors, multi_vector)
    require_no_encoding(multi_vector, vector_column)
    require_vector_column(schema, vector_column, codec.dim)
    table, metadata = create_coded(
        db, name, schema, codec=codec, vector_column=vector_column, keep_vectors=keep_vectors
    )
    return Handle(table, TableCodec.of(metadata, [codec]))


def _create_for_lists(
    into: tuple[DBConnection, str],
    source: Source,
    schema: pa.Schema,
    codec: Codec,
    vector_column: str,
    keep_vectors: str,
    multi_vector: MultiVectorConfig | None,
) -> Handle:
    """Create a table whose rows have many vectors each. The codec of their encodings is fitted to the first
    rows of each piece, at most 16,384 together."""
    # Imported here, since other ingestions need no torch.
    from rqmoe_store.training.encodings import fit_encoding_codec

    db, name = into
    metadata = lists_metadata(name, schema, codec, vector_column, keep_vectors, multi_vector)
    require_creatable(db, name, schema, metadata)
    encodings_nF = _sample_encodings(source, vector_column, metadata)
    encoding_codec = fit_encoding_codec(encodings_nF, metadata.config)
    metadata = with_codecs(metadata, encoding_codec, codec)
    table = create_empty(db, name, schema, metadata, [codec, encoding_codec])
    return Handle(table, TableCodec.load(db, metadata))


def _sample_encodings(source: Source, vector_column: str, metadata: TableMetadata) -> Float32Array:
    """Fixed dimensional encodings (n, F) of the first rows of each piece, without rows that are bad.

    Raises:
        InvalidInputError: a piece cannot be read, or all these rows are bad.
    """
    many, kept = metadata.multi_vector, metadata.kept
    assert many is not None, "rows have many vectors"
    rows = -(-ENCODINGS_FITTED // max(1, len(source.pieces)))
    parts, problems = [np.empty((0, metadata.dim), np.float32)], list[str]()
    for piece in source.pieces:
        with reading(piece):
            for batch in piece.peek(rows, [vector_column], metadata.rows_per_batch):
                if vector_column not in batch.schema.names:
                    continue
                column = batch[vector_column]
                kept.require_type(column.type)
                bad = kept.unusable(column)
                problems += bad.values()
                usable = np.setdiff1d(np.arange(len(column)), list(bad))
                parts.append(encodings_of(kept.read(column.take(pa.array(usable)), 0)[0], many))
    if problems and not any(map(len, parts)):
        raise InvalidInputError(
            f"None of the first {len(problems):,} rows with vectors can be encoded: vectors with "
            f"{problems[0]}. Pass a codec of vectors like these; this one is for dimension "
            f"{metadata.vector_dim}."
        )
    return np.concatenate(parts)[:ENCODINGS_FITTED]


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
    multi_vector: MultiVectorConfig | None = None,
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
        handle = create_target(into, source, schema, codec, vector_column, keep_vectors, multi_vector)
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
