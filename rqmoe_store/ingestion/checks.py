"""Rows of a source, fitted to the table they go into; those that cannot be are told apart, with the reason.

Shapes: N rows of a part, V of them with a vector, D components.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.store.row_encoder import RowEncoder
from rqmoe_store.store.rows import fitted, require_columns
from rqmoe_store.store.vector_arrays import (
    is_vector_type,
    plain_vectors,
    read_vectors,
    require_vector_column,
    unusable_vectors,
)


class Checked(NamedTuple):
    """Rows that can be encoded."""

    others: pa.Table
    """N rows with the columns that are stored as they come, in the types of the table."""
    vectors_VD: Float32Array
    """Of the rows that have one."""
    valid_N: npt.NDArray[np.bool_]
    """Which rows have a vector."""


class RowChecker:
    """Checks rows of one source for one table."""

    def __init__(self, encoder: RowEncoder, vector_column: str, *, dim: int, metric: str) -> None:
        """Prepare to check.

        Args:
            encoder: of the table.
            vector_column: what the source calls the vectors.
            dim: of the table's vectors.
            metric: of the table.
        """
        self._encoder, self._vector_column, self._dim, self._metric = encoder, vector_column, dim, metric

    @property
    def nothing(self) -> Checked:
        """No rows."""
        vectors_VD = np.zeros((0, self._dim), dtype=np.float32)
        return Checked(self._encoder.others.empty_table(), vectors_VD, np.zeros(0, dtype=bool))

    def require(self, schema: pa.Schema) -> None:
        """Raise unless rows with these columns can be checked one by one.

        Raises:
            InvalidInputError: missing or unknown columns, types that cannot be cast whatever the value, or
                vectors that all have another dimension.
            TableError: a vector column that holds no vectors.
        """
        if self._vector_column in schema.names and not pa.types.is_null(
            schema.field(self._vector_column).type
        ):
            require_vector_column(schema, self._vector_column, self._dim)
        self.check(schema.empty_table())

    def check(self, rows: pa.Table) -> tuple[Checked, dict[int, str]]:
        """The rows that can be encoded, and what is wrong with each of the others, by position.

        Raises:
            InvalidInputError: missing or unknown columns, or a vector column of another kind.
        """
        column = self._encoder.columns.vector_column
        table = rows.rename_columns(
            [column if name == self._vector_column else name for name in rows.column_names]
        )
        source = self._encoder.embedding.source_column if self._encoder.embedding else None
        require_columns(table.column_names, self._encoder.others, column, source)
        if column in table.column_names and is_vector_type(table.schema.field(column).type):
            place = table.schema.get_field_index(column)
            table = table.set_column(place, column, plain_vectors(table[column]))
        try:
            return self._fit(table), {}
        except InvalidInputError:
            self._fit(table.slice(0, 0))  # what is wrong with the types is wrong with all rows
            bad = self._bad_rows(table)
            if not bad:
                raise
        good_N = np.ones(table.num_rows, dtype=bool)
        good_N[list(bad)] = False
        return self._fit(table.filter(pa.array(good_N))), bad

    def _fit(self, table: pa.Table) -> Checked:
        column = self._encoder.columns.vector_column
        fit = fitted(table, self._encoder.others, column)
        self._encoder.require_vectors(fit.schema.field(column).type)
        return Checked(fit.drop_columns(column), *self._encoder.read(fit[column], 0))

    def _bad_rows(self, table: pa.Table) -> dict[int, str]:
        column, bad = self._encoder.columns.vector_column, self._bad_vectors(table)
        for field in self._encoder.others:
            if field.name in table.column_names:

                def fit(start: int, stop: int, field: pa.Field = field) -> None:
                    fitted(table.select([field.name]).slice(start, stop - start), pa.schema([field]), column)

                for row, error in _failing(fit, 0, table.num_rows).items():
                    bad.setdefault(row, _reason(field, error))
        return bad

    def _bad_vectors(self, table: pa.Table) -> dict[int, str]:
        column = self._encoder.columns.vector_column
        if column not in table.column_names or pa.types.is_null(table.schema.field(column).type):
            return {}
        self._encoder.require_vectors(table.schema.field(column).type)
        bad = unusable_vectors(table[column], dim=self._dim, metric=self._metric)
        rows_N = np.setdiff1d(np.arange(table.num_rows), list(bad))
        vectors_VD, valid_N = read_vectors(
            table[column].take(rows_N), dim=self._dim, metric=self._metric, first_row=0
        )
        for problem, good_V in self._encoder.kept.problems(vectors_VD, self._metric).items():
            bad |= {int(row): problem for row in rows_N[valid_N][~good_V]}
        return {row: f"vector with {problem}" for row, problem in bad.items()}


def _failing(check: Callable[[int, int], None], start: int, stop: int) -> dict[int, InvalidInputError]:
    """The rows from `start` to `stop` that `check` refuses, found by halving."""
    try:
        check(start, stop)
    except InvalidInputError as error:
        if stop == start:
            raise  # not on account of a row
        if stop - start == 1:
            return {start: error}
        middle = (start + stop) // 2
        return _failing(check, start, middle) | _failing(check, middle, stop)
    return {}


def _reason(field: pa.Field, error: InvalidInputError) -> str:
    if error.__cause__ is None:
        return f"column {field.name!r} is null, which it may not be"
    return f"column {field.name!r} cannot be read as {field.type} ({error.__cause__})"
