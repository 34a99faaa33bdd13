"""A seeded, bounded-memory sample of vectors from a LanceDB column or an array.

Shape legend: n sampled rows, D dimension.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rqmoe_store.codecs.forks import use_storage
from rqmoe_store.codecs.vectors import Float32Array, as_vectors, is_dense
from rqmoe_store.config import Metric
from rqmoe_store.errors import InvalidInputError, TableError

_CHUNK_ROWS = 8192
_NUMBERS = (pa.types.is_floating, pa.types.is_integer)


def count_vectors(data: Any) -> int:
    """Rows of a LanceDB table or of an array-like."""
    if hasattr(data, "count_rows"):
        return int(data.count_rows())
    try:
        return len(data)
    except TypeError as error:
        raise InvalidInputError(
            f"Got data of type {type(data).__name__} to train on; expected a LanceDB table, or vectors of "
            "shape (rows, D)."
        ) from error


def require_countable(data: Any) -> None:
    """Raise InvalidInputError for what has no number of rows, such as streams, which are read once."""
    if not hasattr(data, "count_rows") and not hasattr(data, "__len__"):
        raise InvalidInputError(
            f"Got {type(data).__name__} to train on; expected a LanceDB table, or an array or tensor (rows, "
            "dim), of which rows can be chosen at random. Ingest a stream into a table, or put its vectors "
            "into an array, such as np.stack(list(...))."
        )


def sample_vectors(
    data: Any, *, vector_column: str, metric: Metric, max_rows: int, seed: int
) -> Float32Array:
    """At most `max_rows` vectors (n, D) in random order; never holds more than the sample.

    Args:
        data: a LanceDB table, or an array-like or torch tensor of shape (rows, D).
        vector_column: column of the table that holds the vectors; null vectors are left out.

    Raises:
        TableError: missing column, column of another type, or an empty table.
        InvalidInputError: vectors that `as_vectors` refuses.
    """
    require_countable(data)
    is_table = hasattr(data, "count_rows")
    if is_table:
        use_storage()
        _check_column(data, vector_column)
    rows = count_vectors(data)
    if rows == 0:
        error = TableError if is_table else InvalidInputError
        raise error("Got no vectors to train on; add rows first.")
    generator = np.random.default_rng(seed)
    chosen = generator.choice(rows, size=min(rows, max_rows), replace=False)
    if is_table:
        # Reading is fastest in table order; training wants rows of one place in the table apart.
        vectors = _take_from_table(data, vector_column, np.sort(chosen), metric)
        return vectors[generator.permutation(len(vectors))]
    if is_dense(data):
        return as_vectors(data[chosen], metric=metric, positions=chosen)
    return as_vectors(data, metric=metric)[chosen]


def _check_column(table: Any, vector_column: str) -> None:
    schema: pa.Schema = table.schema
    if vector_column not in schema.names:
        raise TableError(
            f"Table {table.name!r} has no column {vector_column!r}; it has {schema.names}. "
            "Name the one that holds the embeddings with vector_column=."
        )
    column_type = schema.field(vector_column).type
    is_tensor = isinstance(column_type, pa.FixedShapeTensorType) and len(column_type.shape) == 1
    column_type = column_type.storage_type if is_tensor else column_type
    is_list = pa.types.is_list(column_type) or pa.types.is_large_list(column_type)
    if not is_list and not pa.types.is_fixed_size_list(column_type):
        raise TableError(
            f"Column {vector_column!r} has type {column_type}; expected a list of numbers. "
            "Name the column that holds the embeddings with vector_column=."
        )
    value_type = column_type.value_type
    if not any(is_number(value_type) for is_number in _NUMBERS):
        raise TableError(
            f"Column {vector_column!r} holds lists of {value_type}; expected lists of numbers. "
            "Name the column that holds the embeddings with vector_column=."
        )


def _take_from_table(
    table: Any, vector_column: str, offsets: npt.NDArray[np.int64], metric: Metric
) -> Float32Array:
    chunks = [
        _read_chunk(table, vector_column, offsets[start : start + _CHUNK_ROWS], metric)
        for start in range(0, len(offsets), _CHUNK_ROWS)
    ]
    filled = [chunk for chunk in chunks if len(chunk)]
    if not filled:
        raise TableError(
            f"Column {vector_column!r} of table {table.name!r} holds only nulls; expected vectors."
        )
    if len({chunk.shape[1] for chunk in filled}) > 1:
        raise InvalidInputError(
            f"Column {vector_column!r} holds vectors of dimensions "
            f"{sorted({chunk.shape[1] for chunk in filled})}; expected one. "
            "Were they made by different embedding models?"
        )
    return np.concatenate(filled)


def _read_chunk(
    table: Any, vector_column: str, offsets: npt.NDArray[np.int64], metric: Metric
) -> Float32Array:
    column = table.take_offsets(offsets.tolist()).select([vector_column]).to_arrow()[vector_column]
    rows = offsets[np.flatnonzero(column.is_valid().to_numpy())]
    values = column.drop_null().combine_chunks()
    values = getattr(values, "storage", values)  # of a tensor
    if len(values) == 0:
        return np.empty((0, 0), dtype=np.float32)
    lengths = np.unique(values.value_lengths().to_numpy(zero_copy_only=False))
    if len(lengths) > 1:
        raise InvalidInputError(
            f"Column {vector_column!r} holds vectors of dimensions {lengths.tolist()}; expected one. "
            "Were they made by different embedding models?"
        )
    flat = values.flatten().to_numpy(zero_copy_only=False)
    try:
        return as_vectors(flat.reshape(-1, int(lengths[0])), metric=metric, positions=rows)
    except InvalidInputError as error:
        raise InvalidInputError(f"Table {table.name!r}, column {vector_column!r}: {error}") from error
