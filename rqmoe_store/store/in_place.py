"""Turning a LanceDB table into one that can keep codes, without writing a row."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from lancedb.table import LanceTable

from rqmoe_store.codecs.base import Codec
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.refusals import names_refusals
from rqmoe_store.store import databases, registry
from rqmoe_store.store.columns import CodeColumns
from rqmoe_store.store.compress import require_compressible
from rqmoe_store.store.embeddings import moved_embedding
from rqmoe_store.store.kept_vectors import KeptVectors
from rqmoe_store.store.sql import quoted
from rqmoe_store.store.table_codec import TableCodec, marks_of
from rqmoe_store.store.vector_arrays import read_vectors, rows_per_batch

_SAMPLED_ROWS = 256
"""Vectors that the codec is tried on."""


@names_refusals
def adopt(
    docs: LanceTable, codec: Codec, vector_column: str, keep_vectors: str, advance: Callable[[int], object]
) -> TableCodec:
    """Give `docs` the columns and marks of a compressed table; all of its rows are raw then.

    Every vector is checked before anything is written. The marks come last: a process that is lost before
    leaves a table as it was but for two columns without values, which a second call takes up.

    Args:
        docs: a table on disk or in an object store.
        codec: fits its vectors; it is kept in the same database.
        vector_column: the column that codes will replace.
        keep_vectors: "none", or that type of number which the column has.
        advance: told how many rows have been checked since it was called last.

    Returns:
        The codecs of the table.

    Raises:
        TableError: as `compress`, and for a vector column of another type than the table needs.
        InvalidInputError: vectors that cannot be encoded, named by row position.
    """
    table, columns = databases.reopened(docs), CodeColumns(vector_column)
    new = _missing_columns(table, columns, codec.config.code_bytes)
    require_compressible(table, codec, columns, ours=[field.name for field in new])
    kept = KeptVectors(column=vector_column, keep=keep_vectors, dim=codec.dim)
    _require_type(table, kept)
    sample = _check_vectors(table, codec, kept, advance)
    codec = _stored_codec(table, codec, sample)
    for index in table.list_indices():
        if index.columns == [vector_column]:  # LanceDB cannot keep it without the vectors
            table.drop_index(index.name)
    if not table.schema.field(vector_column).nullable:
        nullable: Any = {"path": vector_column, "nullable": True}  # LanceDB annotates other values
        table.alter_columns(nullable)
    if new:
        databases.reopened(table).to_lance().add_columns(pa.schema(new))
    marks = marks_of(codec, vector_column, keep_vectors)
    metadata = marks.write(moved_embedding(table.schema.metadata, vector_column, table.name))
    written: dict[str, str | None] = {key.decode(): value.decode() for key, value in metadata.items()}
    databases.reopened(table).to_lance().update_schema_metadata(written, replace=True)
    return TableCodec.of(marks, [codec])


def _missing_columns(table: LanceTable, columns: CodeColumns, code_bytes: int) -> list[pa.Field]:
    """Our columns that the table lacks; those an unfinished call left, without a value, it has."""
    missing = []
    for field in columns.fields(code_bytes):
        left = field.name in table.schema.names and table.schema.field(field.name).type == field.type
        if not left or table.count_rows(f"{quoted(field.name)} IS NOT NULL"):
            missing.append(field)
    return missing


def _require_type(table: LanceTable, kept: KeptVectors) -> None:
    found = table.schema.field(kept.column).type
    if found != kept.field.type:
        raise TableError(
            f"Column {kept.column!r} is {found}; compressing in place, keep_vectors={kept.keep!r}, expects "
            f"{kept.field.type}, as vectors are not written again. Compress into a new table (into=)."
        )


def _check_vectors(
    table: LanceTable, codec: Codec, kept: KeptVectors, advance: Callable[[int], object]
) -> Float32Array:
    """Some of the vectors; raises InvalidInputError where any could not be encoded later."""
    first_row = 0
    sample_VD = np.empty((0, codec.dim), dtype=np.float32)
    for batch in table.search().select([kept.column]).to_batches(rows_per_batch(codec.dim)):
        metric = codec.config.metric
        vectors_VD, _ = read_vectors(batch[kept.column], dim=codec.dim, metric=metric, first_row=first_row)
        if len(sample_VD) == 0:
            sample_VD = vectors_VD[:_SAMPLED_ROWS].copy()
        first_row += batch.num_rows
        advance(batch.num_rows)
    return sample_VD


def _stored_codec(table: LanceTable, codec: Codec, sample_VD: Float32Array) -> Codec:
    """The codec as the database of the table has it from now on.

    Raises InvalidInputError where it does not decode what it makes of vectors of the table.
    """
    database = databases.database_of(table)
    registry.save(database, codec)
    stored = registry.load(database, codec.fingerprint).to(str(codec.device))
    if not np.isfinite(stored.decode(stored.encode(sample_VD))).all():
        raise InvalidInputError(
            f"The codec decodes vectors of {table.name!r} to NaN or infinite values. Nothing was changed; "
            "train another codec on them."
        )
    return stored
