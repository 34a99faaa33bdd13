"""What a scan looks for and what it finds.

Shape suffixes: S rows of a shortlist, K stages of a ranking.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.frame import Float64Array, ScoreUnits
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.search.segments import CodeBatch, Positions, RowIds, concatenated, no_rows


class Side(NamedTuple):
    """Scores low <= score < high, the smallest of sign * score first."""

    low: np.float32
    high: np.float32
    sign: np.float32


@dataclasses.dataclass(frozen=True)
class Shortlist:
    """The most promising rows of one query, in any order, with their signed scores."""

    scores_S: Float32Array
    rows: CodeBatch

    def __len__(self) -> int:
        return len(self.rows)

    def best(self, size: int) -> "Shortlist":
        """The `size` smallest scores; of equal ones, those of the smallest row ids."""
        if len(self) <= size:
            return self
        best_S = np.lexsort((self.rows.row_ids_N, self.scores_S))[:size]
        return Shortlist(self.scores_S[best_S], self.rows[best_S])

    def only(self, row_ids: RowIds) -> "Shortlist":
        """Those of the rows that have one of the given ids."""
        kept_S = np.flatnonzero(np.isin(self.rows.row_ids_N, row_ids))
        return Shortlist(self.scores_S[kept_S], self.rows[kept_S])

    def shifted(self, first_partition: int) -> "Shortlist":
        """The same with partition ids that count from elsewhere."""
        if first_partition == 0:
            return self
        codes = self.rows.codes
        shifted = Codes(codes.codes, codes.partitions + np.int32(first_partition))
        return Shortlist(self.scores_S, CodeBatch(self.rows.row_ids_N, shifted))

    def joined(self, other: "Shortlist") -> "Shortlist":
        """Both together."""
        if not len(other):
            return self
        scores_S = np.concatenate([self.scores_S, other.scores_S])
        return Shortlist(scores_S, concatenated([self.rows, other.rows]))


@dataclasses.dataclass(frozen=True)
class Candidates:
    """The rows of one query that are worth decoding, and by which stage of its ranking each is considered
    first. Of those of one stage the most promising come first."""

    rows: CodeBatch
    estimates_S: Float64Array
    """Of their distances, from look-up tables."""
    stages_S: Positions
    exhausted: bool = False
    """These are all there are."""

    @classmethod
    def none(cls, code_bytes: int, *, exhausted: bool = False) -> "Candidates":
        """No rows."""
        return cls(no_rows(code_bytes), np.empty(0), np.empty(0, np.int64), exhausted)

    @classmethod
    def of(
        cls, sides: Sequence[Shortlist], sizes_K: Sequence[int], stages: range, units: ScoreUnits
    ) -> "Candidates":
        """The rows of the shortlists of some stages.

        Args:
            sides: what a scan found, on either side of a distance or on the only one.
            sizes_K: rows of a shortlist of every stage and side, ascending; the scan kept the largest number.
            stages: whose shortlists come from this scan.
            units: what the scores of the query are counted in.
        """
        parts: list[CodeBatch] = []
        scores_of_parts: list[Float32Array] = []
        stages_of_parts: list[Positions] = []
        for side, sign in zip(sides, (1, -1), strict=False):
            order_S = np.lexsort((side.rows.row_ids_N, side.scores_S))
            # A shortlist of so many rows begins every longer one.
            first_S = np.searchsorted(sizes_K, np.arange(len(side)), side="right").clip(stages.start)
            kept = int(np.searchsorted(first_S, stages.stop))
            parts.append(side.rows[order_S[:kept]])
            scores_of_parts.append(np.float32(sign) * side.scores_S[order_S[:kept]])
            stages_of_parts.append(first_S[:kept])
        (estimates_S,) = units.distances(np.concatenate(scores_of_parts)[None])
        return cls(concatenated(parts), estimates_S, np.concatenate(stages_of_parts))

    def __len__(self) -> int:
        return len(self.rows)

    def joined(self, later: "Candidates") -> "Candidates":
        """These and those of later stages, every row once."""
        if not len(self):
            return later
        new_S = np.flatnonzero(~np.isin(later.rows.row_ids_N, self.rows.row_ids_N))
        return Candidates(
            concatenated([self.rows, later.rows[new_S]]),
            np.concatenate([self.estimates_S, later.estimates_S[new_S]]),
            np.concatenate([self.stages_S, later.stages_S[new_S]]),
            later.exhausted,
        )

    def without(self, row_id: np.uint64) -> "Candidates":
        """The rows less one."""
        kept_S = np.flatnonzero(self.rows.row_ids_N != row_id)
        return Candidates(self.rows[kept_S], self.estimates_S[kept_S], self.stages_S[kept_S], self.exhausted)


def sides_of(lower: float | None) -> list[Side]:
    """Everything, or what lies on either side of a distance."""
    everything = np.float32(-np.inf), np.float32(np.inf)
    if lower is None:
        return [Side(*everything, np.float32(1))]
    bound = np.float32(lower)
    return [Side(bound, everything[1], np.float32(1)), Side(everything[0], bound, np.float32(-1))]
