"""Lists of vectors in Arrow columns: read, checked and written, where rows have many vectors each.

Shape legend: N rows, V of them with vectors, T vectors of all rows, G of them not null, D components.
"""

import dataclasses
import functools
import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rqmoe_store.codecs.parallel import compiled, num_threads, run_parallel
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.store.casts import is_list
from rqmoe_store.store.columns import NUMBER_TYPES, KeptVectors
from rqmoe_store.store.ragged import Lengths, Mask, Ragged
from rqmoe_store.store.vector_arrays import fixed_length, is_vector_type, require_rows, screened

_TASK_COMPONENTS = 2**18
"""Least components of a task. Fewer are not worth another thread."""

ROWS_PER_BATCH = 128
"""Rows to hold in memory at a time: their vectors take some 100 MB, if they are as many as of a page."""


def is_vector_list_type(data_type: pa.DataType) -> bool:
    """Whether `data_type` is a list of vectors, such as LanceDB's multivectors."""
    return is_list(data_type) and is_vector_type(data_type.value_type)


def has_vector_lists(schema: pa.Schema, column: str) -> bool:
    """Whether a column of a schema has a list of vectors in every row."""
    return column in schema.names and is_vector_list_type(schema.field(column).type)


def vector_list_dim(data_type: pa.DataType) -> int | None:
    """Dimension of the vectors of a type that `is_vector_list_type` accepts; None if it is not fixed."""
    return fixed_length(data_type.value_type)


def read_vector_lists(
    column: pa.ChunkedArray | pa.Array, *, dim: int, metric: str, first_row: int
) -> tuple[Ragged, Mask]:
    """Read the lists of vectors of `column`.

    Args:
        column: N rows of a type that `is_vector_list_type` accepts.
        dim: dimension that every vector must have.
        metric: metric of the table; under "cosine" zero vectors raise.
        first_row: position of the first row, for messages.

    Returns:
        The vectors, float32 (T, D), of the V rows that have any, and which rows those are. A list without
        vectors counts as none.

    Raises:
        InvalidInputError: a vector is null, has another dimension, a missing, NaN or infinite component, or
            is zero under "cosine"; rows are named by position.
    """
    lists, valid_N, problems = _screened_lists(column, dim, metric)
    for problem, good_V in problems.items():
        require_rows(first_row + np.flatnonzero(valid_N), good_V, problem)
    return lists, valid_N


def unusable_lists(column: pa.ChunkedArray | pa.Array, *, dim: int, metric: str) -> dict[int, str]:
    """Position of a row for which `read_vector_lists` raises -> what is wrong with its vectors."""
    _, valid_N, problems = _screened_lists(column, dim, metric)
    rows_V, found = np.flatnonzero(valid_N), dict[int, str]()
    for problem, good_V in problems.items():
        for row in rows_V[~good_V]:
            found.setdefault(int(row), problem)
    return found


