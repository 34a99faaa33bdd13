"""Compiled loops of the scan: score rows block by block, for each query alone or for many together.

Rows that may be among the best of a query gather in its buffer, of which all but the best are dropped when it
is full. The worst of these bounds the rows that are gathered from then on.

Shape legend: Q queries, P partitions, N rows of a segment, B rows of a block, M code bytes, W words of eight
code bytes, T = 256 M table entries, X rows in a buffer or entries of several tables, F rows found, L lanes.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rqmoe_store.codecs.norms import DROPPED_BITS, LEAST_BITS, Norms
from rqmoe_store.codecs.parallel import compiled
from rqmoe_store.codecs.selection import nth_smallest, nth_smallest_id
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
    entries_QX: Float32Array
    """Rows that end with what the codewords of each step add to scores."""
    first_entry: int
    """Where that begins."""
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
    room = _new_room()
    for query in range(len(scored.probed_QP)):
        for partition in _nearest_first(query, rows, scored):
            _scan_partition(query, partition, rows, scored, kept, size, room)
        _keep_best(query, kept, rows.row_ids, size, size + 1)


@compiled
def scan_together(rows: Any, scored: Any, lanes: Any, least: int, kept: Any, size: int) -> None:
    """Keep the `size` best rows of every query, by bounds of all queries at once where at least `least` of
    them probe a partition. Each query scans its most promising partitions alone before, so that its best rows
    bound those of the others."""
    queries, room = len(scored.probed_QP), _new_room()
    left_QP, probing_Q = scored.probed_QP.copy(), np.empty(queries, np.int64)
    for query in range(queries):
        _scan_nearest(query, rows, scored, left_QP, kept, size, room)
    for partition in range(len(rows.starts_P) - 1):
        probing = 0
        for query in range(queries):
            probing_Q[probing] = query
            probing += left_QP[query, partition]
        begin = max(rows.starts_P[partition], rows.first_row)
        end = min(rows.starts_P[partition + 1], rows.last_row) if probing else begin
        for start in range(begin, end, BLOCK):
            count = min(BLOCK, end - start)
            # Without a bound of the rows to keep, all rows would be scored twice.
            bounded = lanes.is_finite and probing >= least
            for query in probing_Q[:probing]:
                bounded = bounded and kept.worst_Q[query] < np.inf
            if bounded:
                _scan_bounded(partition, probing_Q[:probing], rows, start, count, scored, lanes, kept, room)
            else:
                for query in probing_Q[:probing]:
                    _scan_rows(query, partition, rows, start, count, scored, kept, room)
            for query in probing_Q[:probing]:
                if kept.filled_Q[query] >= 2 * size:  # calls take time, too
                    _keep_best(query, kept, rows.row_ids, size, 2 * size)
    for query in range(queries):
        _keep_best(query, kept, rows.row_ids, size, size + 1)


@compiled
def _new_room() -> Any:
    """Room for what is computed of the rows of a block: lengths, 1 without norms, and scores; places and
    lanes of those that queries may keep."""
    lengths_B, scores_B = np.ones(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    return lengths_B, scores_B, np.empty(BLOCK, np.int64), np.empty(BLOCK, np.uint32)


@compiled
def _nearest_first(query: int, rows: Any, scored: Any) -> Any:
    """The partitions that a query probes, the most promising ones by their initial scores first: the sooner
    good rows are found, the fewer others are gathered before them."""
    partitions = np.flatnonzero(scored.probed_QP[query])
    return partitions[np.argsort(scored.scores_QP[query][partitions] * _initial_sign(rows, scored))]


@compiled
def _initial_sign(rows: Any, scored: Any) -> Any:
    """1 if partitions of smaller initial scores are more promising, else -1."""
    # With norms, a score falls as the sum grows.
    return -scored.sign if len(rows.norms_N) else scored.sign


@compiled
def _nearest_left(left_P: Any, scores_P: Any, sign: Any) -> int:
    """The most promising of the partitions left, of which a query scans few alone; -1 if there are none."""
    nearest = -1
    for partition in range(len(left_P)):
        if left_P[partition] and (nearest < 0 or scores_P[partition] * sign < scores_P[nearest] * sign):
            nearest = partition
    return nearest


@compiled
def _scan_nearest(query: int, rows: Any, scored: Any, left_QP: Any, kept: Any, size: int, room: Any) -> None:
    """Scan the most promising of the partitions left for a query until its best rows bound what others must
    score, and strike them off. Large partitions are left to the scan of all queries."""
    seen = 0
    while True:
        partition = _nearest_left(left_QP[query], scored.scores_QP[query], _initial_sign(rows, scored))
        if partition < 0:
            return
        if rows.starts_P[partition + 1] - rows.starts_P[partition] > BLOCK:
            return
        if seen >= _ROWS_ALONE * size:
            _keep_best(query, kept, rows.row_ids, size, size + 1)
            if kept.worst_Q[query] < np.inf:
                return
        seen += _scan_partition(query, partition, rows, scored, kept, size, room)
        left_QP[query, partition] = False


@compiled
def _scan_partition(
    query: int, partition: int, rows: Any, scored: Any, kept: Any, size: int, room: Any
) -> int:
    """Score the rows of a partition for one query, and keep its best; returns how many rows it has."""
    begin = max(rows.starts_P[partition], rows.first_row)
    end = min(rows.starts_P[partition + 1], rows.last_row)
    for start in range(begin, end, BLOCK):
        _scan_rows(query, partition, rows, start, min(BLOCK, end - start), scored, kept, room)
        _keep_best(query, kept, rows.row_ids, size, 2 * size)
    return int(max(end - begin, 0))


@compiled
def copy_kept(
    kept: Any, first_query: int, starts_Q: Any, queries_H: Any, scores_H: Any, positions_H: Any
) -> int:
    """Fill in what the queries keep, query after query, the numbers of the queries, and where each of them
    starts; returns the number of rows."""
    end = starts_Q[0] = 0
    for query in range(len(kept.filled_Q)):
        for place in range(kept.filled_Q[query]):
            queries_H[end] = first_query + query
            scores_H[end] = kept.scores_QX[query, place]
            positions_H[end] = kept.positions_QX[query, place]
            end += 1
        starts_Q[query + 1] = end
    return end


@compiled
def _fill_lengths(rows: Any, start: int, lengths_B: Any) -> None:
    """Fill in the lengths of the rows of a block, from `start` on; leave them as they are without norms."""
    if len(rows.norms_N):
        norms_B = rows.norms_N[start - rows.starts_P[0] :]
        bits_B = lengths_B.view(np.int32)
        for place in range(len(lengths_B)):
            bits = np.int32(norms_B[place]) << np.int32(DROPPED_BITS)
            bits_B[place] = bits + np.int32(LEAST_BITS)
        for place in range(len(lengths_B)):
            lengths_B[place] = np.sqrt(lengths_B[place])


@compiled
def _scan_bounded(
    partition: int,
    probing_Q: Any,
    rows: Any,
    start: int,
    count: int,
    scored: Any,
    lanes: Any,
    kept: Any,
    room: Any,
) -> None:
    """Find the rows of a block that each query may keep by bounds of all queries at once, and score these,
    as `_scan_rows` does."""
    room_B, _, places_B, lanes_B = room
    lengths_B, by_length = room_B[:count], len(rows.norms_N) > 0
    _fill_lengths(rows, start, lengths_B)
    highest_L, slopes_L = bounds_of_sums(
        lanes, probing_Q, scored.scores_QP, partition, kept.worst_Q, scored.sign, by_length
    )
    entries_TL = lanes.entries_TL
    found = find_within(rows.codes_NM, start, entries_TL, lengths_B, highest_L, slopes_L, places_B, lanes_B)
    if found:
        _score_found(partition, rows, start, lengths_B, places_B[:found], lanes_B[:found], scored, kept)


@compiled
def _score_found(
    partition: int,
    rows: Any,
    start: int,
    lengths_B: Any,
    places_F: Any,
    lanes_F: Any,
    scored: Any,
    kept: Any,
) -> None:
    """Score some rows of a block, each for the queries that may keep it."""
    # One row after the other: a query has too few of a block for a loop of its own to be worth its start.
    codes_NW, codes_NM, allowed_N, sign = rows.codes_NW, rows.codes_NM, rows.allowed_N, scored.sign
    entries_X, (_, width) = scored.entries_QX.reshape(-1), scored.entries_QX.shape
    words, steps, by_length = codes_NW.shape[1], codes_NM.shape[1], len(rows.norms_N) > 0
    scores_QX, positions_QX, filled_Q, worst_Q = kept
    for index in range(len(places_F)):
        place, bits = places_F[index], lanes_F[index]
        row = start + place
        if len(allowed_N) and not allowed_N[row]:
            continue
        while bits:
            query = lowest_bit(bits)
            bits &= bits - np.uint32(1)
            score, own = scored.scores_QP[query, partition], width * query + scored.first_entry
            for word in range(words):
                score += _entries_of_word(codes_NW[row, word], np.uint64(own + 2048 * word), entries_X)
            for step in range(WORD * words, steps):
                score += entries_X[own + 256 * step + codes_NM[row, step]]
            if by_length:
                score = _ONE - score / lengths_B[place]
            if score * sign <= worst_Q[query] and scored.lows_Q[query] <= score < scored.highs_Q[query]:
                filled = filled_Q[query]
                scores_QX[query, filled], positions_QX[query, filled] = score * sign, row
                filled_Q[query] = filled + 1


@compiled
def _scan_rows(
    query: int, partition: int, rows: Any, start: int, count: int, scored: Any, kept: Any, room: Any
) -> None:
    """Score the rows of a block, from `start` on, for one query; keep those that may be among its best."""
    entries_T, words = scored.entries_QX[query][scored.first_entry :], rows.codes_NW.shape[1]
    lengths_B, scores_B = room[0][:count], room[1]
    _fill_lengths(rows, start, lengths_B)
    _sum_words(rows.codes_NW, start, entries_T, scored.scores_QP[query, partition], scores_B[:count])
    if WORD * words < rows.codes_NM.shape[1]:
        _add_bytes(rows.codes_NM, WORD * words, start, entries_T, scores_B[:count])
    if len(rows.norms_N):
        for place in range(count):
            scores_B[place] = _ONE - scores_B[place] / lengths_B[place]
    low, high, sign = scored.lows_Q[query], scored.highs_Q[query], scored.sign
    scores_X, positions_X, allowed_N = kept.scores_QX[query], kept.positions_QX[query], rows.allowed_N
    worst, filled = kept.worst_Q[query], kept.filled_Q[query]
    for place in range(count):
        score, row = scores_B[place], start + place
        if not (score * sign <= worst and low <= score < high):  # passes over NaN
            continue
        if len(allowed_N) == 0 or allowed_N[row]:
            scores_X[filled], positions_X[filled] = score * sign, row
            filled += 1
    kept.filled_Q[query] = filled


@compiled
def _sum_words(codes_NW: Any, start: int, entries_T: Any, initial: Any, scores_B: Any) -> None:
    """Fill in the sums of entries for whole words of code bytes of the rows from `start` on."""
    for place in range(len(scores_B)):
        score, row = initial, start + place
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
def _add_bytes(codes_NM: Any, step: int, start: int, entries_T: Any, scores_B: Any) -> None:
    """Add the entries of the steps from `step` on, for the rows from `start` on."""
    for place in range(len(scores_B)):
        score, row = scores_B[place], start + place
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
    worst = nth_smallest(scores_X[:filled], size - 1)
    within = 0
    for place in range(filled):
        within += scores_X[place] <= worst
    last = _LAST_ROW_ID if within == size else _last_of_equal(query, kept, row_ids, worst, within - size)
    left = 0
    for place in range(filled):
        score, position = scores_X[place], positions_X[place]
        # Written in any case, as which rows stay is hard to predict.
        scores_X[left], positions_X[left] = score, position
        if within == size or score != worst:
            left += score <= worst
        else:
            left += row_id_at(row_ids, position) <= last
    kept.filled_Q[query], kept.worst_Q[query] = size, worst


@compiled
def _last_of_equal(query: int, kept: Any, row_ids: Any, worst: Any, surplus: int) -> Any:
    """The largest row id to keep of the rows with the worst score, all but `surplus` of which are kept."""
    scores_X, positions_X = kept.scores_QX[query], kept.positions_QX[query]
    ids_X, found = np.empty(kept.filled_Q[query], np.uint64), 0
    for place in range(kept.filled_Q[query]):
        if scores_X[place] == worst:
            ids_X[found] = row_id_at(row_ids, positions_X[place])
            found += 1
    return nth_smallest_id(ids_X[:found], found - surplus - 1)
