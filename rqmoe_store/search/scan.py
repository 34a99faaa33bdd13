"""Scan by look-up tables, on CPU or GPU: codes in, a shortlist of promising rows per query out.

A row's score is the sum of one table entry per step, an approximate distance. Rows are ordered by (score, row
id), a total order, so that a shortlist depends neither on how rows are divided into segments nor on the
number of threads nor on the device.

On a CPU, a compiled loop reads codes in place and keeps a few times the S best rows at most, so that nothing
is sorted and there is no array of scores. It releases the interpreter's lock: queries of several threads, and
the parts of one query, run in parallel. `tensor_scan` does the same on a GPU.

Shape legend: Q queries, P partitions, N rows of a segment, R runs of rows, B rows of a block, C rows of a
chunk, M code bytes, W words of eight code bytes, K codewords, T table entries, S rows kept, X rows in a
buffer, G sides (ranges of scores).
"""

import dataclasses
import functools
import itertools
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rqmoe_store.codecs.additive import LookupTables
from rqmoe_store.codecs.norms import DROPPED_BITS, LEAST_BITS, Norms, sum_norms
from rqmoe_store.codecs.parallel import compiled, num_threads, run_parallel
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.config import MAX_CODEBOOK_SIZE
from rqmoe_store.search.row_ids import row_id_at
from rqmoe_store.search.segments import (
    Mask,
    Positions,
    Segment,
    Selection,
    Shortlist,
    Side,
    no_rows,
    sides_of,
)

_ONE = np.float32(1)

_BLOCK = 512
"""Rows scored at a time: their scores stay in the core's nearest cache."""

_WORD = 8
_BYTE = np.uint64(255)
_LAST_ROW_ID = np.uint64(2**64 - 1)

_ROWS_PER_TASK = 2**18
"""Least rows of a part of a query; smaller parts would cost more in handing out work than they save."""


def scan(
    selections: Iterable[Selection],
    tables: Mapping[int, LookupTables],
    probed_QP: Mask,
    size: int,
    lower: float | None = None,
    device: str = "cpu",
) -> list[Shortlist]:
    """Scan for the shortlist of every query: the `size` rows of smallest approximate distance.

    With `lower`, the shortlist has the `size` nearest rows beyond that distance and the `size` farthest rows
    within it: scores are approximate, and exact distances decide later on which side a row is.

    Args:
        selections: rows to scan; read once, so that they may come from a stream.
        tables: first partition of a codec -> look-up tables of Q queries for it; at least one.
        probed_QP: bool (Q, P), the partitions that every query probes.
        size: rows kept per query, and with `lower` per side.
        lower: a distance in the codec's metric.
        device: device to scan on; segments are copied to a GPU once, as far as they fit.

    Returns:
        One shortlist per query.
    """
    found = scan_sides(selections, tables, probed_QP, size, lower, device)
    return [functools.reduce(Shortlist.joined, parts) for parts in found]


def scan_sides(
    selections: Iterable[Selection],
    tables: Mapping[int, LookupTables],
    probed_QP: Mask,
    size: int,
    lower: float | None = None,
    device: str = "cpu",
) -> list[list[Shortlist]]:
    """Scan as `scan` does; returns a shortlist for either side of `lower`, or a single one without it."""
    sides = sides_of(lower)
    (num_steps,) = {each.num_steps for each in tables.values()}
    none = Shortlist(np.empty(0, np.float32), no_rows(num_steps))
    best = [[none for _ in sides] for _ in probed_QP]
    for selection in selections:
        for first, each in tables.items():
            partitions = slice(first, first + each.num_partitions)
            seen, probed = selection.of_partitions(partitions), probed_QP[:, partitions]
            for query, side, part in _parts(seen, each, probed, sides, size, device):
                best[query][side] = best[query][side].joined(part.shifted(first)).best(size)
    return best


