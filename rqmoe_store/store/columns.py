"""Columns of a compressed table: codes and refine codes, raw vectors, and the schema that users see.

A row without a vector has a null code and a null partition, and no search finds it. Rows that are not encoded
yet have a raw vector; encoded rows have one if the table keeps raw vectors.

Shape legend: N rows of the table, V of them with a vector, D components, M code bytes, R bytes of a refine
code.
"""

import dataclasses
import functools
import inspect
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from lancedb.pydantic import LanceModel, pydantic_to_schema
from pydantic import BaseModel

from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import KEEP_VECTORS
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.store.ragged import Ragged, RowCodes
from rqmoe_store.store.sql import quoted
from rqmoe_store.store.vector_arrays import (
    is_vector_type,
    read_vectors,
    require_rows,
    require_vector_column,
    unusable_vectors,
)

NO_PARTITION = -1
"""Partition of a row without a vector, in arrays; null in the table."""


@dataclasses.dataclass(frozen=True)
class CodeColumns:
    """Names, types and conversions of the columns that have the codes of a vector column."""

    vector_column: str
    """Name of the column whose vectors are stored as codes."""
    refine_bytes: int = 0
    """Bytes of the refine codes that the table has a column for; 0 if it has no such column."""
    many: bool = False
    """Whether rows have many vectors each, whose codes are in a column of their own."""

    @property
    def code(self) -> str:
        """Name of the code column, a nullable fixed_size_binary(M).

        Not a list of uint8: LanceDB would treat that as a vector column and search the codes.
        """
        return f"{self.vector_column}_code"

    @property
    def partition(self) -> str:
        """Name of the partition id column, a nullable int32."""
        return f"{self.vector_column}_partition"

    @property
    def refine(self) -> str:
        """Name of the refine code column, a nullable fixed_size_binary(R). Null where a row has none."""
        return f"{self.vector_column}_refine"

    @property
    def tokens(self) -> str:
        """Name of the column of the codes of all vectors of a row, a nullable large_binary, where rows have
        many: the code bytes of each followed by its refine code. The other columns then have the codes of
        the row's fixed dimensional encoding."""
        return f"{self.vector_column}_tokens"

    @property
    def scanned(self) -> tuple[str, str]:
        """The columns that scans read: code, partition."""
        return self.code, self.partition

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """All columns that the table has for codes: code, partition, refine code and codes of many vectors if
        there are any."""
        refine = (self.refine,) if self.refine_bytes else ()
        return (*self.scanned, *refine, self.tokens) if self.many else (*self.scanned, *refine)

    @property
    def raw_filter(self) -> str:
        """SQL condition for the rows that have a vector and no code yet."""
        return f"{quoted(self.vector_column)} IS NOT NULL AND {quoted(self.code)} IS NULL"

    @property
    def decoded_filter(self) -> str:
        """SQL condition for the rows that have a code and no raw vector, so that theirs must be decoded."""
        return f"{quoted(self.vector_column)} IS NULL AND {quoted(self.code)} IS NOT NULL"

    def fields(self, code_bytes: int) -> list[pa.Field]:
        """Arrow fields of the columns `names`, for codes of `code_bytes` bytes."""
        fields = [pa.field(self.code, pa.binary(code_bytes)), pa.field(self.partition, pa.int32())]
        fields += [self.refine_field] if self.refine_bytes else []
        return [*fields, pa.field(self.tokens, pa.large_binary())] if self.many else fields

    @property
    def refine_field(self) -> pa.Field:
        """Arrow field of the refine code column."""
        return pa.field(self.refine, pa.binary(self.refine_bytes))

    def to_arrow(
        self,
        codes: Codes,
        valid_N: npt.NDArray[np.bool_],
        refined_V: npt.NDArray[np.bool_] | None = None,
    ) -> list[pa.Array]:
        """The columns `names` for N rows.

        Args:
            codes: codes of the V rows that have a vector, in row order; without refine codes if none of these
                rows has one.
            valid_N: True where a row has a vector; V of N are True.
            refined_V: True where such a row has a refine code; None for all, if `codes` have any.

        Returns:
            The code array, the partition array and, if there are such columns, the refine code array and the
            array of codes of many vectors, null where `valid_N` is False.
        """
        arrays = self._codes_to_arrow(codes, valid_N, refined_V)
        if not self.many:
            return arrays
        assert isinstance(codes, RowCodes), "codes of rows with many vectors"
        return [*arrays, codes.tokens.as_binary(valid_N)]

    def _codes_to_arrow(
        self, codes: Codes, valid_N: npt.NDArray[np.bool_], refined_V: npt.NDArray[np.bool_] | None
    ) -> list[pa.Array]:
        partitions_N = np.zeros(len(valid_N), dtype=np.int32)
        partitions_N[valid_N] = codes.partitions
        arrays = [_binary_array(codes.codes, valid_N), pa.array(partitions_N, mask=~valid_N)]
        if not self.refine_bytes:
            return arrays
        if codes.refine is None:
            return [*arrays, pa.nulls(len(valid_N), self.refine_field.type)]
        if refined_V is None:
            return [*arrays, _binary_array(codes.refine, valid_N)]
        refined_N = valid_N.copy()
        refined_N[valid_N] = refined_V
        return [*arrays, _binary_array(codes.refine[refined_V], refined_N)]

    def from_arrow(self, rows: pa.Table | pa.RecordBatch) -> tuple[Codes, npt.NDArray[np.bool_]]:
        """Codes of the rows that have a vector, and which rows those are.

        Args:
            rows: N rows with code and partition columns, and perhaps the refine code column.

        Returns:
            Codes of the V rows with a vector, in row order, and a bool array (N,) that is True there. Codes
            have refine codes if `rows` has the column; these are zeros where a row has none (see `refined`).

        Raises:
            TableError: a column is missing or is not of the type this package writes.
        """
        self.require_in(rows.schema)
        code_array, partition_array = _one_array(rows[self.code]), _one_array(rows[self.partition])
        valid_N = ~(_nulls(code_array) | _nulls(partition_array))
        partitions_N = partition_array.fill_null(NO_PARTITION).to_numpy(zero_copy_only=False)
        codes = Codes(codes=_bytes_of(code_array)[valid_N], partitions=partitions_N[valid_N])
        if self.has_refine(rows.schema):
            refine_array = _one_array(rows[self.refine])
            refine_VR = _bytes_of(refine_array)[valid_N]
            refine_VR = np.where(_nulls(refine_array)[valid_N, None], np.uint8(0), refine_VR)
            codes = dataclasses.replace(codes, refine=refine_VR)
        if self.many and self.tokens in rows.schema.names:
            tokens = Ragged.of_binary(_one_array(rows[self.tokens]).filter(pa.array(valid_N)))
            return RowCodes(codes.codes, codes.partitions, codes.refine, tokens), valid_N
        return codes, valid_N

    def has_refine(self, schema: pa.Schema) -> bool:
        """Whether rows of this schema have the refine code column of the table."""
        return bool(self.refine_bytes) and self.refine in schema.names

    def refined(
        self, rows: pa.Table | pa.RecordBatch, valid_N: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.bool_]:
        """Which of the V rows with a vector have a refine code; none if `rows` has no such column."""
        if not self.has_refine(rows.schema):
            return np.zeros(int(valid_N.sum()), dtype=bool)
        return ~_nulls(_one_array(rows[self.refine]))[valid_N]

    def require_in(self, schema: pa.Schema, *, code_bytes: int | None = None) -> None:
        """Raise TableError unless `schema` has code and partition columns, with codes of `code_bytes` bytes,
        and refine codes, if it has any, of the right size."""
        missing = [name for name in self.scanned if name not in schema.names]
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
        if self.has_refine(schema) and schema.field(self.refine).type != self.refine_field.type:
            raise TableError(
                f"Column {self.refine!r} is {schema.field(self.refine).type}; its codec writes "
                f"{self.refine_field.type}. Open the table with the codec it was compressed with, or restore "
                "an earlier version of it."
            )

    def require_all_in(self, schema: pa.Schema) -> None:
        """Raise TableError unless a table of this schema has all columns of `names`."""
        found = schema.field(self.tokens).type if self.many and self.tokens in schema.names else None
        if self.many and found != pa.large_binary():
            raise TableError(
                f"Column {self.tokens!r} is {'missing' if found is None else found}; expected the codes of "
                "all vectors of a row, as large_binary. Restore an earlier version of the table."
            )
        if self.refine_bytes and self.refine not in schema.names:
            raise TableError(
                f"The table has no column {self.refine!r}; expected refine codes of {self.refine_bytes} "
                "bytes. Was it dropped or renamed? Restore an earlier version of the table."
            )

    def require_absent_from(self, schema: pa.Schema, names: Collection[str] | None = None) -> None:
        """Raise TableError if `schema` has a column with one of `names`, by default both column names."""
        taken = [name for name in (self.names if names is None else names) if name in schema.names]
        if taken:
            raise TableError(
                f"The table already has column {_quoted(taken)}, which compressing "
                f"{self.vector_column!r} would write. Is it compressed already? Otherwise rename it first."
            )


