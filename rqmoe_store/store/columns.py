"""The two columns a compressed table keeps instead of a vector column, and their Arrow form.

Shapes: N rows of the table, V of them with a vector, M code bytes.
A row without a vector has a null code and a null partition; it is never found by a search.
"""

import dataclasses
from collections.abc import Collection, Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rqmoe_store.codecs.codes import Codes
from rqmoe_store.errors import TableError
from rqmoe_store.store.sql import quoted

NO_PARTITION = -1
"""Partition of a row without a vector, in arrays; null in the table."""


@dataclasses.dataclass(frozen=True)
class CodeColumns:
    """Names, types and conversions of the columns that replace `vector_column`."""

    vector_column: str
    """Name of the column whose vectors are kept as codes."""

    @property
    def code(self) -> str:
        """Name of the code column, a nullable fixed_size_binary(M).

        Not a list of uint8: LanceDB would take that for a vector column and search the codes.
        """
        return f"{self.vector_column}_code"

    @property
    def partition(self) -> str:
        """Name of the partition id column, a nullable int32."""
        return f"{self.vector_column}_partition"

    @property
    def names(self) -> tuple[str, str]:
        """Both column names: code, partition."""
        return self.code, self.partition

    @property
    def raw_filter(self) -> str:
        """An SQL condition for the rows that have a vector and no code yet."""
        return f"{quoted(self.vector_column)} IS NOT NULL AND {quoted(self.code)} IS NULL"

    @property
    def decoded_filter(self) -> str:
        """An SQL condition for the rows that have a code and no vector: only decoding brings theirs back."""
        return f"{quoted(self.vector_column)} IS NULL AND {quoted(self.code)} IS NOT NULL"

    def fields(self, code_bytes: int) -> list[pa.Field]:
        """Arrow fields of both columns for codes of `code_bytes` bytes."""
        return [pa.field(self.code, pa.binary(code_bytes)), pa.field(self.partition, pa.int32())]

    def to_arrow(self, codes: Codes, valid_N: npt.NDArray[np.bool_]) -> list[pa.Array]:
        """Both columns for N rows.

        Args:
            codes: codes of the V rows that have a vector, in row order.
            valid_N: True where a row has a vector; V of N are True.

        Returns:
            The code array and the partition array, null where `valid_N` is False.
        """
        rows, code_bytes = len(valid_N), codes.codes.shape[1]
        codes_NM = np.zeros((rows, code_bytes), dtype=np.uint8)
        codes_NM[valid_N] = codes.codes
        partitions_N = np.zeros(rows, dtype=np.int32)
        partitions_N[valid_N] = codes.partitions
        validity = pa.py_buffer(np.packbits(valid_N, bitorder="little").tobytes())
        code_array = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(code_bytes), rows, [validity, pa.py_buffer(codes_NM)]
        )
        return [code_array, pa.array(partitions_N, mask=~valid_N)]

    def from_arrow(self, rows: pa.Table | pa.RecordBatch) -> tuple[Codes, npt.NDArray[np.bool_]]:
        """Codes of the rows that have a vector, and which rows those are.

        Args:
            rows: N rows holding both columns.

        Returns:
            Codes of the V rows with a vector, in row order, and a bool array (N,) that is True there.

        Raises:
            TableError: a column is missing or is not of the type this package writes.
        """
        self.require_in(rows.schema)
        code_array, partition_array = _one_array(rows[self.code]), _one_array(rows[self.partition])
        valid_N = ~(_nulls(code_array) | _nulls(partition_array))
        partitions_N = partition_array.fill_null(NO_PARTITION).to_numpy(zero_copy_only=False)
        return Codes(codes=_bytes_of(code_array)[valid_N], partitions=partitions_N[valid_N]), valid_N

    def require_in(self, schema: pa.Schema, *, code_bytes: int | None = None) -> None:
        """Raise TableError unless `schema` has both columns, with codes of `code_bytes` bytes."""
        missing = [name for name in self.names if name not in schema.names]
        if missing:
            raise TableError(
                f"The table has no column {_quoted(missing)}; expected the codes and partitions of "
                f"{self.vector_column!r}. Was it dropped or renamed? Compress the source table again."
            )
        code_type, partition_type = schema.field(self.code).type, schema.field(self.partition).type
        wanted = "fixed_size_binary" if code_bytes is None else f"fixed_size_binary[{code_bytes}]"
        if not pa.types.is_fixed_size_binary(code_type) or (
            code_bytes is not None and code_type.byte_width != code_bytes
        ):
            raise TableError(
                f"Column {self.code!r} is {code_type}; its codec writes {wanted}. "
                "Open the table with the codec it was compressed with, or compress again."
            )
        if partition_type != pa.int32():
            raise TableError(f"Column {self.partition!r} is {partition_type}; expected int32.")

    def require_absent_from(self, schema: pa.Schema, names: Collection[str] | None = None) -> None:
        """Raise TableError when `schema` already uses one of the two column names, or of some of them."""
        taken = [name for name in (self.names if names is None else names) if name in schema.names]
        if taken:
            raise TableError(
                f"The table already has column {_quoted(taken)}, which compressing "
                f"{self.vector_column!r} would write. Is it compressed already? Otherwise rename it first."
            )


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _one_array(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _nulls(array: pa.Array) -> npt.NDArray[np.bool_]:
    nulls: npt.NDArray[np.bool_] = array.is_null().to_numpy(zero_copy_only=False)
    return nulls


def _bytes_of(array: pa.FixedSizeBinaryArray) -> npt.NDArray[np.uint8]:
    """The codes of `array` as (N, M), sharing its memory; rows that are null hold anything."""
    rows, code_bytes = len(array), array.type.byte_width
    if rows == 0:
        return np.zeros((0, code_bytes), dtype=np.uint8)
    stored = np.frombuffer(array.buffers()[1], dtype=np.uint8)
    start = array.offset * code_bytes
    return stored[start : start + rows * code_bytes].reshape(rows, code_bytes)
