"""Vector queries, and what queries of all kinds share: options with LanceDB's names, and `to_...` methods.

Shape legend: Q queries, D vector dimension.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self, get_args

import pyarrow as pa
from lancedb.expr import Expr

from rqmoe_store.arguments import share, whole_number
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.search.columns import (
    DISTANCE,
    QUERY_INDEX,
    ROW_ID,
    DecodedColumn,
    ResultColumns,
    Selected,
    check_selection,
    in_lancedb_order,
    result_columns,
    take,
)
from rqmoe_store.search.diversity import Diversity, DiversityMethod, diversity_of
from rqmoe_store.search.execution import Execution
from rqmoe_store.search.multivector import as_matrices, query_encodings, require_one_vector
from rqmoe_store.search.request import (
    DEFAULT_WEIGHT,
    MOST_HOPS,
    Expansion,
    Rerank,
    SearchRequest,
    Trace,
    VectorOptions,
    as_queries,
    batch_length,
    bound,
    require_installed,
)
from rqmoe_store.search.resident import conjunction
from rqmoe_store.search.source import TableReader, TableState
from rqmoe_store.storage_errors import TranslatesErrors
from rqmoe_store.store.conditions import as_text
from rqmoe_store.store.neighbor_graph import MOST_NEIGHBORS
from rqmoe_store.store.snapshot import Snapshot

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

DEFAULT_LIMIT = 10


class TableQuery(TranslatesErrors, ABC):
    """A query, built step by step and run by a `to_...` method. Methods that set an option return the query.

    Values of options are replaced and never modified, so that a copy of a query is independent of it.
    """

    _conditions: tuple[str | Expr, ...] = ()
    _prefilter = True
    _selected: Selected | None = None
    _offset = 0
    _with_row_id = False

    def __init__(self, reader: TableReader) -> None:
        self._reader, self._handle = reader, reader.handle

    def where(self, condition: str | Expr | None, prefilter: bool | None = None) -> Self:
        """Return only rows that match a condition; after several calls, all conditions must hold.

        Args:
            condition: SQL, or an expression of `lancedb.expr`, which is checked when the query runs, before
                any row is read; None for no condition.
            prefilter: True (the default) to filter before the search, so that it finds `limit` rows if that
                many match; False to filter the results of the search. It applies to all conditions; None
                leaves it as it was set before.

        Raises:
            InvalidInputError: `condition` is neither SQL nor an expression.
        """
        if condition is not None:
            as_text(condition, called="where")
            self._conditions = (*self._conditions, condition)
        if prefilter is not None:
            self._prefilter = bool(prefilter)
        return self

    def select(self, columns: list[str] | Mapping[str, str | Expr] | None) -> Self:
        """Set the columns to return, in this order; None or [] for all user columns (the default).

        A list has names of columns, or paths into structs such as "author.name". A dict has names of the
        result with expressions in SQL or of `lancedb.expr`, such as {"id": "id", "double": "2 * n"}. In
        expressions, double quotes enclose texts, as in LanceDB, and vectors can only be tested for null.

        All user columns include the raw vectors if the table keeps them. If it does not, the vector column is
        returned if it is named here, as float32: the raw vector where a row has one, else the vector decoded
        from its code, else null. Scores are always returned, code columns only if they are named here.

        Raises:
            InvalidInputError: `columns` is neither a list nor a dict, or has a name twice. Expressions are
                checked when the query runs.
        """
        self._selected = check_selection(columns)
        return self

    def offset(self, offset: int) -> Self:
        """Set the number of rows to skip (per query of a batch), default 0.

        Pages of any size are cut from one ranking, so that each continues where the previous one ends. Pages
        of a full-text search are LanceDB's, which may order equal scores differently for every page. Raises
        InvalidInputError below 0.
        """
        self._offset = whole_number("offset", offset, 0)
        return self

    def with_row_id(self, with_row_id: bool = True) -> Self:
        """Return LanceDB's row id, too, as column `_rowid`."""
        self._with_row_id = bool(with_row_id)
        return self

    @abstractmethod
    def to_arrow(self) -> pa.Table:
        """Run the query."""

    def to_batches(self, max_batch_length: int | None = None) -> pa.RecordBatchReader:
        """Run the query and return its rows in batches.

        Args:
            max_batch_length: most rows of a batch; None for no limit.

        Raises as `to_arrow`, and InvalidInputError for a length below 1.
        """
        length = batch_length(max_batch_length)
        return self.to_arrow().to_reader(max_chunksize=length)

    def to_list(self) -> list[dict[str, Any]]:
        """Run the query and return one dict per row. Raises as `to_arrow`."""
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

    def _where(self, snapshot: Snapshot) -> str | None:
        """All conditions as one, checked; None if there are none. Raises as `Conditions.checked`."""
        if not self._conditions:
            return None
        checked = [
            self._handle.conditions.checked(snapshot.table, condition) for condition in self._conditions
        ]
        return conjunction(checked)

    @property
    def _where_text(self) -> str:
        """All conditions as the user wrote them."""
        return " AND ".join(as_text(condition, called="where") for condition in self._conditions)

    @property
    def _vectors(self) -> DecodedColumn:
        """Decodes the vector column of results; to be asked for once the version to read is known."""
        return DecodedColumn(self._handle.columns, self._handle.kept)

    def _result_columns(self, snapshot: Snapshot, *own: str) -> ResultColumns:
        """The columns to return from a version of the table.

        Columns named in `own` are added by the query and not stored. Raises InvalidInputError for unknown
        columns, and for expressions that LanceDB does not accept.
        """
        return result_columns(self._selected, snapshot, self._handle, own)


