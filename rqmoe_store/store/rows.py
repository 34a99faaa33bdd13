"""Rows in any form (dicts, models, frames, Arrow data, iterables), converted to Arrow tables of a schema."""

import itertools
import numbers
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
from lancedb.pydantic import LanceModel
from pydantic import BaseModel

from rqmoe_store.codecs.vectors import from_torch
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.store.casts import UnfitError, array_of, cast_column
from rqmoe_store.store.columns import as_schema
from rqmoe_store.store.vector_arrays import fixed_length, is_vector_type, plain_vectors
from rqmoe_store.store.vector_lists import is_vector_list_type, vector_list_dim

_ACCEPTED = (
    "a list of dicts or of models, a pandas or polars frame, an Arrow table, record batch, reader, scanner "
    "or dataset, or an iterable of those"
)
_CONVERSION_ERRORS = (TypeError, ValueError, OverflowError, pa.ArrowException)
_DICTS_AT_ONCE = 1024
"""Dicts or models of an iterator that are converted together; a list is converted as a whole."""
_MOST_ROWS_TO_INFER = 2**16
"""Most rows to read in search of a vector, whose dimension a new table gets."""


def tables_with_all_columns(
    rows: Any, schema: pa.Schema, vector_column: str, source_column: str | None = None
) -> Iterator[pa.Table]:
    """Convert `rows` to Arrow tables with exactly the columns of `schema`, followed by `vector_column`.

    An iterator or Arrow reader is consumed once, one batch at a time, without reading ahead.

    Args:
        rows: rows in any form that `arrow_tables` takes.
        schema: the user's columns; values are cast to their types, missing nullable columns become null.
        vector_column: the vector column, which is not cast (null where a row has no vector).
        source_column: a column whose presence makes the vector column optional; None for no such column.

    Raises:
        InvalidInputError: the rows have another form, columns are unknown or missing, a column cannot hold
            its values without change, or has nulls that it does not allow.
    """
    for table in arrow_tables(rows, vector_column, schema):
        require_columns(table.column_names, schema, vector_column, source_column)
        yield fitted(table, schema, vector_column)


def tables_with_given_columns(
    rows: Any, schema: pa.Schema, vector_column: str, sources: Mapping[str, str]
) -> Iterator[pa.Table]:
    """Convert `rows` as `tables_with_all_columns` does, but without the columns that all rows lack.

    Args:
        rows: as for `tables_with_all_columns`.
        schema: as for `tables_with_all_columns`.
        vector_column: as for `tables_with_all_columns`.
        sources: column -> source column; if rows have the source column only, the column is added as nulls.

    Raises:
        InvalidInputError: as `tables_with_all_columns`, except for missing columns; or the columns of tables
            in an iterable differ.
    """
    first: list[str] | None = None
    for table in arrow_tables(rows, vector_column, schema):
        names = table.column_names
        first = names if first is None else first
        if set(names) != set(first):
            raise InvalidInputError(
                f"The rows have columns {', '.join(first)} at first and {', '.join(names)} later; expected "
                "the same in all of them. Nothing was written."
            )
        some = [field for field in schema if field.name in names or sources.get(field.name) in names]
        with_vectors = vector_column in names or sources.get(vector_column) in names
        require_columns(names, schema, vector_column, None, partial=True)
        fit = fitted(table, pa.schema(some), vector_column)
        yield fit if with_vectors else fit.drop_columns([vector_column])


def schema_and_rows(rows: Any, vector_column: str) -> tuple[pa.Schema, Any]:
    """Infer the schema of rows, with vectors as fixed-size lists of float32.

    Rows of a `LanceModel` have the schema of the model; that of other rows is inferred from the first ones.

    Args:
        rows: rows in any form that `arrow_tables` takes.
        vector_column: name of the vector column.

    Returns:
        The schema, and all rows, to be used instead of `rows`, which may be consumed.

    Raises:
        InvalidInputError: as `arrow_tables`, or the first rows have no vector.
    """
    first, rows = _first_of(rows)
    schema = as_schema(type(first)) if isinstance(first, LanceModel) else None
    described = None if schema is None or vector_column not in schema.names else schema.field(vector_column)
    if described is not None and _has_fixed_length(described.type):
        return schema, rows
    tables = arrow_tables(rows, vector_column, schema)
    read: list[pa.Table] = []
    length, has_many = None, False
    for table in tables:
        read.append(table)
        length, has_many = _vector_length(table, vector_column)
        if length is not None or sum(table.num_rows for table in read) >= _MOST_ROWS_TO_INFER:
            break
    if not read:
        raise InvalidInputError("Got no rows to infer columns from; pass schema=.")
    if length is None:
        raise InvalidInputError(
            f"Column {vector_column!r} has nulls only in the first {sum(table.num_rows for table in read):,} "
            "rows; pass schema=, so that the dimension is known."
        )
    schema = read[0].schema if schema is None else schema
    place = schema.get_field_index(vector_column)
    vector_type = pa.list_(pa.float32(), length)
    vectors = pa.field(vector_column, pa.list_(vector_type) if has_many else vector_type)
    return schema.set(place, vectors), itertools.chain(read, tables)


