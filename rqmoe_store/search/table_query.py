"""What queries of every kind have in common: the rows and columns they return, and in which form."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa
from lancedb.expr import Expr
from lancedb.table import LanceTable

from rqmoe_store.arguments import whole_number
from rqmoe_store.refusals import NamesRefusals
from rqmoe_store.search.columns import Chosen, Selected, check_selection, choose
from rqmoe_store.search.decoded_column import DecodedColumn
from rqmoe_store.search.filters import combined
from rqmoe_store.search.options import batch_length, require_installed
from rqmoe_store.search.source import source_of
from rqmoe_store.store.conditions import as_text
from rqmoe_store.store.table import StoredTable

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

DEFAULT_LIMIT = 10


class TableQueryBuilder(NamesRefusals):
    """A query built step by step; every method that sets an option returns the query itself.

    An option is a value of its own, replaced and never changed: a copy of a query is independent of it.
    """

    def __init__(self, store: StoredTable) -> None:
        self._store = store
        self._conditions: list[str | Expr] = []
        self._prefilter = True
        self._selected: Selected | None = None
        self._offset = 0
        self._with_row_id = False

    def __getstate__(self) -> dict[str, Any]:
        """Without where codes come from, which another process has to find for itself."""
        return {name: value for name, value in vars(self).items() if name != "_source"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._source = source_of(self._store)

    def where(self, condition: str | Expr | None, prefilter: bool | None = None) -> Self:
        """Only return rows that match a condition; called again, both must hold.

        Args:
            condition: SQL, or an expression of `lancedb.expr`; checked when the query runs, before anything
                is read. None for no condition.
            prefilter: filter before the search, so that `limit` rows are found whenever that many
                match (the default); False takes the rows that match out of those found without it.
                It is for all conditions; None leaves what was said before.

        Raises:
            InvalidInputError: none of these.
        """
        if condition is not None:
            as_text(condition, called="where")
            self._conditions = [*self._conditions, condition]
        if prefilter is not None:
            self._prefilter = bool(prefilter)
        return self

    def select(self, columns: list[str] | Mapping[str, str | Expr] | None) -> Self:
        """Columns to return, in this order; None or [] for all user columns (the default).

        A list has names of columns, or paths into structs, such as "author.name"; a dict names of the result
        with SQL expressions or ones of `lancedb.expr`, such as {"id": "id", "double": "2 * n"}. A name in
        double quotes is a text in expressions, as it is to LanceDB there; of vectors they may ask whether
        they are there.

        These contain the raw vectors where the table keeps them. Where it does not, the vector column is
        returned when named here, as float32: raw where a row has a vector, decoded from its code elsewhere,
        null where it has neither. Scores are always returned, code columns only when named here.

        Raises:
            InvalidInputError: neither of these, or a name given twice; expressions are checked when the
                query runs.
        """
        self._selected = check_selection(columns)
        return self

    def offset(self, offset: int) -> Self:
        """Rows to skip (per query of a batch), default 0: pages of any size are cut from one ranking, so that
        one continues where the other ends. Those of a full-text search are LanceDB's: among equal scores it
        chooses anew for every page. Raises InvalidInputError below 0."""
        self._offset = whole_number("offset", offset, 0)
        return self

    def with_row_id(self, with_row_id: bool = True) -> Self:
        """Also return LanceDB's row id as column `_rowid`."""
        self._with_row_id = bool(with_row_id)
        return self

    def _where(self, table: LanceTable) -> str | None:
        """All conditions as one, checked; None where there are none. Raises as `Conditions.checked`."""
        checked = [self._store.conditions.checked(table, condition) for condition in self._conditions]
        return combined(checked)

    @property
    def _where_text(self) -> str:
        """All conditions as they were written."""
        return " AND ".join(as_text(condition, called="where") for condition in self._conditions)

    @property
    def _vectors(self) -> DecodedColumn:
        """How results get the vector column."""
        return DecodedColumn(self._store.columns, self._store.kept)

    def _choose(self, table: LanceTable, *own: str) -> Chosen:
        """The columns to return of a version of the table.

        Those named in `own` are the query's own: known, but not stored. Raises InvalidInputError for unknown
        columns, and expressions that LanceDB refuses.
        """
        return choose(self._selected, table, self._store, own)


class SearchBuilder(TableQueryBuilder):
    """The same for queries that order rows, and return the best."""

    def __init__(self, store: StoredTable) -> None:
        super().__init__(store)
        self._limit = DEFAULT_LIMIT

    def limit(self, limit: int) -> Self:
        """Rows to return (per query of a batch), default 10. Raises InvalidInputError below 1."""
        self._limit = whole_number("limit", limit, 1)
        return self


class TableQuery(TableQueryBuilder, ABC):
    """A query that is run by a `to_...` method."""

    @abstractmethod
    def to_arrow(self) -> pa.Table:
        """Run the query."""

    def to_batches(self, max_batch_length: int | None = None) -> pa.RecordBatchReader:
        """Run the query; its rows in batches.

        Args:
            max_batch_length: rows per batch at most; None for no such limit.

        Raises as `to_arrow`, and InvalidInputError for a length below 1.
        """
        length = batch_length(max_batch_length)
        return self.to_arrow().to_reader(max_chunksize=length)

    def to_list(self) -> list[dict[str, Any]]:
        """Run the query; one dict per row. Raises as `to_arrow`."""
        rows: list[dict[str, Any]] = self.to_arrow().to_pylist()
        return rows

    def to_pandas(self) -> "pd.DataFrame":
        """Run the query into a pandas frame. Raises as `to_arrow`, RQMoEError without pandas."""
        require_installed("pandas")
        return self.to_arrow().to_pandas()

    def to_polars(self) -> "pl.DataFrame":
        """Run the query into a polars frame. Raises as `to_arrow`, RQMoEError without polars."""
        polars = require_installed("polars")
        frame: pl.DataFrame = polars.from_arrow(self.to_arrow())
        return frame