def _parts(
    selection: Selection,
    tables: LookupTables,
    probed_QP: Mask,
    sides: list[Side],
    size: int,
    device: str,
) -> Iterator[tuple[int, int, Shortlist]]:
    """Yield queries, sides and rows of a selection that include the best ones."""
    if device != "cpu":
        from rqmoe_store.search import tensor_scan  # which loads torch

        if tensor_scan.fits(selection.segment, device):
            yield from tensor_scan.nearest_on(device, selection, tables, probed_QP, sides, size)
            return
    tasks = list(_tasks(selection, probed_QP, len(sides)))
    found = run_parallel(
        functools.partial(_scan_task, selection, tables, task, sides[task.side], size) for task in tasks
    )
    for task, part in zip(tasks, found, strict=True):
        yield task.query, task.side, part


@dataclasses.dataclass(frozen=True)
class _Runs:
    """Runs of consecutive rows, each within one partition."""

    starts_R: Positions
    stops_R: Positions
    partitions_R: Positions

    @property
    def rows(self) -> int:
        return int((self.stops_R - self.starts_R).sum())

    def cut(self, parts: int) -> "Iterator[_Runs]":
        """Divide the rows into parts of about equal size."""
        ends_R = np.cumsum(self.stops_R - self.starts_R)
        before_R = ends_R - (self.stops_R - self.starts_R)
        edges = [self.rows * part // parts for part in range(parts + 1)]
        for low, high in itertools.pairwise(edges):
            starts_R = self.starts_R + np.maximum(low - before_R, 0)
            stops_R = self.stops_R - np.maximum(ends_R - high, 0)
            some = starts_R < stops_R
            yield _Runs(starts_R[some], stops_R[some], self.partitions_R[some])


class _Task(NamedTuple):
    query: int
    side: int
    runs: _Runs


def _tasks(selection: Selection, probed_QP: Mask, num_sides: int) -> Iterator[_Task]:
    """The tasks to run in parallel: every query and side, in parts if there are more threads than these."""
    parts_wanted = -(-num_threads() // (len(probed_QP) * num_sides))
    for query, probed_P in enumerate(probed_QP):
        partitions_R = np.flatnonzero(probed_P)
        starts_P = selection.segment.starts_P
        runs = _Runs(starts_P[partitions_R], starts_P[partitions_R + 1], partitions_R)
        parts = min(parts_wanted, 1 + runs.rows // _ROWS_PER_TASK)
        for part in runs.cut(parts):
            for side in range(num_sides):
                yield _Task(query, side, part)


def _scan_task(selection: Selection, tables: LookupTables, task: _Task, side: Side, size: int) -> Shortlist:
    segment, runs = selection.segment, task.runs
    by_partition, by_step = tables.scores_of(task.query)
    scores_S, positions_S = nearest_rows(
        segment.codes_NM,
        words_of(segment.codes_NM),
        segment.row_id_map.arrays,
        _EVERY_ROW if selection.allowed_N is None else selection.allowed_N,
        runs.starts_R,
        runs.stops_R,
        by_partition[runs.partitions_R],
        _in_full_steps(by_step),
        norms_of(segment, tables),
        int(segment.starts_P[0]),
        tables.units.score_of(task.query, side.low),
        tables.units.score_of(task.query, side.high),
        side.sign,
        min(size, runs.rows),
    )
    return Shortlist(scores_S, segment.rows(positions_S))


_EVERY_ROW = np.empty(0, dtype=bool)
_NO_NORMS: Norms = np.empty(0, np.uint16)

_norms: "weakref.WeakKeyDictionary[Segment, Norms]" = weakref.WeakKeyDictionary()
"""Norms of all segments that were scanned under cosine. Codecs never change, so these stay right."""


def norms_of(segment: Segment, tables: LookupTables) -> Norms:
    """Norms of the rows of a segment that are in any of the tables' partitions; none unless under cosine."""
    if tables.metric != "cosine":
        return _NO_NORMS
    norms_N = _norms.get(segment)
    if norms_N is None:
        norms_N = _norms[segment] = sum_norms(*tables.norms, segment.starts_P, segment.codes_NM)
    return norms_N


def words_of(codes_NM: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """The code bytes of every row in words of eight, in the same memory; without the bytes that remain."""
    rows, code_bytes = codes_NM.shape
    if code_bytes < _WORD or rows == 0:
        return np.empty((rows, 0), np.uint64)
    if code_bytes % _WORD == 0:
        return codes_NM.view(np.uint64)
    shape, strides = (rows, code_bytes // _WORD), (code_bytes, _WORD)
    return np.ndarray(shape, np.uint64, buffer=codes_NM, strides=strides)


def _in_full_steps(scores_MK: Float32Array) -> Float32Array:
    """The entries of all steps one after the other, 256 of each step."""
    steps, codewords = scores_MK.shape
    if codewords == MAX_CODEBOOK_SIZE:
        return scores_MK.ravel()
    padded_MK = np.zeros((steps, MAX_CODEBOOK_SIZE), np.float32)
    padded_MK[:, :codewords] = scores_MK
    return padded_MK.ravel()


@compiled
def nearest_rows(
    codes_NM: Any,
    codes_NW: Any,
    row_ids: Any,
    allowed_N: Any,
    starts_R: Any,
    stops_R: Any,
    scores_R: Any,
    entries_T: Any,
    norms_N: Any,
    first_norm: int,
    low: Any,
    high: Any,
    sign: Any,
    size: int,
) -> tuple[Any, Any]:
    """The `size` rows with the smallest sign * score among rows with low <= score < high.

    Rows are scored block by block. Those that may be among the best gather in a buffer, of which all but the
    best are dropped when it is full; the worst of these bounds the rows that are gathered from then on.

    Args:
        codes_NM: uint8 (N, M), contiguous.
        codes_NW: uint64 (N, M // 8), the same bytes in words.
        row_ids: arrays of the segment's RowIdMap; row ids decide between equal scores.
        allowed_N: bool (N,), or empty if all rows may be found.
        starts_R: int64 (R,), first rows of runs within one partition.
        stops_R: int64 (R,), ends of the runs.
        scores_R: float32 (R,), initial score of the rows of a run.
        entries_T: float32 (256 M,), what the codewords of each step add to the score.
        norms_N: uint16, squared lengths of rows as in `norms`; or empty. If given, the score is
            1 - sum / length.
        first_norm: the row that has the first norm.
        low: float32, least score.
        high: float32, upper bound of scores.
        sign: float32, 1 or -1.
        size: most rows to keep, at least 1.

    Returns:
        Signed scores float32 and positions int64 of the rows, in no particular order.
    """
    room, filled = 4 * size, 0
    kept_scores, kept_positions = np.empty(room + _BLOCK, np.float32), np.empty(room + _BLOCK, np.int64)
    scores_B, bits_B = np.empty(_BLOCK, np.float32), np.empty(_BLOCK, np.int32)
    squares_B, worst = bits_B.view(np.float32), np.float32(np.inf)
    for run in range(starts_R.shape[0]):
        for start in range(starts_R[run], stops_R[run], _BLOCK):
            stop = min(start + _BLOCK, stops_R[run])
            _sum_words(codes_NW, start, stop, entries_T, scores_R[run], scores_B)
            if _WORD * codes_NW.shape[1] < codes_NM.shape[1]:
                _add_bytes(codes_NM, _WORD * codes_NW.shape[1], start, stop, entries_T, scores_B)
            if norms_N.shape[0]:
                _divide_by_lengths(norms_N, start - first_norm, stop - start, bits_B, squares_B, scores_B)
            for row in range(start, stop):
                score = scores_B[row - start]
                if not (score * sign <= worst and low <= score < high):  # passes over NaN
                    continue
                if allowed_N.shape[0] == 0 or allowed_N[row]:
                    kept_scores[filled], kept_positions[filled] = score * sign, row
                    filled += 1
            if filled >= room:
                worst = _keep_best(kept_scores, kept_positions, row_ids, filled, size)
                filled = size
    if filled > size:
        _keep_best(kept_scores, kept_positions, row_ids, filled, size)
        filled = size
    return kept_scores[:filled].copy(), kept_positions[:filled].copy()


@compiled
def _sum_words(codes_NW: Any, start: int, stop: int, entries_T: Any, initial: Any, scores_B: Any) -> None:
    """Fill in the sums of entries for whole words of code bytes. A word is loaded at once, and its entries
    are added in pairs, so that no addition waits for all of those before it."""
    for row in range(start, stop):
        score = initial
        for word in range(codes_NW.shape[1]):
            value, table = codes_NW[row, word], np.uint64(2048 * word)
            first = (
                entries_T[table + (value & _BYTE)]
                + entries_T[table + np.uint64(256) + ((value >> np.uint64(8)) & _BYTE)]
            )
            second = (
                entries_T[table + np.uint64(512) + ((value >> np.uint64(16)) & _BYTE)]
                + entries_T[table + np.uint64(768) + ((value >> np.uint64(24)) & _BYTE)]
            )
            third = (
                entries_T[table + np.uint64(1024) + ((value >> np.uint64(32)) & _BYTE)]
                + entries_T[table + np.uint64(1280) + ((value >> np.uint64(40)) & _BYTE)]
            )
            fourth = (
                entries_T[table + np.uint64(1536) + ((value >> np.uint64(48)) & _BYTE)]
                + entries_T[table + np.uint64(1792) + (value >> np.uint64(56))]
            )
            score += (first + second) + (third + fourth)
        scores_B[row - start] = score


@compiled
def _add_bytes(codes_NM: Any, step: int, start: int, stop: int, entries_T: Any, scores_B: Any) -> None:
    """Add the entries of the steps from `step` on."""
    for row in range(start, stop):
        score = scores_B[row - start]
        for later in range(step, codes_NM.shape[1]):
            score += entries_T[256 * later + codes_NM[row, later]]
        scores_B[row - start] = score


@compiled
def _divide_by_lengths(
    norms_N: Any, first: int, rows: int, bits_B: Any, squares_B: Any, scores_B: Any
) -> None:
    """Make cosine distances of inner products. `bits_B` and `squares_B` are the same memory."""
    for row in range(rows):
        bits_B[row] = (np.int32(norms_N[first + row]) << np.int32(DROPPED_BITS)) + np.int32(LEAST_BITS)
    for row in range(rows):
        scores_B[row] = _ONE - scores_B[row] / np.sqrt(squares_B[row])


@compiled
def _keep_best(scores_X: Any, positions_X: Any, row_ids: Any, filled: int, size: int) -> Any:
    """Move the `size` best of the first `filled` rows to the front; returns the worst score of these.

    Of rows with that score, those with the smallest row ids are kept.
    """
    worst = np.partition(scores_X[:filled], size - 1)[size - 1]
    better = equal = 0
    for place in range(filled):
        better += scores_X[place] < worst
        equal += scores_X[place] == worst
    last = _LAST_ROW_ID
    if better + equal > size:
        ids, found = np.empty(equal, np.uint64), 0
        for place in range(filled):
            if scores_X[place] == worst:
                ids[found] = row_id_at(row_ids, positions_X[place])
                found += 1
        last = np.partition(ids, size - better - 1)[size - better - 1]
    kept = 0
    for place in range(filled):
        if scores_X[place] < worst or (
            scores_X[place] == worst and row_id_at(row_ids, positions_X[place]) <= last
        ):
            scores_X[kept], positions_X[kept] = scores_X[place], positions_X[place]
            kept += 1
    return worst
