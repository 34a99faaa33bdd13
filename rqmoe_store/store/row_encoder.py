"""Row encoder: checks the user's rows and converts them to the columns that a table stores.

Shape legend: N rows, V of them with a vector, D components.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.errors import InvalidInputError, TableError
from rqmoe_store.store.columns import KeptVectors, Vectors, user_schema
from rqmoe_store.store.embeddings import TableEmbedding, complete_others, source_columns
from rqmoe_store.store.health import DriftMeter
from rqmoe_store.store.metadata import TableMetadata
from rqmoe_store.store.rows import tables_with_all_columns, tables_with_given_columns
from rqmoe_store.store.table_codec import TableCodec
from rqmoe_store.store.vector_arrays import dense_vectors
from rqmoe_store.store.vector_lists import KeptVectorLists

OnBadVectors = Literal["error", "drop", "fill", "null"]

_LARGEST = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True)
class BadVectors:
    """What to do with vectors that cannot be used; names and values are LanceDB's."""

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

    def repaired(self, column: pa.Array, kept: KeptVectors) -> tuple[pa.Array, npt.NDArray[np.bool_]]:
        """The vectors after the action, and which rows to keep, (N,).

        A vector is bad if it has another dimension, a missing, NaN or infinite component, a component beyond
        the range of the type it is kept in, or, under "cosine", no direction. Nulls are bad, too, under
        "drop" and "fill". "fill" replaces bad and missing components, which repairs all but vectors without
        direction. Where rows have many vectors, a row is bad if any of them is, or there is none.

        Args:
            column: N rows of a type that `kept.require_type` accepts.
            kept: how the table keeps vectors.

        Raises:
            InvalidInputError: "fill" where rows have many vectors.
        """
        all_N = np.ones(len(column), dtype=bool)
        if self.action == "error":
            return column, all_N
        if isinstance(kept, KeptVectorLists):
            return self._repaired_lists(column, kept)
        given_ND, whole_N = dense_vectors(column, kept.dim)
        rounded_ND = kept.rounded(given_ND)
        usable_ND = np.isfinite(rounded_ND)
        if self.action == "fill":
            filled_ND = np.where(usable_ND, given_ND, np.float32(self.fill_value))
            return pa.FixedSizeListArray.from_arrays(pa.array(filled_ND.ravel()), kept.dim), all_N
        good_N = whole_N & usable_ND.all(axis=1)
        if kept.metric == "cosine":
            good_N &= rounded_ND.any(axis=1)
        nulled = pa.FixedSizeListArray.from_arrays(
            pa.array(given_ND.ravel()), kept.dim, mask=pa.array(~good_N)
        )
        return nulled, good_N if self.action == "drop" else all_N

    def _repaired_lists(
        self, column: pa.Array, kept: KeptVectorLists
    ) -> tuple[pa.Array, npt.NDArray[np.bool_]]:
        if self.action == "fill":
            raise InvalidInputError(
                "Got on_bad_vectors='fill' for a table whose rows have many vectors each; expected 'error', "
                "'drop' or 'null'. Fill the vectors before they are added."
            )
        bad_N = np.zeros(len(column), dtype=bool)
        bad_N[list(kept.unusable(column))] = True
        nulled = column.take(pa.array(np.arange(len(column)), mask=bad_N))
        if self.action == "null":
            return nulled, ~np.zeros(len(column), dtype=bool)
        return nulled, kept.read(nulled, 0)[1]


BAD_VECTORS_RAISE = BadVectors()


def _finite(fill_value: Any) -> float:
    number = isinstance(fill_value, (int, float, np.integer, np.floating))
    if not number or isinstance(fill_value, bool) or not abs(fill_value) <= _LARGEST:
        raise InvalidInputError(f"Got fill_value={fill_value!r}; expected a finite number, as float32.")
    return float(fill_value)