class SearchQuery(TableQuery):
    """A query that orders rows and returns the best."""

    _limit = DEFAULT_LIMIT

    def limit(self, limit: int) -> Self:
        """Set the number of rows to return (per query of a batch), default 10.

        Raises InvalidInputError below 1.
        """
        self._limit = whole_number("limit", limit, 1)
        return self


class VectorSearchQuery(SearchQuery):
    """The options of vector searches, and of the vector search in a hybrid query."""

    _options = VectorOptions()
    _diversity: Diversity | None = None

    def nprobes(self, nprobes: int) -> Self:
        """Set the number of partitions to search per query; a number beyond their count means all.

        The default is the tuned one (see `CompressedTable.tune`), else 20. If these partitions have fewer
        matching rows than the page needs, more are searched. Raises InvalidInputError below 1.
        """
        return self._set(nprobes=whole_number("nprobes", nprobes, 1))

    def shortlist(self, shortlist: int) -> Self:
        """Set the number of rows to rerank per query, for all pages.

        The default is the tuned one (see `CompressedTable.tune`) up to the limit it was tuned for, else as
        many rows as the ranking needs for the page.

        By default, rows are ranked in stages, which end after 10 rows, 15, 25, 50, 100, 150, 250 and so on. A
        stage decodes 3 times as many rows, or orders 20 times as many by refine codes, and places the nearest
        of them that no earlier stage has placed. A search for 10 rows thus decodes 30 or orders 200, and
        pages continue each other. Within a stage, rows are in the order of their distances. The next stage
        may begin with rows that are nearer than the last row of the stage before it, because only its longer
        shortlist has them. If a shortlist is set here, all pages are in the order of distances, unless the
        probed partitions have too few rows.

        A longer shortlist finds more of the nearest vectors that codes stand for, and takes longer. With a
        lower distance bound, this many rows are kept on either side of it.

        Raises InvalidInputError below 1; and, when the query runs, below limit + offset times the refine
        factor.
        """
        return self._set(shortlist=whole_number("shortlist", shortlist, 1))

    def refine_factor(self, refine_factor: int) -> Self:
        """Order the nearest refine_factor * (limit + offset) rows by the distance to their raw vectors.

        If rows are ranked in stages (see `shortlist`), each stage orders `refine_factor` times as many rows
        as it ends after. The distance to the raw vector is then the `_distance` that is returned and bounded.
        A larger factor finds more of the nearest vectors, and takes longer. With a lower distance bound, this
        many rows on either side of it are ordered.

        Raises InvalidInputError below 1, and TableError unless the table keeps raw vectors.
        """
        self._handle.kept.require_kept(self._handle.name)
        return self._set(refine_factor=whole_number("refine_factor", refine_factor, 1))

    def distance_range(self, lower_bound: float | None = None, upper_bound: float | None = None) -> Self:
        """Return only rows with lower_bound <= distance < upper_bound; None for no bound.

        If a stage of the ranking (see `shortlist`) finds too few such rows, further stages look for more,
        until it is unlikely that any is left. In a hybrid search, rows found by their text may be at any
        distance.

        Raises:
            InvalidInputError: a bound is not a number, or lower_bound >= upper_bound.
        """
        instead = "Leave distance_range out, and compare `_distance` of the results."
        require_one_vector(self._handle, "distance_range", instead)
        lower, upper = bound("lower_bound", lower_bound), bound("upper_bound", upper_bound)
        if lower is not None and upper is not None and lower >= upper:
            raise InvalidInputError(
                f"Got distance_range({lower_bound}, {upper_bound}), which is empty; expected "
                "lower_bound < upper_bound."
            )
        return self._set(lower=lower, upper=upper)

    def expand(self, hops: int = 1, neighbors: int = 5, *, weight: float = DEFAULT_WEIGHT) -> Self:
        """Take in neighbors of the results from the table's neighbor graph; see `build_neighbor_graph`.

        The nearest rows of the shortlist are the seeds: as many as the stage of the ranking ends after, 10
        for the first 10 results (see `shortlist`). Rows that are reached from a seed in up to `hops` steps,
        each to one of the `neighbors` nearest rows of a row, join the rows to choose from. All are then in
        the order of (1 - weight) * similarity + weight * graph score, the largest first, of equal scores the
        nearest:

        - similarity: 1 for the nearest row; 0 for the last of the nearest 3 rows of the shortlist per seed,
          and for farther ones; in between, in proportion to the distance (under "dot", the inner product).
        - graph score: the largest similarity of a seed that the row is reached from, halved for every step; 0
          for rows that are not reached. A seed counts if it is reached from another one.

        `_distance` is the usual one. Rows that the filter excludes are neither returned nor stepped through,
        unless it filters the results of the search. With `diversify`, the best rows by this score, as many as
        the shortlist has, are those to choose from. In a hybrid query, this is the order of the vector
        search's results, which rerankers that use ranks respect; others use distances.

        The graph may be older than the table. Rows that it does not know have no neighbors, rows that are
        gone are skipped, and rows that were encoded again keep the neighbors they had.

        Args:
            hops: most steps, 1 to 4.
            neighbors: steps from a row, up to the number of neighbors that the graph has of each row.
            weight: share of the graph score, 0 to 1.

        Raises:
            InvalidInputError: an argument is out of its range, or rows have many vectors each; and, when the
                query runs, for more neighbors than the graph has.
            TableError: when the query runs, for a version of the table without a neighbor graph, or whose
                graph was cleaned up.
        """
        require_one_vector(self._handle, "expand", "Its rows have no neighbor graph.")
        return self._set(
            expansion=Expansion(
                whole_number("hops", hops, 1, MOST_HOPS),
                whole_number("neighbors", neighbors, 1, MOST_NEIGHBORS),
                share("weight", weight),
            )
        )

    def distance_type(self, distance_type: str) -> Self:
        """State the metric, which the codec fixes. Raises InvalidInputError for another metric."""
        metric = self._handle.metric
        if not isinstance(distance_type, str) or distance_type.lower() != metric:
            raise InvalidInputError(
                f"Got distance_type={distance_type!r}, but the table's codec was trained for {metric!r} "
                "and searches by it alone. Leave distance_type out, or train a codec for the other metric."
            )
        return self

    def diversify(self, lambda_: float = 0.5, *, method: DiversityMethod = "mmr") -> Self:
        """Return rows that are near the query and unlike each other, or that cover what is near it.

        Rows are chosen one after the other, within the distance range and by their decoded vectors. Results
        are in the order of choice, with their usual `_distance`; `offset` skips the rows chosen first. If
        rows are ranked in stages (see `shortlist`), each stage chooses among the rows that it considers.
        Conditions hold before rows are chosen, unless they filter the results.

        "mmr", maximal marginal relevance (Carbonell and Goldstein, 1998), chooses from the shortlist (or the
        refined rows) the row with the largest lambda_ * relevance - (1 - lambda_) * similarity, where
        similarity is that to the most similar row chosen before. Both are cosines under "cosine" and minus
        squared distances under "l2". Under "dot", relevance is the inner product divided by the lengths of
        the query and of the longest row, and similarity is a cosine.

        "coverage" chooses the row that adds most to how well the chosen rows stand for all rows considered:
        the sum, over these, of weight * covered, where covered is 1 for a chosen row, and for another one
        (1 - lambda_) * its similarity to the most similar chosen row. Weights go from 1 for the row nearest
        to the query to 0 for the farthest one considered, in proportion to the distance; similarities from 1
        for equal rows to 0 for the two most distant ones. Distances of two rows are squared, and of unit
        length under "cosine" and "dot". The sum is monotone and submodular, so that the first 10 rows are
        worth at least 1 - 1/e (63 %) of the 10 rows that cover most (Nemhauser, Wolsey and Fisher, 1978);
        later stages add greedily to these. A stage that ends after n rows considers the nearest 10 * n, at
        most 2,000 or n; the shortlist, and the rows refined, are at least as long, unless `shortlist` sets
        it. With `lambda_` 1 nothing is to be covered, and the search is the plain one.

        In a hybrid search, the rows fused are chosen from: for n results, the first 3 * n of both searches,
        or 10 * n for "coverage". Relevance is then `_relevance_score`, scaled to the range from 0 to 1, and
        rows are compared by the cosines of their vectors.

        Args:
            lambda_: 1 for the nearest rows, as without `diversify`; 0 for the most different ones, or for
                those that cover most.
            method: "mmr" or "coverage".

        Raises:
            InvalidInputError: `lambda_` is not a number from 0 to 1, `method` is another one, or rows of the
                table have many vectors.
        """
        require_one_vector(self._handle, "diversify", "Leave diversify out.")
        self._diversity = diversity_of(share("lambda_", lambda_), method)
        return self

    def _set(self, **changes: Any) -> Self:
        self._options = self._options._replace(**changes)
        return self