def _binary_array(codes_VX: npt.NDArray[np.uint8], valid_N: npt.NDArray[np.bool_]) -> pa.Array:
    """A fixed-size binary column for N rows, null where `valid_N` is False."""
    rows, width = len(valid_N), codes_VX.shape[1]
    codes_NX = np.zeros((rows, width), dtype=np.uint8)
    codes_NX[valid_N] = codes_VX
    validity = pa.py_buffer(np.packbits(valid_N, bitorder="little").tobytes())
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), rows, [validity, pa.py_buffer(codes_NX)])


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _one_array(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _nulls(array: pa.Array) -> npt.NDArray[np.bool_]:
    nulls: npt.NDArray[np.bool_] = array.is_null().to_numpy(zero_copy_only=False)
    return nulls


def _bytes_of(array: pa.FixedSizeBinaryArray) -> npt.NDArray[np.uint8]:
    """The codes of `array` as (N, M), sharing its memory; the values of null rows are undefined."""
    rows, code_bytes = len(array), array.type.byte_width
    if rows == 0:
        return np.zeros((0, code_bytes), dtype=np.uint8)
    stored = np.frombuffer(array.buffers()[1], dtype=np.uint8)
    start = array.offset * code_bytes
    return stored[start : start + rows * code_bytes].reshape(rows, code_bytes)


NUMBER_TYPES = {"float16": pa.float16(), "float32": pa.float32()}
"""Number types of raw vectors that are kept."""
Vectors = Any
"""The vectors of V rows, to be indexed by rows: an array (V, D), or `Ragged` where a row has many."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeptVectors:
    """The column of raw vectors; encoded rows keep theirs as float16 or float32, or not at all."""

    column: str
    """Name of the column: that of the vector column."""
    keep: str
    """"none", "float16" or "float32"."""
    dim: int
    """Components of a vector."""
    metric: str
    """Metric of the table; under "cosine" no vector may be zero."""

    @property
    def field(self) -> pa.Field:
        """The nullable Arrow field of raw vectors, which every table has."""
        return pa.field(self.column, pa.list_(NUMBER_TYPES.get(self.keep, pa.float32()), self.dim))

    @property
    def kept(self) -> bool:
        """Whether encoded rows keep their raw vectors."""
        return self.keep != "none"

    def raw_array(self, vectors_VD: Vectors, valid_N: npt.NDArray[np.bool_]) -> pa.Array:
        """The column for N rows, null where `valid_N` is False."""
        values_ND = np.zeros(
            (len(valid_N), self.dim), dtype="float16" if self.keep == "float16" else "float32"
        )
        values_ND[valid_N] = vectors_VD
        values = pa.array(values_ND.ravel())
        return pa.FixedSizeListArray.from_arrays(values, type=self.field.type, mask=pa.array(~valid_N))

    @property
    def none(self) -> Vectors:
        """The vectors of no rows."""
        return np.empty((0, self.dim), np.float32)

    def read(
        self, column: pa.ChunkedArray | pa.Array, first_row: int
    ) -> tuple[Vectors, npt.NDArray[np.bool_]]:
        """Read and check vectors that this column shall hold: float32 (V, D), and which rows have one, (N,).

        Raises:
            InvalidInputError: as `read_vectors`, or the column cannot hold a vector.
        """
        vectors_VD, valid_N = self._read_finite(column, first_row)
        self.require_storable(vectors_VD, valid_N, first_row=first_row)
        return vectors_VD, valid_N

    def _read_finite(
        self, column: pa.ChunkedArray | pa.Array, first_row: int
    ) -> tuple[Vectors, npt.NDArray[np.bool_]]:
        """`read` without the limits of float16."""
        if pa.types.is_null(column.type):
            column = column.cast(pa.list_(pa.float32()))
        return read_vectors(column, dim=self.dim, metric=self.metric, first_row=first_row)

    def stored(self, column: pa.Array) -> tuple[Vectors, npt.NDArray[np.bool_]]:
        """The vectors that this column holds, unchecked, and which of its N rows have one."""
        flat = column.drop_null().flatten().to_numpy(zero_copy_only=False)
        vectors_VD = flat.astype(np.float32, copy=False).reshape(-1, self.dim)
        return vectors_VD, column.is_valid().to_numpy(zero_copy_only=False)

    def unusable(self, column: pa.ChunkedArray | pa.Array) -> dict[int, str]:
        """Position of a row that `read` refuses -> what is wrong with its vector."""
        bad = self._unreadable(column)
        rows_N = np.setdiff1d(np.arange(len(column)), list(bad))
        vectors_VD, valid_N = self._read_finite(column.take(pa.array(rows_N)), first_row=0)
        for problem, good_V in self.problems(vectors_VD).items():
            bad |= {int(row): problem for row in rows_N[valid_N][~good_V]}
        return bad

    def _unreadable(self, column: pa.ChunkedArray | pa.Array) -> dict[int, str]:
        """`unusable` without the limits of float16."""
        return unusable_vectors(column, dim=self.dim, metric=self.metric)

    def require_type(self, data_type: pa.DataType) -> None:
        """Raise InvalidInputError unless a column of this type can hold vectors."""
        if not pa.types.is_null(data_type) and not is_vector_type(data_type):
            raise InvalidInputError(
                f"Column {self.column!r} is {data_type}; expected vectors of {self.dim} numbers. Nothing was "
                "written."
            )

    def require_source(self, schema: pa.Schema, column: str) -> None:
        """Raise unless a `column` of a source can hold vectors.

        Raises:
            TableError: there is no such column, or it does not have lists of numbers.
            InvalidInputError: its lists have another fixed length.
        """
        require_vector_column(schema, column, self.dim)

    def require_storable(
        self, vectors_VD: Vectors, valid_N: npt.NDArray[np.bool_], *, first_row: int
    ) -> None:
        """Raise InvalidInputError, naming rows by position, if float16 cannot hold a vector.

        Args:
            vectors_VD: finite vectors of the rows where `valid_N` is True.
            valid_N: which rows have a vector.
            first_row: position of the first row, for messages.
        """
        for problem, good_V in self.problems(vectors_VD).items():
            hint = "; keep_vectors='float32' can keep them"
            require_rows(first_row + np.flatnonzero(valid_N), good_V, f"{problem}{hint}")

    def rounded(self, vectors_VD: Float32Array) -> npt.NDArray[np.floating]:
        """The vectors in the number type that they are kept in; infinite where they overflow float16."""
        if self.keep != "float16":
            return vectors_VD
        with np.errstate(over="ignore"):
            return vectors_VD.astype(np.float16)

    def problems(self, vectors_VD: Vectors) -> dict[str, npt.NDArray[np.bool_]]:
        """Problem of storing finite vectors as float16 -> which of the V vectors do not have it."""
        if self.keep != "float16":
            return {}
        halves_VD = self.rounded(vectors_VD)
        problems = {"components beyond 65,504, the range of float16": np.all(np.isfinite(halves_VD), axis=1)}
        if self.metric == "cosine":
            problem = "zeros only in float16, which have no direction under 'cosine'"
            problems[problem] = np.any(halves_VD, axis=1)
        return problems

    def require_in(self, schema: pa.Schema, table_name: str) -> None:
        """Raise TableError unless the table's `schema` has the column with the expected type."""
        if self.keep not in KEEP_VECTORS:
            raise TableError(
                f"Table {table_name!r} says that it keeps vectors as {self.keep!r}; expected one of "
                f"{', '.join(KEEP_VECTORS)}. Restore an earlier version of the table."
            )
        present = schema.field(self.column).type if self.column in schema.names else None
        if present is None or not present.equals(self.field.type):
            raise TableError(
                f"Table {table_name!r} keeps vectors as {self.keep!r}; expected column {self.column!r} as "
                f"{self.field.type}, got {f'one of {present}' if present else 'none'}. Restore an earlier "
                "version of the table."
            )

    def require_kept(self, table_name: str) -> None:
        """Raise TableError unless the table keeps its vectors."""
        if not self.kept:
            raise TableError(
                f"Table {table_name!r} keeps no raw vectors to refine by. Leave refine_factor out, or "
                "compress the source table again with keep_vectors='float16' or 'float32'."
            )


def require_keep_vectors(keep_vectors: object) -> None:
    """Raise InvalidInputError unless `keep_vectors` is one of its allowed values."""
    if keep_vectors not in KEEP_VECTORS:
        raise InvalidInputError(
            f"Got keep_vectors={keep_vectors!r}; expected one of {', '.join(map(repr, KEEP_VECTORS))}."
        )


_EXTENSION = b"ARROW:extension:name"
_LANCE_JSON = b"lance.json"
_FORBIDDEN_CHARACTERS = {"`", "."}
_RESULT_COLUMNS = {"_distance", "_score", "_relevance_score", "_rowid", "query_index"}
"""Columns that searches add to their results."""


def as_schema(schema: object) -> pa.Schema:
    """An Arrow schema as it is, or the Arrow schema of a pydantic model, including its embedding functions.

    Raises:
        InvalidInputError: `schema` is neither, or the model has fields that LanceDB cannot store.
    """
    if isinstance(schema, pa.Schema):
        return schema
    try:
        if inspect.isclass(schema) and issubclass(schema, LanceModel):
            described: pa.Schema = schema.to_arrow_schema()  # type: ignore[no-untyped-call]
            return described
        if inspect.isclass(schema) and issubclass(schema, BaseModel):
            return pydantic_to_schema(schema)
    except TypeError as error:
        raise InvalidInputError(
            f"Got schema={schema!r}, a model that LanceDB cannot read as columns ({error}). Pass a pyarrow "
            "schema."
        ) from error
    raise InvalidInputError(
        f"Got schema={schema!r}; expected a pyarrow schema or a LanceModel class. Put the columns into "
        "pa.schema([...])."
    )


def user_schema(schema: pa.Schema, *, without: tuple[str, ...]) -> pa.Schema:
    """`schema` without the columns named in `without`; field and schema metadata are kept."""
    fields = [_field_as_read(field) for field in schema if field.name not in without]
    return pa.schema(fields, metadata=schema.metadata)


def require_column_names(schema: pa.Schema) -> None:
    """Raise TableError for column names that LanceDB cannot read, or that searches add to results."""
    bad = [name for name in schema.names if name in ("", "*") or set(name) & _FORBIDDEN_CHARACTERS]
    if bad:
        raise TableError(
            f"Columns named {', '.join(map(repr, bad))} cannot be read from a LanceDB table. Rename them: a "
            "name has at least one character, neither a backtick nor a period in it, and is not '*'."
        )
    taken = [name for name in schema.names if name in _RESULT_COLUMNS]
    if taken:
        raise TableError(
            f"Columns named {', '.join(map(repr, taken))} would be mistaken for what searches add to their "
            f"results ({', '.join(sorted(_RESULT_COLUMNS))}). Rename or drop them."
        )


def _field_as_read(field: pa.Field) -> pa.Field:
    # Lance declares a JSON column as its stored bytes, but reads and writes it as Arrow JSON text. It would
    # misread bytes written in the declared type as its binary encoding.
    if (field.metadata or {}).get(_EXTENSION) != _LANCE_JSON:
        return field
    kept = {key: value for key, value in field.metadata.items() if not key.startswith(b"ARROW:extension:")}
    return pa.field(field.name, pa.json_(), nullable=field.nullable, metadata=kept or None)
