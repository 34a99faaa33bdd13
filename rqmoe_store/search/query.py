"""The vector query: options in LanceDB's words, what queries of all kinds share, and the request.

Shape suffixes: Q queries, D vector dimension.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa
from lancedb.expr import Expr
from lancedb.table import LanceTable

from rqmoe_store.arguments import whole_number
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.search.columns import (
    DISTANCE,
    QUERY_INDEX,
    ROW_ID,
    Chosen,
    DecodedColumn,
    Selected,
    check_selection,
    choose,
    in_order,
    take,
)
from rqmoe_store.search.execution import Execution
from rqmoe_store.search.request import (
    SearchRequest,
    Trace,
    VectorOptions,
    as_queries,
    batch_length,
    bound,
    require_installed,
    share,
)
from rqmoe_store.search.resident import combined
from rqmoe_store.search.source import TableReader, TableState
from rqmoe_store.storage_errors import TranslatesErrors
from rqmoe_store.store.conditions import as_text
from rqmoe_store.store.handle import Handle

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

DEFAULT_LIMIT = 10


class TableQuery(TranslatesErrors, ABC):
    """A query, built step by step and run by a `to_...` method. Methods that set an option return the query.

    An option is a value of its own, replaced and never changed: a copy of a query is independent of it.
    """

    def __init__(self, reader: TableReader) -> None:
        self._reader = reader
        self._conditions: list[str | Expr] = []
        self._prefilter = True
        self._selected: Selected | None = None
        self._offset = 0
        self._with_row_id = False

    @property
    def _handle(self) -> Handle:
        return self._reader.handle

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

    def _where(self, table: LanceTable) -> str | None:
        """All conditions as one, checked; None where there are none. Raises as `Conditions.checked`."""
        checked = [self._handle.conditions.checked(table, condition) for condition in self._conditions]
        return combined(checked)

    @property
    def _where_text(self) -> str:
        """All conditions as they were written."""
        return " AND ".join(as_text(condition, called="where") for condition in self._conditions)

    @property
    def _vectors(self) -> DecodedColumn:
        """How results get the vector column."""
        return DecodedColumn(self._handle.columns, self._handle.kept)

    def _choose(self, table: LanceTable, *own: str) -> Chosen:
        """The columns to return of a version of the table.

        Those named in `own` are the query's own: known, but not stored. Raises InvalidInputError for unknown
        columns, and expressions that LanceDB refuses.
        """
        return choose(self._selected, table, self._handle, own)


class SearchQuery(TableQuery):
    """A query that orders rows and returns the best."""

    def __init__(self, reader: TableReader) -> None:
        super().__init__(reader)
        self._limit = DEFAULT_LIMIT

    def limit(self, limit: int) -> Self:
        """Rows to return (per query of a batch), default 10. Raises InvalidInputError below 1."""
        self._limit = whole_number("limit", limit, 1)
        return self


class VectorSearchQuery(SearchQuery):
    """A query by vector, alone or in a hybrid search."""

    def __init__(self, reader: TableReader, options: VectorOptions) -> None:
        super().__init__(reader)
        self._options = options

    def nprobes(self, nprobes: int) -> Self:
        """Partitions to search per query, default as tuned (`CompressedTable.tune`), else 20; more than
        there are means all.

        When these hold fewer rows (that match) than are ranked for the page, more are searched.

        Raises InvalidInputError below 1.
        """
        return self._set(nprobes=whole_number("nprobes", nprobes, 1))

    def shortlist(self, shortlist: int) -> Self:
        """Rows decoded and reranked per query, for all pages; default as tuned (`CompressedTable.tune`) up to
        the limit tuned for, else as many as the ranking needs at the page.

        By default the ranking is made in stages, which end after 10 rows, 15, 25, 50, 100, 150, 250 and so
        on. A stage decodes 3 times as many rows, and places the nearest of them that no earlier stage has.
        So a search for 10 rows decodes 30, and pages continue each other. Each stage is in the order of its
        distances; the next may begin with rows that are nearer than the last of it, since only its longer
        shortlist has them. With a shortlist that is said here all pages are in the order of their distances,
        unless the probed partitions hold too few rows.

        A longer shortlist finds more of the nearest decoded vectors and takes longer. With a lower
        distance bound this many rows are kept on either side of it.

        Raises InvalidInputError below 1, and when the query runs below limit + offset, times the
        refine factor if given.
        """
        return self._set(shortlist=whole_number("shortlist", shortlist, 1))

    def refine_factor(self, refine_factor: int) -> Self:
        """Order the nearest refine_factor * (limit + offset) rows by distance to their raw vectors; where the
        ranking is made in stages (see `shortlist`), of every stage that many times the rows it ends after.

        That is then the `_distance` returned and bounded. More rows find more of the nearest vectors
        and take longer. With a lower distance bound this many rows on either side of it are ordered.

        Raises InvalidInputError below 1, TableError unless the table keeps vectors.
        """
        self._handle.kept.require_kept(self._handle.name)
        return self._set(refine_factor=whole_number("refine_factor", refine_factor, 1))

    def distance_range(self, lower_bound: float | None = None, upper_bound: float | None = None) -> Self:
        """Only return rows with lower_bound <= distance < upper_bound; None leaves a side open.

        Where a stage of the ranking (see `shortlist`) finds too few such rows, further ones look for more,
        until none is likely to be left. In a hybrid search rows found by their text may be at any distance.

        Raises:
            InvalidInputError: a bound that is no number or NaN, or lower_bound >= upper_bound.
        """
        lower, upper = bound("lower_bound", lower_bound), bound("upper_bound", upper_bound)
        if lower is not None and upper is not None and lower >= upper:
            raise InvalidInputError(
                f"Got distance_range({lower_bound}, {upper_bound}), which is empty; expected "
                "lower_bound < upper_bound."
            )
        return self._set(lower=lower, upper=upper)

    def distance_type(self, distance_type: str) -> Self:
        """State the metric. Raises InvalidInputError unless it is the codec's, which is fixed."""
        metric = self._handle.metric
        if not isinstance(distance_type, str) or distance_type.lower() != metric:
            raise InvalidInputError(
                f"Got distance_type={distance_type!r}, but the table's codec was trained for {metric!r} "
                "and searches by it alone. Leave distance_type out, or train a codec for the other metric."
            )
        return self

    def _set(self, **changes: Any) -> Self:
        self._options = dataclasses.replace(self._options, **changes)
        return self


