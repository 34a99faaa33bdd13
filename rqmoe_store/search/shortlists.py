"""Shortlists: the rows that a scan finds for its queries, and the candidates for reranking made of them.

Shape legend: Q queries, H rows of all queries, K stages of a ranking, R bytes of a refine code.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rqmoe_store.codecs.frame import Float64Array, ScoreUnits, to_float32
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import Metric
from rqmoe_store.search.row_ids import Positions, RowIds
from rqmoe_store.search.segments import CodeBatch, Mask, concatenated, no_rows


class Side(NamedTuple):
    """A range of scores to search, low <= score < high, in the order of sign * score."""

    low: np.float32
    high: np.float32
    sign: np.float32


def sides_of(lower: float | None) -> list[Side]:
    """The range of all scores, or the two ranges on either side of a lower distance bound."""
    everything = np.float32(-np.inf), np.float32(np.inf)
    if lower is None:
        return [Side(*everything, np.float32(1))]
    bound = np.float32(lower)
    return [Side(bound, everything[1], np.float32(1)), Side(everything[0], bound, np.float32(-1))]


@dataclasses.dataclass(frozen=True)
class Shortlists:
    """The most promising rows of several queries, with their signed scores (smaller is better)."""

    queries_H: Positions
    """Numbers of the queries."""
    scores_H: Float32Array
    rows: CodeBatch
    refined_H: Float32Array | None = None
    """Scores by refine codes too, where the GPU that scanned the rows computed them. These rows come without
    refine codes."""

    @classmethod
    @functools.cache
    def none(cls, code_bytes: int) -> "Shortlists":
        """No rows."""
        return cls(np.empty(0, np.int64), np.empty(0, np.float32), no_rows(code_bytes))

    def __len__(self) -> int:
        return len(self.queries_H)

    def __getitem__(self, rows: Positions) -> "Shortlists":
        refined_H = None if self.refined_H is None else self.refined_H[rows]
        return Shortlists(self.queries_H[rows], self.scores_H[rows], self.rows[rows], refined_H)

    def best(self, size: int) -> "Shortlists":
        """The rows with the `size` smallest scores of every query, query after query, best first.

        Of equal scores, those with the smallest row ids come first.
        """
        if self._are_in_order and (_places_of(self.queries_H) < size).all():
            return self
        order_H = np.lexsort((self.rows.row_ids_N, self.scores_H, self.queries_H))
        return self[order_H[_places_of(self.queries_H[order_H]) < size]]

    def are_short(self, size: int) -> bool:
        """Whether rows come query after query, and no query has more than `size`."""
        return self._longest <= size

    @functools.cached_property
    def _longest(self) -> float:
        """Most rows of a query; infinite if rows do not come query after query."""
        if np.logical_or.reduce(self.queries_H[1:] < self.queries_H[:-1]):
            return math.inf
        return float(np.maximum.reduce(self.counts(1)))

    @property
    def _are_in_order(self) -> bool:
        queries_H, scores_H, row_ids_H = self.queries_H, self.scores_H, self.rows.row_ids_N
        is_next_H = (scores_H[1:] > scores_H[:-1]) | (
            (scores_H[1:] == scores_H[:-1]) & (row_ids_H[1:] > row_ids_H[:-1])
        )
        return bool(
            ((queries_H[1:] > queries_H[:-1]) | ((queries_H[1:] == queries_H[:-1]) & is_next_H)).all()
        )

    def only(self, row_ids: RowIds) -> "Shortlists":
        """The rows that have any of the given ids."""
        return self[np.flatnonzero(np.isin(self.rows.row_ids_N, row_ids))]

    def counts(self, num_queries: int) -> Positions:
        """Number of rows of every query (Q,)."""
        return np.bincount(self.queries_H, minlength=num_queries)

    def shifted(self, first_partition: int) -> "Shortlists":
        """The same rows with partition ids that begin at `first_partition`."""
        if first_partition == 0:
            return self
        codes = self.rows.codes
        shifted = dataclasses.replace(codes, partitions=codes.partitions + np.int32(first_partition))
        return dataclasses.replace(self, rows=CodeBatch(self.rows.row_ids_N, shifted))

    @classmethod
    def joined(cls, parts: "Sequence[Shortlists]") -> "Shortlists":
        """The rows of at least one part, part after part."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            np.concatenate([part.queries_H for part in parts]),
            np.concatenate([part.scores_H for part in parts]),
            concatenated([part.rows for part in parts]),
            _joined_scores([part.refined_H for part in parts]),
        )


