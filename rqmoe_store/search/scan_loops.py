"""Compiled loops of the scan: score rows block by block, for each query alone or for many together.

Rows that may be among the best of a query gather in its buffer, of which all but the best are dropped when it
is full. The worst of these bounds the rows that are gathered from then on.

Shape legend: Q queries, P partitions, N rows of a segment, B rows of a block, M code bytes, W words of eight
code bytes, T = 256 M table entries, X rows in a buffer or entries of several tables.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rqmoe_store.codecs.norms import DROPPED_BITS, LEAST_BITS, Norms
from rqmoe_store.codecs.parallel import compiled
from rqmoe_store.codecs.selection import nth_smallest
from rqmoe_store.codecs.vectors import Float32Array
from rqmoe_store.search.lanes import bounds_of_sums, find_within, lowest_bit
from rqmoe_store.search.row_ids import Positions, RowIdArrays, row_id_at
from rqmoe_store.search.segments import Mask

BLOCK = 2_048
"""Rows scored at a time: what is computed of them stays in the caches of the core."""

WORD = 8
"""Code bytes that are loaded, and whose entries are added, at a time."""

_ROWS_ALONE = 3
"""Rows scored for each query alone before those of all queries are bounded together, times the rows to keep:
with fewer, bounds are loose; with more, little is left to bound."""

_ONE = np.float32(1)
_BYTE = np.uint64(255)
_LAST_ROW_ID = np.uint64(2**64 - 1)


class Rows(NamedTuple):
    """Rows to scan."""

    codes_NM: npt.NDArray[np.uint8]
    """Codes, contiguous."""
    codes_NW: npt.NDArray[np.uint64]
    """The same bytes in words, M // 8 of each row."""
    row_ids: RowIdArrays
    """They decide between equal scores."""
    allowed_N: Mask
    """Rows that may be found; empty for all."""
    starts_P: Positions
    """P + 1 positions at which partitions start."""
    norms_N: Norms
    """Squared lengths, as in `norms`, of the rows from starts_P[0] on; or empty. With norms, a score is
    1 - sum / length."""
    first_row: int
    """Position of the first row to scan."""
    last_row: int
    """Position behind the last row to scan."""


class Scored(NamedTuple):
    """How queries score rows, and which scores they look for: low <= score < high, by sign * score."""

    probed_QP: Mask
    """The partitions whose rows a query may find."""
    scores_QP: Float32Array
    """Initial scores of the rows of a partition."""
    entries_QT: Float32Array
    """What the codewords of each step add to scores."""
    lows_Q: Float32Array
    highs_Q: Float32Array
    sign: np.float32
    """1 or -1."""


class Kept(NamedTuple):
    """The rows that queries keep, in no particular order: filled_Q of each."""

    scores_QX: Float32Array
    """Signed scores; a buffer has room for a block more than twice the rows to keep."""
    positions_QX: Positions
    filled_Q: Positions
    worst_Q: Float32Array
    """Largest signed score to keep; infinite as long as every row is kept."""


@compiled
def scan_each(rows: Any, scored: Any, kept: Any, size: int) -> None:
    """Keep the `size` best rows of every query, one query after the other."""
    for query in range(len(scored.probed_QP)):
        for partition in _nearest_first(query, rows, scored):
            _scan_partition(query, partition, rows, scored, kept, size)
        _keep_best(query, kept, rows.row_ids, size, size + 1)


@compiled
def scan_together(rows: Any, scored: Any, lanes: Any, least: int, kept: Any, size: int) -> None:
    """Keep the `size` best rows of every query, by bounds of all queries at once where at least `least` of
    them probe a partition. Each query scans its most promising partitions alone before, so that its best rows
    bound those of the others."""
    queries = len(scored.probed_QP)
    left_QP = scored.probed_QP.copy()
    for query in range(queries):
        _scan_nearest(query, rows, scored, left_QP, kept, size)
    rows_B, bits_B, probing_Q = (
        np.empty(BLOCK, np.int64),
        np.empty(BLOCK, np.int32),
        np.empty(queries, np.int64),
    )
    for partition in range(len(rows.starts_P) - 1):
        probing = 0
        for query in range(queries):
            probing_Q[probing] = query
            probing += left_QP[query, partition]
        begin = max(rows.starts_P[partition], rows.first_row)
        end = min(rows.starts_P[partition + 1], rows.last_row) if probing else begin
        for start in range(begin, end, BLOCK):
            count = _fill_block(rows, start, end, rows_B, bits_B)
            squares_B = bits_B.view(np.float32)
            # Without a bound of the rows to keep, all rows would be scored twice.
            bounded = lanes.is_finite and probing >= least
            for query in probing_Q[:probing]:
                bounded = bounded and kept.worst_Q[query] < np.inf
            if bounded:
                _scan_bounded(
                    partition, probing_Q[:probing], rows, rows_B, squares_B, count, scored, lanes, kept
                )
            else:
                for query in probing_Q[:probing]:
                    _scan_rows(query, partition, rows, rows_B, squares_B, count, scored, kept)
            for query in probing_Q[:probing]:
                if kept.filled_Q[query] >= 2 * size:  # calls take time, too
                    _keep_best(query, kept, rows.row_ids, size, 2 * size)
    for query in range(queries):
        _keep_best(query, kept, rows.row_ids, size, size + 1)


