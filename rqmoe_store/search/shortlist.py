"""What a scan looks for and what it finds.

Shape suffixes: S rows of a shortlist.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.search.segments import CodeBatch, RowIds, concatenated


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

    def without(self, row_id: np.uint64) -> "Shortlist":
        """The rows less one."""
        kept_S = np.flatnonzero(self.rows.row_ids_N != row_id)
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


def sides_of(lower: float | None) -> list[Side]:
    """Everything, or what lies on either side of a distance."""
    everything = np.float32(-np.inf), np.float32(np.inf)
    if lower is None:
        return [Side(*everything, np.float32(1))]
    bound = np.float32(lower)
    return [Side(bound, everything[1], np.float32(1)), Side(everything[0], bound, np.float32(-1))]
