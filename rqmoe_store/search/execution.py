"""Execution of a vector query over one version of a table: filter, probe, scan, rank.

What a stage of the ranking considers (which partitions are probed, how many of their rows are decoded, and
when more partitions must be probed) depends on the stage alone and never on the page that is requested.

Shape legend: Q queries, P partitions, D vector dimension.
"""

import bisect
import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from rqmoe_store.codecs.additive import LookupTables
from rqmoe_store.codecs.frame import ScoreUnits
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.search.admission import search_admission
from rqmoe_store.search.ranking import Ranking
from rqmoe_store.search.request import PlanStage, RankingStage, SearchRequest, Trace
from rqmoe_store.search.rerank import Hits
from rqmoe_store.search.resident import (
    conjunction,
    matching_row_ids,
    partition_filter,
    read_codes,
    row_id_filter,
)
from rqmoe_store.search.scan import Refinement, Refinements, scan
from rqmoe_store.search.segments import Mask, RowIds, Selection, grouped
from rqmoe_store.search.shortlists import Candidates, Shortlists, candidates_of
from rqmoe_store.search.source import TableState
from rqmoe_store.store.columns import CodeColumns

RowsOf = Callable[[Mask], Iterable[Selection]]
"""Function from the partitions (P,) that any query probes to the rows to scan."""

Scan = Callable[[Float32Array, Mapping[int, LookupTables], Mask, int], list[Shortlists]]
"""Function from queries, their look-up tables, the partitions (Q, P) that they probe and a number of rows to
shortlists of that many rows per query, for every side."""

_WIDER = 4
"""If the probed partitions have too few rows, the scan is repeated with this many times as many."""

_FEW_QUERIES = 8
"""Most queries of a search that computes in the thread that calls it."""

_MANY_ROWS = 262_144
"""Number of rows below which evaluating a filter for all rows at once is fastest."""

_POSTFILTER_FACTOR, _POSTFILTER_ROWS = 4, 4_096
"""How many times as long a shortlist is that is filtered afterwards, and most rows to filter in all."""