def _screened_lists(
    column: pa.ChunkedArray | pa.Array, dim: int, metric: str
) -> tuple[Ragged, Mask, dict[str, Mask]]:
    """The vectors, which rows have any, and problem -> which of the V rows do not have it."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if _may_be_empty(array.type) and len(array.flatten()):
        raise InvalidInputError(
            f"Got vectors of type {array.type}; expected lists of vectors of {dim} numbers, as every row of "
            "the table has many. Nothing was written."
        )
    if pa.types.is_null(array.type) or _may_be_empty(array.type):
        array = pa.nulls(len(array), pa.list_(pa.list_(pa.float32())))
    if pa.types.is_list_view(array.type) or pa.types.is_large_list_view(array.type):
        array = array.cast(pa.large_list(array.type.value_field))
    lengths_N = np.zeros(len(array), np.int64)
    is_valid_N = array.is_valid().to_numpy(zero_copy_only=False)
    present = array.drop_null()
    lengths_N[is_valid_N] = _list_lengths(present)
    inner = present.flatten()
    inner = getattr(inner, "storage", inner)
    given_T = inner.is_valid().to_numpy(zero_copy_only=False)
    vectors_GD, of_vectors = screened(inner.drop_null(), dim, metric)
    valid_N = lengths_N > 0
    lengths_V = lengths_N[valid_N]
    problems = {"a null in its list of vectors": given_T}
    for problem, good_G in of_vectors.items():
        good_T = np.ones(len(given_T), bool)
        good_T[given_T] = good_G
        problems[problem] = good_T
    by_row = {problem: _all_in_row(good_T, lengths_V) for problem, good_T in problems.items()}
    return Ragged(vectors_GD, lengths_V), valid_N, by_row


def _may_be_empty(data_type: pa.DataType) -> bool:
    """Whether this may be the type of lists without any vector, which those of dicts are read as."""
    return is_vector_type(data_type) and fixed_length(data_type) is None


def _list_lengths(array: pa.Array) -> Lengths:
    if pa.types.is_fixed_size_list(array.type):
        return np.full(len(array), array.type.list_size, np.int64)
    lengths: npt.NDArray[Any] = array.value_lengths().to_numpy(zero_copy_only=False)
    return lengths.astype(np.int64)


def _all_in_row(good_T: Mask, lengths_V: Lengths) -> Mask:
    """Whether all values of each row are good; every row has at least one."""
    if len(lengths_V) == 0:
        return np.ones(0, bool)
    all_V: Mask = np.logical_and.reduceat(good_T, np.cumsum(lengths_V) - lengths_V)
    return all_V


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeptVectorLists(KeptVectors):
    """The column of raw vectors of a table whose rows have many."""

    @property
    def field(self) -> pa.Field:
        """The nullable Arrow field of raw vectors: LanceDB's multivectors."""
        return pa.field(self.column, pa.list_(pa.list_(NUMBER_TYPES.get(self.keep, pa.float32()), self.dim)))

    @property
    def none(self) -> Ragged:
        """The vectors of no rows."""
        return Ragged(np.empty((0, self.dim), np.float32), np.empty(0, np.int64))

    def raw_array(self, vectors: Ragged, valid_N: Mask) -> pa.Array:
        """The column for N rows, null where `valid_N` is False."""
        numbers = "float16" if self.keep == "float16" else "float32"
        flat = pa.array(np.ascontiguousarray(vectors.values, dtype=numbers).ravel())
        values = pa.FixedSizeListArray.from_arrays(flat, type=self.field.type.value_type)
        offsets = pa.array(vectors.offsets_in(valid_N).astype(np.int32))
        return pa.ListArray.from_arrays(offsets, values, type=self.field.type, mask=pa.array(~valid_N))

    def _read_finite(self, column: pa.ChunkedArray | pa.Array, first_row: int) -> tuple[Ragged, Mask]:
        """As that of `KeptVectors`, but raises as `read_vector_lists`."""
        return read_vector_lists(column, dim=self.dim, metric=self.metric, first_row=first_row)

    def stored(self, column: pa.Array) -> tuple[Ragged, Mask]:
        """The vectors that this column holds, unchecked, and which of its N rows have any."""
        present = column.drop_null()
        flat = present.flatten().flatten().to_numpy(zero_copy_only=False)
        vectors_TD = flat.astype(np.float32, copy=False).reshape(-1, self.dim)
        valid_N = column.is_valid().to_numpy(zero_copy_only=False)
        return Ragged(vectors_TD, _list_lengths(present)), valid_N

    def _unreadable(self, column: pa.ChunkedArray | pa.Array) -> dict[int, str]:
        return unusable_lists(column, dim=self.dim, metric=self.metric)

    def require_type(self, data_type: pa.DataType) -> None:
        """Raise InvalidInputError unless a column of this type can hold lists of vectors."""
        if pa.types.is_null(data_type) or _may_be_empty(data_type):
            return
        if not is_vector_list_type(data_type) or vector_list_dim(data_type) not in (None, self.dim):
            raise InvalidInputError(
                f"Column {self.column!r} is {data_type}; expected lists of vectors of {self.dim} numbers, as "
                "every row of the table has many. Nothing was written."
            )

    def require_source(self, schema: pa.Schema, column: str) -> None:
        """As `KeptVectors.require_source`, for lists of vectors."""
        if column not in schema.names or not is_vector_list_type(schema.field(column).type):
            found = f"is {schema.field(column).type}" if column in schema.names else "is not there"
            raise TableError(
                f"Column {column!r} {found}; expected a list of vectors of {self.dim} numbers each. Set "
                f"vector_column=; columns are {schema.names}."
            )
        self.require_type(schema.field(column).type)

    def problems(self, vectors: Ragged) -> dict[str, Mask]:
        """Problem of storing finite vectors as float16 -> which of the V rows do not have it."""
        problems = super().problems(vectors.values)
        return {problem: _all_in_row(good_T, vectors.lengths_B) for problem, good_T in problems.items()}


def unit_vectors(vectors_TD: Float32Array, metric: str) -> Float32Array:
    """The vectors as similarities compare them: of length 1 under "cosine", where zeros stay zero."""
    given_TD = np.ascontiguousarray(vectors_TD, dtype=np.float32)
    if metric != "cosine":
        return given_TD
    units_TD = np.empty_like(given_TD)
    shares = max(1, min(num_threads(), given_TD.size // _TASK_COMPONENTS))
    edges = np.linspace(0, len(given_TD), shares + 1).astype(np.int64)
    run_parallel(
        functools.partial(_scale_to_length_1, given_TD, int(start), int(stop), units_TD)
        for start, stop in itertools.pairwise(edges)
    )
    return units_TD


@compiled
def _scale_to_length_1(vectors_TD: Any, start: int, stop: int, units_TD: Any) -> None:
    """Fill in the vectors from `start` to `stop`, of length 1; zeros stay zero."""
    for row in range(start, stop):
        square = 0.0
        for component in range(vectors_TD.shape[1]):
            square += np.float64(vectors_TD[row, component]) * np.float64(vectors_TD[row, component])
        factor = 1 / np.sqrt(square) if square > 0 else 1.0
        for component in range(vectors_TD.shape[1]):
            units_TD[row, component] = vectors_TD[row, component] * factor