@compiled
def _nearest_first(query: int, rows: Any, scored: Any) -> Any:
    """The partitions that a query probes, the most promising ones by their initial scores first: the sooner
    good rows are found, the fewer others are gathered before them."""
    partitions = np.flatnonzero(scored.probed_QP[query])
    # With norms, a score falls as the sum grows.
    sign = -scored.sign if len(rows.norms_N) else scored.sign
    return partitions[np.argsort(scored.scores_QP[query][partitions] * sign)]


@compiled
def _scan_nearest(query: int, rows: Any, scored: Any, left_QP: Any, kept: Any, size: int) -> None:
    """Scan the most promising of the partitions left for a query until its best rows bound what others must
    score, and strike them off. Large partitions are left to the scan of all queries."""
    seen = 0
    for partition in _nearest_first(query, rows, scored):
        if rows.starts_P[partition + 1] - rows.starts_P[partition] > BLOCK:
            return
        if seen >= _ROWS_ALONE * size:
            _keep_best(query, kept, rows.row_ids, size, size + 1)
            if kept.worst_Q[query] < np.inf:
                return
        seen += _scan_partition(query, partition, rows, scored, kept, size)
        left_QP[query, partition] = False


@compiled
def _scan_partition(query: int, partition: int, rows: Any, scored: Any, kept: Any, size: int) -> int:
    """Score the rows of a partition for one query, and keep its best; returns how many rows it has."""
    rows_B, bits_B = np.empty(BLOCK, np.int64), np.empty(BLOCK, np.int32)
    begin = max(rows.starts_P[partition], rows.first_row)
    end = min(rows.starts_P[partition + 1], rows.last_row)
    for start in range(begin, end, BLOCK):
        count = _fill_block(rows, start, end, rows_B, bits_B)
        _scan_rows(query, partition, rows, rows_B, bits_B.view(np.float32), count, scored, kept)
        _keep_best(query, kept, rows.row_ids, size, 2 * size)
    return int(max(end - begin, 0))


@compiled
def copy_kept(kept: Any, starts_Q: Any, scores_H: Any, positions_H: Any) -> None:
    """Fill in what the queries keep, query after query."""
    for query in range(len(starts_Q) - 1):
        filled = kept.filled_Q[query]
        scores_H[starts_Q[query] : starts_Q[query + 1]] = kept.scores_QX[query, :filled]
        positions_H[starts_Q[query] : starts_Q[query + 1]] = kept.positions_QX[query, :filled]


@compiled
def _fill_block(rows: Any, start: int, end: int, rows_B: Any, bits_B: Any) -> int:
    """Fill in the positions of the rows of a block, and the bits of their squared lengths; returns how many
    rows it has."""
    count = min(BLOCK, end - start)
    for place in range(count):
        rows_B[place] = start + place
    if len(rows.norms_N):
        first = start - rows.starts_P[0]
        for place in range(count):
            bits = np.int32(rows.norms_N[first + place]) << np.int32(DROPPED_BITS)
            bits_B[place] = bits + np.int32(LEAST_BITS)
    return count


@compiled
def _scan_bounded(
    partition: int,
    probing_Q: Any,
    rows: Any,
    rows_B: Any,
    squares_B: Any,
    count: int,
    scored: Any,
    lanes: Any,
    kept: Any,
) -> None:
    """Find the rows of a block that each query may keep by bounds of all queries at once, and score these,
    as `_scan_rows` does."""
    by_length, lengths_B = len(rows.norms_N) > 0, np.ones(count, np.float32)
    if by_length:
        for place in range(count):
            lengths_B[place] = np.sqrt(squares_B[place])
    highest_L, slopes_L = bounds_of_sums(
        lanes, probing_Q, scored.scores_QP, partition, kept.worst_Q, scored.sign, by_length
    )
    places_B, lanes_B = np.empty(count, np.int64), np.empty(count, np.uint32)
    some = find_within(
        rows.codes_NM, rows_B[0], lanes.entries_TL, lengths_B, highest_L, slopes_L, places_B, lanes_B
    )
    if some == 0:
        return
    # One row after the other: a query has too few of a block for a loop of its own to be worth its start.
    codes_NW, codes_NM, sign = rows.codes_NW, rows.codes_NM, scored.sign
    entries_X, width = scored.entries_QT.reshape(-1), scored.entries_QT.shape[1]
    words, steps = codes_NW.shape[1], codes_NM.shape[1]
    for index in range(some):
        place, bits = places_B[index], lanes_B[index]
        row = rows_B[place]
        if len(rows.allowed_N) and not rows.allowed_N[row]:
            continue
        while bits:
            query = lowest_bit(bits)
            bits &= bits - np.uint32(1)
            score, own = scored.scores_QP[query, partition], width * query
            for word in range(words):
                score += _entries_of_word(codes_NW[row, word], np.uint64(own + 2048 * word), entries_X)
            for step in range(WORD * words, steps):
                score += entries_X[own + 256 * step + codes_NM[row, step]]
            if by_length:
                score = _ONE - score / lengths_B[place]
            if score * sign <= kept.worst_Q[query] and scored.lows_Q[query] <= score < scored.highs_Q[query]:
                filled = kept.filled_Q[query]
                kept.scores_QX[query, filled], kept.positions_QX[query, filled] = score * sign, row
                kept.filled_Q[query] = filled + 1


