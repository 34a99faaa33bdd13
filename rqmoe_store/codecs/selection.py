"""Selection and order: the n-th smallest value, and rows by (value, id), in compiled loops.

numba has `np.partition`, which takes ten seconds to compile. `order_rows` orders the rows of all queries at
once.

The n-th smallest of float32 numbers is found by bisection: as integers, bits of floats are in their order,
and counting those up to a bound takes no branches, so that compilers vectorize it. A dozen counts take a
fourth of the time of a selection that moves values around a pivot.

Shape legend: X values, Q queries, H rows of all queries, S rows of one query, K stages of a ranking, C rows.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from rqmoe_store.codecs.parallel import compiled
from rqmoe_store.codecs.vectors import Float32Array

Int64Array = npt.NDArray[np.int64]

EVERY_ROW = np.iinfo(np.int64).max
"""As many rows as there are."""

_MAGNITUDE, _LEAST_KEY = np.int32(2**31 - 1), np.int32(-(2**31))


@compiled
def nth_smallest(values_X: Any, rank: int) -> Any:
    """The float32 value that has `rank` others before it in sorted order; none of the values is NaN."""
    bits_X, keys_X = values_X.view(np.int32), np.empty(len(values_X), np.int32)
    for place in range(len(bits_X)):
        keys_X[place] = _key_of(bits_X[place])
    low = high = np.int64(keys_X[0])
    for place in range(len(keys_X)):
        low, high = min(low, np.int64(keys_X[place])), max(high, np.int64(keys_X[place]))
    while low < high:
        middle = np.int32((low + high) >> 1)
        within = 0
        for place in range(len(keys_X)):
            within += keys_X[place] <= middle
        if within == rank + 1:
            low = high = _largest_within(keys_X, middle)
        elif within > rank:
            high = np.int64(middle)
        else:
            low = np.int64(middle) + 1
    keys_X[0] = _key_of(np.int32(low))
    return keys_X.view(np.float32)[0]


@compiled
def _key_of(bits: Any) -> Any:
    """A key in the order of floats for their bits as int32 numbers, or these for a key: of negative numbers,
    all bits but the sign are inverted."""
    return bits ^ ((bits >> np.int32(31)) & _MAGNITUDE)


@compiled
def _largest_within(keys_X: Any, bound: Any) -> Any:
    largest = _LEAST_KEY
    for place in range(len(keys_X)):
        largest = max(largest, keys_X[place] if keys_X[place] <= bound else _LEAST_KEY)
    return np.int64(largest)


@compiled
def nth_smallest_id(ids_X: Any, rank: int) -> Any:
    """The id that has `rank` others before it in sorted order. Reorders the ids.

    This is Hoare's selection around the median of three values.
    """
    low, high = 0, len(ids_X) - 1
    while low < high:
        first, middle, last = ids_X[low], ids_X[(low + high) // 2], ids_X[high]
        pivot = max(min(first, middle), min(max(first, middle), last))
        left, right = low, high
        while left <= right:
            while ids_X[left] < pivot:
                left += 1
            while pivot < ids_X[right]:
                right -= 1
            if left <= right:
                ids_X[left], ids_X[right] = ids_X[right], ids_X[left]
                left += 1
                right -= 1
        if rank <= right:
            high = right
        elif rank >= left:
            low = left
        else:
            break
    return ids_X[rank]


def order_rows(
    starts_Q: Int64Array,
    values_H: Float32Array,
    ids_H: npt.NDArray[np.uint64],
    stages_H: Int64Array | None = None,
    most: int = EVERY_ROW,
) -> tuple[Int64Array, Int64Array]:
    """The rows of every query by (value, id), without those whose value is NaN.

    Args:
        starts_Q: Q + 1 positions; the rows of query q are the run starts_Q[q] : starts_Q[q + 1].
        values_H: float32 values.
        ids_H: uint64 ids, distinct among the rows of a query.
        stages_H: the stages of rows; None if all have the same.
        most: how many rows of the first stage, of the first two stages, and so on, matter. Others may be
            left out.

    Returns:
        Positions of rows (at most H), query after query, and Q + 1 positions in these at which queries start.
    """
    order_H, ends_Q = np.empty(len(values_H), np.int64), np.zeros(len(starts_Q), np.int64)
    stages_H = np.empty(0, np.int64) if stages_H is None else stages_H
    _order_rows(starts_Q, values_H, ids_H, stages_H, most, order_H, ends_Q)
    return order_H[: ends_Q[-1]], ends_Q


@compiled
def _order_rows(
    starts_Q: Any, values_H: Any, ids_H: Any, stages_H: Any, most: int, order_H: Any, ends_Q: Any
) -> None:
    """Fill in the order, and the positions at which the rows of queries start and end in it."""
    longest = 0
    for query in range(len(starts_Q) - 1):
        longest = max(longest, starts_Q[query + 1] - starts_Q[query])
    rows_S, spare_S = np.empty(longest, np.int64), np.empty(longest, np.int64)
    bounds_K = np.empty(1 + (stages_H.max() if len(stages_H) else 0), np.float32)
    for query in range(len(starts_Q) - 1):
        first, last = starts_Q[query], starts_Q[query + 1]
        for stage in range(len(bounds_K)):
            bounds_K[stage] = _bound(first, last, values_H, stages_H, stage, most)
        found = 0
        for row in range(first, last):
            begin, is_near = stages_H[row] if len(stages_H) else 0, False
            for stage in range(begin, len(bounds_K)):
                is_near = is_near or values_H[row] <= bounds_K[stage]  # never if the value is NaN
            rows_S[found] = row
            found += is_near
        _sort(rows_S[:found], spare_S, values_H, ids_H)
        end = ends_Q[query] + found
        order_H[ends_Q[query] : end] = rows_S[:found]
        ends_Q[query + 1] = end


@compiled
def _bound(first: int, last: int, values_H: Any, stages_H: Any, stage: int, most: int) -> Any:
    """The largest of the `most` smallest values of rows up to a stage; infinite if there are no more."""
    if last - first <= most:
        return np.float32(np.inf)
    values_S, found = np.empty(last - first, np.float32), 0
    for row in range(first, last):
        if not np.isnan(values_H[row]) and (len(stages_H) == 0 or stages_H[row] <= stage):
            values_S[found] = values_H[row]
            found += 1
    return nth_smallest(values_S[:found], most - 1) if found > most else np.float32(np.inf)


@compiled
def _sort(rows_S: Any, spare_S: Any, values_H: Any, ids_H: Any) -> None:
    """Sort rows by (value, id): runs of rows are merged in pairs, until one is left."""
    width = 1
    while width < len(rows_S):
        for low in range(0, len(rows_S), 2 * width):
            middle, high = min(low + width, len(rows_S)), min(low + 2 * width, len(rows_S))
            left, right = low, middle
            for place in range(low, high):
                if right == high or (
                    left < middle and not _precedes(rows_S[right], rows_S[left], values_H, ids_H)
                ):
                    spare_S[place] = rows_S[left]
                    left += 1
                else:
                    spare_S[place] = rows_S[right]
                    right += 1
        rows_S[:] = spare_S[: len(rows_S)]
        width *= 2


@compiled
def _precedes(row: int, other: int, values_H: Any, ids_H: Any) -> bool:
    value, other_value = values_H[row], values_H[other]
    return bool(value < other_value or (value == other_value and ids_H[row] < ids_H[other]))


def smallest(values_QX: Float32Array, count: int) -> Int64Array:
    """Columns (Q, C) of the `count` smallest values of every row, in order, equal ones by column."""
    queries, columns = values_QX.shape
    starts_Q = np.arange(queries + 1) * columns
    ids_H = np.tile(np.arange(columns, dtype=np.uint64), queries)
    order_H, found_Q = order_rows(starts_Q, values_QX.ravel(), ids_H, most=count)
    return np.asarray(order_H[found_Q[:-1, None] + np.arange(count)] - starts_Q[:-1, None])


@compiled
def mark_smallest(values_QX: Any, count: int, smallest_QX: Any) -> None:
    """Fill in whether a value is one of the `count` smallest of its row, of equal ones by column: the columns
    of `smallest`, without the time that ordering them takes. None of the values is NaN."""
    for query in range(len(values_QX)):
        values_X = values_QX[query]
        worst, left = nth_smallest(values_X, count - 1), count
        for column in range(len(values_X)):
            left -= values_X[column] < worst
        for column in range(len(values_X)):
            is_last = left > 0 and values_X[column] == worst
            left -= is_last
            smallest_QX[query, column] = is_last or values_X[column] < worst
