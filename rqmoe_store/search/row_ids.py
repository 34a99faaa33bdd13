"""Row ids of a segment: positions to row ids and back, in a few bytes a row or less.

Rows that were written in the order of their partitions have consecutive row ids. A few runs describe them.
The row ids of other rows are kept as 4-byte offsets from the lowest one, or as they are if they span 2^32 or
more.

Shape legend: N rows, X some of them, R runs of consecutive row ids.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rqmoe_store.codecs.parallel import compiled

RowIds = npt.NDArray[np.uint64]
Positions = npt.NDArray[np.int64]

OFFSET_SPAN = 2**32
"""Row ids that span fewer than this are kept as offsets."""

_BITS_PER_ROW = 8
"""Wanted row ids are looked up in a bitmap if it has at most this many bits for each row of the segment."""


class RowIdArrays(NamedTuple):
    """The arrays of a `RowIdMap`, which compiled loops pass to `row_id_at`."""

    starts_R: Positions
    """First positions of the runs; empty if there are no runs."""
    firsts_R: RowIds
    """First row ids of the runs; without runs, the base of the offsets, or all row ids if there are none."""
    offsets_N: npt.NDArray[np.uint32]
    """Offsets from the base; empty in the other two cases."""


@compiled
def row_id_at(arrays: Any, position: Any) -> Any:
    """The row id at a position, as uint64."""
    starts_R, firsts_R, offsets_N = arrays
    if len(offsets_N):
        return firsts_R[0] + np.uint64(offsets_N[position])
    if len(starts_R) == 0:
        return firsts_R[position]
    low, high = 0, len(starts_R)
    while high - low > 1:
        middle = (low + high) >> 1
        if starts_R[middle] <= position:
            low = middle
        else:
            high = middle
    return firsts_R[low] + np.uint64(position - starts_R[low])


@dataclasses.dataclass(frozen=True, eq=False)
class RowIdMap:
    """The row ids of N rows in the order of their positions; immutable."""

    size: int
    """N."""
    arrays: RowIdArrays

    @classmethod
    def of(cls, row_ids_N: RowIds) -> "RowIdMap":
        """The smallest map of these row ids, which are distinct."""
        runs = _count_runs(row_ids_N)
        lowest = row_ids_N.min() if len(row_ids_N) else np.uint64(0)
        small = len(row_ids_N) > 0 and int(row_ids_N.max()) - int(lowest) < OFFSET_SPAN
        if _runs_bytes(runs) <= (4 if small else 8) * len(row_ids_N):
            return cls._of_runs(np.uint64(0), row_ids_N, runs)
        if small:
            return cls._of_offsets(lowest, (row_ids_N - lowest).astype(np.uint32))
        none = np.empty(0, np.uint32)
        return cls(len(row_ids_N), RowIdArrays(np.empty(0, np.int64), row_ids_N, none))

    @classmethod
    def from_offsets(cls, base: int, offsets_N: npt.NDArray[np.uint32]) -> "RowIdMap":
        """The smallest map of the row ids base + offset, which are distinct and below 2^64."""
        runs = _count_runs(offsets_N)
        if _runs_bytes(runs) <= offsets_N.nbytes:
            return cls._of_runs(np.uint64(base), offsets_N, runs)
        return cls._of_offsets(np.uint64(base), offsets_N)

    @classmethod
    def _of_runs(cls, base: np.uint64, values_N: npt.NDArray[Any], runs: int) -> "RowIdMap":
        starts_R = np.empty(runs, np.int64)
        _find_runs(values_N, starts_R)
        firsts_R = base + values_N[starts_R].astype(np.uint64)
        return cls(len(values_N), RowIdArrays(starts_R, firsts_R, np.empty(0, np.uint32)))

    @classmethod
    def _of_offsets(cls, base: np.uint64, offsets_N: npt.NDArray[np.uint32]) -> "RowIdMap":
        firsts_R = np.array([base], np.uint64)
        return cls(len(offsets_N), RowIdArrays(np.empty(0, np.int64), firsts_R, offsets_N))

    def __len__(self) -> int:
        return self.size

    @property
    def nbytes(self) -> int:
        """Size in memory, in bytes."""
        return sum(array.nbytes for array in self.arrays)

    def at(self, positions_X: npt.NDArray[np.integer]) -> RowIds:
        """The row ids (X,) at some positions."""
        starts_R, firsts_R, offsets_N = self.arrays
        if len(offsets_N):
            return np.asarray(firsts_R[0] + offsets_N[positions_X].astype(np.uint64))
        if len(starts_R) == 0:
            return np.asarray(firsts_R[positions_X])
        runs_X = np.searchsorted(starts_R, positions_X, side="right") - 1
        return np.asarray(firsts_R[runs_X] + (positions_X - starts_R[runs_X]).astype(np.uint64))

    def positions_of(self, row_ids: RowIds) -> Positions:
        """Ascending positions, each once, of the rows that have any of the given row ids."""
        # Rows that were added later have higher ids; dropping those first may save a pass over all rows.
        lowest, highest = self._bounds
        row_ids = row_ids[(row_ids >= lowest) & (row_ids <= highest)]
        if self.size == 0 or len(row_ids) == 0:
            return np.empty(0, np.int64)
        wanted = np.unique(row_ids)
        starts_R, firsts_R, offsets_N = self.arrays
        if len(offsets_N):
            return _positions_in(offsets_N, (wanted - firsts_R[0]).astype(np.uint32))
        if len(starts_R) == 0:
            return _positions_in(firsts_R, wanted)
        order_R, stops_R = self._order_R, np.append(starts_R[1:], self.size)
        runs = order_R[np.searchsorted(firsts_R[order_R], wanted, side="right") - 1]
        places = starts_R[runs] + (wanted - firsts_R[runs]).clip(max=self.size).astype(np.int64)
        return np.sort(places[places < stops_R[runs]])

    @functools.cached_property
    def _bounds(self) -> tuple[np.uint64, np.uint64]:
        """The lowest and the highest row id."""
        starts_R, firsts_R, offsets_N = self.arrays
        if self.size == 0:
            return np.uint64(0), np.uint64(0)
        if len(offsets_N):
            return firsts_R[0] + offsets_N.min(), firsts_R[0] + offsets_N.max()
        lengths_R = np.diff(starts_R, append=self.size) if len(starts_R) else np.ones(1, np.int64)
        return firsts_R.min(), (firsts_R + (lengths_R - 1).astype(np.uint64)).max()

    @functools.cached_property
    def _order_R(self) -> Positions:
        """Runs in the order of their row ids."""
        return np.argsort(self.arrays.firsts_R)


def _runs_bytes(runs: int) -> int:
    return 16 * runs  # a position and a row id


def _positions_in(values_N: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> Positions:
    """Ascending positions of the values that are among `wanted`, which ascend and are of the same type."""
    span = int(wanted[-1]) - int(wanted[0]) + 1
    bitmap = np.zeros(-(-span // 8) if span <= _BITS_PER_ROW * len(values_N) else 0, np.uint8)
    positions_X = np.empty(min(len(wanted), len(values_N)), np.int64)
    return positions_X[: _find(values_N, wanted, bitmap, positions_X)]


@compiled
def _count_runs(values_N: Any) -> int:
    """The number of runs of consecutive values."""
    runs = 0
    for row in range(len(values_N)):
        if row == 0 or not _follows(values_N[row - 1], values_N[row]):
            runs += 1
    return runs


@compiled
def _find_runs(values_N: Any, starts_R: Any) -> None:
    """Fill in the first positions of the runs of consecutive values."""
    runs = 0
    for row in range(len(values_N)):
        if row == 0 or not _follows(values_N[row - 1], values_N[row]):
            starts_R[runs] = row
            runs += 1


@compiled
def _follows(value: Any, following: Any) -> bool:
    return bool(following > value and following - value == 1)


@compiled
def _find(values_N: Any, wanted: Any, bitmap: Any, positions_X: Any) -> int:
    """Fill in the positions of values that are among `wanted`; returns how many there are.

    Looks values up in `bitmap`, which is zeros and has a bit for every value from wanted[0] to wanted[-1], or
    by binary search if it is empty.
    """
    lowest, highest, found = wanted[0], wanted[-1], 0
    if len(bitmap):
        for value in wanted:
            bit = np.int64(value - lowest)
            bitmap[bit >> 3] |= np.uint8(1 << (bit & 7))
    for row in range(len(values_N)):
        value = values_N[row]
        if value < lowest or value > highest:
            continue
        if len(bitmap):
            bit = np.int64(value - lowest)
            is_wanted = (bitmap[bit >> 3] >> (bit & 7)) & 1 == 1
        else:
            is_wanted = wanted[np.searchsorted(wanted, value)] == value
        if is_wanted:
            positions_X[found] = row
            found += 1
    return found
