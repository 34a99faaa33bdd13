"""Scan by look-up tables: codes in, a shortlist of promising rows per query out.

A row's score is the sum of one table entry per step, an approximate distance. Rows are ordered by (score, row
id), a total order, so that a shortlist depends neither on how rows are divided into segments nor on the
number of threads nor on the device.

On a CPU, a compiled loop reads codes in place and keeps a few times the S best rows at most, so that nothing
is sorted and there is no array of scores. It releases the interpreter's lock: queries of several threads, and
the parts of one query, run in parallel. For GPUs, see `tensor_scan`.

Shape legend: Q queries, P partitions, N rows of a segment, B rows of a block, M code bytes, W words of eight
code bytes, K codewords, T table entries, S rows kept for a query, H rows of all queries, X rows in a buffer.
"""

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
from rqmoe_store.codecs.selection import nth_smallest
from rqmoe_store.search.lanes import (
    LANES,
    MAX_CODE_BYTES,
    bounds_of_sums,
    empty_lanes,
    fill_lanes,
    find_within,
    sum_lanes,
)
from rqmoe_store.search.row_ids import row_id_at
from rqmoe_store.search.segments import Mask, Segment, Selection
from rqmoe_store.search.shortlists import Shortlists, Side, sides_of

_ONE = np.float32(1)

_BLOCK = 2_048
"""Rows scored at a time: what is computed of them stays in the caches of the core."""

WORD = 8
"""Code bytes that are loaded, and whose entries are added, at a time."""
_BYTE = np.uint64(255)
_LAST_ROW_ID = np.uint64(2**64 - 1)

_LEAST_LANES = 8
"""Fewest queries that are scanned together; for fewer it would take longer."""

_MOST_KEPT = 2**20
"""Most rows that a task keeps, of all its queries, unless a single query needs more."""

_ROWS_PER_TASK = 2**18
"""Least rows of a part of a query; smaller parts would cost more in handing out work than they save."""


def scan(
    selections: Iterable[Selection],
    tables: Mapping[int, LookupTables],
    probed_QP: Mask,
    size: int,
    lower: float | None = None,
    device: str = "cpu",
) -> list[Shortlists]:
    """Scan for the shortlist of every query: the `size` rows of smallest approximate distance.

    With `lower`, there are two shortlists, of the `size` nearest rows beyond that distance and of the `size`
    farthest rows within it: scores are approximate, and exact distances decide later on which side a row is.

    Args:
        selections: rows to scan; read once, so that they may come from a stream.
        tables: first partition of a codec -> look-up tables of Q queries for it; at least one.
        probed_QP: bool (Q, P), the partitions that every query probes.
        size: rows kept per query, and with `lower` per side.
        lower: a distance in the codec's metric.
        device: device to scan on; segments are copied to a GPU once, as far as they fit.

    Returns:
        The shortlists of all queries, best first, for either side of `lower`, or for a single side without.
    """
    sides = sides_of(lower)
    (num_steps,) = {each.num_steps for each in tables.values()}
    best = [Shortlists.none(num_steps) for _ in sides]
    for selection in selections:
        for first, each in tables.items():
            partitions = slice(first, first + each.num_partitions)
            seen, probed = selection.of_partitions(partitions), probed_QP[:, partitions]
            for side, parts in enumerate(_parts(seen, each, probed, sides, size, device)):
                found = [part.shifted(first) for part in parts if len(part)]
                if found:
                    earlier = [best[side]] if len(best[side]) else []
                    best[side] = Shortlists.joined([*earlier, *found]).best(size)
    return best


def _parts(
    selection: Selection,
    tables: LookupTables,
    probed_QP: Mask,
    sides: list[Side],
    size: int,
    device: str,
) -> list[list[Shortlists]]:
    """For every side, rows of a selection that include the best ones."""
    if device != "cpu":
        from rqmoe_store.search import tensor_scan

        if tensor_scan.fits(selection.segment, device):
            return tensor_scan.nearest(device, selection, tables, probed_QP, sides, size)
    scan_one = functools.partial(_scan_task, selection, tables, probed_QP, size)
    tasks = list(_tasks(len(selection.segment), len(probed_QP), sides, size))
    found = run_parallel(functools.partial(scan_one, task) for task in tasks)
    return [[part for task, part in zip(tasks, found, strict=True) if task.side is side] for side in sides]


