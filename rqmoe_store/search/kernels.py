"""The compiled inner loop of the scan: look up, add, keep the best.

Shape suffixes: N rows, M code bytes, K codewords, R runs of rows,
S rows kept.

The loop reads code bytes where they lie and keeps the S best rows in a heap, so nothing is ever sorted
and no array of scores exists. It releases the interpreter's lock: queries of several threads, and the
parts of one, run side by side.
"""

from typing import Any

import numpy as np

from rqmoe_store.codecs.additive import SMALLEST_SQUARE
from rqmoe_store.codecs.compiled import compiled

_ONE = np.float32(1)


@compiled
def _after(scores_S: Any, positions_S: Any, row_ids_N: Any, first: int, second: int) -> bool:
    """Whether heap entry `first` comes after entry `second` in the order of (score, row id)."""
    if scores_S[first] != scores_S[second]:
        return bool(scores_S[first] > scores_S[second])
    return bool(row_ids_N[positions_S[first]] > row_ids_N[positions_S[second]])


@compiled
def _swap(scores_S: Any, positions_S: Any, first: int, second: int) -> None:
    scores_S[first], scores_S[second] = scores_S[second], scores_S[first]
    positions_S[first], positions_S[second] = positions_S[second], positions_S[first]


@compiled
def _rise(scores_S: Any, positions_S: Any, row_ids_N: Any, entry: int) -> None:
    while entry > 0:
        parent = (entry - 1) >> 1
        if not _after(scores_S, positions_S, row_ids_N, entry, parent):
            break
        _swap(scores_S, positions_S, entry, parent)
        entry = parent


@compiled
def _sink(scores_S: Any, positions_S: Any, row_ids_N: Any, filled: int) -> None:
    entry = 0
    while True:
        child = 2 * entry + 1
        if child >= filled:
            break
        if child + 1 < filled and _after(scores_S, positions_S, row_ids_N, child + 1, child):
            child += 1
        if not _after(scores_S, positions_S, row_ids_N, child, entry):
            break
        _swap(scores_S, positions_S, child, entry)
        entry = child


@compiled
def nearest_rows(
    codes_NM: Any,
    row_ids_N: Any,
    allowed_N: Any,
    starts_R: Any,
    stops_R: Any,
    scores_R: Any,
    scores_MK: Any,
    norms_R: Any,
    norms_MK: Any,
    low: Any,
    high: Any,
    sign: Any,
    size: int,
) -> tuple[Any, Any]:
    """The `size` rows with the smallest sign * score among rows with low <= score < high.

    Args:
        codes_NM: uint8 (N, M), contiguous.
        row_ids_N: uint64 (N,); they decide between equal scores.
        allowed_N: bool (N,), or empty when all rows may be found.
        starts_R, stops_R: int64 (R,), runs of rows of one partition each.
        scores_R: float32 (R,), what every score of a run begins with.
        scores_MK: float32 (M, K), what a codeword adds to it.
        norms_R, norms_MK: the same for squared lengths, or both empty; given, the score is
            1 - sum / sqrt(sum of norms).
        low, high: float32.
        sign: float32, 1 or -1.
        size: rows kept at most.

    Returns:
        Signed scores float32 and positions int64 of the rows, in no particular order.
    """
    kept_scores, kept_positions, filled = np.empty(size, np.float32), np.empty(size, np.int64), 0
    num_steps, by_length = codes_NM.shape[1], norms_MK.shape[0] > 0
    for run in range(starts_R.shape[0]):
        for row in range(starts_R[run], stops_R[run]):
            if allowed_N.shape[0] and not allowed_N[row]:
                continue
            score = scores_R[run]
            if by_length:
                square = norms_R[run]
                for step in range(num_steps):
                    code = codes_NM[row, step]
                    score += scores_MK[step, code]
                    square += norms_MK[step, code]
                score = _ONE - score / np.sqrt(max(square, SMALLEST_SQUARE))
            else:
                for step in range(num_steps):
                    score += scores_MK[step, codes_NM[row, step]]
            if not (low <= score < high):  # also passes over NaN
                continue
            score *= sign
            if filled < size:
                kept_scores[filled], kept_positions[filled] = score, row
                _rise(kept_scores, kept_positions, row_ids_N, filled)
                filled += 1
            elif score < kept_scores[0] or (
                score == kept_scores[0] and row_ids_N[row] < row_ids_N[kept_positions[0]]
            ):
                kept_scores[0], kept_positions[0] = score, row
                _sink(kept_scores, kept_positions, row_ids_N, filled)
    return kept_scores[:filled], kept_positions[:filled]
