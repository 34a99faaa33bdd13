"""Read vectors from Arrow columns and check them; messages name bad rows by their position.

Shape legend: N rows, V of them with a vector, F of these with the right dimension D, W replaced rows.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.store.casts import cast_array, is_list

_ROWS_NAMED = 5
BATCH_BYTES = 32 * 2**20


def rows_per_batch(dim: int) -> int:
    """Number of rows to hold in memory at a time: their float32 vectors take at most 32 MB.

    A power of two, as are the chunks that GPUs encode: no chunk but the last one is padded.
    """
    rows = int(np.clip(BATCH_BYTES // (4 * dim), 256, 16_384))
    return int(2 ** (rows.bit_length() - 1))


def is_vector_type(data_type: pa.DataType) -> bool:
    """Whether `data_type` is a list of numbers, of fixed or variable length, or a one-dimensional tensor."""
    if isinstance(data_type, pa.FixedShapeTensorType) and len(data_type.shape) != 1:
        return False
    data_type = getattr(data_type, "storage_type", data_type)
    return is_list(data_type) and bool(
        pa.types.is_floating(data_type.value_type) or pa.types.is_integer(data_type.value_type)
    )


def fixed_length(data_type: pa.DataType) -> int | None:
    """Dimension of vectors of a type that `is_vector_type` accepts; None for lists of variable length."""
    data_type = getattr(data_type, "storage_type", data_type)
    return int(data_type.list_size) if pa.types.is_fixed_size_list(data_type) else None


def plain_vectors(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """A column of vectors as one array of lists, without tensor types or list views.

    A column of another type remains as it is.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if not is_vector_type(array.type):
        return array
    array = getattr(array, "storage", array)
    if pa.types.is_list_view(array.type) or pa.types.is_large_list_view(array.type):
        # Arrow's own cast makes lists without an end in version 26.
        return cast_array(array, pa.large_list(array.type.value_field), "")
    return array


def require_vector_column(schema: pa.Schema, column: str, dim: int) -> None:
    """Raise unless `column` of `schema` can hold vectors of dimension `dim`.

    Raises:
        TableError: there is no such column, or it does not have lists of numbers.
        InvalidInputError: its lists have another fixed length.
    """
    if column not in schema.names:
        vectors = [field.name for field in schema if is_vector_type(field.type)]
        hint = f"vector columns are {vectors}" if vectors else f"columns are {schema.names}, none of vectors"
        raise TableError(f"The table has no column {column!r}; its {hint}. Set vector_column=.")
    data_type = schema.field(column).type
    if not is_vector_type(data_type):
        raise TableError(
            f"Column {column!r} is {data_type}; expected a vector column (a list of numbers). "
            "Set vector_column= to another column."
        )
    length = fixed_length(data_type)
    if length is not None and length != dim:
        raise InvalidInputError(
            f"Column {column!r} holds vectors of dimension {length}; the codec was trained on "
            f"dimension {dim}. Train a codec on this column, or name another one."
        )


def read_vectors(
    column: pa.ChunkedArray | pa.Array, *, dim: int, metric: str, first_row: int
) -> tuple[Float32Array, npt.NDArray[np.bool_]]:
    """Read the vectors of `column`.

    Args:
        column: N rows of a type that `is_vector_type` accepts.
        dim: dimension that every vector must have.
        metric: metric of the table; under "cosine" zero vectors raise.
        first_row: position of the first row, for messages.

    Returns:
        The vectors, float32 (V, D), and which rows have one, bool (N,).

    Raises:
        InvalidInputError: a vector has another dimension, a missing, NaN or infinite component, or is zero
            under "cosine"; rows are named by position.
    """
    array, valid_N = _present(column)
    vectors_VD, problems = screened(array, dim, metric)
    for problem, good_V in problems.items():
        require_rows(first_row + np.flatnonzero(valid_N), good_V, problem)
    return vectors_VD, valid_N


def unusable_vectors(column: pa.ChunkedArray | pa.Array, *, dim: int, metric: str) -> dict[int, str]:
    """Position of a row for which `read_vectors` raises -> what is wrong with its vector."""
    array, valid_N = _present(column)
    rows_V = np.flatnonzero(valid_N)
    found: dict[int, str] = {}
    for problem, good_V in screened(array, dim, metric)[1].items():
        for row in rows_V[~good_V]:
            found.setdefault(int(row), problem)
    return found


