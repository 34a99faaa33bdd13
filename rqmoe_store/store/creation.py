"""Creating tables: what new ones must be, with a codec or without one, and their first rows."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterable, Iterator
from typing import IO, Any, cast

import pyarrow as pa
from lancedb.db import DBConnection
from lancedb.table import LanceTable, Table

from rqmoe_store.codecs.base import Codec
from rqmoe_store.config import CodecConfig
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.storage_errors import translates_errors
from rqmoe_store.store import databases, registry
from rqmoe_store.store.columns import (
    CodeColumns,
    KeptVectors,
    require_keep_vectors,
    require_readable,
    user_schema,
)
from rqmoe_store.store.embeddings import moved_embedding
from rqmoe_store.store.keys import keyed, require_unique
from rqmoe_store.store.metadata import TableMetadata
from rqmoe_store.store.row_encoder import RowEncoder
from rqmoe_store.store.table_codec import TableCodec, metadata_of
from rqmoe_store.store.vector_arrays import fixed_length, is_vector_type

SPOOL_BYTES = 64 * 2**20
"""They stay in memory up to this size, then move to a temporary file."""

# Streams may hold numbers of 16 bytes, such as decimals, at multiples of 8, at which Lance panics.
_ALIGNED = pa.ipc.IpcReadOptions(ensure_alignment=pa.ipc.Alignment.At64Byte)


@dataclasses.dataclass(frozen=True)
class SpooledRows:
    """Rows that can be read again and again."""

    count: int
    schema: pa.Schema | None
    """None without any rows."""
    are_few: bool
    """Whether they fit in memory all at once."""
    _file: IO[bytes]

    def reader(self) -> pa.RecordBatchReader:
        """All rows, of which there must be some, from the first one on. One reader at a time."""
        self._file.seek(0)
        return pa.ipc.open_stream(self._file, options=_ALIGNED)


@contextlib.contextmanager
def spool(tables: Iterable[pa.Table]) -> Iterator[SpooledRows]:
    """The rows of `tables`, all of the same schema, once the last one has come."""
    with tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES) as spool:
        file = cast(IO[bytes], spool)
        rows, writer, schema = 0, None, None
        try:
            for table in tables:
                if writer is None:
                    schema, writer = table.schema, pa.ipc.new_stream(file, table.schema)
                writer.write_table(table)
                rows += table.num_rows
        finally:
            if writer is not None:
                writer.close()
        yield SpooledRows(rows, schema, spool.tell() <= SPOOL_BYTES, file)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpectedSchema:
    """What a table is asked to be, by somebody who takes one that exists if it is that."""

    schema: pa.Schema | None
    """None if its columns do not matter."""
    config: CodecConfig | None
    """None if its codec does not matter."""
    vector_column: str
    keep_vectors: str
    """"none" if that does not matter."""

    def require_fit(self, metadata: TableMetadata, name: str) -> None:
        """Raise TableError unless table `name`, which has this metadata, is what is asked for."""
        pairs: dict[str, tuple[object, object]] = {
            "vector_column": (metadata.vector_column, self.vector_column)
        }
        if self.schema is not None:
            pairs["dimension"] = metadata.dim, vector_dim(self.schema, self.vector_column)
        if self.config is not None:
            pairs["metric"] = metadata.config.metric, self.config.metric
            pairs["code_bytes"] = metadata.config.code_bytes, self.config.code_bytes
        if self.keep_vectors != "none":
            pairs["keep_vectors"] = metadata.keep_vectors, self.keep_vectors
        other = {what: pair for what, pair in pairs.items() if pair[0] != pair[1]}
        if other:
            raise TableError(
                f"Table {name!r} exists already with "
                + ", ".join(f"{what} {has!r} (expected {wanted!r})" for what, (has, wanted) in other.items())
                + ". Choose another name, ask for what the table is, or drop it first."
            )


@translates_errors
def create_coded(
    db: DBConnection,
    name: str,
    schema: pa.Schema,
    *,
    codec: Codec,
    vector_column: str,
    keep_vectors: str,
) -> tuple[LanceTable, TableMetadata]:
    """Make a table without rows that encodes them with `codec`; arguments and errors as `RawTable`.

    Args:
        schema: may have the vector column in any type, or not at all.
        codec: it is kept in the same database.
    """
    metadata = metadata_of(codec, vector_column, keep_vectors)
    require_usable(db, name, schema, metadata)
    require_free_name(db, name)
    stored = stored_schema(name, schema, metadata)
    return create_with(db, name, stored, None, neighbor=registry.save(db, codec)), metadata


def require_free_name(db: DBConnection, name: str) -> None:
    """Raise TableError if `db` has a table `name`."""
    if databases.open_if_exists(db, name) is not None:
        raise TableError(f"A table {name!r} exists already. Choose another name, or drop it first.")


def require_place(db: DBConnection, name: object) -> None:
    """Raise TableError or InvalidInputError unless a table `name` could be in `db`, and on disk."""
    databases.require_on_disk(db)
    databases.require_table_name(name)


def require_usable(db: DBConnection, name: str, schema: pa.Schema, metadata: TableMetadata) -> None:
    """Raise TableError or InvalidInputError unless a table with these columns and metadata can be made."""
    require_keep_vectors(metadata.keep_vectors)
    require_place(db, name)
    require_readable(schema)
    CodeColumns(metadata.vector_column).require_absent_from(schema)


def stored_schema(name: str, schema: pa.Schema, metadata: TableMetadata) -> pa.Schema:
    """What a table stores of the user's columns and vectors, metadata included.

    Args:
        name: of the table that describes its embedding functions, for messages.
        schema: the user's; what it says of the vector column does not matter.
        metadata: of the table.
    """
    columns, column = CodeColumns(metadata.vector_column), metadata.vector_column
    others = user_schema(schema, without=(column,))
    vectors = KeptVectors(column=column, keep=metadata.keep_vectors, dim=metadata.dim)
    return pa.schema(
        [*others, *columns.fields(metadata.config.code_bytes), vectors.field],
        metadata=metadata.write(moved_embedding(schema.metadata, column, name)),
    )


def create_with(
    db: DBConnection, name: str, schema: pa.Schema, rows: SpooledRows | None, *, neighbor: Table
) -> LanceTable:
    """Make a table with these rows, or without any; arguments and errors as `databases.create_whole`."""
    if rows is None or rows.schema is None:
        columns, batches = schema.names, iter(())
    else:
        columns, batches = rows.schema.names, iter(rows.reader())
    neighbor = cast(LanceTable, neighbor)
    table = databases.create_whole(db, name, schema, columns, batches, neighbor=neighbor)
    databases.require_stable_row_ids(table)
    return table


def vector_dim(schema: pa.Schema, column: str) -> int:
    """Components of the vectors of `column`.

    Raises:
        TableError: no such column, or it is no list of numbers.
        InvalidInputError: a list of no fixed length.
    """
    if column not in schema.names or not is_vector_type(schema.field(column).type):
        found = f"is {schema.field(column).type}" if column in schema.names else "is not there"
        raise TableError(
            f"Column {column!r} {found}; expected a column of vectors. Columns are {schema.names}; set "
            "vector_column=."
        )
    data_type = schema.field(column).type
    length = fixed_length(data_type)
    if length is None:
        raise InvalidInputError(
            f"Column {column!r} is {data_type}; expected a list of fixed length, such as "
            f"pa.list_(pa.float32(), 384), so that the dimension is known. Change schema=."
        )
    return length


class RawTable:
    """A table to be made without a codec. It appears whole, with its first rows, or not at all."""

    def __init__(
        self,
        db: DBConnection,
        name: str,
        schema: pa.Schema,
        *,
        config: CodecConfig,
        vector_column: str,
        keep_vectors: str,
        key: str | None,
    ) -> None:
        """Say which; nothing is written yet.

        Args:
            db: a database in a folder or bucket.
            name: a name that nobody has by the time it is made.
            schema: the user's columns and a vector column, a fixed-size list of numbers; LanceDB's
                description of an embedding function may be in its metadata.
            config: of the codec that will be trained.
            vector_column: which of the columns has the vectors.
            keep_vectors: "none", or "float16" or "float32" to keep raw vectors beside their codes.
            key: the column that is the unique key; None for none.

        Raises:
            TableError: no such vector column, columns named like ours.
            InvalidInputError: an unusable name, a vector column of no fixed length, an unknown
                `keep_vectors`, a column that cannot be a key.
        """
        schema = schema if key is None else keyed(schema, key)
        dim = vector_dim(schema, vector_column)
        self.metadata = TableMetadata(
            vector_column=vector_column, dim=dim, keep_vectors=keep_vectors, config=config
        )
        """What its metadata will say."""
        require_usable(db, name, schema, self.metadata)
        self._db, self._name, self._key = db, name, key
        self._schema = stored_schema(name, schema, self.metadata)

    @contextlib.contextmanager
    def first_rows(self, rows: Any) -> Iterator[SpooledRows]:
        """The rows that it will be made with, once all of them have been checked.

        Args:
            rows: as for `CompressedTable.add`; None for none.

        Raises as `CompressedTable.add`, and InvalidInputError for rows that share a key.
        """
        encoder = RowEncoder(
            self._schema, TableCodec.of(self.metadata, []), table_name=self._name, encode=False
        )
        with spool(() if rows is None else encoder.encoded(rows)) as encoded:
            if self._key is not None and encoded.count:
                keys = (batch.select([self._key]) for batch in encoded.reader())
                require_unique(keys, [self._key], "the rows")
            yield encoded

    @translates_errors
    def made_with(self, rows: SpooledRows) -> LanceTable:
        """The table, made now.

        Raises:
            TableError: the name is taken.
        """
        neighbor = registry.open_or_create(self._db)
        return create_with(self._db, self._name, self._schema, rows, neighbor=neighbor)
