"""A query over one version of a table: filter, probe, scan, rank.

What a stage of the ranking considers depends on the stage alone, never on the page that is asked for: which
partitions are searched, how many of their rows are decoded, and when partitions hold too few.

Shape suffixes: Q queries, P partitions, D dimension.
"""

import bisect
import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from rqmoe_store.codecs.additive import LookupTables
from rqmoe_store.codecs.frame import ScoreUnits
from rqmoe_store.search.ranking import Ranking
from rqmoe_store.search.request import RankingStage, SearchRequest, Trace
from rqmoe_store.search.rerank import Hits
from rqmoe_store.search.resident import (
    combined,
    matching_row_ids,
    partition_filter,
    read_codes,
    row_id_filter,
)
from rqmoe_store.search.scan import scan_sides
from rqmoe_store.search.segments import Mask, RowIds, Selection, grouped
from rqmoe_store.search.shortlist import Candidates, Shortlist
from rqmoe_store.search.source import TableState
from rqmoe_store.store.columns import CodeColumns
from rqmoe_store.store.table_codec import Generation

RowsOf = Callable[[Mask], Iterable[Selection]]
"""The rows to consider, given which partitions (P,) are probed by any query."""

Scan = Callable[[Mapping[int, LookupTables], Mask, int], list[list[Shortlist]]]
"""Shortlists of so many rows, per query and side, given look-up tables and the partitions (Q, P) that queries
probe."""

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
        request, pages = self._request, self._pages()
        return pages if request.where is None or request.prefilter else self._filtered(pages, request.where)

    def candidates(self) -> list[Candidates]:
        """The rows of every query that are worth decoding, as far as that can be told without."""
        request = self._request
        if not self._generations:
            none = Candidates.none(self._codecs.code_bytes, exhausted=True)
            return [none] * len(request.queries_QD)
        where = request.where if request.prefilter else None
        tried = self._tried(where) if where else None
        return self._scanned(self._scan_of(where)) if tried is None else tried

    def plan(self) -> None:
        """Write the stages that `run` would go through, as far as that can be told, into the trace."""
        request = self._request
        if request.where is not None and request.prefilter:
            self._trace.plan("Filter", f"{request.where_text}, before the scan")
        if self._generations:
            self._trace.plan(*self._scan_stage(request.reach.nprobes, request.shortlist))
        if self._state.raw:
            self._trace.plan(*self._raw_stage)
        self._ranking.plan()
        if request.where is not None and not request.prefilter:
            self._trace.plan("Filter", f"{request.where_text}, of the results")

    def _pages(self) -> list[Hits]:
        """The page of every query, of as many stages as it takes to fill it."""
        pages = self._ranking.pages(self.candidates(), self._raw())
        hits = [page.hits for page in pages]
        short = [query for query, page in enumerate(pages) if page.short]
        stages = self._request.reach.one_more(self._request.stages)
        if short and stages is not None:
            for query, longer in zip(short, self._of(short, stages)._pages(), strict=True):
                hits[query] = longer
        return hits

    def _of(self, queries: list[int], stages: tuple[RankingStage, ...]) -> "Execution":
        """The same for some of the queries with more stages."""
        queries_QD = self._request.queries_QD[queries]
        request = dataclasses.replace(self._request, queries_QD=queries_QD, stages=stages)
        execution = Execution(request, self._state, self._columns, self._trace)
        execution.__dict__["_tables"] = {first: each.select(queries) for first, each in self._tables.items()}
        return execution

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
        counts = [each.metadata.num_partitions for each in self._generations]
        probed, total = sum(min(nprobes, count) for count in counts), sum(counts)
        where = "disk" if self._state.resident is None else "memory"
        if self._state.elsewhere is not None:
            where = "shards"
        fewest = sum(min(request.reach.nprobes, count) for count in counts)
        probed_as = request.reach.nprobes_from if probed == fewest else "fewer held too few"
        kept_as = request.stages[-1].shortlist_from if size == request.shortlist else "to filter"
        partitions, kept = f"{probed} of {total} partitions ({probed_as})", f"keep {size} ({kept_as})"
        return "Scan", f"look-up tables, {partitions}, {where}, {kept}"

    def _scan_of(self, where: str | None) -> Scan:
        request, elsewhere = self._request, self._state.elsewhere
        if elsewhere is not None:
            return functools.partial(elsewhere.scan, where, request.lower)
        rows_of, device = self._rows_of(where), self._codecs.device

        def scanned(tables: Mapping[int, LookupTables], probed_QP: Mask, size: int) -> list[list[Shortlist]]:
            rows = rows_of(np.logical_or.reduce(probed_QP))
            return scan_sides(rows, tables, probed_QP, size, request.lower, device)

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

    def _scanned(self, scan_: Scan) -> list[Candidates]:
        """Candidates out of the partitions asked for, and for stages that these hold too few rows for, out of
        more."""
        request, most = self._request, self._codecs.most_partitions
        ends = [stage.end for stage in request.stages]
        found = [Candidates.none(self._codecs.code_bytes)] * len(request.queries_QD)
        served, again = [0] * len(found), list(range(len(found)))
        nprobes = min(request.reach.nprobes, most)
        while again:
            scanned = self._scanned_once(scan_, again, nprobes, request.shortlist)
            for query, sides in zip(again, scanned, strict=True):
                rows = sum(map(len, sides))
                last = len(ends) if nprobes == most else bisect.bisect_right(ends, rows)
                stages, units = range(served[query], last), self._units(query)
                wider = Candidates.of(sides, self._sizes, stages, units)
                exhausted = nprobes == most and rows < request.shortlist
                found[query] = dataclasses.replace(found[query].joined(wider), exhausted=exhausted)
                served[query] = last
            again = [query for query in again if served[query] < len(ends)]
            nprobes = min(_WIDER * nprobes, most)
        return found

    def _units(self, query: int) -> ScoreUnits:
        """What the scores of a query are counted in, whichever codec the rows are of."""
        return next(iter(self._tables.values())).units.select([query])

    @property
    def _sizes(self) -> list[int]:
        """Rows of the shortlist of every stage."""
        return [stage.shortlist for stage in self._request.stages]

    def _scanned_once(
        self, scan_: Scan, queries: list[int], nprobes: int, size: int
    ) -> list[list[Shortlist]]:
        """Shortlists of some queries, per side."""
        with self._trace.stage(*self._scan_stage(nprobes, size)) as stage:
            queries_QD, tables = self._request.queries_QD, self._tables
            if len(queries) < len(queries_QD):
                queries_QD = queries_QD[queries]
                tables = {first: each.select(queries) for first, each in tables.items()}
            probed_QP = self._codecs.probed(queries_QD, nprobes, self._generations)
            shortlists = scan_(tables, probed_QP, size)
            stage.rows = sum(len(side) for sides in shortlists for side in sides)
        return shortlists

    def _tried(self, where: str) -> list[Candidates] | None:
        """Candidates by way of longer shortlists that ignore a filter most rows match; None if no use.

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
        everyone = list(range(len(request.queries_QD)))
        nprobes = min(request.reach.nprobes, self._codecs.most_partitions)
        longer = self._scanned_once(self._scan_of(None), everyone, nprobes, size)
        with self._trace.stage("Filter", f"{self._request.where_text}, of the rows kept") as stage:
            matching = self._matching([side.rows.row_ids_N for (side,) in longer], where)
            matched = [side.only(matching) for (side,) in longer]
            stage.rows = sum(map(len, matched))
        if any(len(shortlist) < request.shortlist for shortlist in matched):
            return None
        stages = range(len(request.stages))
        return [
            Candidates.of([shortlist], self._sizes, stages, self._units(query))
            for query, shortlist in enumerate(matched)
        ]

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
