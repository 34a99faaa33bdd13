"""Look-up-table scan: streams of codes in, one shortlist of promising rows per query out.

Shape suffixes: Q queries, N rows of a batch, P partitions, S shortlist.

Rows are ordered by (score, row id), a total order, so a shortlist depends neither on how the stream is
cut into batches nor on the order in which rows arrive.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from rqmoe_store.codecs.additive import LookupTables
from rqmoe_store.codecs.codes import Codes

Float32Array = npt.NDArray[np.float32]
RowIds = npt.NDArray[np.uint64]
Positions = npt.NDArray[np.intp]

MAX_SCORES = 2**23
"""Scores held at a time (32 MiB): rows are scored in slices so that many queries stay in memory."""


@dataclasses.dataclass(frozen=True)
class CodeBatch:
    """Rows as they come from the table; every row has a code."""

    row_ids_N: RowIds
    codes: Codes

    def __getitem__(self, rows: slice | npt.NDArray[np.intp]) -> "CodeBatch":
        return CodeBatch(self.row_ids_N[rows], self.codes[rows])

    def __len__(self) -> int:
        return len(self.row_ids_N)


@dataclasses.dataclass(frozen=True)
class QueryGroup:
    """Queries that consider the same rows, with their look-up tables."""

    positions: Sequence[int]
    """Which queries of the batch these are; row i of a score belongs to positions[i]."""
    tables: LookupTables
    probed_P: npt.NDArray[np.bool_] | None
    """Which partitions these queries consider; None for all."""


def smallest(scores_N: Float32Array, row_ids_N: npt.NDArray[np.integer], count: int) -> Positions:
    """Positions of the `count` smallest scores (all when there are fewer), ties broken by row id.

    Args:
        scores_N: float32 (N,), free of NaN.
        row_ids_N: integers (N,), distinct.

    Returns:
        Positions in no particular order.
    """
    if len(scores_N) <= count:
        return np.arange(len(scores_N))
    bound = np.partition(scores_N, count - 1)[count - 1]
    below = np.flatnonzero(scores_N < bound)
    ties = np.flatnonzero(scores_N == bound)
    wanted = count - len(below)
    if wanted < len(ties):
        ties = ties[np.argpartition(row_ids_N[ties], wanted - 1)[:wanted]]
    return np.concatenate([below, ties])


class Shortlist:
    """The best `size` rows of one query seen so far, with their codes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.scores_S: Float32Array = np.empty(0, np.float32)
        self.rows: CodeBatch | None = None
        self._bound = np.float32(np.inf)

    def add(self, scores_N: Float32Array, rows: CodeBatch) -> None:
        """Consider the rows of a batch; rows with a NaN score are passed over."""
        near = np.flatnonzero(scores_N <= self._bound)
        near = near[smallest(scores_N[near], rows.row_ids_N[near], self.size)]
        if len(near) == 0:
            return
        scores_S, rows = scores_N[near], rows[near]
        if self.rows is not None:
            scores_S = np.concatenate([self.scores_S, scores_S])
            rows = _concatenate([self.rows, rows])
            best = smallest(scores_S, rows.row_ids_N, self.size)
            scores_S, rows = scores_S[best], rows[best]
        self.scores_S, self.rows = scores_S, rows
        if len(rows) == self.size:
            self._bound = scores_S.max()


def scan(
    batches: Iterable[CodeBatch], groups: Sequence[QueryGroup], size: int, lower: float | None = None
) -> list[CodeBatch | None]:
    """The shortlist of every query: the `size` rows of smallest approximate distance.

    With `lower` a query keeps the `size` nearest rows beyond that distance and the `size` farthest
    within it: scores are approximate, so exact distances decide later on which side a row belongs.

    Args:
        batches: stream of rows; read once, one batch in memory at a time.
        groups: every query position 0..Q-1 in exactly one group.

    Returns:
        For every query its rows in no particular order, None when there were none.
    """
    count = sum(len(group.positions) for group in groups)
    nearest = [Shortlist(size) for _ in range(count)]
    within = [Shortlist(size) for _ in range(count)] if lower is not None else []
    for batch in batches:
        for group in groups:
            for rows in _slices(_considered(batch, group.probed_P), len(group.positions)):
                scores_QN = group.tables.score(rows.codes)
                for position, scores_N in zip(group.positions, scores_QN, strict=True):
                    if lower is None:
                        nearest[position].add(scores_N, rows)
                        continue
                    beyond_N = scores_N >= lower
                    nearest[position].add(np.where(beyond_N, scores_N, np.float32(np.nan)), rows)
                    within[position].add(np.where(beyond_N, np.float32(np.nan), -scores_N), rows)
    if lower is None:
        return [shortlist.rows for shortlist in nearest]
    return [_join(far.rows, near.rows) for far, near in zip(nearest, within, strict=True)]


def _considered(batch: CodeBatch, probed_P: npt.NDArray[np.bool_] | None) -> CodeBatch:
    if probed_P is None:
        return batch
    return batch[np.flatnonzero(probed_P[batch.codes.partitions])]


def _slices(rows: CodeBatch, num_queries: int) -> Iterator[CodeBatch]:
    step = max(1, MAX_SCORES // num_queries)
    for start in range(0, len(rows), step):
        yield rows[start : start + step]


def _join(first: CodeBatch | None, second: CodeBatch | None) -> CodeBatch | None:
    parts = [part for part in (first, second) if part is not None]
    return _concatenate(parts) if parts else None


def _concatenate(parts: Sequence[CodeBatch]) -> CodeBatch:
    return CodeBatch(
        row_ids_N=np.concatenate([part.row_ids_N for part in parts]),
        codes=Codes(
            codes=np.concatenate([part.codes.codes for part in parts]),
            partitions=np.concatenate([part.codes.partitions for part in parts]),
        ),
    )