def _joined_scores(parts: Sequence[Float32Array | None]) -> Float32Array | None:
    """The refined scores of all parts; None unless all have them."""
    known = [part for part in parts if part is not None]
    return np.concatenate(known) if len(known) == len(parts) else None


def _places_of(queries_H: Positions) -> Positions:
    """The place of every row among the rows of its query; queries ascend."""
    firsts_Q = np.flatnonzero(np.diff(queries_H, prepend=-1))
    counts_Q = np.diff(firsts_Q, append=len(queries_H))
    return np.asarray(np.arange(len(queries_H)) - np.repeat(firsts_Q, counts_Q), np.int64)


@dataclasses.dataclass(frozen=True)
class Candidates:
    """The rows of several queries to decode, query after query, each with the first stage of the ranking that
    considers it.

    The rows of a stage are in the order of their estimated distances.
    """

    rows: CodeBatch
    estimates_H: Float64Array
    """Approximate distances, from look-up tables."""
    stages_H: Positions
    """First stage that considers the row."""
    starts_Q: Positions
    """Q + 1 positions: the rows of query q are the run starts_Q[q] : starts_Q[q + 1]."""
    exhausted_Q: Mask
    """Whether no other row could be a candidate of the query."""
    refined_H: Float32Array | None = None
    """Scores by refine codes, as in `Shortlists`."""

    @classmethod
    def none(cls, num_queries: int, code_bytes: int) -> "Candidates":
        """No rows, as there are none that could be candidates."""
        starts_Q, exhausted_Q = np.zeros(num_queries + 1, np.int64), np.ones(num_queries, dtype=bool)
        return cls(no_rows(code_bytes), np.empty(0), np.empty(0, np.int64), starts_Q, exhausted_Q)

    def __len__(self) -> int:
        return len(self.exhausted_Q)

    def __getitem__(self, queries: slice) -> "Candidates":
        """The candidates of consecutive queries."""
        start, stop, _ = queries.indices(len(self))
        if (start, stop) == (0, len(self)):
            return self
        rows = slice(self.starts_Q[start], self.starts_Q[stop])
        starts_Q = self.starts_Q[start : stop + 1] - self.starts_Q[start]
        return Candidates(
            self.rows[rows],
            self.estimates_H[rows],
            self.stages_H[rows],
            starts_Q,
            self.exhausted_Q[start:stop],
            None if self.refined_H is None else self.refined_H[rows],
        )

    def each(self) -> "Iterator[Candidates]":
        """The candidates of each query alone."""
        return (self[query : query + 1] for query in range(len(self)))

    @property
    def counts_Q(self) -> Positions:
        """Number of candidates of every query."""
        return self.starts_Q[1:] - self.starts_Q[:-1]

    @functools.cached_property
    def queries_H(self) -> Positions:
        """The number of the query of every row."""
        return np.arange(len(self)).repeat(self.counts_Q)

    def with_refine(self, refine_HR: npt.NDArray[np.uint8]) -> "Candidates":
        """The candidates with these refine codes."""
        codes = dataclasses.replace(self.rows.codes, refine=refine_HR)
        return dataclasses.replace(self, rows=CodeBatch(self.rows.row_ids_N, codes))

    def without(self, row_ids_Q: RowIds) -> "Candidates":
        """The candidates without one row of each query."""
        kept_H = np.flatnonzero(self.rows.row_ids_N != row_ids_Q[self.queries_H])
        starts_Q = np.searchsorted(kept_H, self.starts_Q)
        return Candidates(
            self.rows[kept_H],
            self.estimates_H[kept_H],
            self.stages_H[kept_H],
            starts_Q,
            self.exhausted_Q,
            None if self.refined_H is None else self.refined_H[kept_H],
        )

    @classmethod
    def joined(cls, parts: "Sequence[tuple[Sequence[int], Candidates]]") -> "Candidates":
        """The candidates of queries in several parts: those of earlier stages first, every row once.

        Args:
            parts: numbers of queries, and their candidates; the first part has all queries.
        """
        _, first = parts[0]
        if len(parts) == 1:
            return first
        queries_H = np.concatenate([np.asarray(numbers)[part.queries_H] for numbers, part in parts])
        rows = concatenated([part.rows for _, part in parts])
        exhausted_Q = first.exhausted_Q.copy()
        for numbers, part in parts[1:]:
            exhausted_Q[numbers] = part.exhausted_Q
        order_H = np.lexsort((rows.row_ids_N, queries_H))  # stable: of equal rows, the earliest comes first
        again_H = np.zeros(len(order_H), dtype=bool)
        again_H[1:] = (np.diff(queries_H[order_H]) == 0) & (np.diff(rows.row_ids_N[order_H]) == 0)
        kept_H = np.sort(order_H[~again_H])
        kept_H = kept_H[np.argsort(queries_H[kept_H], kind="stable")]
        estimates_H = np.concatenate([part.estimates_H for _, part in parts])
        stages_H = np.concatenate([part.stages_H for _, part in parts])
        refined_H = _joined_scores([part.refined_H for _, part in parts])
        starts_Q = np.searchsorted(queries_H[kept_H], np.arange(len(first) + 1))
        return cls(
            rows[kept_H],
            estimates_H[kept_H],
            stages_H[kept_H],
            starts_Q,
            exhausted_Q,
            None if refined_H is None else refined_H[kept_H],
        )