def _has_fixed_length(data_type: pa.DataType) -> bool:
    if is_vector_list_type(data_type):
        return vector_list_dim(data_type) is not None
    return fixed_length(data_type) is not None


def _first_of(rows: Any) -> tuple[object, Any]:
    """The first element of an iterable (None if it is empty, or no iterable of rows), and all elements."""
    if not _is_iterable_of_rows(rows) or hasattr(rows, "__arrow_c_stream__"):
        return None, rows
    if isinstance(rows, Sequence):
        return rows[0] if rows else None, rows
    elements = iter(rows)
    first = list(itertools.islice(elements, 1))
    return next(iter(first), None), itertools.chain(first, elements)


def _vector_length(table: pa.Table, column: str) -> tuple[int | None, bool]:
    """Dimension of the vectors of a table, None if it has no vector, and whether rows have lists of them."""
    data_type = table.schema.field(column).type if column in table.column_names else None
    if data_type is not None and is_vector_list_type(data_type):
        vectors = table[column].combine_chunks().drop_null().flatten()
        return _vector_length(pa.table({column: vectors}), column)[0], True
    if data_type is None or not (is_vector_type(data_type) or pa.types.is_null(data_type)):
        raise InvalidInputError(
            f"The rows have no vectors in column {column!r} (columns: {table.column_names}); expected "
            "lists of numbers. Pass schema=, or set vector_column=."
        )
    if pa.types.is_null(data_type):
        return None, False
    length = fixed_length(data_type)
    if length is None:
        vectors = plain_vectors(table[column]).drop_null()
        length = len(vectors[0]) if len(vectors) else None
    return length, False


def arrow_tables(rows: Any, vector_column: str, schema: pa.Schema | None = None) -> Iterator[pa.Table]:
    """Convert `rows` to Arrow tables with their own columns and types.

    A stream whose columns are known before its rows, such as a reader, yields a table without rows first.

    Args:
        rows: list of dicts or of pydantic models, pandas or polars frame, Arrow table, record batch, reader,
            scanner or dataset, anything else with `__arrow_c_stream__`, or an iterable of those or of single
            dicts or models, which are converted in groups.
        vector_column: the column of dicts that is read as lists of float32.
        schema: schema of the table that the rows are for; columns of dicts that it lacks become null. None
            to read all columns.

    Raises:
        InvalidInputError: the rows have another form, or values of a type that Arrow does not support.
    """
    library = type(rows).__module__.partition(".")[0]
    if library == "polars" and hasattr(rows, "collect"):
        rows = rows.collect()
    elif isinstance(rows, pads.Dataset):  # Lance datasets, too
        rows = rows.scanner()
    if isinstance(rows, pads.Scanner):
        rows = rows.to_reader()
    if library == "pandas" and hasattr(rows, "columns"):
        yield _from_pandas(rows, vector_column)
    elif isinstance(rows, pa.Table):
        yield rows  # as a whole: the size of its chunks must not decide the size of batches
    elif hasattr(rows, "__arrow_c_stream__"):
        yield from _from_stream(rows)
    elif _is_record(next(iter(rows), None) if isinstance(rows, Sequence) else None):
        yield _from_records(rows, vector_column, schema)
    elif _is_iterable_of_rows(rows):
        for part in _groups(rows):
            yield from arrow_tables(part, vector_column, schema)
    else:
        hint = " Put a single row in a list." if _is_record(rows) else ""
        raise InvalidInputError(f"Got rows of type {type(rows).__name__}; expected {_ACCEPTED}.{hint}")


def _is_record(row: object) -> bool:
    return isinstance(row, (Mapping, BaseModel))


def _is_iterable_of_rows(rows: object) -> bool:
    single = (str, bytes, Mapping, BaseModel)
    is_array = hasattr(rows, "__array__")  # of NumPy, Arrow or torch, or a pandas Series
    return isinstance(rows, Iterable) and not isinstance(rows, single) and not is_array


def _groups(rows: Iterable[Any]) -> Iterator[Any]:
    """The elements of an iterable, with neighboring dicts and models grouped into lists of bounded size."""
    for are_records, parts in itertools.groupby(rows, _is_record):
        if not are_records:
            yield from parts
        else:
            while group := list(itertools.islice(parts, _DICTS_AT_ONCE)):
                yield group


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


def _from_stream(rows: Any) -> Iterator[pa.Table]:
    try:
        reader = pa.RecordBatchReader.from_stream(rows)
    except (TypeError, pa.ArrowException) as error:
        raise InvalidInputError(
            f"Got rows of type {type(rows).__name__}, which are no Arrow table ({error}); expected "
            f"{_ACCEPTED}."
        ) from error
    yield reader.schema.empty_table()
    for batch in reader:
        yield pa.Table.from_batches([batch])


