"""A query over one version of a table: filter, probe, scan, rank.

Shape suffixes: Q queries, P partitions, D dimension.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from rqmoe_store.codecs.additive import LookupTables
from rqmoe_store.search.filters import combined, matching_row_ids, partition_filter, row_id_filter
from rqmoe_store.search.plan import Trace
from rqmoe_store.search.ranking import Ranking
from rqmoe_store.search.request import SearchRequest
from rqmoe_store.search.rerank import Hits
from rqmoe_store.search.scan import scan
from rqmoe_store.search.segments import Mask, RowIds, Selection, grouped, no_rows
from rqmoe_store.search.shortlist import Shortlist
from rqmoe_store.search.snapshot import read_codes
from rqmoe_store.search.source import TableState
from rqmoe_store.store.columns import CodeColumns
from rqmoe_store.store.generations import Generation

RowsOf = Callable[[Mask], Iterable[Selection]]
"""The rows to consider, given which partitions (P,) are probed by any query."""

Scan = Callable[[Mapping[int, LookupTables], Mask, int], list[Shortlist]]
"""Shortlists of so many rows, given look-up tables and the partitions (Q, P) that queries probe."""

_WIDER = 4
"""Partitions that hold too few rows are searched again with this many times as many."""

_MANY_ROWS = 262_144
"""Below this many rows a filter is evaluated for all of them at once: nothing else is quicker."""

_TRIED_TIMES, _TRIED_ROWS = 4, 4_096
"""How many times the shortlist's rows a filter is tried on first, and how many rows of all queries."""