class CompressedQuery(VectorSearchQuery):
    """A vector search of a compressed table, built step by step and run by a `to_...` method.

    Approximate distances from look-up tables select a shortlist, which is reranked by the distance to the
    refined or decoded vectors (see `rerank`). That distance is the `_distance` returned, unless
    `refine_factor` is set.
    """

    def __init__(self, reader: TableReader, query: Any, options: VectorOptions | None = None) -> None:
        """Start a query; `CompressedTable.search` is the usual way.

        Args:
            reader: reads the table to search.
            query: one vector (D,) or a batch (Q, D): list, array or tensor that casts to float32. Where rows
                have many vectors, one matrix (K, D), or a list of matrices.
            options: initial options; None for defaults.

        Raises:
            InvalidInputError: a vector has another dimension, NaN or infinite values, or is zero under
                cosine; or the batch is empty.
        """
        super().__init__(reader)
        if options is not None:
            self._options = options
        metadata = self._handle.metadata
        many = metadata.multi_vector
        self._matrices = None if many is None else as_matrices(query, many)
        if many is not None and self._matrices is not None:
            self._queries_QD = query_encodings(self._matrices, many)
        else:
            self._queries_QD = as_queries(query, dim=metadata.vector_dim, metric=metadata.metric)

    def rerank(self, kind: Rerank) -> Self:
        """Set what orders the shortlist, and what `_distance` is the distance to.

        - "refined": the vectors that codes and refine codes stand for, scored by look-up tables. Rows without
          a refine code are decoded.
        - "decoded": the vectors that codes alone decode to.
        - "none": the vectors that look-up tables stand for, which approximate the decoded ones.

        The default is "refined" if the table has refine codes. Otherwise it is "decoded", or "none" if the
        table's only codec is a transform code, whose tables are exact.

        Raises InvalidInputError for another kind; and, when the query runs, for "refined" without refine
        codes.
        """
        if kind not in get_args(Rerank):
            raise InvalidInputError(
                f"Got kind={kind!r} of rerank; expected one of {', '.join(map(repr, get_args(Rerank)))}."
            )
        return self._set(rerank=kind)

    def to_arrow(self) -> pa.Table:
        """Run the query.

        Returns:
            The selected columns, `_distance` (float32, as LanceDB defines the metric), and `_rowid` if
            requested. With several queries, `query_index` (int32) comes first and rows are grouped by query.
            The nearest row is first, ties are ordered by row id; after `diversify`, in the order of choice.

        Raises:
            InvalidInputError: LanceDB does not accept a condition, a column is unknown, or the shortlist is
                smaller than limit + offset times the refine factor.
        """
        return run_query(self, Trace())

    def explain_plan(self) -> str:
        """The stages of the query, the last one first, without running it. Raises as `to_arrow`."""
        state, trace = self._reader.state(), Trace()
        Execution(self._request(state), state, self._handle.columns, trace).plan()
        trace.stage("Take", functools.partial(self._columns_of(state).describe_take, state.cached))
        return str(trace)

    def analyze_plan(self) -> str:
        """Run the query and return its stages, the last one first, each with its output rows and time.

        Rows are those of all queries together. Raises as `to_arrow`.
        """
        trace = Trace()
        run_query(self, trace)
        return str(trace)

    def _run_on(self, state: TableState, trace: Trace) -> pa.Table:
        chosen, request = self._columns_of(state), self._request(state)
        hits = Execution(request, state, self._handle.columns, trace).run()
        stored = chosen.stored(DISTANCE, ROW_ID, QUERY_INDEX)
        with trace.stage("Take", functools.partial(chosen.describe_take, state.cached)) as stage:
            vectors = DecodedColumn(state.snapshot.codecs.columns, self._handle.kept)
            taken = take(state.snapshot.dataset, hits, chosen, vectors.to_read(stored), state.cached)
            found = chosen.arranged(vectors.decode(taken, stored, state.snapshot.codecs))
            stage.rows = found.num_rows
        return found

    def _request(self, state: TableState) -> SearchRequest:
        snapshot = state.snapshot
        parameters = self._options.parameters(snapshot.codecs, snapshot.tuned, self._diversity)
        return SearchRequest(
            queries_QD=self._queries_QD,
            matrices=self._matrices,
            where=self._where(snapshot),
            where_text=self._where_text,
            prefilter=self._prefilter,
            limit=self._limit,
            offset=self._offset,
            parameters=parameters,
            stages=parameters.stages(self._limit + self._offset),
            lower=self._options.lower,
            upper=self._options.upper,
            expansion=self._options.expansion,
        )

    def _columns_of(self, state: TableState) -> ResultColumns:
        batched = is_batch(self)
        own = [DISTANCE, ROW_ID, QUERY_INDEX] if batched else [DISTANCE, ROW_ID]
        chosen = self._result_columns(state.snapshot, *own)
        return in_lancedb_order(chosen, with_row_id=self._with_row_id, batched=batched)


def is_batch(query: CompressedQuery) -> bool:
    """Whether a query has several vectors or matrices; LanceDB counts a batch of one as a single query."""
    return len(query._queries_QD) > 1


def run_query(query: CompressedQuery, trace: Trace) -> pa.Table:
    """Run a query as its `to_arrow` does, and add its stages to `trace`."""

    def run_on(state: TableState) -> pa.Table:
        trace.stages.clear()  # from an attempt on a version that was removed meanwhile
        return query._run_on(state, trace)

    return query._reader.read(run_on)
