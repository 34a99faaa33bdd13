"""Squared lengths of codes in 16 bits, so that a scan under cosine sums one table.

A squared length is a sum of table entries, as a score is. Summed once when codes are loaded, it takes two
bytes beside each code: the bits of a float32 number between its sign and its last twelve bits, five for the
power of two (2 ** -24 to 2 ** 7) and eleven for the rest. A length is off by less than one part in 8,000, far
less than it is off from that of the vector. Squares beyond these powers get the nearest one within them.
Under cosine, vectors have length 1.

Shape legend: N rows, M code bytes, K codewords, P partitions.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from rqmoe_store.codecs.parallel import compiled, run_chunks_parallel
from rqmoe_store.codecs.vectors import Float32Array

Norms = npt.NDArray[np.uint16]

DROPPED_BITS = 12
LEAST_BITS = (127 - 24) << 23
"""The bits of 2 ** -24 as a float32 number."""

_LEAST, _LARGEST = np.float32(2.0**-24), np.float32(2.0**8)
_ROWS_PER_TASK = 2**18


def sum_norms(
    norms_P: Float32Array,
    norms_MK: Float32Array,
    starts_P: npt.NDArray[np.int64],
    codes_NM: npt.NDArray[np.uint8],
) -> Norms:
    """Norms of the rows of consecutive partitions.

    Args:
        norms_P: float32, what each of the P partitions adds to the squared length.
        norms_MK: float32, what each codeword adds to the squared length.
        starts_P: P + 1 positions; partition p has the rows starts_P[p] : starts_P[p + 1].
        codes_NM: uint8 codes, contiguous.

    Returns:
        uint16, for the rows starts_P[0] : starts_P[P].
    """
    first, last = int(starts_P[0]), int(starts_P[-1])
    squares_N, norms_N = np.empty(last - first, np.float32), np.empty(last - first, np.uint16)

    def sum_chunk(start: int, stop: int, _: int) -> None:
        rows = slice(start, stop)
        _sum_squares(norms_P, norms_MK, starts_P, codes_NM, first + start, squares_N[rows])
        _round_squares(squares_N[rows].view(np.int32), norms_N[rows])

    run_chunks_parallel(last - first, _ROWS_PER_TASK, sum_chunk)
    return norms_N


def squares_of(norms_N: Norms) -> Float32Array:
    """The squared lengths that norms stand for."""
    return ((norms_N.astype(np.int32) << DROPPED_BITS) + LEAST_BITS).view(np.float32)


@compiled
def _sum_squares(
    norms_P: Any, norms_MK: Any, starts_P: Any, codes_NM: Any, first: int, squares_N: Any
) -> None:
    partition = np.searchsorted(starts_P, first, side="right") - 1
    for place in range(len(squares_N)):
        row = first + place
        while row >= starts_P[partition + 1]:
            partition += 1
        square = norms_P[partition]
        for step in range(codes_NM.shape[1]):
            square += norms_MK[step, codes_NM[row, step]]
        squares_N[place] = min(max(square, _LEAST), _LARGEST)


@compiled
def _round_squares(bits_N: Any, norms_N: Any) -> None:
    """Fill in norms, given the bits of squares within the limits."""
    half = 1 << (DROPPED_BITS - 1)
    for row in range(len(norms_N)):
        norms_N[row] = min((bits_N[row] - LEAST_BITS + half) >> DROPPED_BITS, 65_535)
