"""Create tables, with or without a codec: expected schema, stored schema, spooled first rows."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any, cast

import pyarrow as pa
from lancedb.db import DBConnection
from lancedb.table import LanceTable, Table

from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.subject import RowResiduals, require_vectors
from rqmoe_store.config import CodecConfig, MultiVectorConfig
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.storage_errors import translates_errors
from rqmoe_store.store import databases, registry
from rqmoe_store.store.columns import require_column_names, require_keep_vectors, user_schema
from rqmoe_store.store.embeddings import metadata_with_moved_embedding
from rqmoe_store.store.keys import require_unique, with_key
from rqmoe_store.store.metadata import TableMetadata
from rqmoe_store.store.multivector import multi_vector_metadata, require_no_embedding, require_no_encoding
from rqmoe_store.store.row_encoder import RowEncoder
from rqmoe_store.store.table_codec import TableCodec, generation_metadata, metadata_of
from rqmoe_store.store.vector_arrays import fixed_length, is_vector_type
from rqmoe_store.store.vector_lists import is_vector_list_type, vector_list_dim

SPOOL_BYTES = 64 * 2**20
"""Size up to which spooled rows stay in memory; larger ones move to a temporary file."""

# IPC streams may align 16-byte numbers, such as decimals, to 8 bytes, at which Lance panics.
_ALIGNED = pa.ipc.IpcReadOptions(ensure_alignment=pa.ipc.Alignment.At64Byte)


@dataclasses.dataclass(frozen=True)
class SpooledRows:
    """Rows that can be read any number of times."""

    count: int
    schema: pa.Schema | None
    """None if there are no rows."""
    are_few: bool
    """Whether all rows fit in memory at once."""
    _file: IO[bytes]

    def reader(self) -> pa.RecordBatchReader:
        """A reader of all rows, of which there must be at least one. Only one reader works at a time."""
        self._file.seek(0)
        return pa.ipc.open_stream(self._file, options=_ALIGNED)


@contextlib.contextmanager
def spool(tables: Iterable[pa.Table]) -> Iterator[SpooledRows]:
    """Consume `tables`, which have the same schema, and keep their rows within the `with` block."""
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
    """What an existing table must match to be opened in place of creating it."""

    schema: pa.Schema | None
    """Expected columns; None for any."""
    config: CodecConfig | None
    """Expected metric and code size; None for any."""
    vector_column: str
    keep_vectors: str
    """Expected way to keep raw vectors; "none" for any."""
    multi_vector: MultiVectorConfig | None = None
    """Expected encoding of rows with many vectors; None for any."""

    def require_match(self, metadata: TableMetadata, name: str) -> None:
        """Raise TableError unless the metadata of table `name` matches."""
        pairs: dict[str, tuple[object, object]] = {
            "vector_column": (metadata.vector_column, self.vector_column)
        }
        has, many = metadata.vector_config, metadata.multi_vector
        if self.schema is not None:
            dim, has_many = vector_dim(self.schema, self.vector_column)
            pairs["dimension"] = metadata.vector_dim, dim
            pairs["many vectors a row"] = many is not None, has_many
        if self.config is not None:
            pairs["metric"] = has.metric, self.config.metric
            pairs["code_bytes"] = has.code_bytes, self.config.code_bytes
            pairs["refine_bytes"] = has.refine_bytes, self.config.refine_bytes
        if self.multi_vector is not None:
            pairs["multi_vector"] = None if many is None else many.encoding, self.multi_vector
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
    """Create a table with a codec and without rows.

    Args:
        db: a database in a folder or bucket.
        name: name of the table.
        schema: the user's columns; the vector column may have any type in it, or be missing.
        codec: codec of the table; it is stored in the same database.
        vector_column: name of the vector column.
        keep_vectors: "none", or "float16" or "float32" to keep raw vectors in addition to their codes.

    Raises:
        TableError: the name is taken, or a column has a reserved name.
        InvalidInputError: the name cannot be used, `keep_vectors` is unknown, or the codec is not of whole
            vectors.
    """
    require_codec_of_vectors(codec, vector_column)
    metadata = metadata_of(codec, vector_column, keep_vectors)
    return create_empty(db, name, schema, metadata, [codec]), metadata


def create_empty(
    db: DBConnection, name: str, schema: pa.Schema, metadata: TableMetadata, codecs: Sequence[Codec]
) -> LanceTable:
    """Create a table without rows, whose metadata names these codecs. Raises as `create_coded`."""
    require_creatable(db, name, schema, metadata)
    require_free_name(db, name)
    stored = stored_schema(name, schema, metadata)
    saved = [registry.save(db, codec) for codec in codecs]  # before there is a table that needs them
    return create_with(db, name, stored, None, neighbor=saved[-1])


def lists_metadata(
    name: str,
    schema: pa.Schema,
    codec: Codec,
    vector_column: str,
    keep_vectors: str,
    encoding: MultiVectorConfig | None,
) -> TableMetadata:
    """The metadata of a table whose rows have many vectors each, still without its codecs.

    Args:
        name: name of the table that `schema` is of, for messages.
        schema: the user's columns, among them one of lists of vectors, of a fixed length or not.
        codec: codec of the vectors.
        vector_column: the column of lists of vectors.
        keep_vectors: as for `create_table`.
        encoding: how rows become encodings; None for what the codec was trained with, or the defaults. Codes
            are of what the codec was trained on: of what the means of rows leave over, or of whole vectors.

    Raises:
        InvalidInputError: the codec has another dimension, partitions, or a metric without inner products; it
            is of what means leave over, and `encoding` subtracts none; or there is an embedding function for
            the column.
        TableError: a column has a reserved name.
    """
    length = vector_list_dim(schema.field(vector_column).type)
    if length not in (None, codec.dim):
        raise InvalidInputError(
            f"Column {vector_column!r} holds vectors of dimension {length}; the codec was trained on "
            f"dimension {codec.dim}. Train a codec on this column, or name another one."
        )
    require_no_embedding(schema, vector_column, name)
    config, encodes = codec.config, codec.encodes
    if isinstance(encodes, RowResiduals):
        config, encoding = dataclasses.replace(config, metric=encodes.metric), encoding or encodes.encoding
        if not encoding.subtract_mean:
            raise InvalidInputError(
                f"Got subtract_mean=False and a codec of {encodes}; expected a codec of whole vectors, or "
                "leave multi_vector out to subtract means as the codec was trained."
            )
    else:
        encoding = dataclasses.replace(encoding or MultiVectorConfig(), subtract_mean=False)
    metadata = multi_vector_metadata(vector_column, keep_vectors, codec.dim, config, encoding)
    metadata.columns.require_absent_from(schema)
    return metadata


def with_codecs(metadata: TableMetadata, encoding_codec: Codec, codec: Codec) -> TableMetadata:
    """What `lists_metadata` returned, with the codec of encodings and that of vectors."""
    assert metadata.multi_vector is not None, "rows have many vectors"
    config = codec.config.without_partitions()
    config = dataclasses.replace(config, metric=metadata.multi_vector.config.metric)
    return metadata.with_generation(generation_metadata(encoding_codec, codec), config)


def require_codec_of_vectors(codec: Codec, column: str) -> None:
    """Raise InvalidInputError for a codec of what means of rows leave over, where rows have one vector."""
    use = f"for column {column!r}, whose rows have one vector each"
    require_vectors(codec.encodes, use, "Train one on this column.")


def require_free_name(db: DBConnection, name: str) -> None:
    """Raise TableError if `db` has a table `name`."""
    if databases.open_if_exists(db, name) is not None:
        raise TableError(f"A table {name!r} exists already. Choose another name, or drop it first.")


def require_place(db: DBConnection, name: object) -> None:
    """Raise TableError or InvalidInputError unless `db` is on disk and `name` is a valid table name."""
    databases.require_on_disk(db)
    databases.require_table_name(name)


def require_creatable(db: DBConnection, name: str, schema: pa.Schema, metadata: TableMetadata) -> None:
    """Raise TableError or InvalidInputError unless a table with these columns and metadata can be created."""
    require_keep_vectors(metadata.keep_vectors)
    require_place(db, name)
    require_column_names(schema)
    metadata.columns.require_absent_from(schema)
    metadata.config.require_bytes_for(metadata.dim)


def stored_schema(name: str, schema: pa.Schema, metadata: TableMetadata) -> pa.Schema:
    """The schema of a table as it is stored, with its metadata.

    Args:
        name: name of the table that `schema` is of, for messages.
        schema: the user's columns; the type of the vector column in it does not matter.
        metadata: metadata of the table.
    """
    columns, column = metadata.columns, metadata.vector_column
    others = user_schema(schema, without=(column,))
    return pa.schema(
        [*others, *columns.fields(metadata.config.code_bytes), metadata.kept.field],
        metadata=metadata.write(metadata_with_moved_embedding(schema.metadata, column, name)),
    )


def create_with(
    db: DBConnection, name: str, schema: pa.Schema, rows: SpooledRows | None, *, neighbor: Table
) -> LanceTable:
    """Create a table with these rows, or without rows, as `databases.create_atomically` does."""
    if rows is None or rows.schema is None:
        columns, batches = schema.names, iter(())
    else:
        columns, batches = rows.schema.names, iter(rows.reader())
    neighbor = cast(LanceTable, neighbor)
    table = databases.create_atomically(db, name, schema, columns, batches, neighbor=neighbor)
    databases.require_stable_row_ids(table)
    return table


def vector_dim(schema: pa.Schema, column: str) -> tuple[int, bool]:
    """Dimension of the vectors in `column`, and whether each row has a list of them.

    Raises:
        TableError: there is no such column, or it is neither a list of numbers nor of such lists.
        InvalidInputError: the lists have no fixed length.
    """
    data_type = schema.field(column).type if column in schema.names else pa.null()
    has_many = is_vector_list_type(data_type)
    if not has_many and not is_vector_type(data_type):
        found = f"is {schema.field(column).type}" if column in schema.names else "is not there"
        raise TableError(
            f"Column {column!r} {found}; expected a column of vectors. Columns are {schema.names}; set "
            "vector_column=."
        )
    length = vector_list_dim(data_type) if has_many else fixed_length(data_type)
    if length is None:
        raise InvalidInputError(
            f"Column {column!r} is {data_type}; expected vectors of fixed length, such as "
            f"pa.list_(pa.float32(), 384), or pa.list_(pa.list_(pa.float32(), 384)) for many in a row, so "
            "that the dimension is known. Change schema=."
        )
    return length, has_many


class RawTable:
    """A table without a codec, to be created together with its first rows in one commit."""

    def __init__(
        self,
        db: DBConnection,
        name: str,
        schema: pa.Schema,
        *,
        config: CodecConfig | None,
        vector_column: str,
        keep_vectors: str,
        key: str | None,
        multi_vector: MultiVectorConfig | None = None,
    ) -> None:
        """Check the arguments; nothing is written yet.

        Args:
            db: a database in a folder or bucket.
            name: name of the table; it must be free when the table is created.
            schema: the user's columns and a vector column, a fixed-size list of numbers or a list of those;
                its metadata may have LanceDB's description of an embedding function.
            config: configuration of the codec that will be trained; None for the defaults.
            vector_column: name of the vector column.
            keep_vectors: "none", or "float16" or "float32" to keep raw vectors in addition to their codes.
            key: name of the unique key column; None for no key.
            multi_vector: how rows with many vectors each are encoded; None for the defaults.

        Raises:
            TableError: there is no such vector column, or a column has a reserved name.
            InvalidInputError: the name cannot be used, the vector column has no fixed length, `keep_vectors`
                is unknown, or the key column cannot be a key.
        """
        schema = schema if key is None else with_key(schema, key)
        dim, has_many = vector_dim(schema, vector_column)
        if not has_many:
            require_no_encoding(multi_vector, vector_column)
            config = CodecConfig() if config is None else config
        self.metadata = (
            multi_vector_metadata(vector_column, keep_vectors, dim, config, multi_vector)
            if config is None or has_many
            else TableMetadata(
                vector_column=vector_column,
                dim=dim,
                keep_vectors=keep_vectors,
                config=config,
                refine_bytes=config.refine_bytes,
            )
        )
        """Metadata of the table."""
        if has_many:
            require_no_embedding(schema, vector_column, name)
        require_creatable(db, name, schema, self.metadata)
        self._db, self._name, self._key = db, name, key
        self._schema = stored_schema(name, schema, self.metadata)

    @contextlib.contextmanager
    def first_rows(self, rows: Any) -> Iterator[SpooledRows]:
        """Check and spool the first rows of the table.

        Args:
            rows: rows in any form that `CompressedTable.add` takes; None for no rows.

        Raises as `CompressedTable.add`, and InvalidInputError if rows share a key.
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
    def create(self, rows: SpooledRows) -> LanceTable:
        """Create the table with `rows`.

        Raises:
            TableError: the name is taken.
        """
        neighbor = registry.open_or_create_registry(self._db)
        return create_with(self._db, self._name, self._schema, rows, neighbor=neighbor)
