"""Row encoder: rows as users give them, checked and turned into the columns that a table stores.

Shapes: N rows of a part, V of them with a vector, D components.

Shapes: N rows, D components.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from lancedb.table import LanceTable

from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.store.columns import CodeColumns, KeptVectors, user_schema
from rqmoe_store.store.embeddings import TableEmbedding, complete_others, computed_from
from rqmoe_store.store.health import DriftMeter
from rqmoe_store.store.metadata import TableMetadata
from rqmoe_store.store.rows import given_tables, tables_of
from rqmoe_store.store.table_codec import TableCodec
from rqmoe_store.store.vector_arrays import dense_vectors, is_vector_type, read_vectors, rows_per_batch

OnBadVectors = Literal["error", "drop", "fill", "null"]

_LARGEST = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True)
class BadVectors:
    """What the user wants done with them, in LanceDB's words."""

    action: OnBadVectors = "error"
    fill_value: float = 0.0

    def __post_init__(self) -> None:
        if self.action not in get_args(OnBadVectors):
            raise InvalidInputError(
                f"Got on_bad_vectors={self.action!r}; expected one of "
                f"{', '.join(map(repr, get_args(OnBadVectors)))}."
            )
        if self.action == "fill":
            object.__setattr__(self, "fill_value", _finite(self.fill_value))

    def repaired(
        self, column: pa.Array, kept: KeptVectors, metric: str
    ) -> tuple[pa.Array, npt.NDArray[np.bool_]]:
        """The vectors with nothing bad left that can be helped, and which rows are to stay, (N,).

        A vector is bad if it has another dimension, a missing, NaN or infinite component, one beyond the
        numbers it is kept in, or, under "cosine", no direction. With "drop" and "fill" nulls are bad as well.
        With "fill" components are put in the place of bad and missing ones, which helps against most of it.

        Args:
            column: N rows of a type that `is_vector_type` accepts.
            kept: how the table keeps vectors.
            metric: that it is searched by.
        """
        everything_N = np.ones(len(column), dtype=bool)
        if self.action == "error":
            return column, everything_N
        given_ND, whole_N = dense_vectors(column, kept.dim)
        rounded_ND = kept.rounded(given_ND)
        usable_ND = np.isfinite(rounded_ND)
        if self.action == "fill":
            filled_ND = np.where(usable_ND, given_ND, np.float32(self.fill_value))
            return pa.FixedSizeListArray.from_arrays(pa.array(filled_ND.ravel()), kept.dim), everything_N
        good_N = whole_N & usable_ND.all(axis=1)
        if metric == "cosine":
            good_N &= rounded_ND.any(axis=1)
        nulled = pa.FixedSizeListArray.from_arrays(
            pa.array(given_ND.ravel()), kept.dim, mask=pa.array(~good_N)
        )
        return nulled, good_N if self.action == "drop" else everything_N


ALL_GOOD = BadVectors()
"""Bad ones are an error."""


def _finite(fill_value: Any) -> float:
    number = isinstance(fill_value, (int, float, np.integer, np.floating))
    if not number or isinstance(fill_value, bool) or not abs(fill_value) <= _LARGEST:
        raise InvalidInputError(f"Got fill_value={fill_value!r}; expected a finite number, as float32.")
    return float(fill_value)


