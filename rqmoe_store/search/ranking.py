"""Ranking: from candidates to result pages, by rerank, refine and diversify, in stages.

A ranking consists of stages (see `SearchParameters`). Each stage considers more rows than the one before, and
places the best of them that are not placed yet. Pages are cut from the ranking, so that one continues where
the previous one ends.

Shape legend: Q queries, H hits of all queries, U distinct rows of these, S rows that one query considers,
K stages, D vector dimension.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from lancedb.table import Table

from rqmoe_store.codecs.selection import EVERY_ROW
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import Metric
from rqmoe_store.search.corrected import with_corrected_distances
from rqmoe_store.search.diversity import Diversity
from rqmoe_store.search.expansion import ExpandedRows, expand
from rqmoe_store.search.multivector import rank_by_encodings, rank_by_max_sim, refine_by_max_sim
from rqmoe_store.search.refined import (
    Tables,
    rank_by_estimates,
    rank_by_refine_codes,
    with_refine_codes,
)
from rqmoe_store.search.request import PlanStage, SearchRequest, Trace
from rqmoe_store.search.rerank import (
    Hits,
    exact_values,
    exact_with_tie_breaks,
    ordered,
    query_turns,
    rerank,
    within,
)
from rqmoe_store.search.segments import Mask, Positions
from rqmoe_store.search.shortlists import Candidates
from rqmoe_store.search.source import TableState
from rqmoe_store.store.lance import take_rows
from rqmoe_store.store.vector_arrays import rows_per_batch

Choose = Callable[[Mask, int], Positions]
"""Function that chooses up to a number of the open rows (S,), best first. Open rows are not placed yet."""


class Page(NamedTuple):
    """The result rows of one query, as far as its stages have ranked them."""

    hits: Hits
    short: bool
    """Whether the page lacks rows that further stages may have."""


class Ranking:
    """Ranks the candidates of a request, in one run of it."""

    def __init__(self, request: SearchRequest, state: TableState, trace: Trace) -> None:
        self._request, self._state, self._trace = request, state, trace
        self._codecs, self._columns = state.snapshot.codecs, state.snapshot.codecs.columns
        # The ranking need not go beyond the page.
        self._last = request.offset + request.limit
        self._ends = [min(stage.end, self._last) for stage in request.stages]

    def pages(self, candidates: Candidates, tables: Tables, raw: Sequence[Hits] | None = None) -> list[Page]:
        """Rank the candidates of every query and cut its page.

        Args:
            candidates: candidates of every query.
            tables: look-up tables of all queries, of all generations that candidates are of.
            raw: for every query the nearest of the rows without a code, with their vectors; None if there
                are no such rows.
        """
        request = self._request
        # All queries at once, unless decoded vectors must be kept until rows are chosen by them.
        turns = [slice(None)] if request.diversity is None else query_turns(candidates)
        return [
            page
            for turn in turns
            for page in self._rank(request.queries_QD[turn], candidates[turn], tables, raw and raw[turn])
        ]

    def plan(self, *, refine_on_gpu: bool) -> None:
        """Add the plan of `pages` to the trace, of candidates that a GPU may have scored by refine codes."""
        self._rerank_stage(refine_on_gpu)
        if self._request.refined is not None:
            self._refine_stage()
        if self._request.expansion is not None:
            self._expand_stage()
        if self._request.diversity is not None:
            self._diversify_stage()

    def _rank(
        self,
        queries_QD: Float32Array,
        candidates: Candidates,
        tables: Tables,
        raw: Sequence[Hits] | None,
    ) -> list[Page]:
        """The pages of some queries."""
        request, diversity = self._request, self._request.diversity
        with self._rerank_stage(candidates.refined_H is not None) as stage:
            hits = self._rerank(queries_QD, candidates, tables)
            stage.rows = len(candidates.rows)
        if raw is not None:
            hits = [ordered(coded.joined(exact)) for coded, exact in zip(hits, raw, strict=True)]
        complete = [
            exhausted and (request.refined is None or len(found) <= request.refined)
            for exhausted, found in zip(candidates.exhausted_Q.tolist(), hits, strict=True)
        ]
        if request.refined is not None:
            hits = self._refine(queries_QD, hits)
        lasts = [self._last_stages(found, every) for found, every in zip(hits, complete, strict=True)]
        if request.lower is not None or request.upper is not None:
            hits = [within(found, request.lower, request.upper) for found in hits]
        if request.expansion is not None:
            expanded = self._expand(queries_QD, hits, tables)
            if diversity is None:
                each = zip(expanded, lasts, strict=True)
                return [self._page(rows.hits, last_K, rows.choose) for rows, last_K in each]
            hits = [rows.best() for rows in expanded]
        if diversity is not None:
            return self._diversify(queries_QD, hits, lasts, diversity)
        return [self._page(found, last_K, first_open) for found, last_K in zip(hits, lasts, strict=True)]

    def _rerank(self, queries_QD: Float32Array, candidates: Candidates, tables: Tables) -> list[Hits]:
        """The candidates of every query in the order that the request asks for, by corrected distances if the
        codec was tuned."""
        hits = self._rank_candidates(queries_QD, candidates, tables)
        if not self._codecs.are_corrected:
            return hits
        return with_corrected_distances(self._codecs, queries_QD, candidates, hits)

    def _rank_candidates(
        self, queries_QD: Float32Array, candidates: Candidates, tables: Tables
    ) -> list[Hits]:
        """The candidates of every query in the order that the request asks for."""
        kind, diverse = self._request.parameters.rerank, self._request.diversity is not None
        matrices = self._request.matrices
        if self.is_by_refine_codes and tables:
            return rank_by_refine_codes(self._state.snapshot, queries_QD, candidates, tables, self._most)
        if matrices is not None and kind != "none":
            return rank_by_max_sim(
                self._state.snapshot,
                matrices,
                candidates,
                refined=kind == "refined",
                summed_K=[stage.summed for stage in self._request.stages],
                decoded_K=[stage.decoded(refined=kind == "refined") for stage in self._request.stages],
                most=self._most,
            )
        if matrices is not None:
            return rank_by_encodings(
                rank_by_estimates(self._codecs, candidates, tables, self._most), matrices
            )
        if kind == "decoded" or diverse:
            # Diverse rows are chosen by their vectors, so that distances may as well be those of vectors.
            refined = kind == "refined"
            if refined:
                candidates = with_refine_codes(self._state.snapshot, candidates)
            return rerank(
                self._codecs,
                queries_QD,
                candidates,
                refined=refined,
                with_vectors=diverse,
                most=EVERY_ROW if diverse else self._most,
            )
        return rank_by_estimates(self._codecs, candidates, tables, self._most)

    @property
    def is_by_refine_codes(self) -> bool:
        """Whether candidates are ordered by distances that refine codes and look-up tables give."""
        request = self._request
        return (
            request.parameters.rerank == "refined" and request.diversity is None and request.matrices is None
        )

    @property
    def _most(self) -> int:
        """How many of the nearest rows that a stage considers the rest of the ranking needs."""
        request = self._request
        bounded = request.lower is not None or request.upper is not None
        needs_all = bounded or request.refined is not None or request.expansion is not None
        return EVERY_ROW if needs_all or self._codecs.are_corrected else self._last

    def _last_stages(self, hits: Hits, complete: bool) -> list[bool]:
        """Whether a stage is the last one if it has too few rows, because no other row can fill it, (K,).

        Args:
            hits: all rows that the query considers.
            complete: whether there is no other row to consider.
        """
        request, last_K = self._request, [False] * len(self._request.stages)
        if request.upper is not None:
            sizes = [stage.refined or stage.shortlist for stage in request.stages]
            last_K = upper_bound_reached(hits, sizes, request.lower, request.upper)
        return [*last_K[:-1], last_K[-1] or complete]

    def _page(self, hits: Hits, last_K: Sequence[bool], choose: Choose) -> Page:
        """The page of one query, given the rows within distance bounds that it considers, nearest first."""
        assert hits.stages_S is not None, "not ranked yet"
        offset, last = self._request.offset, self._last
        if choose is first_open and len(self._ends) == 1:  # as in most requests
            page = hits if offset == 0 and len(hits) <= last else hits.ranked(slice(offset, last))
            return Page(page, len(hits) < last and not last_K[0])
        order = rank_in_stages(hits.stages_S, self._ends, choose, last_K)
        short = len(order.places) < last and not order.ended
        return Page(hits.ranked(order.places[offset:last]), short)

    # What describes a stage must not refer to the object that has the trace: a cycle would keep its memory.

    def _rerank_stage(self, refine_on_gpu: bool) -> PlanStage:
        details = self._request, self._state, refine_on_gpu
        return self._trace.stage("Rerank", functools.partial(_describe_rerank, *details))

    def _refine_stage(self) -> PlanStage:
        kept, metric = _kept(self._request, self._request.refined or 0), self._codecs.metadata.metric
        return self._trace.stage("Refine", lambda: f"{metric} distance to raw vectors, keep {kept}")

    def _expand_stage(self) -> PlanStage:
        expansion = self._request.expansion
        assert expansion is not None, "planned with an expansion"
        steps = f"{expansion.neighbors} neighbors, {expansion.hops} hops"
        return self._trace.stage("Expand", lambda: f"{steps}, weight {expansion.weight:g}")

    def _diversify_stage(self) -> PlanStage:
        chosen, kept = self._request.diversity, self._request.limit
        return self._trace.stage("Diversify", lambda: f"{chosen}, keep {kept}")

    def _expand(self, queries_QD: Float32Array, hits: list[Hits], tables: Tables) -> list[ExpandedRows]:
        """The rows of every query, and those that are reached from the nearest ones in the neighbor graph."""
        request = self._request

        def score(candidates: Candidates) -> list[Hits]:
            found = self._rerank(queries_QD, candidates, tables)
            if request.refined is not None:
                table, metric = self._state.snapshot.table, self._codecs.metric
                found = refine(table, self._columns.vector_column, queries_QD, found, metric)
            return [within(each, request.lower, request.upper) for each in found]

        with self._expand_stage() as stage:
            expanded = expand(request, self._state, hits, score)
            stage.rows = sum(len(rows.hits) for rows in expanded)
        return expanded

    def _refine(self, queries_QD: Float32Array, hits: list[Hits]) -> list[Hits]:
        """The nearest rows of every query, in the order of distances to their raw vectors."""
        request, table = self._request, self._state.snapshot.table
        with self._refine_stage() as stage:
            counts = [stage.refined or 0 for stage in request.stages]
            near = [nearest_of_stages(found, counts, request.lower) for found in hits]
            if request.matrices is not None:
                hits = refine_by_max_sim(self._state.snapshot, request.matrices, near)
            else:
                column, metric = self._columns.vector_column, self._codecs.metric
                hits = refine(table, column, queries_QD, near, metric)
            stage.rows = sum(map(len, hits))
        return hits

    def _diversify(
        self, queries_QD: Float32Array, hits: list[Hits], lasts: list[list[bool]], diversity: Diversity
    ) -> list[Page]:
        """The pages of rows that are near the query and unlike each other, or that cover its shortlist."""
        pages, metric, stages = [], self._codecs.metric, self._request.stages
        with self._diversify_stage() as stage:
            for query_D, found, last_K in zip(queries_QD, hits, lasts, strict=True):
                if diversity.method == "coverage":
                    found = nearest_of_stages(found, [diversity.rows_needed(each.end) for each in stages])
                assert found.vectors_SD is not None, "reranked with vectors"
                values_S = exact_values(found.distances_S, found.tie_breaks_S, metric)
                diverse = diversity.rows_of(query_D, found.vectors_SD, values_S, metric)
                pages.append(self._page(found, last_K, diverse.choose))
            stage.rows = sum(len(page.hits) for page in pages)
        return pages


def _describe_rerank(request: SearchRequest, state: TableState, refine_on_gpu: bool) -> str:
    """What plans say of the stage that orders shortlists."""
    codecs, kept, kind = state.snapshot.codecs, request.refined, "decoded rows"
    if kept is None:
        kept = _kept(request, request.shortlist)
    if request.matrices is not None and request.parameters.rerank != "none":
        last, refined = request.stages[-1], request.parameters.rerank == "refined"
        decoded, summed = last.decoded(refined=refined), ""
        if codecs.metadata.metric == "cosine":
            summed = f"{last.summed} of them by cosines, "
        kind = f"all vectors of rows by look-up tables, {summed}{decoded} decoded if these are not exact"
    elif request.parameters.rerank == "refined":
        device = f", {codecs.device}" if refine_on_gpu else ""
        kind = f"rows with refine codes, {state.refine_codes_in}{device}"
    elif request.parameters.rerank == "none" and request.diversity is None:
        kind = "rows by look-up tables alone"
    corrected = "corrected " if codecs.are_corrected else ""
    return f"{corrected}{codecs.metadata.metric} distance to {kind}, keep {kept}"


def _kept(request: SearchRequest, ranked: int) -> int:
    """Rows that the last stage ordered by distance passes on, out of those that it orders."""
    return request.limit if request.diversity is None and request.expansion is None else ranked


class Order(NamedTuple):
    """The order of the rows of one query."""

    places: Positions
    """Positions of the rows, best first."""
    ended: bool
    """Whether no further stage has rows to place."""


def rank_in_stages(stages_S: Positions, ends: Sequence[int], choose: Choose, last_K: Sequence[bool]) -> Order:
    """Place rows, stage by stage.

    Args:
        stages_S: first stage that considers the row.
        ends: number of rows that are placed after each stage.
        choose: chooses rows among those that a stage considers.
        last_K: whether a stage is the last one if it has too few rows.
    """
    open_S = np.ones(len(stages_S), dtype=bool)
    chosen: list[Positions] = []
    placed = 0
    for stage, end in enumerate(ends):
        places = choose(open_S & (stages_S <= stage), end - placed)
        open_S[places] = False
        chosen.append(places)
        placed += len(places)
        if placed < end and last_K[stage]:
            return Order(np.concatenate(chosen), ended=True)
    return Order(np.concatenate(chosen), ended=False)


def first_open(open_S: Mask, count: int) -> Positions:
    """The first open rows, which are the nearest if rows are in the order of their distances."""
    return open_S.nonzero()[0][:count]


def upper_bound_reached(hits: Hits, sizes_K: Sequence[int], lower: float | None, upper: float) -> list[bool]:
    """Whether it is unlikely that a row which a stage does not consider is nearer than `upper`, (K,).

    Candidates are selected by estimated distances. A row that was not selected has an estimate at least as
    large as the largest one selected. It is nearer than the bound only if its distance was overestimated by
    more than that of any selected row.

    Args:
        hits: all rows that the query considers, at any distance.
        sizes_K: number of candidates of every stage, on either side of `lower` if there is one.
        lower: lower distance bound; None for none.
        upper: upper distance bound.
    """
    assert hits.stages_S is not None and hits.estimates_S is not None, "not ranked yet"
    last: list[bool] = []
    for stage, size in enumerate(sizes_K):
        considered = np.flatnonzero((hits.stages_S <= stage) & np.isfinite(hits.estimates_S))
        estimates = hits.estimates_S[considered]
        farther = np.sort(estimates if lower is None else estimates[estimates >= np.float32(lower)])[:size]
        if len(farther) == 0:
            last.append(len(estimates) == 0)
            continue
        overestimate = float((estimates - hits.distances_S[considered]).max())
        last.append(float(farther[-1]) - overestimate >= upper)
    return last


def nearest_of_stages(hits: Hits, counts_K: Sequence[int], lower: float | None = None) -> Hits:
    """The nearest of the rows that every stage considers, as many of them as the stage needs.

    With a lower distance bound, that many rows on either side of it, since the distance to the raw vector
    decides on which side a row is.

    Args:
        hits: hits of one query, nearest first, with their stages.
        counts_K: number of rows that every stage needs, ascending.
        lower: the lower bound of `distance_range`; None for none.

    Returns:
        The hits that a stage needs, each with the first stage that does.
    """
    assert hits.stages_S is not None, "not ranked yet"
    first_S = np.full(len(hits), len(counts_K))
    for stage, count in reversed(list(enumerate(counts_K))):
        considered = np.flatnonzero(hits.stages_S <= stage)
        distances = hits.distances_S[considered]
        middle = 0 if lower is None else int(np.searchsorted(distances, np.float32(lower)))
        first_S[considered[max(0, middle - count) : middle + count]] = stage
    return dataclasses.replace(hits, stages_S=first_S)[first_S < len(counts_K)]


def refine(
    snapshot: Table,
    column: str,
    queries_QD: Float32Array,
    hits_of_queries: Sequence[Hits],
    metric: Metric,
) -> list[Hits]:
    """Order every query's hits by (distance to the raw vector, row id).

    A row is taken once for all queries, and one batch of rows is in memory at a time. Rows whose distance is
    undefined are left out: those with a null vector, or with a zero vector under cosine.

    Args:
        snapshot: the version of the table that the hits come from.
        column: name of the column of raw vectors.
        queries_QD: float32 (Q, D), checked by `as_vectors`.
        hits_of_queries: hits of every query; their distances are not used.
        metric: metric of the distances.
    """
    row_ids_H = np.concatenate([hits.row_ids_S for hits in hits_of_queries])
    queries_H = np.repeat(np.arange(len(hits_of_queries)), [len(hits) for hits in hits_of_queries])
    row_ids_U, places_H = np.unique(row_ids_H, return_inverse=True)
    distances_H = np.full(len(row_ids_H), np.nan, dtype=np.float32)
    tie_breaks_H = np.full(len(row_ids_H), np.nan)
    step = rows_per_batch(queries_QD.shape[1])
    for start in range(0, len(row_ids_U), step):
        vectors_UD = _take_vectors(snapshot, column, row_ids_U[start : start + step], queries_QD.shape[1])
        here_H = np.flatnonzero((places_H >= start) & (places_H < start + step))
        for hits_S in np.split(here_H, np.flatnonzero(np.diff(queries_H[here_H])) + 1):
            vectors_SD = vectors_UD[places_H[hits_S] - start]
            distances_S, tie_breaks_S = exact_with_tie_breaks(
                queries_QD[queries_H[hits_S[0]]], vectors_SD, metric
            )
            distances_H[hits_S] = distances_S
            if tie_breaks_S is not None:
                tie_breaks_H[hits_S] = tie_breaks_S
    ends = np.cumsum([len(hits) for hits in hits_of_queries])[:-1]
    exact = zip(np.split(distances_H, ends), np.split(tie_breaks_H, ends), strict=True)
    return [
        ordered(
            dataclasses.replace(
                hits,
                distances_S=distances_S,
                tie_breaks_S=tie_breaks_S,
                estimates_S=hits.distances_S.astype(np.float64),
            )
        )
        for hits, (distances_S, tie_breaks_S) in zip(hits_of_queries, exact, strict=True)
    ]


def _take_vectors(snapshot: Table, column: str, row_ids_U: npt.NDArray[np.uint64], dim: int) -> Float32Array:
    """Raw vectors (U, D) of these rows, NaN where there is none."""
    (taken,) = take_rows(snapshot, [column], row_ids_U)
    values_VD = taken.drop_null().combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
    vectors_UD = np.full((len(row_ids_U), dim), np.nan, dtype=np.float32)
    vectors_UD[taken.is_valid().to_numpy()] = values_VD
    return vectors_UD