class Execution:
    """One run of a search request."""

    def __init__(self, request: SearchRequest, state: TableState, columns: CodeColumns, trace: Trace) -> None:
        self._request, self._state, self._trace = request, state, trace
        self._codecs, self._columns = state.snapshot.codecs, columns
        self._ranking = Ranking(request, state, trace)

    def run(self) -> list[Hits]:
        """Run the request and return the hits of every query, in result order. Waits until it is admitted,
        if it computes in the thread that calls it."""
        request = self._request
        if self._computes_here:
            with search_admission.admitted():
                return self._pages()
        pages = self._pages()
        if request.where is None or request.prefilter:
            return pages
        return self._filter_results(pages, request.where)

    def candidates(self, *, ordered: bool = True) -> Candidates:
        """Select the rows of every query to decode, by approximate distances.

        Rows of a stage come in the order of these, unless it does not matter and there is a single stage.
        """
        request = self._request
        if not self._state.generations:
            return Candidates.none(len(request.queries_QD), self._codecs.code_bytes)
        where = request.where if request.prefilter else None
        postfiltered = self._scan_and_postfilter(where) if where else None
        if postfiltered is not None:
            return postfiltered
        # Which stage considers a row depends on its place in the order of the scan; a single stage has all.
        return self._scan_all(self._scan_of(where, ordered=ordered or len(request.stages) > 1))

    def plan(self) -> None:
        """Add the stages that `run` would go through, as far as they are known, to the trace."""
        request = self._request
        if request.where is not None and request.prefilter:
            self._filter_stage("before the scan")
        if self._state.generations:
            self._scan_stage(request.parameters.nprobes, request.shortlist)
        if self._state.raw:
            self._raw_stage()
        self._ranking.plan(refine_on_gpu=self._scores_refine_codes)
        if request.where is not None and not request.prefilter:
            self._filter_stage("of the results")

    def _pages(self) -> list[Hits]:
        """The page of every query, ranked in as many stages as it takes to fill the page."""
        pages = self._ranking.pages(self.candidates(ordered=False), self._tables, self._search_raw())
        hits = [page.hits for page in pages]
        short = [query for query, page in enumerate(pages) if page.short]
        stages = self._request.parameters.one_more(self._request.stages) if short else None
        if stages is not None:
            for query, longer in zip(short, self._with_more_stages(short, stages)._pages(), strict=True):
                hits[query] = longer
        return hits

    def _with_more_stages(self, queries: list[int], stages: tuple[RankingStage, ...]) -> "Execution":
        """An execution for some of the queries with more stages."""
        queries_QD = self._request.queries_QD[queries]
        matrices = self._request.matrices_of(queries)
        request = dataclasses.replace(self._request, queries_QD=queries_QD, matrices=matrices, stages=stages)
        execution = Execution(request, self._state, self._columns, self._trace)
        execution.__dict__["_tables"] = {first: each.select(queries) for first, each in self._tables.items()}
        return execution

    @property
    def _computes_here(self) -> bool:
        """Whether few queries are computed on the CPU, and nothing is read: such a search never waits, and
        has no tasks for other threads."""
        request, state = self._request, self._state
        reads = request.where or request.refined or request.expansion or state.raw or state.resident is None
        if reads or self._codecs.device != "cpu" or len(request.queries_QD) > _FEW_QUERIES:
            return False
        rerank = request.parameters.rerank
        if request.matrices is not None:
            return rerank == "none"
        return rerank != "refined" or state.refine_codes_in == "memory"

    @functools.cached_property
    def _tables(self) -> Mapping[int, LookupTables]:
        """Look-up tables of all queries, for every scan."""
        return self._codecs.lookup_tables(self._request.queries_QD, self._state.generations)

    # What describes a stage must not refer to the object that has the trace: a cycle would keep its memory.

    def _filter_stage(self, rows: str) -> PlanStage:
        where_text = self._request.where_text
        return self._trace.stage("Filter", lambda: f"{where_text}, {rows}")

    def _raw_stage(self) -> PlanStage:
        where = " that match" if self._request.where is not None and self._request.prefilter else ""
        metric = self._codecs.metric
        return self._trace.stage("Raw", lambda: f"{metric} distance to all rows{where} without a code")

    def _search_raw(self) -> list[Hits] | None:
        """The nearest of the rows without a code, for every query; None if the table has no such rows."""
        if not self._state.raw:
            return None
        with self._raw_stage() as stage:
            hits = self._state.raw.nearest(self._request)
            stage.rows = sum(map(len, hits))
        return hits

    def _scan_stage(self, nprobes: int, size: int) -> PlanStage:
        details = self._request, self._state, nprobes, size
        return self._trace.stage("Scan", functools.partial(_describe_scan, *details))

    def _scan_of(self, where: str | None, *, ordered: bool) -> Scan:
        request, remote = self._request, self._state.remote
        if remote is not None:
            return lambda _, *given: remote.scan(where, request.lower, *given)
        rows_of, device = self._rows_of(where), self._codecs.device

        def scan_rows(
            queries_QD: Float32Array, tables: Mapping[int, LookupTables], probed_QP: Mask, size: int
        ) -> list[Shortlists]:
            rows, refinements = rows_of(np.logical_or.reduce(probed_QP)), self._refinements(queries_QD)
            return scan(rows, tables, probed_QP, size, request.lower, device, refinements, ordered=ordered)

        return scan_rows

    def _refinements(self, queries_QD: Float32Array) -> Refinements | None:
        """What scores refine codes where rows are scanned; None unless that is on a GPU and candidates are
        ranked by refine codes in memory."""
        if not self._scores_refine_codes:
            return None
        return {each.first_partition: Refinement(each.codec, queries_QD) for each in self._state.generations}

    @property
    def _scores_refine_codes(self) -> bool:
        """Whether a GPU scores the rows that it finds by their refine codes, if it has room for these."""
        resident = self._state.resident
        if self._codecs.device == "cpu" or resident is None or not resident.has_refine:
            return False
        is_additive = all(each.codec.has_additive_refine_codes for each in self._state.generations)
        return is_additive and self._ranking.is_by_refine_codes

    def _rows_of(self, where: str | None) -> RowsOf:
        resident = self._state.resident
        if resident is None:
            return lambda probed_P: self._read_from_disk(where, probed_P)
        if where is None:
            return lambda _: resident.selections
        with self._filter_stage("of all rows") as stage:
            selections = resident.matching(where)
            stage.rows = sum(map(len, selections))
        return lambda _: selections

    def _read_from_disk(self, where: str | None, probed_P: Mask) -> Iterable[Selection]:
        """Read the rows of the probed partitions from the table."""
        conditions = [] if where is None else [where]
        if not probed_P.all():
            conditions.append(partition_filter(self._columns.partition, np.flatnonzero(probed_P)))
        for batch in read_codes(self._state.snapshot, self._columns, conjunction(conditions)):
            yield Selection(grouped(batch, len(probed_P)))

    def _scan_all(self, scan: Scan) -> Candidates:
        """Scan the requested number of partitions, and more for stages for which these have too few rows."""
        request, most = self._request, self._codecs.most_partitions
        ends, parts = [stage.end for stage in request.stages], []
        again = list(range(len(request.queries_QD)))
        served = [0] * len(again)
        nprobes = min(request.parameters.nprobes, most)
        while again:
            sides = self._scan_once(scan, again, nprobes, request.shortlist)
            rows_Q = np.add.reduce([side.counts(len(again)) for side in sides]).tolist()
            lasts = [len(ends) if nprobes == most else bisect.bisect_right(ends, rows) for rows in rows_Q]
            stages = [range(served[query], last) for query, last in zip(again, lasts, strict=True)]
            exhausted = [nprobes == most and rows < request.shortlist for rows in rows_Q]
            parts.append((again, candidates_of(sides, self._sizes, stages, self._units(again), exhausted)))
            for query, last in zip(again, lasts, strict=True):
                served[query] = last
            again = [query for query in again if served[query] < len(ends)]
            nprobes = min(_WIDER * nprobes, most)
        return Candidates.joined(parts)

    def _units(self, queries: list[int]) -> ScoreUnits:
        """Units of the scores of some queries, the same for all codecs."""
        units = next(iter(self._tables.values())).units
        return units if len(queries) == len(self._request.queries_QD) else units.select(queries)

    @property
    def _sizes(self) -> list[int]:
        """Number of rows in the shortlist of every stage."""
        return [stage.shortlist for stage in self._request.stages]

    def _scan_once(self, scan: Scan, queries: list[int], nprobes: int, size: int) -> list[Shortlists]:
        """Scan for some of the queries; returns shortlists for every side."""
        with self._scan_stage(nprobes, size) as stage:
            queries_QD, tables = self._request.queries_QD, self._tables
            if len(queries) < len(queries_QD):
                queries_QD = queries_QD[queries]
                tables = {first: each.select(queries) for first, each in tables.items()}
            probed_QP = self._codecs.probed(queries_QD, nprobes, self._state.generations)
            sides = scan(queries_QD, tables, probed_QP, size)
            stage.rows = sum(map(len, sides))
        return sides

    def _scan_and_postfilter(self, where: str) -> Candidates | None:
        """Scan without the filter for longer shortlists, and filter those; None if that cannot work.

        It saves evaluating a filter that most rows match for all rows. The rows of a longer shortlist that
        match are the best matching rows of all, as long as they are as many as the shortlist must have.
        """
        request, resident = self._request, self._state.resident
        size = _POSTFILTER_FACTOR * request.shortlist
        if (
            resident is None
            or len(resident) < _MANY_ROWS
            or where in resident.filtered
            or request.lower is not None
            or size * len(request.queries_QD) > _POSTFILTER_ROWS
        ):
            return None
        all_queries = list(range(len(request.queries_QD)))
        nprobes = min(request.parameters.nprobes, self._codecs.most_partitions)
        (longer,) = self._scan_once(self._scan_of(None, ordered=True), all_queries, nprobes, size)
        with self._filter_stage("of the rows kept") as stage:
            matched = longer.only(self._matching([longer.rows.row_ids_N], where))
            stage.rows = len(matched)
        if (matched.counts(len(all_queries)) < request.shortlist).any():
            return None
        stages = [range(len(request.stages))] * len(all_queries)
        return candidates_of(
            [matched], self._sizes, stages, self._units(all_queries), [False] * len(all_queries)
        )

    def _filter_results(self, pages: list[Hits], where: str) -> list[Hits]:
        """The results that match."""
        with self._filter_stage("of the results") as stage:
            matching = self._matching([hits.row_ids_S for hits in pages], where)
            pages = [hits[np.isin(hits.row_ids_S, matching)] for hits in pages]
            stage.rows = sum(map(len, pages))
        return pages

    def _matching(self, row_ids: Sequence[RowIds], where: str) -> RowIds:
        """Ids of the rows that match, out of those given."""
        some = np.unique(np.concatenate(row_ids))
        if len(some) == 0:
            return some
        return matching_row_ids(self._state.snapshot.dataset, f"{row_id_filter(some)} AND {where}")


def _describe_scan(request: SearchRequest, state: TableState, nprobes: int, size: int) -> str:
    """What plans say of a scan of so many partitions of every generation for so many rows."""
    codecs, parameters = state.snapshot.codecs, request.parameters
    counts = [each.metadata.num_partitions for each in state.generations]
    probed, total = sum(min(nprobes, count) for count in counts), sum(counts)
    where = "disk" if state.resident is None else "memory"
    if codecs.device != "cpu":
        where += f", {codecs.device}"
    if state.remote is not None:
        where = "shards"
    fewest = sum(min(parameters.nprobes, count) for count in counts)
    probed_as = parameters.nprobes_from if probed == fewest else "fewer held too few"
    kept_as = request.stages[-1].shortlist_from if size == request.shortlist else "to filter"
    partitions, kept = f"{probed} of {total} partitions ({probed_as})", f"keep {size} ({kept_as})"
    return f"look-up tables, {partitions}, {where}, {kept}"
