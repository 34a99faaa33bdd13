"""Raw rows: exact search of the rows that have no code yet, by LanceDB's own scan of their vectors.

That scan sums squares in float32. For vectors whose squared lengths overflow or underflow float32, it leaves
rows out or gives all of them the same distance. Such vectors are read and compared here in float64, which
takes longer.

Shape legend: Q queries, B rows of a batch, D vector dimension, S hits of one query.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import lance
import numpy as np
import pyarrow as pa

from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.search.multivector import nearest_raw_rows
from rqmoe_store.search.request import SearchRequest
from rqmoe_store.search.rerank import Hits, exact_with_tie_breaks, ordered, within
from rqmoe_store.search.resident import conjunction
from rqmoe_store.search.segments import RowIds
from rqmoe_store.store.columns import CodeColumns
from rqmoe_store.store.lance import count_rows, has_column
from rqmoe_store.store.snapshot import Snapshot
from rqmoe_store.store.vector_arrays import rows_per_batch

_LOWEST, _HIGHEST = 2.0**-80, 2.0**80
"""Squared lengths between these, and their products, fit float32."""

_TINY_PRODUCT = 2.0**-12


class RawFragments:
    """Finds the fragments with raw rows of every version of a table.

    It reads a fragment without raw rows only once, because files never change. Deleted rows can return in
    another version, so the deletion file is part of what identifies a fragment that has deleted rows.
    """

    def __init__(self, columns: CodeColumns) -> None:
        self._columns = columns
        self._coded: set[tuple[str, ...]] = set()
        """Files of fragments without raw rows, with the deletion file if rows are deleted."""
        self._extreme: dict[tuple[str, ...], bool] = {}

    def of(self, snapshot: Snapshot) -> "RawRows":
        """The raw rows of one version."""
        dataset, found = snapshot.dataset, []
        for fragment in dataset.get_fragments():
            files = _files_of(fragment)
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
        return RawRows(snapshot, self._columns, found, self._extreme)


@dataclasses.dataclass(frozen=True)
class RawRows:
    """The raw rows of one version: those with a vector and no code."""

    snapshot: Snapshot
    columns: CodeColumns
    fragments: Sequence[lance.LanceFragment]
    """Fragments that have raw rows, and perhaps others; empty if there are none."""
    extreme: dict[tuple[str, ...], bool] = dataclasses.field(default_factory=dict, compare=False)
    """Files of a fragment -> whether they have vectors too long or too short for LanceDB's scan."""

    def __bool__(self) -> bool:
        return bool(self.fragments)

    def nearest(self, request: SearchRequest) -> list[Hits]:
        """Find the rows nearest to every query, with their vectors unless they have many each; as many as its
        ranking can need."""
        if request.matrices is not None:
            batches = self._list_batches(self._condition(request))
            most = rows_wanted(request)[-1]
            found = nearest_raw_rows(batches, request.matrices, self.snapshot, most)
            return [with_stages(hits, request) for hits in found]
        return [with_stages(self._nearest(query_D, request), request) for query_D in request.queries_QD]

    def _nearest(self, query_D: Float32Array, request: SearchRequest) -> Hits:
        metric = self.snapshot.codecs.metric
        squared = float(np.einsum("d,d->", query_D, query_D, dtype=np.float64))
        if not (metric == "cosine" or _LOWEST < squared < _HIGHEST) or (
            metric != "l2" and self._has_extreme()
        ):
            return self._search_in_float64(query_D, request)
        hits = self._search_by_lance(query_D, request)
        # 1 minus a tiny inner product loses most of its bits. The first stage decides, which is part of the
        # ranking of every page: all pages must have the same distances.
        first = hits.distances_S[: rows_wanted(request)[0]]
        if metric == "dot" and len(first) and np.abs(1 - first).max() <= _TINY_PRODUCT:
            return self._search_in_float64(query_D, request)
        finite = hits[np.isfinite(hits.distances_S)]
        if len(finite) == len(hits):
            return hits
        exact = self._search_in_float64(query_D, request)
        return finite.joined(exact[~np.isin(exact.row_ids_S, finite.row_ids_S)])

    def _condition(self, request: SearchRequest) -> str | None:
        where = request.where if request.prefilter else None
        return conjunction([self.columns.raw_filter] if where is None else [self.columns.raw_filter, where])

    def _has_extreme(self) -> bool:
        """Whether any vector is too long or too short for LanceDB's scan; reads a file at most once."""
        for fragment in self.fragments:
            if (files := _files_of(fragment)) not in self.extreme:
                batches = self._batches([fragment], self.columns.raw_filter)
                self.extreme[files] = any(_are_extreme(vectors_BD) for _, vectors_BD in batches)
        return any(self.extreme[_files_of(fragment)] for fragment in self.fragments)

    def _batches(
        self, fragments: Sequence[lance.LanceFragment], condition: str | None
    ) -> Iterator[tuple[RowIds, Float32Array]]:
        """Yield ids and vectors (B, D) of the rows that match, a bounded number at a time."""
        column, dim = self.columns.vector_column, self.snapshot.codecs.dim
        scanner = self.snapshot.dataset.scanner(
            columns=[column],
            filter=condition,
            fragments=list(fragments),
            with_row_id=True,
            batch_size=rows_per_batch(dim),
        )
        for batch in scanner.to_batches():
            vectors = batch[column].flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
            yield batch["_rowid"].to_numpy().astype(np.uint64, copy=False), vectors.reshape(-1, dim)

    def _list_batches(self, condition: str | None) -> Iterator[tuple[RowIds, pa.Array]]:
        """Yield ids and lists of vectors of the rows that match, a bounded number at a time."""
        column = self.columns.vector_column
        scanner = self.snapshot.dataset.scanner(
            columns=[column],
            filter=condition,
            fragments=list(self.fragments),
            with_row_id=True,
            batch_size=self.snapshot.codecs.metadata.rows_per_batch,
        )
        for batch in scanner.to_batches():
            yield batch["_rowid"].to_numpy().astype(np.uint64, copy=False), batch[column]

    def _search_in_float64(self, query_D: Float32Array, request: SearchRequest) -> Hits:
        best = Hits(np.empty(0, np.uint64), np.empty(0, np.float32), np.empty((0, len(query_D)), np.float32))
        for row_ids_B, vectors_BD in self._batches(self.fragments, self._condition(request)):
            distances_B, tie_breaks_B = exact_with_tie_breaks(
                query_D, vectors_BD, self.snapshot.codecs.metric
            )
            hits = Hits(row_ids_B, distances_B, vectors_BD, tie_breaks_B)
            more = within(hits, request.lower, request.upper)
            best = ordered(best.joined(more))[: rows_wanted(request)[-1]]
        return best

    def _search_by_lance(self, query_D: Float32Array, request: SearchRequest) -> Hits:
        column = self.columns.vector_column
        found = self.snapshot.dataset.scanner(
            columns=[column, "_distance"],
            filter=self._condition(request),
            prefilter=True,
            fragments=list(self.fragments),
            with_row_id=True,
            nearest={
                "column": column,
                "q": query_D,
                "k": rows_wanted(request)[-1],
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


def _files_of(fragment: lance.LanceFragment) -> tuple[str, ...]:
    return tuple(file.path for file in fragment.data_files())


def _are_extreme(vectors_BD: Float32Array) -> bool:
    """Whether any squared length is too large or too small for float32, with a margin; zero vectors do not
    count."""
    with np.errstate(over="ignore"):
        squares_B = np.einsum("bd,bd->b", vectors_BD, vectors_BD)
    outside_B = ~((squares_B > _LOWEST) & (squares_B < _HIGHEST))
    return bool(outside_B.any() and vectors_BD[outside_B].any())


def rows_wanted(request: SearchRequest) -> list[int]:
    """Number of raw rows that every stage of a query's ranking can need."""
    diverse = request.diversity is not None
    return [max(stage.end, stage.refined or 0, stage.shortlist if diverse else 0) for stage in request.stages]


def with_stages(hits: Hits, request: SearchRequest) -> Hits:
    """The nearest raw rows in order, as many as the ranking can need, each with the first stage that does."""
    wanted = rows_wanted(request)
    nearest = ordered(hits)[: wanted[-1]]
    stages_S = np.searchsorted(wanted, np.arange(len(nearest)), side="right")
    estimates_S = np.full(len(nearest), -np.inf)
    return dataclasses.replace(nearest, stages_S=stages_S, estimates_S=estimates_S)