class Execution:
    """One run of a request."""

    def __init__(self, request: SearchRequest, state: TableState, columns: CodeColumns, trace: Trace) -> None:
        self._request, self._state, self._trace = request, state, trace
        self._codecs, self._columns = state.snapshot.codecs, columns
        self._ranking = Ranking(request, state.snapshot, columns, trace)

    def run(self) -> list[Hits]:
        """The rows of every query, in result order."""
        request = self._request
        pages = self._ranking.pages([shortlist.rows for shortlist in self.shortlists()], self._raw())
        return pages if request.where is None or request.prefilter else self._filtered(pages, request.where)

    def shortlists(self) -> list[Shortlist]:
        """The rows of every query that are worth decoding, as far as that can be told without."""
        request = self._request
        if not self._generations:
            return [Shortlist(np.empty(0, np.float32), no_rows(self._codecs.code_bytes))] * len(
                request.queries_QD
            )
        where = request.where if request.prefilter else None
        shortlists = self._tried(where) if where else None
        return self._scanned(self._scan_of(where), request.shortlist) if shortlists is None else shortlists

    def plan(self) -> None:
        """Write the stages that `run` would go through, as far as that can be told, into the trace."""
        request = self._request
        if request.where is not None and request.prefilter:
            self._trace.plan("Filter", f"{request.where_text}, before the scan")
        if self._generations:
            self._trace.plan(*self._scan_stage(request.nprobes, request.shortlist))
        if self._state.raw:
            self._trace.plan(*self._raw_stage)
        self._ranking.plan()
        if request.where is not None and not request.prefilter:
            self._trace.plan("Filter", f"{request.where_text}, of the results")

    @functools.cached_property
    def _tables(self) -> Mapping[int, LookupTables]:
        """Of all queries, also when several scans are needed."""
        return self._codecs.lookup_tables(self._request.queries_QD, self._generations)

    @functools.cached_property
    def _generations(self) -> list[Generation]:
        """The codecs that rows have codes of."""
        resident, generations = self._state.resident, self._codecs.generations
        if resident is None:
            return [generations[place] for place in self._state.snapshot.places_in_use]
        return [each for each in generations if resident.has_rows(each.partitions)]

    @property
    def _raw_stage(self) -> tuple[str, str]:
        where = " that match" if self._request.where is not None and self._request.prefilter else ""
        return "Raw", f"{self._codecs.metric} distance to all rows{where} without a code"

    def _raw(self) -> list[Hits] | None:
        """The rows of every query that have no code yet; None where the table has none."""
        if not self._state.raw:
            return None
        with self._trace.stage(*self._raw_stage) as stage:
            hits = self._state.raw.nearest(self._request)
            stage.rows = sum(map(len, hits))
        return hits

    def _scan_stage(self, nprobes: int, size: int) -> tuple[str, str]:
        request = self._request
        counts = [each.mark.num_partitions for each in self._generations]
        probed, total = sum(min(nprobes, count) for count in counts), sum(counts)
        where = "disk" if self._state.resident is None else "memory"
        if self._state.elsewhere is not None:
            where = "shards"
        fewest = sum(min(request.nprobes, count) for count in counts)
        probed_as = request.nprobes_from if probed == fewest else "fewer held too few"
        kept_as = request.shortlist_from if size == request.shortlist else "to filter"
        partitions, kept = f"{probed} of {total} partitions ({probed_as})", f"keep {size} ({kept_as})"
        return "Scan", f"look-up tables, {partitions}, {where}, {kept}"

    def _scan_of(self, where: str | None) -> Scan:
        request, elsewhere = self._request, self._state.elsewhere
        if elsewhere is not None:
            return functools.partial(elsewhere.scan, where, request.lower)
        rows_of, device = self._rows_of(where), self._codecs.device

        def scanned(tables: Mapping[int, LookupTables], probed_QP: Mask, size: int) -> list[Shortlist]:
            rows = rows_of(np.logical_or.reduce(probed_QP))
            return scan(rows, tables, probed_QP, size, request.lower, device)

        return scanned

    def _rows_of(self, where: str | None) -> RowsOf:
        resident = self._state.resident
        if resident is None:
            return lambda probed_P: self._on_disk(where, probed_P)
        if where is None:
            return lambda _: resident.selections
        with self._trace.stage("Filter", f"{self._request.where_text}, of all rows") as stage:
            selections = resident.matching(where)
            stage.rows = sum(map(len, selections))
        return lambda _: selections

    def _on_disk(self, where: str | None, probed_P: Mask) -> Iterable[Selection]:
        """The rows of the probed partitions, read from the table."""
        conditions = [] if where is None else [where]
        if not probed_P.all():
            conditions.append(partition_filter(self._columns.partition, np.flatnonzero(probed_P)))
        for batch in read_codes(self._state.snapshot, self._columns, combined(conditions)):
            yield Selection(grouped(batch, len(probed_P)))

    def _scanned(self, scan_: Scan, size: int) -> list[Shortlist]:
        """Shortlists of `size` rows, from more partitions than asked for where those hold too few."""
        request, tables = self._request, self._tables
        nprobes = request.nprobes
        everyone = list(range(len(request.queries_QD)))
        shortlists, again = self._scanned_once(scan_, tables, everyone, nprobes, size)
        while again:
            nprobes *= _WIDER
            wider, still = self._scanned_once(
                scan_, {first: each.of(again) for first, each in tables.items()}, again, nprobes, size
            )
            for query, shortlist in zip(again, wider, strict=True):
                shortlists[query] = shortlist
            again = still
        return shortlists

    def _scanned_once(
        self,
        scan_: Scan,
        tables: Mapping[int, LookupTables],
        queries: list[int],
        nprobes: int,
        size: int,
    ) -> tuple[list[Shortlist], list[int]]:
        """Shortlists of some queries, and which of these have too few rows although there may be more."""
        request, most = self._request, self._codecs.most_partitions
        nprobes = min(nprobes, most)
        with self._trace.stage(*self._scan_stage(nprobes, size)) as stage:
            probed_QP = self._codecs.probed(request.queries_QD[queries], nprobes, self._generations)
            shortlists = scan_(tables, probed_QP, size)
            stage.rows = sum(map(len, shortlists))
        enough = request.limit + request.offset
        few = [query for query, shortlist in zip(queries, shortlists, strict=True) if len(shortlist) < enough]
        return shortlists, few if nprobes < most else []

    def _tried(self, where: str) -> list[Shortlist] | None:
        """Shortlists by way of longer ones that ignore a filter most rows match; None if that is no use.

        The filter is evaluated for few rows only. What is left of a longer shortlist has the best
        matching rows there are, as long as it has as many as are wanted.
        """
        request, resident = self._request, self._state.resident
        size = _TRIED_TIMES * request.shortlist
        if (
            resident is None
            or len(resident) < _MANY_ROWS
            or where in resident.filtered
            or request.lower is not None
            or size * len(request.queries_QD) > _TRIED_ROWS
        ):
            return None
        longer = self._scanned(self._scan_of(None), size)
        with self._trace.stage("Filter", f"{self._request.where_text}, of the rows kept") as stage:
            matching = self._matching([shortlist.rows.row_ids_N for shortlist in longer], where)
            matched = [shortlist.only(matching) for shortlist in longer]
            stage.rows = sum(map(len, matched))
        if any(len(shortlist) < request.shortlist for shortlist in matched):
            return None
        return [shortlist.best(request.shortlist) for shortlist in matched]

    def _filtered(self, pages: list[Hits], where: str) -> list[Hits]:
        """Those of the results that match."""
        with self._trace.stage("Filter", f"{self._request.where_text}, of the results") as stage:
            matching = self._matching([hits.row_ids_S for hits in pages], where)
            pages = [hits[np.isin(hits.row_ids_S, matching)] for hits in pages]
            stage.rows = sum(map(len, pages))
        return pages

    def _matching(self, row_ids: Sequence[RowIds], where: str) -> RowIds:
        """Those of the rows that match."""
        some = np.unique(np.concatenate(row_ids))
        if len(some) == 0:
            return some
        return matching_row_ids(self._state.snapshot.dataset, f"{row_id_filter(some)} AND {where}")
