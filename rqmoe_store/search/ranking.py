"""From shortlists to results: rerank, refine, diversify, and cut out the page.

Shape suffixes: Q queries, D dimension.
"""

from collections.abc import Sequence

from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.search.diversity import diverse_rows
from rqmoe_store.search.plan import Trace
from rqmoe_store.search.refine import candidates, refine
from rqmoe_store.search.request import SearchRequest
from rqmoe_store.search.rerank import Hits, decoded_together, ordered, page, rerank, within
from rqmoe_store.search.segments import CodeBatch
from rqmoe_store.search.snapshot import Snapshot
from rqmoe_store.store.columns import CodeColumns


class Ranking:
    """The stages of one run of a request that come after its shortlists."""

    def __init__(
        self, request: SearchRequest, snapshot: Snapshot, columns: CodeColumns, trace: Trace
    ) -> None:
        self._request, self._snapshot, self._trace = request, snapshot, trace
        self._codecs, self._columns = snapshot.codecs, columns

    def pages(self, shortlists: Sequence[CodeBatch], raw: Sequence[Hits] | None = None) -> list[Hits]:
        """The rows of every query in result order, given its shortlist and the best of the rows that have no
        code, with their vectors."""
        request = self._request
        # All at once, but for decoded vectors, which are kept until rows have been chosen by them.
        turns = [slice(None)] if request.diversity is None else decoded_together(shortlists)
        return [
            found
            for turn in turns
            for found in self._ranked(request.queries_QD[turn], shortlists[turn], raw and raw[turn])
        ]

    def plan(self) -> None:
        """Write the stages into the trace."""
        self._trace.plan(*self._rerank_stage)
        if self._request.refined is not None:
            self._trace.plan(*self._refine_stage)
        if self._request.diversity is not None:
            self._trace.plan(*self._diversify_stage)

    def _ranked(
        self, queries_QD: Float32Array, shortlists: Sequence[CodeBatch], raw: Sequence[Hits] | None
    ) -> list[Hits]:
        """The pages of some queries, given their shortlists and rows without codes."""
        request, diversity = self._request, self._request.diversity
        with self._trace.stage(*self._rerank_stage) as stage:
            hits = rerank(self._codecs, queries_QD, shortlists, with_vectors=diversity is not None)
            stage.rows = sum(map(len, hits))
        if raw is not None:
            hits = [ordered(coded.joined(exact)) for coded, exact in zip(hits, raw, strict=True)]
        if request.refined is not None:
            hits = self._refined(queries_QD, hits, request.refined)
        if diversity is not None:
            return self._diversified(queries_QD, hits, diversity)
        return [
            page(found, lower=request.lower, upper=request.upper, offset=request.offset, limit=request.limit)
            for found in hits
        ]

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

    def _refined(self, queries_QD: Float32Array, hits: list[Hits], count: int) -> list[Hits]:
        """The nearest `count` rows of every query, in the order of their raw vectors."""
        request, table = self._request, self._snapshot.table
        with self._trace.stage(*self._refine_stage) as stage:
            near = [candidates(found, count, request.lower) for found in hits]
            column, metric = self._columns.vector_column, self._codecs.metric
            hits = refine(table, column, queries_QD, near, metric)
            stage.rows = sum(map(len, hits))
        return hits

    def _diversified(self, queries_QD: Float32Array, hits: list[Hits], lambda_: float) -> list[Hits]:
        """The pages of rows that are near and unlike each other."""
        request, pages = self._request, []
        with self._trace.stage(*self._diversify_stage) as stage:
            for query_D, found in zip(queries_QD, hits, strict=True):
                found = within(found, request.lower, request.upper)
                assert found.vectors_SD is not None, "reranked with vectors"
                places = diverse_rows(
                    query_D,
                    found.vectors_SD,
                    found.distances_S,
                    self._codecs.metric,
                    lambda_=lambda_,
                    count=request.offset + request.limit,
                    finer_S=found.finer_S,
                )
                pages.append(found[places[request.offset :]].without_vectors())
            stage.rows = sum(map(len, pages))
        return pages
