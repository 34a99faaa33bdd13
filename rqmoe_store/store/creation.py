"""New tables: what they must be, and their columns."""

import dataclasses
from typing import cast

import pyarrow as pa
from lancedb.db import DBConnection
from lancedb.table import LanceTable, Table

from rqmoe_store.codecs.base import Codec
from rqmoe_store.config import CodecConfig
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.refusals import names_refusals
from rqmoe_store.store import databases, registry
from rqmoe_store.store.columns import CodeColumns
from rqmoe_store.store.embeddings import moved_embedding
from rqmoe_store.store.kept_vectors import KeptVectors, require_keep_vectors
from rqmoe_store.store.metadata import TableMarks
from rqmoe_store.store.schemas import require_readable, user_schema
from rqmoe_store.store.spooled_rows import SpooledRows
from rqmoe_store.store.table_codec import marks_of
from rqmoe_store.store.vector_arrays import fixed_length, is_vector_type


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """What a table is asked to be, by somebody who takes one that exists if it is that."""

    schema: pa.Schema | None
    """None if its columns do not matter."""
    config: CodecConfig | None
    """None if its codec does not matter."""
    vector_column: str
    keep_vectors: str
    """"none" if that does not matter."""

    def require_fit(self, marks: TableMarks, name: str) -> None:
        """Raise TableError unless table `name`, which has these marks, is what is asked for."""
        pairs: dict[str, tuple[object, object]] = {"vector_column": (marks.vector_column, self.vector_column)}
        if self.schema is not None:
            pairs["dimension"] = marks.dim, vector_dim(self.schema, self.vector_column)
        if self.config is not None:
            pairs["metric"] = marks.config.metric, self.config.metric
            pairs["code_bytes"] = marks.config.code_bytes, self.config.code_bytes
        if self.keep_vectors != "none":
            pairs["keep_vectors"] = marks.keep_vectors, self.keep_vectors
        other = {what: pair for what, pair in pairs.items() if pair[0] != pair[1]}
        if other:
            raise TableError(
                f"Table {name!r} exists already with "
                + ", ".join(f"{what} {has!r} (expected {wanted!r})" for what, (has, wanted) in other.items())
                + ". Choose another name, ask for what the table is, or drop it first."
            )


@names_refusals
def create_coded(
    db: DBConnection,
    name: str,
    schema: pa.Schema,
    *,
    codec: Codec,
    vector_column: str,
    keep_vectors: str,
) -> tuple[LanceTable, TableMarks]:
    """Make a table without rows that encodes them with `codec`; arguments and errors as `RawTable`.

    Args:
        schema: may have the vector column in any type, or not at all.
        codec: it is kept in the same database.
    """
    marks = marks_of(codec, vector_column, keep_vectors)
    require_usable(db, name, schema, marks)
    require_free_name(db, name)
    stored = stored_schema(name, schema, marks)
    return create_with(db, name, stored, None, neighbour=registry.save(db, codec)), marks


def require_free_name(db: DBConnection, name: str) -> None:
    """Raise TableError if `db` has a table `name`."""
    if databases.open_if_exists(db, name) is not None:
        raise TableError(f"A table {name!r} exists already. Choose another name, or drop it first.")


def require_place(db: DBConnection, name: object) -> None:
    """Raise TableError or InvalidInputError unless a table `name` could be in `db`, and on disk."""
    databases.require_on_disk(db)
    databases.require_table_name(name)


def require_usable(db: DBConnection, name: str, schema: pa.Schema, marks: TableMarks) -> None:
    """Raise TableError or InvalidInputError unless a table with these columns and marks can be made."""
    require_keep_vectors(marks.keep_vectors)
    require_place(db, name)
    require_readable(schema)
    CodeColumns(marks.vector_column).require_absent_from(schema)


def stored_schema(name: str, schema: pa.Schema, marks: TableMarks) -> pa.Schema:
    """What a table stores of the user's columns and vectors, marks included.

    Args:
        name: of the table that describes its embedding functions, for messages.
        schema: the user's; what it says of the vector column does not matter.
        marks: of the table.
    """
    columns, column = CodeColumns(marks.vector_column), marks.vector_column
    others = user_schema(schema, without=(column,))
    vectors = KeptVectors(column=column, keep=marks.keep_vectors, dim=marks.dim)
    return pa.schema(
        [*others, *columns.fields(marks.config.code_bytes), vectors.field],
        metadata=marks.write(moved_embedding(schema.metadata, column, name)),
    )


def create_with(
    db: DBConnection, name: str, schema: pa.Schema, rows: SpooledRows | None, *, neighbour: Table
) -> LanceTable:
    """Make a table with these rows, or without any; arguments and errors as `databases.create_whole`."""
    if rows is None or rows.schema is None:
        columns, batches = schema.names, iter(())
    else:
        columns, batches = rows.schema.names, iter(rows.reader())
    neighbour = cast(LanceTable, neighbour)
    table = databases.create_whole(db, name, schema, columns, batches, neighbour=neighbour)
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
