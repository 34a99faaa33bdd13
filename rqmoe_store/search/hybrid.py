"""Hybrid queries: a vector search and a full-text search, fused by a LanceDB reranker.

Shape legend: R rows of one result list, or of the fused one, D vector dimension.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Self, TypeVar, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from lancedb.expr import Expr
from lancedb.query import FullTextQuery
from lancedb.rerankers import Reranker, RRFReranker
from lancedb.rerankers.util import check_reranker_result

from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.errors import InvalidInputError
from rqmoe_store.search.columns import DISTANCE, RELEVANCE, ROW_ID, SCORE, without
from rqmoe_store.search.diversity import Diversity
from rqmoe_store.search.query import CompressedQuery, VectorSearchQuery, is_batch, run_query
from rqmoe_store.search.request import Trace, indented
from rqmoe_store.search.segments import Mask, Positions
from rqmoe_store.search.source import TableReader
from rqmoe_store.search.text import TextQuery, as_vector, require_reranker, reranker_text

Normalization = Literal["score", "rank"]


def check_normalization(normalize: str) -> Normalization:
    """Return `normalize`. Raises InvalidInputError unless it is one of its allowed values."""
    if normalize not in get_args(Normalization):
        raise InvalidInputError(f"Got normalize={normalize!r}; expected 'score' or 'rank'.")
    return "rank" if normalize == "rank" else "score"


def fuse(
    vector_results: pa.Table,
    text_results: pa.Table,
    *,
    query: object,
    reranker: Reranker,
    normalize: Normalization,
) -> pa.Table:
    """Have `reranker` order the rows of both lists and add `_relevance_score`.

    As in LanceDB, the reranker gets `_distance` and `_score` scaled to the range from 0 to 1, by value or by
    rank. If it returns them, they get their original values back, null for rows of the other list only.

    Args:
        vector_results: nearest first, with `_distance` and `_rowid`.
        text_results: best first, with `_score` and `_rowid`.
        query: the text query, passed to the reranker.
        reranker: the reranker; `RRFReranker` and most others drop `_distance` and `_score` unless they are
            created with `return_score="all"`.
        normalize: whether to scale values ("score") or ranks ("rank").
    """
    if not len(vector_results) and not len(text_results):
        return _empty(vector_results, text_results, reranker)
    fused = reranker.rerank_hybrid(
        query,  # type: ignore[arg-type]  # LanceDB passes structured queries here too
        _scaled(vector_results, DISTANCE, normalize),
        _scaled(text_results, SCORE, normalize),
    )
    check_reranker_result(fused)  # type: ignore[no-untyped-call]  # LanceDB leaves it unannotated
    return _restored(_restored(fused, vector_results, DISTANCE), text_results, SCORE)


def values_of(rows: pa.Table, results: pa.Table, name: str) -> pa.ChunkedArray:
    """Column `name` of `results` for each of `rows`, by row id; null for rows that `results` lacks."""
    return results[name].take(pc.index_in(rows[ROW_ID], results[ROW_ID].combine_chunks()))


def _empty(vector_results: pa.Table, text_results: pa.Table, reranker: Reranker) -> pa.Table:
    # Some rerankers fail on two empty lists.
    empty = pa.concat_tables([vector_results, text_results], promote_options="default")
    if reranker.score == "relevance":
        empty = empty.drop_columns([DISTANCE, SCORE])
    return empty.append_column(RELEVANCE, pa.array([], pa.float32()))


def _scaled(results: pa.Table, name: str, normalize: Normalization) -> pa.Table:
    scores_R = results[name].to_numpy()
    if normalize == "rank":
        scores_R = _ranks(scores_R)
    place = results.schema.get_field_index(name)
    return results.set_column(place, results.field(place), pa.array(_to_unit_range(scores_R)))


def _to_unit_range(scores_R: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    if len(scores_R) == 0:
        return scores_R
    exact_R = scores_R.astype(np.float64)  # a difference may overflow float32
    spread = exact_R.max() - exact_R.min()
    shifted_R = exact_R - exact_R.min()
    return np.asarray(shifted_R if spread == 0 else shifted_R / spread, dtype=np.float32)


def _ranks(scores_R: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Ranks of the scores, 1 for the smallest; equal scores in their given order."""
    ranks_R = np.empty(len(scores_R), dtype=np.float32)
    ranks_R[np.argsort(scores_R, kind="stable")] = np.arange(1, len(scores_R) + 1)
    return ranks_R