class CompressedQuery(VectorSearchQuery):
    """A search over a compressed table, built step by step and run by a `to_...` method.

    Approximate distances from look-up tables choose a shortlist; it is decoded and reranked by exact
    distance to the decoded vectors, which is the `_distance` returned unless `refine_factor` is given.
    """

    def __init__(self, reader: TableReader, query: Any, options: VectorOptions | None = None) -> None:
        """Start a query; `CompressedTable.search` is the usual way.

        Args:
            reader: reads the table to search.
            query: one vector (D,) or a batch (Q, D): list, array or tensor that casts to float32.
            options: to begin with; None for defaults.

        Raises:
            InvalidInputError: another dimension, NaN or infinite values, a zero vector under cosine,
                an empty batch.
        """
        super().__init__(reader, options or VectorOptions())
        self._queries_QD = as_queries(query, dim=self._handle.dim, metric=self._handle.metric)
        self._diversity: float | None = None

    def diversify(self, lambda_: float = 0.5) -> Self:
        """Return rows that are near the query and unlike each other: maximal marginal relevance.

        Out of the shortlist (or the refined rows, within the distance range) rows are chosen one after
        the other, always the one for which lambda_ * relevance - (1 - lambda_) * likeness is largest:
        likeness to the most alike of the rows chosen before, by decoded vectors. Both are cosines under
        "cosine", and minus squared distances under "l2"; under "dot" relevance is the inner product over
        the length of the query and of the longest row, likeness a cosine. Results are in the order
        chosen, with the `_distance` they always have; `offset` skips the rows chosen first. A longer
        shortlist leaves more to choose from. Where the ranking is made in stages (see `shortlist`), each goes
        on choosing out of its own.

        Args:
            lambda_: 1 for the nearest rows, the same as without; 0 for the most different ones.

        Raises:
            InvalidInputError: not a number from 0 to 1.
        """
        self._diversity = share("lambda_", lambda_)
        return self

    def to_arrow(self) -> pa.Table:
        """Run the query.

        Returns:
            The selected columns, `_distance` (float32, LanceDB's definition of the metric) and
            `_rowid` if asked for; with several queries `query_index` (int32) comes first and rows are
            grouped by query. Nearest first, ties by row id; after `diversify`, in the order chosen.

        Raises:
            InvalidInputError: a `where` that LanceDB refuses, an unknown column, or a shortlist
                smaller than limit + offset, times the refine factor if given.
        """
        return run_query(self, Trace())

    def explain_plan(self) -> str:
        """The stages that the query would go through, the last one first. Raises as `to_arrow`."""
        state, trace = self._reader.state(), Trace()
        Execution(self._request(state), state, self._handle.columns, trace).plan()
        trace.plan("Take", ", ".join(self._columns_of(state).sources))
        return str(trace)

    def analyze_plan(self) -> str:
        """Run the query: its stages, the last one first, with the rows that came out of each (those of
        all queries together) and the time it took. Raises as `to_arrow`."""
        trace = Trace()
        run_query(self, trace)
        return str(trace)

    def _run_on(self, state: TableState, trace: Trace) -> pa.Table:
        chosen, request = self._columns_of(state), self._request(state)
        hits = Execution(request, state, self._handle.columns, trace).run()
        stored = chosen.stored(DISTANCE, ROW_ID, QUERY_INDEX)
        with trace.stage("Take", ", ".join(chosen.sources)) as stage:
            taken = take(state.snapshot.dataset, hits, chosen, self._vectors.to_read(stored))
            found = chosen.arranged(self._vectors.filled(taken, stored, state.snapshot.codecs))
            stage.rows = found.num_rows
        return found

    def _request(self, state: TableState) -> SearchRequest:
        reach = self._options.parameters(state.snapshot.tuned)
        return SearchRequest(
            queries_QD=self._queries_QD,
            where=self._where(state.snapshot.table),
            where_text=self._where_text,
            prefilter=self._prefilter,
            limit=self._limit,
            offset=self._offset,
            reach=reach,
            stages=reach.stages(self._limit + self._offset),
            diversity=self._diversity,
            lower=self._options.lower,
            upper=self._options.upper,
        )

    def _columns_of(self, state: TableState) -> Chosen:
        batched = len(self._queries_QD) > 1  # LanceDB counts a batch of one as a single query
        own = [DISTANCE, ROW_ID, QUERY_INDEX] if batched else [DISTANCE, ROW_ID]
        chosen = self._choose(state.snapshot.table, *own)
        return in_order(chosen, with_row_id=self._with_row_id, batched=batched)


def run_query(query: CompressedQuery, trace: Trace) -> pa.Table:
    """Run a query as its `to_arrow` does, and write its stages into `trace`."""

    def run_on(state: TableState) -> pa.Table:
        trace.stages.clear()  # of a version that was lost
        return query._run_on(state, trace)

    return query._reader.read(run_on)