class RowEncoder:
    """Prepares rows to be written to one table, with codes or with raw vectors."""

    def __init__(self, schema: pa.Schema, codecs: TableCodec, *, table_name: str, encode: bool) -> None:
        """Prepare for rows of a table, which need not exist yet.

        Args:
            schema: schema of the table; its metadata describes embedding functions.
            codecs: codecs of the newest version of the table.
            table_name: name of the table, for messages.
            encode: True to encode rows with the newest codec, False to store raw vectors for now.
        """
        metadata = codecs.metadata
        self.columns = codecs.columns
        """The columns that have codes."""
        self.kept = metadata.kept
        """How the table keeps raw vectors."""
        self.embedding = TableEmbedding.read(
            schema.metadata, metadata.vector_dim, metadata.metric, table_name
        )
        """LanceDB embedding function that vectors come from; None if there is none."""
        self.others = user_schema(schema, without=(*self.columns.names, metadata.vector_column))
        """The other columns, which are stored as given."""
        self.drift = DriftMeter(codecs) if encode else None
        """How well the rows encoded so far fit the codec."""
        self._metadata, self._table_name = schema.metadata, table_name
        self.codecs = codecs
        """Codecs of the table; the newest encodes."""
        self._encode = encode

    @property
    def schema(self) -> pa.Schema:
        """Columns to write: the others, then codes, raw vectors, or both."""
        return pa.schema([*self.others, *self._written])

    @property
    def vector_fields(self) -> list[pa.Field]:
        """All columns that the table has for the vectors: those of `columns`, then the raw vector."""
        return [*self.columns.fields(self.codecs.code_bytes), self.kept.field]

    @property
    def _written(self) -> list[pa.Field]:
        """The columns for the vectors that get values."""
        *codes, vector = self.vector_fields if self._encode else [self.kept.field]
        return [*codes, vector] if not self._encode or self.kept.kept else codes

    @property
    def source_columns(self) -> dict[str, str]:
        """Vector column with an embedding function -> column that it is computed from."""
        sources = source_columns(self._metadata)
        if self.embedding is not None:
            sources[self.columns.vector_column] = self.embedding.source_column
        return sources

    def require_codec_in(self, schema: pa.Schema) -> None:
        """Raise TableError unless a version of the table with this schema has the codec that encodes, and its
        column of refine codes."""
        generations = self.codecs.metadata.generations
        found = TableMetadata.read(schema, self._table_name)
        encoded_by = [each.untuned for each in found.generations[: len(generations)]]
        if self._encode and encoded_by != [each.untuned for each in generations]:
            raise TableError(
                f"Table {self._table_name!r} was restored, while rows were encoded, to a version that lacks "
                "the codec they were encoded by. Nothing was written; try again."
            )
        if self._encode and self.columns.refine_bytes not in (0, found.refine_bytes):
            raise TableError(
                f"Table {self._table_name!r} was given a codec without refine codes, and lost their "
                "column, while rows were encoded. Nothing was written; try again."
            )

    def encoded(self, rows: Any, bad: BadVectors = BAD_VECTORS_RAISE) -> Iterator[pa.Table]:
        """The rows as they are stored, a bounded number at a time, with all columns of the table.

        Args:
            rows: rows in any form that `add` takes; columns that they lack become null.
            bad: what to do with vectors that cannot be used.

        Raises:
            InvalidInputError, RQMoEError: as `CompressedTable.add`.
        """
        source = self.embedding.source_column if self.embedding else None
        yield from self._parts(
            tables_with_all_columns(rows, self.others, self.columns.vector_column, source), bad
        )

    def encoded_given_columns(self, rows: Any, bad: BadVectors = BAD_VECTORS_RAISE) -> Iterator[pa.Table]:
        """The rows as they are stored, a bounded number at a time, with only the columns that they have.

        Vectors that an embedding function computes from these columns are added. Arguments and exceptions are
        those of `encoded`, except that columns may be missing.
        """
        column = self.columns.vector_column
        yield from self._parts(tables_with_given_columns(rows, self.others, column, self.source_columns), bad)

    def _parts(self, tables: Iterator[pa.Table], bad: BadVectors) -> Iterator[pa.Table]:
        first_row, column, step = 0, self.columns.vector_column, self.codecs.metadata.rows_per_batch
        for table in tables:
            if column in table.column_names:
                self.kept.require_type(table.schema.field(column).type)
            for start in range(0, table.num_rows, step):
                yield self.encoded_part(table.slice(start, step), first_row + start, bad)
            first_row += table.num_rows

    def encoded_part(self, part: pa.Table, first_row: int, bad: BadVectors = BAD_VECTORS_RAISE) -> pa.Table:
        """The rows as they are stored, without those to drop.

        Args:
            part: N rows with some of the columns of `others` and, if it is to be written, the vector column.
            first_row: position of the first row, for messages.
            bad: what to do with vectors that cannot be used.

        Raises as `encoded`.
        """
        if self.columns.vector_column not in part.column_names:
            return self._others_of(part)
        if bad.action != "error":
            part = self._repaired(part, bad)
        vectors_VD, valid_N = self.kept.read(part[self.columns.vector_column], first_row)
        if self.embedding is not None and bad.action == "error":
            vectors_VD, valid_N = self._embed_missing(part, vectors_VD, valid_N, first_row)
        return self._encoded(part, vectors_VD, valid_N)

    def _repaired(self, part: pa.Table, bad: BadVectors) -> pa.Table:
        place = part.schema.get_field_index(self.columns.vector_column)
        column = part[self.columns.vector_column].combine_chunks()
        if pa.types.is_null(column.type):
            column = pa.nulls(len(column), self.kept.field.type)
        if self.embedding is not None:  # first, because computed vectors can be bad, too
            column = self.embedding.embed_missing_unchecked(column, part)
        column, stays_N = bad.repaired(column, self.kept)
        return part.set_column(place, self.columns.vector_column, column).filter(pa.array(stays_N))

    def encoded_vectors(
        self, part: pa.Table, vectors_VD: Vectors, valid_N: npt.NDArray[np.bool_], first_row: int
    ) -> pa.Table:
        """The rows as they are stored, given vectors that have been read.

        Args:
            part: N rows with columns of `others`.
            vectors_VD: vectors of the rows where `valid_N` is True, from `kept.read`.
            valid_N: which rows have a vector; an embedding function computes missing ones.
            first_row: position of the first row, for messages.
        """
        if self.embedding is not None:
            vectors_VD, valid_N = self._embed_missing(part, vectors_VD, valid_N, first_row)
        return self._encoded(part, vectors_VD, valid_N)

    def _embed_missing(
        self, part: pa.Table, vectors_VD: Float32Array, valid_N: npt.NDArray[np.bool_], first_row: int
    ) -> tuple[Float32Array, npt.NDArray[np.bool_]]:
        assert self.embedding is not None
        vectors_VD, valid_N = self.embedding.embed_missing(vectors_VD, valid_N, part, first_row)
        self.kept.require_storable(vectors_VD, valid_N, first_row=first_row)
        return vectors_VD, valid_N

    def _encoded(self, part: pa.Table, vectors_VD: Vectors, valid_N: npt.NDArray[np.bool_]) -> pa.Table:
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
        """The other columns of a part; vectors that embedding functions compute are added where missing."""
        names = [name for name in self.others.names if name in part.column_names]
        completed = complete_others(self._metadata, self._table_name, part.select(names))
        schema = pa.schema([self.others.field(name) for name in names])
        return pa.Table.from_arrays(completed.columns, schema=schema)