def _restored(fused: pa.Table, results: pa.Table, name: str) -> pa.Table:
    if name not in fused.column_names:
        return fused
    place = fused.schema.get_field_index(name)
    return fused.set_column(place, results.schema.field(name), values_of(fused, results, name))


def _vectors_of(fused: pa.Table, results: Sequence[pa.Table], name: str, dim: int) -> Float32Array:
    """Vectors (R, D) of fused rows from the results that they are in, zero for rows without one."""
    vectors = pc.coalesce(*(values_of(fused, each, name).combine_chunks() for each in results))
    vectors_RD = np.zeros((len(fused), dim), np.float32)
    valid_R = vectors.is_valid().to_numpy(zero_copy_only=False)
    vectors_RD[valid_R] = vectors.drop_null().flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
    return vectors_RD


def _choose(
    diversity: Diversity, fused: pa.Table, placed_R: Mask, vectors_RD: Float32Array, count: int
) -> Positions:
    """Positions of the rows to come next, best first, out of fused rows of which some have a place."""
    scores_R = fused[RELEVANCE].to_numpy().astype(np.float64)
    diverse = diversity.fused_rows_of(scores_R, vectors_RD)
    diverse.choose(placed_R, len(fused))  # so that others are compared with them
    return diverse.choose(~placed_R, count)


class _Terms(NamedTuple):
    """What both searches look for, and what they return of the rows."""

    vector: Any
    text: str | FullTextQuery
    selected: Mapping[str, str | Expr]
    """Columns by name, resolved once for all searches of a page."""

    @property
    def compared(self) -> str:
        """Name of the column of vectors by which rows are chosen, besides those selected."""
        return next(
            name for count in itertools.count(1) if (name := "_" * count + "compared") not in self.selected
        )


_OneSided = TypeVar("_OneSided", TextQuery, CompressedQuery)


