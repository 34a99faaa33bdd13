"""Selection: the n-th smallest value of an array, for compiled loops.

numba has `np.partition`, which takes ten seconds to compile.

Shape legend: X values.
"""

from typing import Any

from rqmoe_store.codecs.parallel import compiled


@compiled
def nth_smallest(values_X: Any, rank: int) -> Any:
    """The value that has `rank` others before it in sorted order. Reorders the values, none of them NaN.

    This is Hoare's selection around the median of three values.
    """
    low, high = 0, len(values_X) - 1
    while low < high:
        first, middle, last = values_X[low], values_X[(low + high) // 2], values_X[high]
        pivot = max(min(first, middle), min(max(first, middle), last))
        left, right = low, high
        while left <= right:
            while values_X[left] < pivot:
                left += 1
            while pivot < values_X[right]:
                right -= 1
            if left <= right:
                values_X[left], values_X[right] = values_X[right], values_X[left]
                left += 1
                right -= 1
        if rank <= right:
            high = right
        elif rank >= left:
            low = left
        else:
            break
    return values_X[rank]
