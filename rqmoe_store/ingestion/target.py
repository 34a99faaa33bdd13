"""The table that rows are ingested into, opened or made."""

import os

import pyarrow as pa
from lancedb.db import DBConnection

from rqmoe_store.codecs.base import Codec, load_codec
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.store import databases
from rqmoe_store.store.creation import create_coded
from rqmoe_store.store.table import StoredTable
from rqmoe_store.store.table_codec import TableCodec
from rqmoe_store.store.vector_arrays import require_vector_column

Target = StoredTable | tuple[DBConnection, str]
"""A table, or the database and the name of one."""


def open_target(into: Target) -> StoredTable | None:
    """The table, at its newest version; None when there is none of the name yet.

    Raises:
        InvalidInputError: something else than a table or a database and a name.
        TableError, ArtefactError: a table that is not one of ours, or cannot be read.
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
    table, marks = create_coded(
        db, name, schema, codec=codec, vector_column=vector_column, keep_vectors=keep_vectors
    )
    return StoredTable(table, TableCodec.of(marks, [codec]))


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
