"""Whatever the user passes as rows, as a stream of Arrow tables that fit the table they go into."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from rqmoe_store.codecs.vectors import from_torch
from rqmoe_store.errors import InvalidInputError

_ACCEPTED = (
    "a list of dicts, a pandas or polars frame, an Arrow table, record batch or reader, "
    "or an iterable of those"
)
_CONVERSION_ERRORS = (TypeError, ValueError, OverflowError, pa.ArrowException)


def tables_of(
    rows: Any, schema: pa.Schema, vector_column: str, source_column: str | None = None
) -> Iterator[pa.Table]:
    """`rows` as Arrow tables with exactly the columns of `schema` and then `vector_column`.

    Nothing is read ahead: an iterator or Arrow reader is consumed one batch at a time.

    Args:
        rows: list of dicts, pandas or polars frame, Arrow table, record batch or reader, or an
            iterable of those.
        schema: the user's columns; values are cast to these types, absent nullable columns are null.
        vector_column: the column of vectors, passed on as it comes (null where a row has none).
        source_column: rows that have it need no vector column; None where none can stand in for it.

    Raises:
        InvalidInputError: rows of another kind, unknown or missing columns, values that cannot be
            cast, or nulls where the column allows none.
    """
    for table in _raw_tables(rows, schema, vector_column):
        require_columns(table.column_names, schema, vector_column, source_column)
        yield fitted(table, schema, vector_column)


def given_tables(
    rows: Any, schema: pa.Schema, vector_column: str, computed: Mapping[str, str]
) -> Iterator[pa.Table]:
    """`rows` as Arrow tables of those of the columns that they have, in the order of `tables_of`.

    Args:
        rows, schema, vector_column: as for `tables_of`.
        computed: columns that come as nulls where another one is there without them, by its name.

    Raises:
        InvalidInputError: as `tables_of`, but for columns that all rows lack; tables of an iterable
            whose columns differ.
    """
    first: list[str] | None = None
    for table in _raw_tables(rows, schema, vector_column):
        names = table.column_names
        first = names if first is None else first
        if set(names) != set(first):
            raise InvalidInputError(
                f"The rows have columns {', '.join(first)} at first and {', '.join(names)} later; expected "
                "the same in all of them. Nothing was written."
            )
        some = [field for field in schema if field.name in names or computed.get(field.name) in names]
        with_vectors = vector_column in names or computed.get(vector_column) in names
        require_columns(names, schema, vector_column, None, partial=True)
        fit = fitted(table, pa.schema(some), vector_column)
        yield fit if with_vectors else fit.drop_columns([vector_column])


def _raw_tables(rows: Any, schema: pa.Schema, vector_column: str) -> Iterator[pa.Table]:
    library = type(rows).__module__.partition(".")[0]
    if library == "polars" and hasattr(rows, "collect"):
        rows = rows.collect()
    if library == "pandas":
        yield _from_pandas(rows, vector_column)
    elif isinstance(rows, pa.Table):
        yield rows  # whole, so that the size of its chunks does not decide the size of our batches
    elif hasattr(rows, "__arrow_c_stream__"):
        for batch in pa.RecordBatchReader.from_stream(rows):
            yield pa.Table.from_batches([batch])
    elif isinstance(rows, Sequence) and len(rows) > 0 and isinstance(rows[0], Mapping):
        yield _from_dicts(rows, schema, vector_column)
    elif isinstance(rows, Iterable) and not isinstance(rows, (str, bytes, Mapping, np.ndarray)):
        for part in rows:
            yield from _raw_tables(part, schema, vector_column)
    else:
        hint = " Put a single row in a list." if isinstance(rows, Mapping) else ""
        raise InvalidInputError(f"Got rows of type {type(rows).__name__}; expected {_ACCEPTED}.{hint}")


def _from_pandas(frame: Any, vector_column: str) -> pa.Table:
    try:
        try:
            return pa.Table.from_pandas(frame, preserve_index=False)
        except _CONVERSION_ERRORS:  # vectors may be tensors, or arrays in another byte order
            if vector_column not in frame.columns:
                raise
            others = pa.Table.from_pandas(frame.drop(columns=vector_column), preserve_index=False)
            return others.append_column(vector_column, _vectors(list(frame[vector_column])))
    except _CONVERSION_ERRORS as error:
        raise InvalidInputError(
            f"The pandas frame cannot be read as columns of one type each ({error}). Nothing was written; "
            "give every column values of one type, and vectors as lists or one-dimensional arrays."
        ) from error


def _from_dicts(rows: Sequence[Any], schema: pa.Schema, vector_column: str) -> pa.Table:
    for position, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise InvalidInputError(f"Row {position} of the list is {type(row).__name__}; expected a dict.")
    columns = {name: [row.get(name) for row in rows] for name in {key: None for row in rows for key in row}}
    arrays = {
        name: _vectors(values) if name == vector_column else _values(values, schema, name)
        for name, values in columns.items()
    }
    return pa.table(arrays)


def _values(values: list[Any], schema: pa.Schema, name: str) -> pa.Array:
    if name not in schema.names:
        return pa.nulls(len(values))  # an unknown column, reported with its name when the table is fitted
    try:
        return pa.array(values, type=schema.field(name).type)
    except _CONVERSION_ERRORS as error:
        raise _not_castable(name, schema, error) from error


def _vectors(values: list[Any]) -> pa.Array:
    arrays = [None if value is None else _vector(value, position) for position, value in enumerate(values)]
    return pa.array(arrays, type=pa.list_(pa.float32()))


def _vector(value: Any, position: int) -> Any:
    try:
        with np.errstate(over="ignore"):  # becomes inf, which is reported with its row later
            array = np.asarray(from_torch(value), dtype=np.float32, order="C")
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"The vector in row {position} of the list cannot be read as float32 numbers ({error})."
        ) from error
    if array.ndim != 1 or isinstance(value, (str, bytes)):
        raise InvalidInputError(
            f"The vector in row {position} of the list has shape {array.shape}; expected one dimension."
        )
    return array


def fitted(table: pa.Table, schema: pa.Schema, vector_column: str) -> pa.Table:
    """`table` with exactly the columns of `schema`, cast to its types, and then `vector_column` as it is.

    Columns that `table` lacks are null.

    Raises:
        InvalidInputError: values that cannot be cast, or nulls where the column allows none.
    """
    columns = [_column(table, field, schema) for field in schema]
    has_vectors = vector_column in table.column_names
    vectors = table[vector_column] if has_vectors else pa.nulls(table.num_rows)
    return pa.table([*columns, vectors], names=[*schema.names, vector_column])


def require_columns(
    names: Sequence[str],
    schema: pa.Schema,
    vector_column: str,
    source_column: str | None,
    *,
    partial: bool = False,
) -> None:
    """Raise InvalidInputError unless rows with columns `names` can be fitted.

    Args:
        names: of the rows.
        schema, vector_column, source_column: as for `tables_of`.
        partial: whether any of the columns may be missing.
    """
    known = [*schema.names, vector_column]
    optional = [field.name for field in schema if field.nullable]
    if source_column in names:
        optional.append(vector_column)
    problems = {
        "unknown": [name for name in names if name not in known],
        "repeated": sorted({name for name in names if names.count(name) > 1}),
        "missing": [name for name in known if not partial and name not in names and name not in optional],
    }
    found = "; ".join(f"{problem}: {', '.join(which)}" for problem, which in problems.items() if which)
    if found:
        raise InvalidInputError(
            f"The rows do not have the columns of the table ({found}); expected {', '.join(known)}. "
            "Nothing was written; rename, drop or add these columns and try again."
        )


def _column(table: pa.Table, field: pa.Field, schema: pa.Schema) -> pa.ChunkedArray | pa.Array:
    if field.name not in table.column_names:
        return pa.nulls(table.num_rows, type=field.type)
    column = table[field.name]
    if not field.nullable and column.null_count:
        raise InvalidInputError(
            f"Column {field.name!r} has {column.null_count} nulls but allows none. Nothing was written; "
            "fill them and try again."
        )
    if column.type == field.type:
        return column
    if pa.types.is_null(column.type):
        return pa.nulls(table.num_rows, type=field.type)
    try:
        return column.cast(field.type)
    except _CONVERSION_ERRORS as error:
        raise _not_castable(field.name, schema, error) from error


def _not_castable(name: str, schema: pa.Schema, error: Exception) -> InvalidInputError:
    return InvalidInputError(
        f"Column {name!r} cannot be read as {schema.field(name).type} ({error}). Nothing was written; "
        "convert its values and try again."
    )