@compiled
def _scan_rows(
    query: int, partition: int, rows: Any, rows_B: Any, squares_B: Any, count: int, scored: Any, kept: Any
) -> None:
    """Score some rows of a partition for one query, and keep those that may be among its best."""
    entries_T, scores_B = scored.entries_QT[query], np.empty(count, np.float32)
    _sum_words(rows.codes_NW, rows_B, entries_T, scored.scores_QP[query, partition], scores_B)
    if WORD * rows.codes_NW.shape[1] < rows.codes_NM.shape[1]:
        _add_bytes(rows.codes_NM, WORD * rows.codes_NW.shape[1], rows_B, entries_T, scores_B)
    if len(rows.norms_N):
        for place in range(count):
            scores_B[place] = _ONE - scores_B[place] / np.sqrt(squares_B[place])
    low, high, sign = scored.lows_Q[query], scored.highs_Q[query], scored.sign
    scores_X, positions_X = kept.scores_QX[query], kept.positions_QX[query]
    worst, filled = kept.worst_Q[query], kept.filled_Q[query]
    for place in range(count):
        score, row = scores_B[place], rows_B[place]
        if not (score * sign <= worst and low <= score < high):  # passes over NaN
            continue
        if len(rows.allowed_N) == 0 or rows.allowed_N[row]:
            scores_X[filled], positions_X[filled] = score * sign, row
            filled += 1
    kept.filled_Q[query] = filled


@compiled
def _sum_words(codes_NW: Any, rows_B: Any, entries_T: Any, initial: Any, scores_B: Any) -> None:
    """Fill in the sums of entries for whole words of code bytes."""
    for place in range(len(scores_B)):
        score, row = initial, rows_B[place]
        for word in range(codes_NW.shape[1]):
            score += _entries_of_word(codes_NW[row, word], np.uint64(2048 * word), entries_T)
        scores_B[place] = score


@compiled
def _entries_of_word(value: Any, table: Any, entries_X: Any) -> Any:
    """The sum of the entries for a word of code bytes, of tables that begin at `table`. A word is loaded at
    once, and its entries are added in pairs, so that no addition waits for all of those before it."""
    first = (
        entries_X[table + (value & _BYTE)]
        + entries_X[table + np.uint64(256) + ((value >> np.uint64(8)) & _BYTE)]
    )
    second = (
        entries_X[table + np.uint64(512) + ((value >> np.uint64(16)) & _BYTE)]
        + entries_X[table + np.uint64(768) + ((value >> np.uint64(24)) & _BYTE)]
    )
    third = (
        entries_X[table + np.uint64(1024) + ((value >> np.uint64(32)) & _BYTE)]
        + entries_X[table + np.uint64(1280) + ((value >> np.uint64(40)) & _BYTE)]
    )
    fourth = (
        entries_X[table + np.uint64(1536) + ((value >> np.uint64(48)) & _BYTE)]
        + entries_X[table + np.uint64(1792) + (value >> np.uint64(56))]
    )
    return (first + second) + (third + fourth)


@compiled
def _add_bytes(codes_NM: Any, step: int, rows_B: Any, entries_T: Any, scores_B: Any) -> None:
    """Add the entries of the steps from `step` on."""
    for place in range(len(scores_B)):
        score, row = scores_B[place], rows_B[place]
        for later in range(step, codes_NM.shape[1]):
            score += entries_T[256 * later + codes_NM[row, later]]
        scores_B[place] = score


@compiled
def _keep_best(query: int, kept: Any, row_ids: Any, size: int, least: int) -> None:
    """Drop all but the `size` best rows of a query if it has at least `least`.

    Of rows with the worst score among these, those with the smallest row ids are kept.
    """
    scores_X, positions_X, filled = kept.scores_QX[query], kept.positions_QX[query], kept.filled_Q[query]
    if filled < least or filled <= size:
        return
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
    kept.filled_Q[query], kept.worst_Q[query] = size, worst
