"""The options of a vector query, in LanceDB's words, and the request they make.

Shape suffixes: Q queries, D vector dimension.
"""

from typing import Any, Self

import pyarrow as pa

from rqmoe_store.arguments import whole_number
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.search.columns import DISTANCE, QUERY_INDEX, ROW_ID, Chosen, in_order, take
from rqmoe_store.search.execution import Execution
from rqmoe_store.search.options import as_queries, bound, share
from rqmoe_store.search.plan import Trace
from rqmoe_store.search.reach import Reach
from rqmoe_store.search.request import SearchRequest
from rqmoe_store.search.source import CodeSource, TableState
from rqmoe_store.search.table_query import SearchBuilder
from rqmoe_store.store.table import StoredTable


class QueryBuilder(SearchBuilder):
    """A vector search built step by step; every method that sets an option returns the query itself."""

    def __init__(self, store: StoredTable, query: Any, source: CodeSource, memory_budget: int) -> None:
        """Start a query; `CompressedTable.search` is the usual way.

        Args:
            store: the table to search.
            query: one vector (D,) or a batch (Q, D): list, array or tensor that casts to float32.
            source: where the codes of the table come from.
            memory_budget: bytes that codes may take in memory; above it they are read for every query.

        Raises:
            InvalidInputError: another dimension, NaN or infinite values, a zero vector under cosine,
                an empty batch.
        """
        super().__init__(store)
        self._source, self._memory_budget = source, memory_budget
        self._queries_QD = as_queries(query, dim=store.dim, metric=store.metric)
        self._nprobes: int | None = None
        self._shortlist: int | None = None
        self._refine_factor: int | None = None
        self._diversity: float | None = None
        self._lower: float | None = None
        self._upper: float | None = None

    def nprobes(self, nprobes: int) -> Self:
        """Partitions to search per query, default as tuned (`CompressedTable.tune`), else 20; more than
        there are means all.

        When these hold fewer rows (that match) than are ranked for the page, more are searched.

        Raises InvalidInputError below 1.
        """
        self._nprobes = whole_number("nprobes", nprobes, 1)
        return self

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
        self._shortlist = whole_number("shortlist", shortlist, 1)
        return self

    def refine_factor(self, refine_factor: int) -> Self:
        """Order the nearest refine_factor * (limit + offset) rows by distance to their raw vectors; where the
        ranking is made in stages (see `shortlist`), of every stage that many times the rows it ends after.

        That is then the `_distance` returned and bounded. More rows find more of the nearest vectors
        and take longer. With a lower distance bound this many rows on either side of it are ordered.

        Raises InvalidInputError below 1, TableError unless the table keeps vectors.
        """
        self._store.kept.require_kept(self._store.name)
        self._refine_factor = whole_number("refine_factor", refine_factor, 1)
        return self

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

    def distance_range(self, lower_bound: float | None = None, upper_bound: float | None = None) -> Self:
        """Only return rows with lower_bound <= distance < upper_bound; None leaves a side open.

        Where a stage of the ranking (see `shortlist`) finds too few such rows, further ones look for more,
        until none is likely to be left.

        Raises:
            InvalidInputError: a bound that is no number or NaN, or lower_bound >= upper_bound.
        """
        self._lower, self._upper = bound("lower_bound", lower_bound), bound("upper_bound", upper_bound)
        if self._lower is not None and self._upper is not None and self._lower >= self._upper:
            raise InvalidInputError(
                f"Got distance_range({lower_bound}, {upper_bound}), which is empty; expected "
                "lower_bound < upper_bound."
            )
        return self

    def distance_type(self, distance_type: str) -> Self:
        """State the metric. Raises InvalidInputError unless it is the codec's, which is fixed."""
        metric = self._store.metric
        if not isinstance(distance_type, str) or distance_type.lower() != metric:
            raise InvalidInputError(
                f"Got distance_type={distance_type!r}, but the table's codec was trained for {metric!r} "
                "and searches by it alone. Leave distance_type out, or train a codec for the other metric."
            )
        return self

    def _answered(self, trace: Trace) -> pa.Table:
        """The result, from one version of the table."""

        def answered_from(state: TableState) -> pa.Table:
            trace.stages.clear()  # of a version that was lost
            return self._answered_from(state, trace)

        return self._source.read(self._memory_budget, answered_from)

    def _planned(self) -> str:
        """The stages of `_answered`, without running them."""
        state, trace = self._source.current(self._memory_budget), Trace()
        Execution(self._request(state), state, self._store.columns, trace).plan()
        trace.plan("Take", ", ".join(self._columns_of(state).sources))
        return str(trace)

    def _answered_from(self, state: TableState, trace: Trace) -> pa.Table:
        chosen, request = self._columns_of(state), self._request(state)
        hits = Execution(request, state, self._store.columns, trace).run()
        stored = chosen.stored(DISTANCE, ROW_ID, QUERY_INDEX)
        with trace.stage("Take", ", ".join(chosen.sources)) as stage:
            taken = take(state.snapshot.dataset, hits, chosen, self._vectors.to_read(stored))
            found = chosen.arranged(self._vectors.filled(taken, stored, state.snapshot.codecs))
            stage.rows = found.num_rows
        return found

    def _request(self, state: TableState) -> SearchRequest:
        reach = self._reach(state)
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
            lower=self._lower,
            upper=self._upper,
        )

    def _reach(self, state: TableState) -> Reach:
        return Reach.of(self._nprobes, self._shortlist, self._refine_factor, state.snapshot.tuned)

    def _columns_of(self, state: TableState) -> Chosen:
        batched = len(self._queries_QD) > 1  # LanceDB counts a batch of one as a single query
        own = [DISTANCE, ROW_ID, QUERY_INDEX] if batched else [DISTANCE, ROW_ID]
        chosen = self._choose(state.snapshot.table, *own)
        return in_order(chosen, with_row_id=self._with_row_id, batched=batched)
