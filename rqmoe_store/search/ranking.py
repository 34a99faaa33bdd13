"""From candidates to results: rerank, refine, diversify, rank in stages, and cut out the page.

Shape suffixes: Q queries, K stages, D dimension.
"""

from collections.abc import Sequence
from typing import NamedTuple

from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.search.diversity import DiverseRows
from rqmoe_store.search.plan import Trace
from rqmoe_store.search.refine import candidates, refine
from rqmoe_store.search.request import SearchRequest
from rqmoe_store.search.rerank import Hits, decoded_together, ordered, rerank, within
from rqmoe_store.search.shortlist import Candidates
from rqmoe_store.search.stages import Choose, first_open, in_stages, out_of_reach
from rqmoe_store.store.columns import CodeColumns
from rqmoe_store.store.snapshot import Snapshot


class Page(NamedTuple):
    """The rows of one query in result order, as far as its stages have ranked them."""

    hits: Hits
    short: bool
    """Further stages may have more rows for it."""


class Ranking:
    """What one run of a request does once its candidates are known."""

    def __init__(
        self, request: SearchRequest, snapshot: Snapshot, columns: CodeColumns, trace: Trace
    ) -> None:
        self._request, self._snapshot, self._trace = request, snapshot, trace
        self._codecs, self._columns = snapshot.codecs, columns

    def pages(self, candidates: Sequence[Candidates], raw: Sequence[Hits] | None = None) -> list[Page]:
        """The pages of every query, given its candidates and the best of the rows that have no code, with
        their vectors."""
        request = self._request
        # All at once, but for decoded vectors, which are kept until rows have been chosen by them.
        turns = [slice(None)] if request.diversity is None else decoded_together(candidates)
        return [
            page
            for turn in turns
            for page in self._ranked(request.queries_QD[turn], candidates[turn], raw and raw[turn])
        ]

    def plan(self) -> None:
        """Write the stages into the trace."""
        self._trace.plan(*self._rerank_stage)
        if self._request.refined is not None:
            self._trace.plan(*self._refine_stage)
        if self._request.diversity is not None:
            self._trace.plan(*self._diversify_stage)

    def _ranked(
        self, queries_QD: Float32Array, candidates: Sequence[Candidates], raw: Sequence[Hits] | None
    ) -> list[Page]:
        """The pages of some queries, given their candidates and rows without codes."""
        request, diversity = self._request, self._request.diversity
        with self._trace.stage(*self._rerank_stage) as stage:
            hits = rerank(self._codecs, queries_QD, candidates, with_vectors=diversity is not None)
            stage.rows = sum(map(len, hits))
        if raw is not None:
            hits = [ordered(coded.joined(exact)) for coded, exact in zip(hits, raw, strict=True)]
        complete = [
            each.exhausted and (request.refined is None or len(found) <= request.refined)
            for each, found in zip(candidates, hits, strict=True)
        ]
        if request.refined is not None:
            hits = self._refined(queries_QD, hits)
        lasts = [self._last(found, every) for found, every in zip(hits, complete, strict=True)]
        hits = [within(found, request.lower, request.upper) for found in hits]
        if diversity is not None:
            return self._diversified(queries_QD, hits, lasts, diversity)
        return [self._page(found, last_K, first_open) for found, last_K in zip(hits, lasts, strict=True)]

    def _last(self, hits: Hits, complete: bool) -> list[bool]:
        """Whether a stage is the last of one query if it has too few rows.

        Args:
            hits: what all of them consider.
            complete: there is nothing else to consider.
        """
        request, last_K = self._request, [False] * len(self._request.stages)
        if request.upper is not None:
            sizes = [stage.refined or stage.shortlist for stage in request.stages]
            last_K = out_of_reach(hits, sizes, request.lower, request.upper)
        return [*last_K[:-1], last_K[-1] or complete]

    def _page(self, hits: Hits, last_K: Sequence[bool], choose: Choose) -> Page:
        """The page of one query, given the rows within bounds that it considers, nearest first."""
        request = self._request
        assert hits.stages_S is not None, "not ranked yet"
        # What comes behind the page need not be known.
        last = request.offset + request.limit
        ends = [min(stage.end, last) for stage in request.stages]
        order = in_stages(hits.stages_S, ends, choose, last_K)
        short = len(order.places) < last and not order.ended
        return Page(hits.ranked(order.places[request.offset : last]), short)

    @property
    def _rerank_stage(self) -> tuple[str, str]:
        kept = self._request.refined or self._kept(self._request.shortlist)
        return "Rerank", f"{self._codecs.metric} distance to decoded rows, keep {kept}"

    @property
    def _refine_stage(self) -> tuple[str, str]:
        kept = self._kept(self._request.refined or 0)
        return "Refine", f"{self._codecs.metric} distance to raw vectors, keep {kept}"

    @property
    def _diversify_stage(self) -> tuple[str, str]:
        request = self._request
        return "Diversify", f"maximal marginal relevance, lambda {request.diversity:g}, keep {request.limit}"

    def _kept(self, ranked: int) -> int:
        """Rows that leave the last of the stages that order by distance, out of those it ordered."""
        return self._request.limit if self._request.diversity is None else ranked

    def _refined(self, queries_QD: Float32Array, hits: list[Hits]) -> list[Hits]:
        """The nearest rows of every query, in the order of their raw vectors."""
        request, table = self._request, self._snapshot.table
        with self._trace.stage(*self._refine_stage) as stage:
            counts = [stage.refined or 0 for stage in request.stages]
            near = [candidates(found, counts, request.lower) for found in hits]
            column, metric = self._columns.vector_column, self._codecs.metric
            hits = refine(table, column, queries_QD, near, metric)
            stage.rows = sum(map(len, hits))
        return hits

    def _diversified(
        self, queries_QD: Float32Array, hits: list[Hits], lasts: list[list[bool]], lambda_: float
    ) -> list[Page]:
        """The pages of rows that are near and unlike each other."""
        pages, metric = [], self._codecs.metric
        with self._trace.stage(*self._diversify_stage) as stage:
            for query_D, found, last_K in zip(queries_QD, hits, lasts, strict=True):
                assert found.vectors_SD is not None, "reranked with vectors"
                diverse = DiverseRows(
                    query_D, found.vectors_SD, found.distances_S, metric, lambda_, found.finer_S
                )
                pages.append(self._page(found, last_K, diverse.choose))
            stage.rows = sum(len(page.hits) for page in pages)
        return pages