def _present(column: pa.ChunkedArray | pa.Array) -> tuple[pa.Array, npt.NDArray[np.bool_]]:
    """The V vectors of N rows, and which rows have one."""
    array = plain_vectors(column)
    return array.drop_null(), array.is_valid().to_numpy(zero_copy_only=False)


def screened(array: pa.Array, dim: int, metric: str) -> tuple[Float32Array, dict[str, npt.NDArray[np.bool_]]]:
    """The F of V vectors that have dimension `dim`, and problem -> which of the V vectors do not have it."""
    fits_V = _lengths(array) == dim
    vectors_FD = _components(array if fits_V.all() else array.filter(pa.array(fits_V))).reshape(-1, dim)
    problems = {
        f"another dimension than the codec's {dim}": fits_V,
        "missing, NaN or infinite values (as float32)": _spread(
            np.all(np.isfinite(vectors_FD), axis=1), fits_V
        ),
    }
    if metric == "cosine":
        problem = "zeros only, which have no direction under metric='cosine'"
        problems[problem] = _spread(np.any(vectors_FD, axis=1), fits_V)
    return vectors_FD, problems


def _spread(good_F: npt.NDArray[np.bool_], fits_V: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    good_V = np.ones(len(fits_V), dtype=bool)
    good_V[fits_V] = good_F
    return good_V


def dense_vectors(column: pa.Array, dim: int) -> tuple[Float32Array, npt.NDArray[np.bool_]]:
    """The vectors of `column`, of any lengths, truncated or padded with NaN to (N, `dim`).

    Nulls and missing components become NaN.

    Args:
        column: as for `read_vectors`.
        dim: dimension of the result.

    Returns:
        The vectors, and which rows had a vector of dimension `dim`.
    """
    array = plain_vectors(column)
    valid_N = array.is_valid().to_numpy(zero_copy_only=False)
    array = array.drop_null()
    lengths_N = np.zeros(len(column), dtype=np.int64)
    lengths_N[valid_N] = _lengths(array)
    starts_N = np.cumsum(lengths_N) - lengths_N
    present_ND = np.arange(dim) < lengths_N[:, None]
    vectors_ND = np.full(present_ND.shape, np.nan, dtype=np.float32)
    vectors_ND[present_ND] = _components(array)[(starts_N[:, None] + np.arange(dim))[present_ND]]
    return vectors_ND, valid_N & (lengths_N == dim)


def with_replaced(array: pa.Array, places_W: npt.NDArray[np.int64], values: pa.Array) -> pa.Array:
    """`array` with the values at W of its places replaced by `values`, of the same type."""
    taken_N = np.arange(len(array))
    taken_N[places_W] = len(array) + np.arange(len(values))
    return pa.concat_arrays([array, values]).take(pa.array(taken_N))


def _lengths(array: pa.Array) -> npt.NDArray[Any]:
    if pa.types.is_fixed_size_list(array.type):
        return np.full(len(array), array.type.list_size)
    lengths: npt.NDArray[Any] = array.value_lengths().to_numpy(zero_copy_only=False)
    return lengths


def _components(array: pa.Array) -> Float32Array:
    # An unsafe cast turns a float64 beyond float32 into inf, which is then reported with its row.
    values = array.flatten().cast(pa.float32(), safe=False)
    # A copy, because torch warns about Arrow's read-only memory.
    return np.array(values.to_numpy(zero_copy_only=False), dtype=np.float32)


def require_rows(rows_V: npt.NDArray[np.int64], good_V: npt.NDArray[np.bool_], problem: str) -> None:
    """Raise InvalidInputError with the `problem` and the rows that are not good, if there are any."""
    bad = rows_V[~good_V]
    if len(bad) == 0:
        return
    named = ", ".join(str(row) for row in bad[:_ROWS_NAMED])
    more = f" and {len(bad) - _ROWS_NAMED} more near them" if len(bad) > _ROWS_NAMED else ""
    raise InvalidInputError(
        f"Vectors with {problem}: rows {named}{more} (counted from 0). Nothing was written; "
        "remove or repair these rows and try again."
    )