class HybridQuery(VectorSearchQuery):
    """A hybrid query, built step by step and run by a `to_...` method.

    The reranker fuses the first 10 rows of both searches, and the best 10 of them come first. Next come the
    best other rows out of the first 15 of both searches, then out of 25, 50, 100 and so on, up to limit +
    offset. Pages of any size thus continue each other. After `diversify`, both lists are longer, and rows are
    chosen by their vectors, too.
    """

    def __init__(
        self,
        reader: TableReader,
        query: str | None,
        columns: str | Sequence[str] | None,
    ) -> None:
        """Start a query; `CompressedTable.search(text, query_type="hybrid")` is the usual way.

        Args:
            reader: reads the table to search.
            query: text to search for, and to embed for the vector search; None to set `vector` and `text`
                separately.
            columns: text columns to search; None for all that have a full-text index.

        Raises:
            InvalidInputError: the query is not a string.
        """
        super().__init__(reader)
        if query is not None and not isinstance(query, str):
            raise InvalidInputError(
                f"Got {type(query).__name__} as a hybrid query; expected a string, or none and then "
                ".vector(...) and .text(...)."
            )
        self._query = query
        self._columns = columns
        self._vector: Any = None
        self._text: str | FullTextQuery | None = None
        self._phrase = False
        self._reranker: Reranker = RRFReranker()
        self._normalize = check_normalization("score")

    def vector(self, vector: Any) -> Self:
        """Set the vector (D,) to search for, or text to embed."""
        self._vector = vector
        return self

    def text(self, text: str | FullTextQuery) -> Self:
        """Set the text to search for: words, or one of LanceDB's structured queries."""
        self._text = text
        return self

    def rerank(self, reranker: Reranker | None = None, normalize: str = "score") -> Self:
        """Set the reranker that fuses the results of both searches.

        Args:
            reranker: one of `lancedb.rerankers`, or one of your own; default `RRFReranker()`, which adds the
                reciprocal ranks of both lists. With `return_score="all"`, results have `_distance`, `_score`
                and `_rowid`, too.
            normalize: "score" or "rank": the reranker gets `_distance` and `_score` scaled to the range from
                0 to 1, by their values or by their ranks.

        Raises:
            InvalidInputError: `reranker` is not a `lancedb.rerankers.Reranker`, or `normalize` is another
                value.
        """
        self._reranker = RRFReranker() if reranker is None else require_reranker(reranker)
        self._normalize = check_normalization(normalize)
        if self._reranker.score == "all":
            self._with_row_id = True
        return self

    def phrase_query(self, phrase_query: bool = True) -> Self:
        """Set this option of the full-text search, as in a full-text query."""
        self._phrase = bool(phrase_query)
        return self

    def to_arrow(self) -> pa.Table:
        """Run the query.

        Returns:
            The selected columns and `_relevance_score` (float32), in the reranker's order; `_rowid` if
            requested.

        Raises:
            TableError: the table has no full-text index.
            InvalidInputError: there is no text or no vector to search for, the reranker drops `_rowid` where
                several of its results must be joined, or as the two searches raise.
            RQMoEError: the embedding function cannot be used.
        """
        return self._page(self._terms(), Trace(), Trace())

    def explain_plan(self) -> str:
        """The plan of the query, without running it: the rerank, and below it the plans of both searches.

        The plan of the full-text search is LanceDB's. Raises as `to_arrow`.
        """
        trace, terms = Trace(), self._terms()
        depths, _ = self._depths()
        by_vector, by_text = self._searches(terms, depths[-1])
        trace.stage("Rerank", functools.partial(self._rerank_detail, depths))
        return "\n".join([str(trace), indented(by_vector.explain_plan()), indented(by_text.explain_plan())])

    def analyze_plan(self) -> str:
        """Run the query and return its plan as `explain_plan` does, with output rows and time of each stage.

        The full-text search is run once more to be measured. Raises as `to_arrow`.
        """
        trace, vector_trace, terms = Trace(), Trace(), self._terms()
        self._page(terms, trace, vector_trace)
        _, by_text = self._searches(terms, self._depths()[0][-1])
        return "\n".join([str(trace), indented(str(vector_trace)), indented(by_text.analyze_plan())])

    def _depths(self) -> tuple[list[int], Iterator[int]]:
        """Numbers of rows of both searches to fuse, one after the other, and an iterator of further ones."""
        rows = self._limit + self._offset
        parameters = self._reader.read_snapshot(
            lambda snapshot: self._options.parameters(snapshot.codecs, snapshot.tuned)
        )
        depths, ends = [stage.end for stage in parameters.stages(rows)], parameters.ends()
        return depths, itertools.dropwhile(lambda end: end <= depths[-1], ends)

    def _rerank_detail(self, depths: Sequence[int]) -> str:
        """Description of the rerank for the plan."""
        fused, last = [self._rows_to_fuse(depth) for depth in depths], self._offset + self._limit
        name, first = type(self._reranker).__name__, ", ".join(map(str, fused))
        chosen = "" if self._diversity is None else f"{self._diversity}, "
        return f"{name}, by {self._normalize}, first {first} of both, {chosen}rows {self._offset} to {last}"

    def _rows_to_fuse(self, depth: int) -> int:
        """Number of rows of both searches to fuse for the first `depth` rows of the ranking."""
        rows, options = depth, self._options
        if self._diversity is not None:
            rows = self._diversity.rows_to_fuse(depth)
        if options.shortlist is not None:  # only shortlisted rows can be returned
            rows = max(depth, min(rows, options.shortlist // (options.refine_factor or 1)))
        return rows

    def _searches(self, terms: _Terms, depth: int) -> tuple[CompressedQuery, TextQuery]:
        """The vector search and the full-text search for the first `depth` rows of the ranking."""
        both = dict(terms.selected)
        if self._diversity is not None:
            both[terms.compared] = self._handle.columns.vector_column
        by_text = TextQuery(self._reader, terms.text, self._columns).phrase_query(self._phrase)
        by_vector = CompressedQuery(self._reader, terms.vector, self._options)
        rows = self._rows_to_fuse(depth)
        self._with_filters(by_vector, rows).select(both | {DISTANCE: DISTANCE})
        self._with_filters(by_text, rows).select(both | {SCORE: SCORE})
        return by_vector, by_text

    def _selected_of_both(self) -> dict[str, str | Expr]:
        """The columns that both searches return for this one, by name."""
        chosen = self._reader.read_snapshot(
            lambda snapshot: self._result_columns(snapshot, RELEVANCE, ROW_ID)
        )
        selected = self._selected or {name: name for name in chosen.sources}
        return {name: source for name, source in selected.items() if name not in (RELEVANCE, ROW_ID)}

    def _page(self, terms: _Terms, trace: Trace, vector_trace: Trace) -> pa.Table:
        """Fuse the rows of both searches, deeper and deeper, until the page is complete."""
        depths, further = self._depths()
        search = self._search_function(terms, depths, vector_trace)
        ranked: pa.Table | None = None
        with trace.stage("Rerank", functools.partial(self._rerank_detail, depths)) as stage:
            for depth in itertools.chain(list(depths), further):
                before = 0 if ranked is None else len(ranked)
                ranked = self._extend(ranked, depth, terms, *search(depth))
                if depth not in depths:
                    depths.append(depth)
                if len(ranked) >= self._offset + self._limit or self._is_last(before, len(ranked), depth):
                    break
            assert ranked is not None, "there is a first depth"
            page = ranked.slice(self._offset, self._limit)
            stage.rows = len(page)
        return page if self._with_row_id or ROW_ID in (self._selected or {}) else without(page, ROW_ID)

    def _is_last(self, before: int, after: int, depth: int) -> bool:
        """Whether deeper searches find no more rows, given the numbers of rows before and after it."""
        if self._prefilter or not self._conditions:
            return after < depth  # both searches are exhausted
        return after == before

    def _search_function(
        self, terms: _Terms, depths: Sequence[int], trace: Trace
    ) -> Callable[[int], tuple[pa.Table, pa.Table]]:
        """A function that runs both searches for a number of rows."""
        if not self._prefilter and self._conditions:
            return lambda depth: self._search(terms, depth, trace)
        by_vector, _ = self._searches(terms, depths[-1])
        nearest = run_query(by_vector, trace)

        def search(depth: int) -> tuple[pa.Table, pa.Table]:
            # The text search runs for every depth, because LanceDB's order of equal scores depends on it.
            return nearest.slice(0, self._rows_to_fuse(depth)), self._searches(terms, depth)[1].to_arrow()

        return search

    def _search(self, terms: _Terms, depth: int, trace: Trace) -> tuple[pa.Table, pa.Table]:
        by_vector, by_text = self._searches(terms, depth)
        return run_query(by_vector, trace), by_text.to_arrow()

    def _extend(
        self,
        ranked: pa.Table | None,
        depth: int,
        terms: _Terms,
        vector_results: pa.Table,
        text_results: pa.Table,
    ) -> pa.Table:
        """Append the best other rows of both results to the ranked ones, up to `depth` rows."""
        results = [vector_results, text_results]
        fused = fuse(
            *(results if self._diversity is None else [without(each, terms.compared) for each in results]),
            query=reranker_text(terms.text),
            reranker=self._reranker,
            normalize=self._normalize,
        )
        if ranked is None and self._diversity is None:
            return fused.slice(0, depth)
        if ROW_ID not in fused.column_names:
            raise InvalidInputError(
                f"{type(self._reranker).__name__} returned no column {ROW_ID}, by which the rows of several "
                f"results are told apart. Have it keep {ROW_ID}, or ask for limit + offset of at most 10, "
                "without diversify."
            )
        if ranked is None:
            ranked = fused.slice(0, 0)
        placed_R = pc.is_in(fused[ROW_ID], ranked[ROW_ID].combine_chunks()).to_numpy()
        if self._diversity is None:
            best = np.flatnonzero(~placed_R)[: depth - len(ranked)]
        else:
            vectors = _vectors_of(fused, results, terms.compared, self._handle.dim)
            best = _choose(self._diversity, fused, placed_R, vectors, depth - len(ranked))
        return pa.concat_tables([ranked, fused.take(best)], promote_options="default")

    def _terms(self) -> _Terms:
        """The checked vector and text, and the columns that both searches return."""
        return _Terms(*self._vector_and_text(), self._selected_of_both())

    def _vector_and_text(self) -> tuple[Any, str | FullTextQuery]:
        if self._query is not None:
            if self._vector is not None or self._text is not None:
                raise InvalidInputError(
                    f"Got search({self._query!r}, query_type='hybrid') and then .vector or .text; expected "
                    "either the one or the other. Call search(query_type='hybrid') to say both yourself."
                )
            return as_vector(self._handle, self._query), self._query
        if self._vector is None or self._text is None:
            missing = "vector" if self._vector is None else "text"
            raise InvalidInputError(
                f"Got a hybrid query without {missing}; expected search(<text>, query_type='hybrid'), or "
                "search(query_type='hybrid').vector(...).text(...)."
            )
        vector = as_vector(self._handle, self._vector)
        if is_batch(CompressedQuery(self._reader, vector)):
            raise InvalidInputError("Got a batch of vectors for a hybrid query; expected a single one.")
        return vector, self._text

    def _with_filters(self, query: _OneSided, depth: int) -> _OneSided:
        """Have `query` find its first `depth` rows under the conditions of this query."""
        for condition in self._conditions:
            query.where(condition, self._prefilter)
        return query.limit(depth).with_row_id()
