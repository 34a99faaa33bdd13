"""Loading of codes into memory: a counting sort by partition, straight into the arrays of a segment.

The first pass over the table counts the rows of every partition, and the second one puts each row where it
belongs. So loading takes little more memory than what it loads.

Shape legend: N rows of a segment, B rows of a batch, P partitions, M code bytes, R bytes of a refine code.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rqmoe_store.codecs.parallel import compiled
from rqmoe_store.progress import late_progress
from rqmoe_store.search.row_ids import OFFSET_SPAN, RowIdMap, RowIds
from rqmoe_store.search.segments import CodeBatch, Segment, Selection
from rqmoe_store.startup import load_numba
from rqmoe_store.store.columns import CodeColumns
from rqmoe_store.store.snapshot import Snapshot

_BATCH_ROWS = 131_072
"""Rows of a batch: large enough to be fast, with a few MB of codes in memory."""

_READAHEAD_BATCHES, _READAHEAD_BYTES = 4, 2**26
"""What Lance reads ahead of the batch that is being placed; by default, up to 2 GiB."""


def load_segment(snapshot: Snapshot, columns: CodeColumns, *, refine: bool) -> Segment:
    """Load the codes of all rows that have one, with refine codes if asked.

    Shows a progress bar on a terminal if it takes long.

    Raises:
        TableError: the code columns are missing or have another type, or have a code or partition id that no
            codec of the table has.
    """
    load_numba()
    columns.require_in(snapshot.schema)
    codecs, counts = snapshot.codecs, _Counts(snapshot.codecs.num_partitions)
    names = list(codecs.columns.names if refine else columns.scanned)
    with late_progress("Loading codes", 2 * snapshot.rows) as advance:
        for batch in scan_batches(snapshot, [columns.partition], advance):
            partitions = batch[columns.partition]
            valid_B = partitions.is_valid().to_numpy(zero_copy_only=False)
            counts.add(partitions.drop_null().to_numpy(), row_ids_of(batch)[valid_B])
        loader = _Loader(counts, codecs.code_bytes, codecs.columns.refine_bytes if refine else None)
        for batch in scan_batches(snapshot, names, advance):
            codes, valid_B = codecs.read(batch)
            loader.place(CodeBatch(row_ids_of(batch)[valid_B], codes))
        return loader.segment()


def merged(
    selections: Sequence[Selection], *, num_partitions: int, code_bytes: int, refine_bytes: int | None
) -> Segment:
    """A segment with the rows of all selections, which have refine codes unless `refine_bytes` is None."""
    counts = _Counts(num_partitions)
    for rows in _rows_of(selections):
        counts.add(rows.codes.partitions, rows.row_ids_N)
    loader = _Loader(counts, code_bytes, refine_bytes)
    for rows in _rows_of(selections):
        loader.place(rows)
    return loader.segment()


def _rows_of(selections: Sequence[Selection]) -> Iterator[CodeBatch]:
    return itertools.chain.from_iterable(selection.batches(_BATCH_ROWS) for selection in selections)


def scan_batches(
    snapshot: Snapshot, names: Sequence[str], advance: Callable[[int], None]
) -> Iterator[pa.RecordBatch]:
    """Yield columns and row ids of all rows in batches, little of which is read ahead.

    Args:
        snapshot: the version.
        names: the columns.
        advance: called with the number of rows of every batch that was used.
    """
    scanner = snapshot.dataset.scanner(
        columns=list(names),
        with_row_id=True,
        batch_size=_BATCH_ROWS,
        batch_readahead=_READAHEAD_BATCHES,
        io_buffer_size=_READAHEAD_BYTES,
    )
    for batch in scanner.to_batches():
        yield batch
        advance(batch.num_rows)


def row_ids_of(batch: pa.RecordBatch) -> RowIds:
    """The row ids of a batch that was read with them."""
    return np.asarray(batch["_rowid"].to_numpy(zero_copy_only=False), np.uint64)


class _Counts:
    """The number of rows of every partition, and their lowest and highest row ids."""

    def __init__(self, num_partitions: int) -> None:
        self.rows_P = np.zeros(num_partitions, np.int64)
        self.lowest, self.highest = 2**64 - 1, -1

    def add(self, partitions_B: npt.NDArray[np.int32], row_ids_B: RowIds) -> None:
        """Count some rows."""
        if len(partitions_B) == 0:
            return
        # Others are reported when the codes of these rows are read.
        known_B = partitions_B[(partitions_B >= 0) & (partitions_B < len(self.rows_P))]
        self.rows_P += np.bincount(known_B, minlength=len(self.rows_P))
        self.lowest = min(self.lowest, int(row_ids_B.min()))
        self.highest = max(self.highest, int(row_ids_B.max()))


class _Loader:
    """Places rows of batches in the arrays of a segment."""

    def __init__(self, counts: _Counts, code_bytes: int, refine_bytes: int | None) -> None:
        self._starts_P = np.append(0, np.cumsum(counts.rows_P))
        self._next_P = self._starts_P[:-1].copy()
        rows = int(self._starts_P[-1])
        self._codes_NM = np.empty((rows, code_bytes), np.uint8)
        self._refine_NR = None if refine_bytes is None else np.empty((rows, refine_bytes), np.uint8)
        self._base = counts.lowest if counts.highest - counts.lowest < OFFSET_SPAN else None
        """Base of row ids that are placed as 4-byte offsets; None if they span too much."""
        self._ids_N: npt.NDArray[Any] = np.empty(rows, np.uint64 if self._base is None else np.uint32)

    def place(self, rows: CodeBatch) -> None:
        """Place some of the rows that were counted; each partition keeps them in the order of the calls."""
        codes, places_B = rows.codes, np.empty(len(rows), np.int64)
        _take_places(codes.partitions, self._next_P, places_B)
        _scatter(codes.codes, places_B, self._codes_NM)
        if self._refine_NR is not None and len(rows):
            assert codes.refine is not None, "all rows come with refine codes"
            _scatter(codes.refine, places_B, self._refine_NR)
        base = self._base
        self._ids_N[places_B] = rows.row_ids_N if base is None else rows.row_ids_N - np.uint64(base)

    def segment(self) -> Segment:
        """The segment of all rows that were placed, in the order of (partition, row id)."""
        for start, stop in zip(self._starts_P[:-1], self._next_P, strict=True):
            if not _is_ascending(self._ids_N, start, stop):  # rows moved in the table, which keep their ids
                self._sort(slice(start, stop))
        row_id_map = (
            RowIdMap.of(self._ids_N) if self._base is None else RowIdMap.from_offsets(self._base, self._ids_N)
        )
        segment = Segment(self._codes_NM, row_id_map, self._starts_P, self._refine_NR)
        placed = int((self._next_P - self._starts_P[:-1]).sum())
        if placed == len(segment):
            return segment
        # Rows with a partition and no code, which this package does not write, left places empty.
        runs = [np.arange(*run) for run in zip(self._starts_P[:-1], self._next_P, strict=True)]
        return segment.part(np.concatenate(runs))

    def _sort(self, rows: slice) -> None:
        order = np.argsort(self._ids_N[rows])
        for array in (self._ids_N, self._codes_NM, self._refine_NR):
            if array is not None:
                array[rows] = array[rows][order]


@compiled
def _take_places(partitions_B: Any, next_P: Any, places_B: Any) -> None:
    """Fill in the next free place of every row's partition."""
    for row in range(len(partitions_B)):
        places_B[row] = next_P[partitions_B[row]]
        next_P[partitions_B[row]] += 1


@compiled
def _scatter(rows_BM: Any, places_B: Any, rows_NM: Any) -> None:
    """Copy rows to their places."""
    for row in range(len(places_B)):
        for byte in range(rows_BM.shape[1]):
            rows_NM[places_B[row], byte] = rows_BM[row, byte]


@compiled
def _is_ascending(values_N: Any, start: int, stop: int) -> bool:
    """Whether the values from `start` to `stop` ascend."""
    row = start + 1
    while row < stop and values_N[row] > values_N[row - 1]:
        row += 1
    return row >= stop
