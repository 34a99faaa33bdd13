"""Positives: the rows that queries should find, named by position or by the values of a column.

Shape legend: N rows, n of them taken, D dimension.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rqmoe_store.codecs.vectors import Float32Array, as_vectors, is_dense
from rqmoe_store.config import Metric
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.training.sampler import READ_ROWS, TableColumn, count_vectors

Positions = npt.NDArray[np.int64]


def listed_positives(positives: Any, queries: int) -> list[list[Any]]:
    """The positives of every query as Python's own values; a text or a number stands for itself.

    Raises:
        InvalidInputError: they are no sequence, or not of so many queries, or a query has none.
    """
    if isinstance(positives, str | bytes | Mapping) or not isinstance(positives, Sequence | np.ndarray):
        raise InvalidInputError(
            f"Got positives of type {type(positives).__name__}; expected a list, with the values of every "
            "query."
        )
    listed = [_listed(each) for each in positives]
    if len(listed) != queries or not all(listed):
        raise InvalidInputError(
            f"Got positives of {sum(map(bool, listed))} queries, and {queries} queries; expected at least "
            "one for each. Leave out queries that nothing answers."
        )
    return listed


def _listed(values: Any) -> list[Any]:
    values = values.tolist() if isinstance(values, np.ndarray | np.generic) else values
    single = isinstance(values, str | bytes) or not isinstance(values, Iterable)
    return [values] if single else [each.item() if isinstance(each, np.generic) else each for each in values]


def positions_in(positives: Any, queries: int, rows: int) -> list[Positions]:
    """The positives of every query as positions of vectors, ascending.

    Raises:
        InvalidInputError: as `listed_positives`, or there is no vector at a position.
    """
    listed = listed_positives(positives, queries)
    for each in listed:
        for value in each:
            if type(value) is not int or not 0 <= value < rows:
                raise InvalidInputError(
                    f"Got {value!r} among the positives; expected positions of the {rows:,} vectors."
                )
    return [np.unique(np.array(each, np.int64)) for each in listed]


class PositiveValues:
    """The values that rows which answer queries have in a column."""

    def __init__(self, positives: Any, queries: int, field: pa.Field) -> None:
        """Check the values.

        Args:
            positives: for each query a value or a list of them.
            queries: number of queries.
            field: the column.

        Raises:
            InvalidInputError: as `listed_positives`, or values of another type than the column's.
        """
        self._wanted, self._column = listed_positives(positives, queries), field.name
        try:
            self._values = list(dict.fromkeys(value for each in self._wanted for value in each))
            self._value_set = pa.array(self._values, field.type)
            pc.index_in(pa.array([], field.type), value_set=self._value_set)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise InvalidInputError(
                f"Got positives such as {self._wanted[0][0]!r} for column {field.name!r} of {field.type} "
                f"({error}); expected values of that type."
            ) from error

    def places(self, column: pa.Array | pa.ChunkedArray) -> Positions:
        """Which of the values each of N rows of the column has (N,); -1 for none of them."""
        found = pc.index_in(column, value_set=self._value_set)
        return np.asarray(pc.fill_null(found, -1).to_numpy(), dtype=np.int64)

    def rows_of_queries(
        self, places_N: Positions, rows_N: npt.NDArray[Any], where: str
    ) -> list[npt.NDArray[Any]]:
        """For each query the rows that have its values, ascending.

        Args:
            places_N: what `places` returned for some rows, among them all that have a value.
            rows_N: what the rows are called.
            where: such as "table 'docs'", for messages.

        Raises:
            InvalidInputError: no row has one of the values.
        """
        order_N = np.argsort(places_N, kind="stable")
        stops = np.searchsorted(places_N[order_N], np.arange(-1, len(self._values)), side="right")
        rows_of = [rows_N[order_N[start:stop]] for start, stop in itertools.pairwise(stops)]
        missing = [value for value, rows in zip(self._values, rows_of, strict=True) if len(rows) == 0]
        if missing:
            raise InvalidInputError(
                f"Got {len(missing):,} positives that no row with a vector has in column {self._column!r}, "
                f"such as {missing[0]!r}; expected values of rows of {where}."
            )
        place_of = {value: place for place, value in enumerate(self._values)}
        return [
            np.unique(np.concatenate([rows_of[place_of[value]] for value in each])) for each in self._wanted
        ]


def sample_with_positives(
    data: Any,
    positives: Any,
    queries: int,
    *,
    on: str | None,
    vector_column: str,
    metric: Metric,
    max_rows: int,
    seed: int,
) -> tuple[Float32Array, list[Positions]]:
    """The positives of all queries, and as many other vectors as `max_rows` leaves room for, drawn at random.

    Args:
        data: as for `sample_vectors`.
        positives: for each query a position in an array, or a value of the column `on` of a table; or a list.
        queries: number of queries.
        on: a column of the table; None for an array.
        vector_column, metric, max_rows, seed: as for `sample_vectors`.

    Returns:
        Vectors (n, D), and for each query the positions of its positives among them.

    Raises:
        InvalidInputError: positives that the data does not have, or a column that there is not.
    """
    rows = count_vectors(data)
    drawn = np.random.default_rng(seed).choice(rows, size=min(rows, max_rows), replace=False)
    if hasattr(data, "count_rows"):
        if on is None or on not in data.schema.names:
            raise InvalidInputError(
                f"Got on={on!r}; expected a column of table {data.name!r} that has the positives."
            )
        values = PositiveValues(positives, queries, data.schema.field(on))
        return _read_with_positives(data, values, drawn, on, TableColumn(data, vector_column, metric))
    if on is not None:
        raise InvalidInputError(
            f"Got on={on!r} for an array; expected positions of its vectors as positives, and on=None."
        )
    relevant = positions_in(positives, queries, rows)
    wanted = np.unique(np.concatenate(relevant))
    others = np.setdiff1d(drawn, wanted, assume_unique=True)[: max(0, max_rows - len(wanted))]
    chosen_n = np.union1d(wanted, others)
    if is_dense(data):
        vectors_nD = as_vectors(data[chosen_n], metric=metric, positions=chosen_n)
    else:
        vectors_nD = as_vectors(data, metric=metric)[chosen_n]
    return vectors_nD, [np.searchsorted(chosen_n, each) for each in relevant]


def _read_with_positives(
    table: Any, values: PositiveValues, drawn: Positions, on: str, column: TableColumn
) -> tuple[Float32Array, list[Positions]]:
    """Read the vectors of rows that have one of the values, and of the rows drawn, in one pass."""
    is_drawn_N, first = np.zeros(len(column), np.bool_), 0
    is_drawn_N[drawn] = True
    parts: list[Float32Array] = []
    places: list[Positions] = []
    for batch in table.search().select(list({on, column.name})).to_batches(READ_ROWS):
        places_B = values.places(batch[on])
        taken_B = is_drawn_N[first : first + batch.num_rows] | (places_B >= 0)
        taken_B &= batch[column.name].is_valid().to_numpy(zero_copy_only=False)
        rows_B = np.flatnonzero(taken_B)
        if len(rows_B):
            taken = pa.chunked_array([batch[column.name]]).take(pa.array(rows_B))
            parts.append(column.vectors(taken, first + rows_B))
            places.append(places_B[rows_B])
        first += batch.num_rows
    places_n = np.concatenate([np.empty(0, np.int64), *places])
    relevant = values.rows_of_queries(places_n, np.arange(len(places_n)), f"table {table.name!r}")
    return np.concatenate(parts), relevant