class RowEncoder:
    """Makes rows of one table ready to be written, either encoded or raw."""

    def __init__(self, schema: pa.Schema, codecs: TableCodec, *, table_name: str, encode: bool) -> None:
        """Prepare for rows of a table, which may not exist yet.

        Args:
            schema: of the table; its metadata describe embedding functions.
            codecs: those of its newest version.
            table_name: for messages.
            encode: whether rows get codes, by the newest codec, or keep their vectors until later.
        """
        metadata = codecs.metadata
        self.columns = CodeColumns(metadata.vector_column)
        """Names of the code and partition columns."""
        self.kept = KeptVectors(column=metadata.vector_column, keep=metadata.keep_vectors, dim=metadata.dim)
        """How the table keeps raw vectors."""
        self.embedding = TableEmbedding.read(schema.metadata, codecs.dim, codecs.metric, table_name)
        """The LanceDB embedding function its vectors come from; None when there is none."""
        self.others = user_schema(schema, without=(*self.columns.names, metadata.vector_column))
        """The columns that are stored as they come."""
        self.drift = DriftMeter(codecs) if encode else None
        """How well the rows encoded so far fit the codec."""
        self._metadata, self._table_name = schema.metadata, table_name
        self.codecs = codecs
        """Those of the table when this was made; the newest encodes."""
        self._encode = encode

    @property
    def schema(self) -> pa.Schema:
        """Columns of what is written: the others, then codes, vectors, or both."""
        return pa.schema([*self.others, *self._written])

    @property
    def ours(self) -> list[pa.Field]:
        """All columns that the table has for the vector column."""
        return [*self.columns.fields(self.codecs.code_bytes), self.kept.field]

    @property
    def _written(self) -> list[pa.Field]:
        """Those of them that get values."""
        code, partition, vector = self.ours
        codes = [code, partition] if self._encode else []
        return [*codes, vector] if not self._encode or self.kept.kept else codes

    @property
    def computed(self) -> dict[str, str]:
        """Vector columns with an embedding function, and the column that each is computed from."""
        computed = computed_from(self._metadata)
        if self.embedding is not None:
            computed[self.columns.vector_column] = self.embedding.source_column
        return computed

    def require_known_to(self, table: LanceTable) -> None:
        """Raise TableError unless the version that `table` is at has the codec that rows are encoded by."""
        generations = self.codecs.metadata.generations
        found = TableMetadata.read(table.schema, table.name).generations
        if self._encode and found[: len(generations)] != generations:
            raise TableError(
                f"Table {table.name!r} was restored, while rows were encoded, to a version that lacks "
                "the codec they were encoded by. Nothing was written; try again."
            )

    def encoded(self, rows: Any, bad: BadVectors = ALL_GOOD) -> Iterator[pa.Table]:
        """The rows, a bounded number at a time, with all other columns; those that they lack are null.

        Args:
            rows: as for `tables_of`.
            bad: what becomes of vectors that cannot be used.

        Raises:
            InvalidInputError, RQMoEError: as `CompressedTable.add`.
        """
        source = self.embedding.source_column if self.embedding else None
        yield from self._parts(tables_of(rows, self.others, self.columns.vector_column, source), bad)

    def given(self, rows: Any, bad: BadVectors = ALL_GOOD) -> Iterator[pa.Table]:
        """The rows, a bounded number at a time, with those columns alone that they have, or that are computed
        from these. Takes and raises what `encoded` does, except for columns that are missing."""
        column = self.columns.vector_column
        yield from self._parts(given_tables(rows, self.others, column, self.computed), bad)

    def _parts(self, tables: Iterator[pa.Table], bad: BadVectors) -> Iterator[pa.Table]:
        first_row, column, step = 0, self.columns.vector_column, rows_per_batch(self.codecs.dim)
        for table in tables:
            if column in table.column_names:
                self.require_vectors(table.schema.field(column).type)
            for start in range(0, table.num_rows, step):
                yield self.encoded_part(table.slice(start, step), first_row + start, bad)
            first_row += table.num_rows

    def encoded_part(self, part: pa.Table, first_row: int, bad: BadVectors = ALL_GOOD) -> pa.Table:
        """Rows as they are written, less those to be dropped.

        Args:
            part: N rows with some of the columns of `others` and, if it is to be written, the vector column.
            first_row: position of the first one, for messages.
            bad: what becomes of vectors that cannot be used.

        Raises as `encoded`.
        """
        if self.columns.vector_column not in part.column_names:
            return self._others_of(part)
        if bad.action != "error":
            part = self._repaired(part, bad)
        vectors_VD, valid_N = self.read(part[self.columns.vector_column], first_row)
        if self.embedding is not None and bad.action == "error":
            vectors_VD, valid_N = self._completed(part, vectors_VD, valid_N, first_row)
        return self._encoded(part, vectors_VD, valid_N)

    def _repaired(self, part: pa.Table, bad: BadVectors) -> pa.Table:
        place = part.schema.get_field_index(self.columns.vector_column)
        column = part[self.columns.vector_column].combine_chunks()
        if pa.types.is_null(column.type):
            column = column.cast(pa.list_(pa.float32()))
        if self.embedding is not None:  # first, so that what it makes can be bad, too
            column = self.embedding.filled_in(column, part)
        column, stays_N = bad.repaired(column, self.kept, self.codecs.metric)
        return part.set_column(place, self.columns.vector_column, column).filter(pa.array(stays_N))

    def read(self, column: pa.ChunkedArray, first_row: int) -> tuple[Float32Array, npt.NDArray[np.bool_]]:
        """The vectors of N rows, float32 (V, D), checked, and which rows have one, (N,).

        Raises:
            InvalidInputError: vectors that cannot be encoded or kept, named by position.
        """
        if pa.types.is_null(column.type):
            column = column.cast(pa.list_(pa.float32()))
        dim, metric = self.codecs.dim, self.codecs.metric
        vectors_VD, valid_N = read_vectors(column, dim=dim, metric=metric, first_row=first_row)
        self.kept.require_storable(vectors_VD, valid_N, metric=metric, first_row=first_row)
        return vectors_VD, valid_N

    def encoded_vectors(
        self, part: pa.Table, vectors_VD: Float32Array, valid_N: npt.NDArray[np.bool_], first_row: int
    ) -> pa.Table:
        """As `encoded_part`, for vectors that have been read.

        Args:
            part: N rows with columns of `others`.
            vectors_VD: of those of the rows where `valid_N` is True, as `read` gives them.
            valid_N: which rows have a vector; an embedding function makes those that are missing.
            first_row: position of the first row, for messages.
        """
        if self.embedding is not None:
            vectors_VD, valid_N = self._completed(part, vectors_VD, valid_N, first_row)
        return self._encoded(part, vectors_VD, valid_N)

    def _completed(
        self, part: pa.Table, vectors_VD: Float32Array, valid_N: npt.NDArray[np.bool_], first_row: int
    ) -> tuple[Float32Array, npt.NDArray[np.bool_]]:
        assert self.embedding is not None
        vectors_VD, valid_N = self.embedding.complete(vectors_VD, valid_N, part, first_row)
        metric = self.codecs.metric
        self.kept.require_storable(vectors_VD, valid_N, metric=metric, first_row=first_row)
        return vectors_VD, valid_N

    def _encoded(self, part: pa.Table, vectors_VD: Float32Array, valid_N: npt.NDArray[np.bool_]) -> pa.Table:
        arrays: list[pa.Array] = []
        if self._encode:
            codes = self.codecs.encode(vectors_VD)
            arrays += self.columns.to_arrow(codes, valid_N)
            if self.drift is not None:
                self.drift.add(vectors_VD, codes)
        if not self._encode or self.kept.kept:
            arrays.append(self.kept.raw_array(vectors_VD, valid_N))
        others = self._others_of(part)
        return pa.Table.from_arrays(
            [*others.columns, *arrays], schema=pa.schema([*others.schema, *self._written])
        )

    def _others_of(self, part: pa.Table) -> pa.Table:
        """The columns of a part that are stored as they come, those with an embedding function completed."""
        names = [name for name in self.others.names if name in part.column_names]
        completed = complete_others(self._metadata, self._table_name, part.select(names))
        schema = pa.schema([self.others.field(name) for name in names])
        return pa.Table.from_arrays(completed.columns, schema=schema)

    def require_vectors(self, data_type: pa.DataType) -> None:
        """Raise InvalidInputError unless a column of this type can hold vectors."""
        if not pa.types.is_null(data_type) and not is_vector_type(data_type):
            raise InvalidInputError(
                f"Column {self.columns.vector_column!r} is {data_type}; expected vectors of "
                f"{self.codecs.dim} numbers. Nothing was written."
            )
