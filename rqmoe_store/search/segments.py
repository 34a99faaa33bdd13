"""Codes in memory, grouped by partition so that a probed partition is one run of rows.

Shape suffixes: N rows of a segment, X some of them, P partitions, M code bytes.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from rqmoe_store.codecs.codes import Codes

RowIds = npt.NDArray[np.uint64]
Positions = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_DENSE = 4
"""A mask is kept beside the codes when it lets at least one row in this many pass; fewer are copied."""


@dataclasses.dataclass(frozen=True)
class CodeBatch:
    """Some rows with their codes, in any order."""

    row_ids_N: RowIds
    codes: Codes

    def __getitem__(self, rows: slice | npt.NDArray[np.integer]) -> "CodeBatch":
        return CodeBatch(self.row_ids_N[rows], self.codes[rows])

    def __len__(self) -> int:
        return len(self.row_ids_N)


def no_rows(code_bytes: int) -> CodeBatch:
    """An empty batch."""
    codes = Codes(np.empty((0, code_bytes), np.uint8), np.empty(0, np.int32))
    return CodeBatch(np.empty(0, np.uint64), codes)


def concatenated(parts: Sequence[CodeBatch]) -> CodeBatch:
    """The rows of at least one batch, one after the other."""
    if len(parts) == 1:
        return parts[0]
    return CodeBatch(
        row_ids_N=np.concatenate([part.row_ids_N for part in parts]),
        codes=Codes(
            codes=np.concatenate([part.codes.codes for part in parts]),
            partitions=np.concatenate([part.codes.partitions for part in parts]),
        ),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Segment:
    """Rows in the order of their partitions; never changed once made."""

    codes_NM: npt.NDArray[np.uint8]
    row_ids_N: RowIds
    starts_P: Positions
    """P + 1 positions: partition p is the run starts_P[p] : starts_P[p + 1]."""

    def __len__(self) -> int:
        return len(self.row_ids_N)

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self.codes_NM.nbytes + self.row_ids_N.nbytes + self.starts_P.nbytes

    def rows(self, positions_X: Positions) -> CodeBatch:
        """The rows at some positions."""
        partitions_X = np.searchsorted(self.starts_P, positions_X, side="right") - 1
        codes = Codes(self.codes_NM[positions_X], partitions_X.astype(np.int32))
        return CodeBatch(self.row_ids_N[positions_X], codes)

    def of_partitions(self, partitions: slice) -> "Segment":
        """The same rows, seen by those of some partitions only; these count from 0 then."""
        if partitions == slice(0, len(self.starts_P) - 1):
            return self
        if partitions.start not in self._views:
            starts_P = self.starts_P[partitions.start : partitions.stop + 1]
            self._views[partitions.start] = Segment(self.codes_NM, self.row_ids_N, starts_P)
        return self._views[partitions.start]

    @functools.cached_property
    def _views(self) -> "dict[int, Segment]":
        return {}

    def part(self, positions_X: Positions) -> "Segment":
        """A segment of the rows at some positions, which must ascend."""
        starts_P = np.searchsorted(positions_X, self.starts_P)
        return Segment(self.codes_NM[positions_X], self.row_ids_N[positions_X], starts_P)

    def positions_of(self, row_ids: RowIds) -> Positions:
        """Ascending positions of those of the given row ids that are here."""
        # Rows added after these have higher ids: no need to put these in order to tell.
        row_ids = row_ids[row_ids <= self._highest]
        if len(row_ids) == 0:
            return np.empty(0, np.int64)
        order_N = self._order_N
        sorted_N = self.row_ids_N if order_N is None else self.row_ids_N[order_N]
        places = np.minimum(np.searchsorted(sorted_N, row_ids), len(self) - 1)
        places = places[sorted_N[places] == row_ids]
        return np.sort(places if order_N is None else order_N[places])

    @functools.cached_property
    def _highest(self) -> int:
        return int(self.row_ids_N.max()) if len(self) else -1

    @functools.cached_property
    def _order_N(self) -> Positions | None:
        """Positions in the order of row ids; None when that is the order the rows have, as in a table
        that nothing was added to since it was compressed."""
        if len(self) < 2 or bool((self.row_ids_N[1:] > self.row_ids_N[:-1]).all()):
            return None
        return np.argsort(self.row_ids_N)


def grouped(batch: CodeBatch, num_partitions: int) -> Segment:
    """Rows by partition; within one they keep their order."""
    partitions_N = batch.codes.partitions
    if len(batch) > 1 and bool((partitions_N[1:] < partitions_N[:-1]).any()):
        batch = batch[np.argsort(partitions_N, kind="stable")]
        partitions_N = batch.codes.partitions
    starts_P = np.searchsorted(partitions_N, np.arange(num_partitions + 1))
    return Segment(np.ascontiguousarray(batch.codes.codes), batch.row_ids_N, starts_P)


@dataclasses.dataclass(frozen=True)
class Selection:
    """The rows of a segment that queries may find."""

    segment: Segment
    allowed_N: Mask | None = None
    """None for all rows."""

    def __len__(self) -> int:
        return len(self.segment) if self.allowed_N is None else int(np.count_nonzero(self.allowed_N))

    def only(self, row_ids: RowIds) -> "Selection":
        """Those of the rows that have one of the given ids."""
        positions_X = self.segment.positions_of(row_ids)
        if self.allowed_N is not None:
            positions_X = positions_X[self.allowed_N[positions_X]]
        if len(positions_X) * _DENSE < len(self.segment):
            return Selection(self.segment.part(positions_X))
        allowed_N = np.zeros(len(self.segment), dtype=bool)
        allowed_N[positions_X] = True
        return Selection(self.segment, allowed_N)

    def of_partitions(self, partitions: slice) -> "Selection":
        """Those of some partitions, which count from 0 then."""
        return dataclasses.replace(self, segment=self.segment.of_partitions(partitions))

    def without(self, row_ids: RowIds) -> "Selection":
        """The rows less those with one of the given ids."""
        positions_X = self.segment.positions_of(row_ids)
        if len(positions_X) == 0:
            return self
        allowed_N = (
            np.ones(len(self.segment), dtype=bool) if self.allowed_N is None else self.allowed_N.copy()
        )
        allowed_N[positions_X] = False
        return Selection(self.segment, allowed_N)

    def batches(self, rows: int) -> Iterator[CodeBatch]:
        """The rows with their codes, by partition, up to `rows` at a time."""
        for start in range(0, len(self.segment), rows):
            positions_X = np.arange(start, min(start + rows, len(self.segment)))
            if self.allowed_N is not None:
                positions_X = positions_X[self.allowed_N[positions_X]]
            yield self.segment.rows(positions_X)

    def rows(self) -> CodeBatch:
        """The rows with their codes, by partition."""
        if self.allowed_N is None:
            return self.segment.rows(np.arange(len(self.segment)))
        return self.segment.rows(np.flatnonzero(self.allowed_N))
