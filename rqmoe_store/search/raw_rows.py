"""Rows that have no code yet: searched exactly, by LanceDB's own scan of their vectors.

Shape suffixes: Q queries, D vector dimension, S hits of one query.
"""

import dataclasses
from collections.abc import Sequence

import lance
import numpy as np

from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.search.filters import combined
from rqmoe_store.search.request import SearchRequest
from rqmoe_store.search.rerank import Hits
from rqmoe_store.search.snapshot import Snapshot
from rqmoe_store.store.columns import CodeColumns
from rqmoe_store.store.fragments import count_rows, has_column


class RawFragments:
    """Finds the fragments of a table that have such rows, again for every version but looking only once
    into fragments that have none: what is in a file never changes, but deleted rows may return."""

    def __init__(self, columns: CodeColumns) -> None:
        self._columns = columns
        self._coded: set[tuple[str, ...]] = set()
        """Files of fragments without such rows, and their deletion files where rows were deleted."""

    def of(self, snapshot: Snapshot) -> "RawRows":
        """The rows of one version."""
        dataset, found = snapshot.dataset, []
        for fragment in dataset.get_fragments():
            files = tuple(file.path for file in fragment.data_files())
            deleted = fragment.metadata.deletion_file
            seen = files if deleted is None else (*files, repr(deleted))
            if files in self._coded or seen in self._coded:
                continue
            if has_column(dataset, fragment, self._columns.vector_column) and count_rows(
                dataset, fragment, self._columns.raw_filter
            ):
                found.append(fragment)
            else:
                self._coded.add(seen)
        return RawRows(snapshot, self._columns, found)


@dataclasses.dataclass(frozen=True)
class RawRows:
    """The rows of one version that have a vector and no code."""

    snapshot: Snapshot
    columns: CodeColumns
    fragments: Sequence[lance.LanceFragment]
    """Where they are, perhaps beside others; empty where there are none."""

    def __bool__(self) -> bool:
        return bool(self.fragments)

    def nearest(self, request: SearchRequest) -> list[Hits]:
        """The rows nearest to every query, with their vectors; as many as a page of results can need."""
        return [self._nearest(query_D, request) for query_D in request.queries_QD]

    def _nearest(self, query_D: Float32Array, request: SearchRequest) -> Hits:
        column = self.columns.vector_column
        where = request.where if request.prefilter else None
        conditions = [self.columns.raw_filter] if where is None else [self.columns.raw_filter, where]
        found = self.snapshot.dataset.scanner(
            columns=[column, "_distance"],
            filter=combined(conditions),
            prefilter=True,
            fragments=list(self.fragments),
            with_row_id=True,
            nearest={
                "column": column,
                "q": query_D,
                "k": rows_wanted(request),
                "metric": self.snapshot.codecs.metric,
                "use_index": False,
                "distance_range": (request.lower, request.upper),
            },
        ).to_table()
        vectors = found[column].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return Hits(
            found["_rowid"].to_numpy().astype(np.uint64, copy=False),
            found["_distance"].to_numpy().astype(np.float32, copy=False),
            vectors.astype(np.float32).reshape(found.num_rows, len(query_D)),
        )


def rows_wanted(request: SearchRequest) -> int:
    """Rows of a query that a page of results can need, out of those that have no code."""
    page = request.limit + request.offset
    return max(page, request.refined or 0, request.shortlist if request.diversity is not None else 0)
