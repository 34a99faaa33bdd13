"""Segments: rows with their codes, as a scan reads them.

A segment has codes grouped by partition, so that a probed partition is one run of rows. A selection is the
part of a segment that queries may find.

Shape legend: N rows of a segment, X some of them, P partitions, M code bytes, R bytes of a refine code, S
rows of a shortlist, K stages of a ranking.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rqmoe_store.codecs.codes import Codes
from rqmoe_store.codecs.parallel import compiled
from rqmoe_store.search.row_ids import Positions as Positions
from rqmoe_store.search.row_ids import RowIdMap, row_id_at
from rqmoe_store.search.row_ids import RowIds as RowIds

Mask = npt.NDArray[np.bool_]

_DENSE = 4
"""A selection is a mask over the segment if it has at least one row in this many; fewer rows are copied."""


@dataclasses.dataclass(frozen=True)
class CodeBatch:
    """Rows with their codes, in any order."""

    row_ids_N: RowIds
    codes: Codes

    def __getitem__(self, rows: slice | npt.NDArray[np.integer]) -> "CodeBatch":
        return CodeBatch(self.row_ids_N[rows], self.codes[rows])

    def __len__(self) -> int:
        return len(self.row_ids_N)


@functools.cache
def no_rows(code_bytes: int) -> CodeBatch:
    """An empty batch."""
    codes = Codes(np.empty((0, code_bytes), np.uint8), np.empty(0, np.int32))
    return CodeBatch(np.empty(0, np.uint64), codes)


def concatenated(parts: Sequence[CodeBatch]) -> CodeBatch:
    """The rows of at least one batch, batch after batch; with refine codes if all have them."""
    if len(parts) == 1:
        return parts[0]
    filled = [part.codes.refine for part in parts if len(part)]
    refine = [each for each in filled if each is not None]
    return CodeBatch(
        row_ids_N=np.concatenate([part.row_ids_N for part in parts]),
        codes=Codes(
            codes=np.concatenate([part.codes.codes for part in parts]),
            partitions=np.concatenate([part.codes.partitions for part in parts]),
            refine=np.concatenate(refine) if refine and len(refine) == len(filled) else None,
        ),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Segment:
    """Rows in the order of (partition, row id); immutable."""

    codes_NM: npt.NDArray[np.uint8]
    row_id_map: RowIdMap
    starts_P: Positions
    """P + 1 positions: partition p is the run starts_P[p] : starts_P[p + 1]."""
    refine_NR: npt.NDArray[np.uint8] | None = None
    """Refine codes; None if they are not in memory, or the table has none."""

    def __len__(self) -> int:
        return len(self.codes_NM)

    @property
    def nbytes(self) -> int:
        """Size in memory, in bytes."""
        refine_bytes = 0 if self.refine_NR is None else self.refine_NR.nbytes
        return self.codes_NM.nbytes + self.row_id_map.nbytes + self.starts_P.nbytes + refine_bytes

    def row_ids(self, positions_X: Positions) -> RowIds:
        """The row ids (X,) at some positions."""
        return self.row_id_map.at(positions_X)

    def rows(self, positions_X: Positions, *, refine: bool = True) -> CodeBatch:
        """The rows at some positions, with the refine codes in memory if asked."""
        partitions_X, row_ids_X = np.empty(len(positions_X), np.int32), np.empty(len(positions_X), np.uint64)
        _identify(positions_X, self.starts_P, self.row_id_map.arrays, partitions_X, row_ids_X)
        # `take` copies whole rows, several times as fast as an index.
        refine_NR = self.refine_NR if refine else None
        refine_XR = None if refine_NR is None else refine_NR.take(positions_X, axis=0)
        return CodeBatch(row_ids_X, Codes(self.codes_NM.take(positions_X, axis=0), partitions_X, refine_XR))

    def of_partitions(self, partitions: slice) -> "Segment":
        """A view of the rows of some partitions, in which partition ids begin at 0."""
        if partitions == slice(0, len(self.starts_P) - 1):
            return self
        if partitions.start not in self._views:
            starts_P = self.starts_P[partitions.start : partitions.stop + 1]
            self._views[partitions.start] = dataclasses.replace(self, starts_P=starts_P)
        return self._views[partitions.start]

    @property
    def views(self) -> "list[Segment]":
        """The views of this segment that are kept."""
        return list(self._views.values())

    @functools.cached_property
    def _views(self) -> "dict[int, Segment]":
        return {}

    def part(self, positions_X: Positions) -> "Segment":
        """A segment with the rows at some positions, which must ascend."""
        starts_P = np.searchsorted(positions_X, self.starts_P)
        refine_XR = None if self.refine_NR is None else self.refine_NR[positions_X]
        row_id_map = RowIdMap.of(self.row_ids(positions_X))
        return Segment(self.codes_NM[positions_X], row_id_map, starts_P, refine_XR)

    def positions_of(self, row_ids: RowIds) -> Positions:
        """Ascending positions, each once, of the rows that have any of the given row ids."""
        return self.row_id_map.positions_of(row_ids)


@compiled
def _identify(positions_X: Any, starts_P: Any, row_ids: Any, partitions_X: Any, row_ids_X: Any) -> None:
    """Fill in the partitions and the row ids of the rows at some positions, by binary search."""
    for place in range(len(positions_X)):
        partition, end = 0, len(starts_P) - 1
        while end - partition > 1:
            middle = (partition + end) // 2
            is_before = starts_P[middle] <= positions_X[place]
            partition, end = (middle, end) if is_before else (partition, middle)
        partitions_X[place] = partition
        row_ids_X[place] = row_id_at(row_ids, positions_X[place])


def grouped(batch: CodeBatch, num_partitions: int) -> Segment:
    """A segment with the rows of a batch, in the order of (partition, row id)."""
    if not _is_grouped(batch):
        batch = batch[np.lexsort((batch.row_ids_N, batch.codes.partitions))]
    starts_P = np.searchsorted(batch.codes.partitions, np.arange(num_partitions + 1))
    codes_NM = np.ascontiguousarray(batch.codes.codes)
    return Segment(codes_NM, RowIdMap.of(batch.row_ids_N), starts_P, batch.codes.refine)


def _is_grouped(batch: CodeBatch) -> bool:
    """Whether rows are in the order of (partition, row id)."""
    partitions_N, row_ids_N = batch.codes.partitions, batch.row_ids_N
    ascending_N = row_ids_N[1:] > row_ids_N[:-1]
    ascending_N &= partitions_N[1:] == partitions_N[:-1]
    return bool((ascending_N | (partitions_N[1:] > partitions_N[:-1])).all())


@dataclasses.dataclass(frozen=True)
class Selection:
    """The rows of a segment that queries may find."""

    segment: Segment
    allowed_N: Mask | None = None
    """None for all rows."""

    def __len__(self) -> int:
        return len(self.segment) if self.allowed_N is None else int(np.count_nonzero(self.allowed_N))

    def only(self, row_ids: RowIds) -> "Selection":
        """The rows of the selection that have any of the given ids."""
        positions_X = self.segment.positions_of(row_ids)
        if self.allowed_N is not None:
            positions_X = positions_X[self.allowed_N[positions_X]]
        if len(positions_X) * _DENSE < len(self.segment):
            return Selection(self.segment.part(positions_X))
        allowed_N = np.zeros(len(self.segment), dtype=bool)
        allowed_N[positions_X] = True
        return Selection(self.segment, allowed_N)

    def of_partitions(self, partitions: slice) -> "Selection":
        """The rows of some partitions, whose ids then begin at 0."""
        view = self.segment.of_partitions(partitions)
        return self if view is self.segment else Selection(view, self.allowed_N)

    def without(self, row_ids: RowIds) -> "Selection":
        """The selection without the rows that have any of the given ids."""
        positions_X = self.segment.positions_of(row_ids)
        if len(positions_X) == 0:
            return self
        allowed_N = (
            np.ones(len(self.segment), dtype=bool) if self.allowed_N is None else self.allowed_N.copy()
        )
        allowed_N[positions_X] = False
        return Selection(self.segment, allowed_N)

    def batches(self, rows: int) -> Iterator[CodeBatch]:
        """Yield the rows with their codes, in the order of partitions, up to `rows` at a time."""
        for start in range(0, len(self.segment), rows):
            positions_X = np.arange(start, min(start + rows, len(self.segment)))
            if self.allowed_N is not None:
                positions_X = positions_X[self.allowed_N[positions_X]]
            yield self.segment.rows(positions_X)

    def rows(self) -> CodeBatch:
        """The rows with their codes, in the order of partitions."""
        if self.allowed_N is None:
            return self.segment.rows(np.arange(len(self.segment)))
        return self.segment.rows(np.flatnonzero(self.allowed_N))
