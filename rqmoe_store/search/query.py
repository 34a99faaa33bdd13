"""The vector query: builds a request and runs it."""

import pyarrow as pa

from rqmoe_store.search.builder import QueryBuilder
from rqmoe_store.search.plan import Trace
from rqmoe_store.search.table_query import TableQuery


class CompressedQuery(QueryBuilder, TableQuery):
    """A search over a compressed table, built step by step and run by a `to_...` method.

    Approximate distances from look-up tables choose a shortlist; it is decoded and reranked by exact
    distance to the decoded vectors, which is the `_distance` returned unless `refine_factor` is given.
    """

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
        return self._answered(Trace())

    def explain_plan(self) -> str:
        """The stages that the query would go through, the last one first. Raises as `to_arrow`."""
        return self._planned()

    def analyze_plan(self) -> str:
        """Run the query: its stages, the last one first, with the rows that came out of each (those of
        all queries together) and the time it took. Raises as `to_arrow`."""
        trace = Trace()
        self._answered(trace)
        return str(trace)
