"""Positives: the rows that queries should find, named by position or by the values of a column.

Shape legend: N rows.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rqmoe_store.errors import InvalidInputError

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