def _from_records(rows: Sequence[Any], vector_column: str, schema: pa.Schema | None) -> pa.Table:
    classes = set(map(type, rows))
    if any(issubclass(each, BaseModel) for each in classes):
        rows = [row.model_dump() if isinstance(row, BaseModel) else row for row in rows]
    odd_rows = tuple(each for each in classes if not issubclass(each, (Mapping, BaseModel)))
    for position, row in enumerate(rows if odd_rows else ()):
        if isinstance(row, odd_rows):
            raise InvalidInputError(f"Row {position} of the list is {type(row).__name__}; expected a dict.")
    names = list({key: None for row in rows for key in row})
    if odd := [name for name in names if not isinstance(name, str)]:
        raise InvalidInputError(f"Got a row with the column {odd[0]!r}; expected names of columns as text.")
    columns = {name: [row.get(name) for row in rows] for name in names}
    return pa.table({name: _read(values, name, vector_column, schema) for name, values in columns.items()})


def _read(values: list[Any], name: str, vector_column: str, schema: pa.Schema | None) -> pa.Array:
    if name == vector_column:
        return _vectors(values)
    if schema is not None and name not in schema.names:
        return pa.nulls(len(values))  # `require_columns` reports unknown columns
    try:
        return array_of(values, None if schema is None else schema.field(name).type, name)
    except UnfitError as error:
        if schema is not None:
            raise _not_castable(schema.field(name), error) from error
        raise InvalidInputError(
            f"Column {name!r} cannot be read as values of one type ({error}). Nothing was written; convert "
            "its values, or pass schema=."
        ) from error


def _vectors(values: list[Any]) -> pa.Array:
    with np.errstate(over="ignore"):  # overflow becomes inf, which is reported with its row later
        if any(_is_list_of_vectors(value) for value in values):
            lists = [None if value is None else _vector_list(value, row) for row, value in enumerate(values)]
            return pa.array(lists, type=pa.list_(pa.list_(pa.float32())))
        arrays = [None if value is None else _vector(value, place) for place, value in enumerate(values)]
    if not any(array is not None for array in arrays):
        return pa.nulls(len(arrays))  # of one vector a row, or of many
    return pa.array(arrays, type=pa.list_(pa.float32()))


def _is_list_of_vectors(value: Any) -> bool:
    """Whether a value of a row is a matrix, or a list of vectors; its first element decides."""
    if hasattr(value, "ndim"):
        return bool(value.ndim == 2)
    if not isinstance(value, list | tuple) or not value:
        return False
    first = _first_element(value)
    return isinstance(first, list | tuple) or getattr(first, "ndim", 0) == 1


def _first_element(value: Any) -> Any:
    """The first element that is not None; None if there is none."""
    return next((each for each in value if each is not None), None)


def _vector_list(value: Any, position: int) -> Any:
    """The vectors of a row, of any lengths, some of which may be null."""
    if hasattr(value, "ndim"):
        value = from_torch(value)
    if not isinstance(value, list | tuple) and getattr(value, "ndim", None) not in (1, 2):
        raise InvalidInputError(
            f"The vectors in row {position} of the list are {type(value).__name__}; expected a list of "
            "vectors."
        )
    if isinstance(_first_element(value), numbers.Number):
        raise InvalidInputError(
            f"Row {position} of the list has one vector, and another row a list of vectors; expected either "
            "in all rows."
        )
    return [None if each is None else _vector(each, position) for each in value]


def _vector(value: Any, position: int) -> Any:
    try:
        array = np.asarray(from_torch(value))
        if array.dtype.kind in "cmMSUV":
            raise TypeError(f"they are {array.dtype}")
        array = array.astype(np.float32, order="C", copy=False)
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
    """`table` with exactly the columns of `schema`, cast to its types, followed by `vector_column` as it is.

    Columns that `table` lacks are null.

    Raises:
        InvalidInputError: a column cannot hold its values without change, or has nulls but allows none.
    """
    columns = [_column(table, field) for field in schema]
    has_vectors = vector_column in table.column_names
    vectors = plain_vectors(table[vector_column]) if has_vectors else pa.nulls(table.num_rows)
    return pa.table([*columns, vectors], names=[*schema.names, vector_column])


def require_columns(
    names: Sequence[str],
    schema: pa.Schema,
    vector_column: str,
    source_column: str | None,
    *,
    partial: bool = False,
) -> None:
    """Raise InvalidInputError if rows with the columns `names` have unknown, repeated or missing columns.

    Args:
        names: columns of the rows.
        schema: as for `tables_with_all_columns`.
        vector_column: as for `tables_with_all_columns`.
        source_column: as for `tables_with_all_columns`.
        partial: whether any column may be missing.
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


def _column(table: pa.Table, field: pa.Field) -> pa.ChunkedArray | pa.Array:
    if field.name not in table.column_names:
        return pa.nulls(table.num_rows, type=field.type)
    column = table[field.name]
    if not field.nullable and column.null_count:
        raise InvalidInputError(
            f"Column {field.name!r} has {column.null_count} nulls but allows none. Nothing was written; "
            "fill them and try again."
        )
    try:
        return cast_column(column, field)
    except UnfitError as error:
        raise _not_castable(field, error) from error


def _not_castable(field: pa.Field, error: Exception) -> InvalidInputError:
    return InvalidInputError(
        f"Column {field.name!r} cannot be read as {field.type} ({error}). Nothing was written; "
        "convert its values and try again."
    )
