"""The query builder: options in LanceDB's words, then probe, scan, rerank, take.

Shape suffixes: Q queries, P partitions, D vector dimension.
"""

from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from lancedb.table import Table

from rqmoe_store.errors import InvalidInputError
from rqmoe_store.search.columns import check_selection, output_names, take
from rqmoe_store.search.filters import checked_filter, combined, partition_filter
from rqmoe_store.search.options import as_queries, bound, require_installed, whole_number
from rqmoe_store.search.rerank import Hits, page, rerank
from rqmoe_store.search.scan import QueryGroup, scan
from rqmoe_store.search.snapshot import Snapshots, read_codes
from rqmoe_store.store.table import StoredTable

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

DEFAULT_LIMIT = 10
DEFAULT_NPROBES = 20
DEFAULT_SHORTLIST = 200
SHORTLIST_PER_ROW = 10
"""The default shortlist is this many times limit + offset, and at least DEFAULT_SHORTLIST."""


class CompressedQuery:
    """A search over a compressed table, built step by step and run by a `to_...` method.

    Approximate distances from look-up tables choose a shortlist; it is decoded and reranked by exact
    distance to the decoded vectors, which is the `_distance` returned. Every method that sets an
    option returns the query itself.
    """

    def __init__(self, store: StoredTable, query: Any, snapshots: Snapshots | None = None) -> None:
        """Start a query; `CompressedTable.search` is the usual way.

        Args:
            store: the table to search.
            query: one vector (D,) or a batch (Q, D): list, array or tensor that casts to float32.
            snapshots: where to get pinned handles of the table; None makes new ones.

        Raises:
            InvalidInputError: another dimension, NaN or infinite values, a zero vector under cosine,
                an empty batch.
        """
        self._store = store
        self._snapshots = snapshots or Snapshots(store.table)
        self._queries_QD = as_queries(query, dim=store.codec.dim, metric=store.codec.config.metric)
        self._conditions: list[str] = []
        self._selected: list[str] | None = None
        self._limit = DEFAULT_LIMIT
        self._offset = 0
        self._nprobes = DEFAULT_NPROBES
        self._shortlist: int | None = None
        self._lower: float | None = None
        self._upper: float | None = None
        self._with_row_id = False

    def where(self, condition: str) -> Self:
        """Only consider rows that match an SQL condition; called again, both must hold.

        The filter comes before the search, so `limit` rows are found when that many match. It is
        checked when the query runs, before anything is read.

        Raises:
            InvalidInputError: not a string.
        """
        if not isinstance(condition, str):
            raise InvalidInputError(f"Got where={condition!r}; expected an SQL condition as a string.")
        self._conditions.append(condition)
        return self

    def select(self, columns: list[str] | None) -> Self:
        """Columns to return, in this order; None or [] for all user columns (the default).

        `_distance` is always returned; the code columns only when named here.

        Raises:
            InvalidInputError: not a list of names, or a name given twice.
        """
        self._selected = check_selection(columns)
        return self

    def limit(self, limit: int) -> Self:
        """Rows to return per query, default 10. Raises InvalidInputError below 1."""
        self._limit = whole_number("limit", limit, 1)
        return self

    def offset(self, offset: int) -> Self:
        """Rows to skip per query, default 0. Raises InvalidInputError below 0."""
        self._offset = whole_number("offset", offset, 0)
        return self

    def nprobes(self, nprobes: int) -> Self:
        """Partitions to search per query, default 20; more than there are means all.

        Raises InvalidInputError below 1.
        """
        self._nprobes = whole_number("nprobes", nprobes, 1)
        return self

    def shortlist(self, shortlist: int) -> Self:
        """Rows decoded and reranked per query; default 10 (limit + offset), at least 200.

        A longer shortlist finds more of the nearest decoded vectors and takes longer. With a lower
        distance bound this many rows are kept on either side of it.

        Raises InvalidInputError below 1, and when the query runs below limit + offset.
        """
        self._shortlist = whole_number("shortlist", shortlist, 1)
        return self

    def distance_range(self, lower_bound: float | None = None, upper_bound: float | None = None) -> Self:
        """Only return rows with lower_bound <= distance < upper_bound; None leaves a side open.

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

    def with_row_id(self, with_row_id: bool = True) -> Self:
        """Also return LanceDB's row id as column `_rowid`."""
        self._with_row_id = bool(with_row_id)
        return self

    def distance_type(self, distance_type: str) -> Self:
        """State the metric. Raises InvalidInputError unless it is the codec's, which is fixed."""
        metric = self._store.codec.config.metric
        if not isinstance(distance_type, str) or distance_type.lower() != metric:
            raise InvalidInputError(
                f"Got distance_type={distance_type!r}, but the table's codec was trained for {metric!r} "
                "and searches by it alone. Leave distance_type out, or train a codec for the other metric."
            )
        return self

    def to_arrow(self) -> pa.Table:
        """Run the query.

        Returns:
            The selected columns, `_distance` (float32, LanceDB's definition of the metric) and
            `_rowid` if asked for; with several queries `query_index` (int32) comes first and rows are
            grouped by query. Nearest first, ties by row id.

        Raises:
            InvalidInputError: a `where` that LanceDB refuses, an unknown column, or a shortlist
                smaller than limit + offset.
        """
        shortlist = self._shortlist_size()
        snapshot = self._snapshots.current()
        names = self._output_names(snapshot)
        where = [checked_filter(snapshot, condition) for condition in self._conditions]
        hits = self._search(snapshot, where, shortlist)
        pages = [
            page(found, lower=self._lower, upper=self._upper, offset=self._offset, limit=self._limit)
            for found in hits
        ]
        return take(snapshot, pages, names)

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

    def _search(self, snapshot: Table, where: list[str], shortlist: int) -> list[Hits]:
        """Probe, scan, decode and rerank: all hits of the shortlists, in result order."""
        codec, columns = self._store.codec, self._store.columns
        probed_QP = self._probe()
        if not probed_QP.all():
            where = [*where, partition_filter(columns.partition, np.flatnonzero(probed_QP.any(axis=0)))]
        batches = read_codes(snapshot, columns, codec.config, combined(where))
        shortlists = scan(batches, self._groups(probed_QP), shortlist, self._lower)
        return rerank(codec, self._queries_QD, shortlists)

    def _probe(self) -> npt.NDArray[np.bool_]:
        """Which partitions every query considers, (Q, P)."""
        codec = self._store.codec
        probed_QP = np.zeros((len(self._queries_QD), codec.num_partitions), dtype=bool)
        nprobes = min(self._nprobes, codec.num_partitions)
        np.put_along_axis(probed_QP, codec.probe(self._queries_QD, nprobes), True, axis=1)
        return probed_QP

    def _groups(self, probed_QP: npt.NDArray[np.bool_]) -> list[QueryGroup]:
        """Queries scored together: all of them when they consider the same rows, else one by one."""
        codec, count = self._store.codec, len(self._queries_QD)
        if count == 1 or probed_QP.all():
            return [QueryGroup(range(count), codec.lookup_tables(self._queries_QD), None)]
        return [
            QueryGroup([query], codec.lookup_tables(self._queries_QD[query : query + 1]), probed_QP[query])
            for query in range(count)
        ]

    def _shortlist_size(self) -> int:
        wanted = self._limit + self._offset
        if self._shortlist is None:
            return max(SHORTLIST_PER_ROW * wanted, DEFAULT_SHORTLIST)
        if self._shortlist < wanted:
            raise InvalidInputError(
                f"Got shortlist={self._shortlist}, less than limit + offset = {wanted}: only shortlisted "
                f"rows can be returned. Use shortlist of at least {wanted}, or leave it out."
            )
        return self._shortlist

    def _output_names(self, snapshot: Table) -> list[str]:
        columns, schema = self._store.columns, snapshot.schema
        return output_names(
            self._selected,
            user_columns=[name for name in schema.names if name not in columns.names],
            code_columns=columns.names,
            with_row_id=self._with_row_id,
            # LanceDB counts a batch of one as a single query.
            batched=len(self._queries_QD) > 1,
        )