def candidates_of(
    sides: Sequence[Shortlists],
    sizes_K: Sequence[int],
    stages: Sequence[range],
    units: ScoreUnits,
    exhausted: Sequence[bool],
) -> Candidates:
    """The candidates of some stages of every query, out of the shortlists of a scan.

    Args:
        sides: the scan's shortlists for each side of a distance or a single one, best first.
        sizes_K: rows of the shortlist of every stage, per side, ascending; the scan kept the last number.
        stages: for every query, the stages whose candidates come from this scan.
        units: units of the queries' scores.
        exhausted: for every query, whether no other row could be a candidate.
    """
    if len(sides) == 1 and all(each == range(1) for each in stages) and sides[0].are_short(sizes_K[0]):
        # As in most searches: all rows of the scan, for a single stage.
        return _candidates(sides[0], np.zeros(len(sides[0]), np.int64), units, exhausted)
    begin_Q, end_Q = (np.array([getattr(each, name) for each in stages]) for name in ("start", "stop"))
    parts, stages_of_parts = [], []
    for side, sign in zip(sides, (1, -1), strict=False):
        queries_H = side.queries_H
        # The shortlist of a stage is the beginning of all longer ones.
        first_H = np.searchsorted(sizes_K, _places_of(queries_H), side="right")
        first_H = np.maximum(first_H, begin_Q[queries_H])
        kept_H = np.flatnonzero(first_H < end_Q[queries_H])
        part = side if len(kept_H) == len(side) else side[kept_H]
        parts.append(part if sign == 1 else dataclasses.replace(part, scores_H=-part.scores_H))
        stages_of_parts.append(first_H[kept_H])
    found, stages_H = Shortlists.joined(parts), np.concatenate(stages_of_parts)
    if len(parts) > 1:
        order_H = np.argsort(found.queries_H, kind="stable")
        found, stages_H = found[order_H], stages_H[order_H]
    return _candidates(found, stages_H, units, exhausted)


def _candidates(
    found: Shortlists, stages_H: Positions, units: ScoreUnits, exhausted: Sequence[bool]
) -> Candidates:
    """The rows of shortlists, query after query, as candidates of some stages."""
    estimates_H = units.distances_of(found.queries_H, found.scores_H)
    starts_Q = found.queries_H.searchsorted(np.arange(len(exhausted) + 1))
    exhausted_Q = np.array(exhausted, dtype=bool)
    return Candidates(found.rows, estimates_H, stages_H, starts_Q, exhausted_Q, found.refined_H)


def refined_distances(
    queries_n: Positions, scores_n: Float32Array, units: ScoreUnits, metric: Metric
) -> Float32Array:
    """The distances (n,) that scores by refine codes stand for, each of a query of its own."""
    exact_n = units.distances_of(queries_n, scores_n)
    # Rounding may make the distance to a very near vector slightly negative.
    return to_float32(np.maximum(exact_n, -np.inf if metric == "dot" else 0.0))