class _Task(NamedTuple):
    """Some queries, for which a thread scans a part of the rows."""

    queries: slice
    side: Side
    first_row: int
    last_row: int


def _tasks(rows: int, queries: int, sides: list[Side], size: int) -> Iterator[_Task]:
    """The tasks to run in parallel: of some queries each, or of parts of the rows if queries are fewer than
    threads."""
    threads = num_threads()
    parts = max(1, min(-(-threads // (queries * len(sides))), rows // _ROWS_PER_TASK))
    edges = [rows * part // parts for part in range(parts + 1)]
    # Queries that are scanned together share the work, as far as they leave some for every thread.
    step = max(1, min(LANES, max(-(-queries // threads), _LEAST_LANES), _MOST_KEPT // size))
    for start in range(0, queries, step):
        for side in sides:
            for low, high in itertools.pairwise(edges):
                yield _Task(slice(start, min(start + step, queries)), side, low, high)


def _scan_task(
    selection: Selection, tables: LookupTables, probed_QP: Mask, size: int, task: _Task
) -> Shortlists:
    segment, side, few = selection.segment, task.side, tables.select(task.queries)
    scores_QP, entries_QT = few.by_partition, few.by_codeword
    scores_QS, positions_QS, counts_Q = nearest_rows(
        segment.codes_NM,
        words_of(segment.codes_NM),
        segment.row_id_map.arrays,
        _EVERY_ROW if selection.allowed_N is None else selection.allowed_N,
        segment.starts_P,
        probed_QP[task.queries],
        task.first_row,
        task.last_row,
        scores_QP,
        entries_QT,
        norms_of(segment, tables),
        few.units.scores_of(side.low),
        few.units.scores_of(side.high),
        side.sign,
        min(size, len(segment)),
    )
    kept_QS = np.arange(scores_QS.shape[1]) < counts_Q[:, None]
    queries_H = np.repeat(np.arange(task.queries.start, task.queries.stop), counts_Q)
    return Shortlists(queries_H, scores_QS[kept_QS], segment.rows(positions_QS[kept_QS]))


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
    if code_bytes < WORD or rows == 0:
        return np.empty((rows, 0), np.uint64)
    if code_bytes % WORD == 0:
        return codes_NM.view(np.uint64)
    shape, strides = (rows, code_bytes // WORD), (code_bytes, WORD)
    return np.ndarray(shape, np.uint64, buffer=codes_NM, strides=strides)


@compiled
def nearest_rows(
    codes_NM: Any,
    codes_NW: Any,
    row_ids: Any,
    allowed_N: Any,
    starts_P: Any,
    probed_QP: Any,
    first_row: int,
    last_row: int,
    scores_QP: Any,
    entries_QT: Any,
    norms_N: Any,
    lows_Q: Any,
    highs_Q: Any,
    sign: Any,
    size: int,
) -> tuple[Any, Any, Any]:
    """For every query, the `size` rows with the smallest sign * score among rows with low <= score < high.

    Rows are scored block by block, for many queries at a time by bounds in `lanes`. Rows that may be among
    the best of a query gather in its buffer, of which all but the best are dropped when it is full. The worst
    of these bounds the rows that are gathered from then on.

    Args:
        codes_NM: uint8 (N, M), contiguous.
        codes_NW: uint64 (N, M // 8), the same bytes in words.
        row_ids: arrays of the segment's RowIdMap; row ids decide between equal scores.
        allowed_N: bool (N,), or empty if all rows may be found.
        starts_P: int64 (P + 1,), positions at which partitions start.
        probed_QP: bool (Q, P), the partitions whose rows a query may find.
        first_row: position of the first row to scan.
        last_row: position behind the last row to scan.
        scores_QP: float32 (Q, P), initial scores of the rows of a partition.
        entries_QT: float32 (Q, 256 M), what the codewords of each step add to scores.
        norms_N: uint16, squared lengths of the rows from starts_P[0] on, as in `norms`; or empty. If given,
            the score is 1 - sum / length.
        lows_Q: float32 (Q,), least scores.
        highs_Q: float32 (Q,), upper bounds of scores.
        sign: float32, 1 or -1.
        size: most rows to keep.

    Returns:
        Signed scores float32 (Q, S), positions int64 (Q, S) and number (Q,) of the rows kept, in no
        particular order.
    """
    queries, code_bytes, room = len(probed_QP), codes_NM.shape[1], 2 * size
    scores_QX = np.empty((queries, room + _BLOCK), np.float32)
    positions_QX = np.empty((queries, room + _BLOCK), np.int64)
    filled_Q, worst_Q = np.zeros(queries, np.int64), np.full(queries, np.inf, np.float32)
    limits = lows_Q, highs_Q, worst_Q, sign
    kept = scores_QX, positions_QX, filled_Q
    norms = _Norms(norms_N, starts_P[0], np.empty(_BLOCK if len(norms_N) else 0, np.int32))
    in_lanes = queries >= _LEAST_LANES and code_bytes <= MAX_CODE_BYTES
    lanes = empty_lanes(entries_QT.shape[1] if in_lanes else 0, _BLOCK)
    if in_lanes:
        in_lanes = fill_lanes(entries_QT, -sign if len(norms_N) else sign, lanes)
    for partition in range(len(starts_P) - 1):
        probing = np.flatnonzero(probed_QP[:, partition])
        if len(probing) == 0:
            continue
        begin, end = max(starts_P[partition], first_row), min(starts_P[partition + 1], last_row)
        for start in range(begin, end, _BLOCK):
            rows_B = np.arange(start, min(start + _BLOCK, end))
            block = codes_NM, codes_NW, rows_B, _squares(norms, start, len(rows_B))
            # Without a bound of the rows to keep, all rows would be scored twice.
            if in_lanes and len(probing) >= _LEAST_LANES and worst_Q[probing].max() < np.inf:
                _scan_together(
                    block, probing, scores_QP[:, partition], entries_QT, lanes, allowed_N, limits, kept
                )
            else:
                for query in probing:
                    _scan_for(
                        query, block, scores_QP[query, partition], entries_QT[query], allowed_N, limits, kept
                    )
            for query in probing:
                if filled_Q[query] >= room:
                    worst_Q[query] = _keep_best(query, kept, row_ids, size)
    for query in np.flatnonzero(filled_Q > size):
        _keep_best(query, kept, row_ids, size)
    return scores_QX[:, :size], positions_QX[:, :size], np.minimum(filled_Q, size)


class _Norms(NamedTuple):
    """The norms of all rows, and room for the squared lengths of a block."""

    norms_N: Norms
    first_row: int
    """The row that has the first norm."""
    bits_B: npt.NDArray[np.int32]


@compiled
def _squares(norms: Any, start: int, rows: int) -> Any:
    """The squared lengths of the rows of a block; empty without norms."""
    for row in range(min(len(norms.bits_B), rows)):
        bits = np.int32(norms.norms_N[start - norms.first_row + row]) << np.int32(DROPPED_BITS)
        norms.bits_B[row] = bits + np.int32(LEAST_BITS)
    return norms.bits_B[:rows].view(np.float32)


@compiled
def _scan_together(
    block: Any,
    probing: Any,
    scores_Q: Any,
    entries_QT: Any,
    lanes: Any,
    allowed_N: Any,
    limits: Any,
    kept: Any,
) -> None:
    """Find the rows of a block that each query may keep by bounds of all queries at once, and score these."""
    codes_NM, codes_NW, rows_B, squares_B = block
    _, _, worst_Q, sign = limits
    lengths_B = np.sqrt(squares_B) if len(squares_B) else np.ones(len(rows_B), np.float32)
    highest_L, slopes_L = bounds_of_sums(lanes, probing, scores_Q, worst_Q, sign, len(squares_B) > 0)
    sum_lanes(codes_NM, rows_B[0], rows_B[0] + len(rows_B), lanes.entries_TL, lanes.sums_BL)
    places_X = find_within(lanes.sums_BL, lengths_B, highest_L, slopes_L)
    for query in probing:
        highest, slope, places_Y = highest_L[query], slopes_L[query], np.empty(len(places_X), np.int64)
        found = 0
        for place in places_X:
            places_Y[found] = place
            found += np.float32(lanes.sums_BL[place, query]) <= highest + slope * lengths_B[place]
        if found:
            own_Y = places_Y[:found]
            squares_Y = squares_B[own_Y] if len(squares_B) else squares_B
            own = codes_NM, codes_NW, rows_B[own_Y], squares_Y
            _scan_for(query, own, scores_Q[query], entries_QT[query], allowed_N, limits, kept)


@compiled
def _scan_for(
    query: int, block: Any, initial: Any, entries_T: Any, allowed_N: Any, limits: Any, kept: Any
) -> None:
    """Score rows for one query, and keep those that may be among its best."""
    codes_NM, codes_NW, rows_B, squares_B = block
    lows_Q, highs_Q, worst_Q, sign = limits
    scores_QX, positions_QX, filled_Q = kept
    scores_B = _sums_of_words(codes_NW, rows_B, entries_T, initial)
    if WORD * codes_NW.shape[1] < codes_NM.shape[1]:
        _add_bytes(codes_NM, WORD * codes_NW.shape[1], rows_B, entries_T, scores_B)
    if len(squares_B):
        scores_B = _ONE - scores_B / np.sqrt(squares_B)
    low, high, worst, filled = lows_Q[query], highs_Q[query], worst_Q[query], filled_Q[query]
    for place in range(len(rows_B)):
        score, row = scores_B[place], rows_B[place]
        if not (score * sign <= worst and low <= score < high):  # passes over NaN
            continue
        if len(allowed_N) == 0 or allowed_N[row]:
            scores_QX[query, filled], positions_QX[query, filled] = score * sign, row
            filled += 1
    filled_Q[query] = filled


@compiled
def _sums_of_words(codes_NW: Any, rows_B: Any, entries_T: Any, initial: Any) -> Any:
    """The sums of entries for whole words of code bytes. A word is loaded at once, and its entries are added
    in pairs, so that no addition waits for all of those before it."""
    scores_B = np.empty(len(rows_B), np.float32)
    for place in range(len(rows_B)):
        score, row = initial, rows_B[place]
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
        scores_B[place] = score
    return scores_B


@compiled
def _add_bytes(codes_NM: Any, step: int, rows_B: Any, entries_T: Any, scores_B: Any) -> None:
    """Add the entries of the steps from `step` on."""
    for place in range(len(rows_B)):
        score, row = scores_B[place], rows_B[place]
        for later in range(step, codes_NM.shape[1]):
            score += entries_T[256 * later + codes_NM[row, later]]
        scores_B[place] = score


@compiled
def _keep_best(query: int, kept: Any, row_ids: Any, size: int) -> Any:
    """Keep the `size` best of the rows of a query, of which it has more; returns the worst score of these.

    Of rows with that score, those with the smallest row ids are kept.
    """
    scores_QX, positions_QX, filled_Q = kept
    scores_X, positions_X, filled = scores_QX[query], positions_QX[query], filled_Q[query]
    worst = nth_smallest(scores_X[:filled].copy(), size - 1)
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
        last = nth_smallest(ids, size - better - 1)
    left = 0
    for place in range(filled):
        if scores_X[place] < worst or (
            scores_X[place] == worst and row_id_at(row_ids, positions_X[place]) <= last
        ):
            scores_X[left], positions_X[left] = scores_X[place], positions_X[place]
            left += 1
    filled_Q[query] = size
    return worst
